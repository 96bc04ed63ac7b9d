"""Gradient reversal, and an adversary that recognizes augmentation."""

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.nnet.heads import mlp


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient is reversed and scaled by a weight.

    Y. Ganin and V. Lempitsky, ICML 2015 (https://arxiv.org/abs/1409.7495).
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.weight * gradient, None


class AugmentationAdversary(torch.nn.Module):
    """Tells whether two segments have the same augmentation.

    Augmentation-adversarial training: the discriminator learns to recognize the
    augmentation in pairs of embeddings, and the encoder, whose gradient is
    reversed and multiplied by ``weight``, to hide it. J. Huh et al.,
    "Augmentation adversarial training for self-supervised speaker recognition",
    2020 (https://arxiv.org/abs/2007.12085).
    """

    @checked(emb_dim=whole(1), weight=number(0), hidden=whole(1))
    def __init__(
        self,
        emb_dim: int,
        weight: float = 3.0,
        hidden: int = 512,
        norm: type[torch.nn.Module] = torch.nn.BatchNorm1d,
    ):
        super().__init__()
        self.weight = weight
        width = 2 * emb_dim
        self.discriminator = torch.nn.Sequential(
            torch.nn.Identity() if norm is None else norm(width),
            torch.nn.ReLU(),
            mlp([width, hidden, 2], torch.nn.ReLU, norm),
        )

    def forward(
        self, anchor: torch.Tensor, same: torch.Tensor, other: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the discriminator, with the encoder as its adversary.

        ``anchor`` are embeddings of segments, ``same`` those of other segments
        with the same augmentation, ``other`` those of the same other segments
        with an augmentation of their own [batch, emb_dim]. Gives the mean
        cross-entropy of the pairs, whose gradient for the embeddings is
        reversed and multiplied by ``weight``, and the share of the pairs that
        are recognized; 0.5 by chance.
        """
        pairs = [torch.cat([anchor, x], dim=1) for x in (same, other)]
        pairs = _Reversal.apply(torch.cat(pairs), self.weight)
        label = torch.ones(len(pairs), dtype=torch.long, device=pairs.device)
        label[len(anchor) :] = 0
        logits = self.discriminator(pairs)
        found = logits.detach().argmax(1) == label
        return F.cross_entropy(logits, label), found.float().mean()
