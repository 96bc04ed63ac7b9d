"""Cosines of views to their own utterances and to all others."""

import math
from typing import NamedTuple

import torch

from speechbrain_ssl import distributed


class Cosines(NamedTuple):
    """Cosines of anchors, views of the utterances of this process."""

    # to the other views of their own utterances [anchors, others, batch]
    positive: torch.Tensor
    # to the other views of the utterances of all processes; minus infinity for
    # their own [anchors, batch, others * utterances]
    negative: torch.Tensor

    @torch.no_grad()
    def mean_negative(self) -> torch.Tensor:
        """Mean cosine to other utterances; 0 if there are none."""
        own = self.negative.isneginf()
        count = own.numel() - self.positive.numel()
        return self.negative.masked_fill(own, 0.0).sum() / max(count, 1)


def contrast(anchors: torch.Tensor, others: torch.Tensor) -> Cosines:
    """Compares views of a batch with those of all processes.

    ``anchors`` are unit projections of this process [anchors, batch, dim],
    ``others`` those of the same utterances, or the same tensor [others, batch,
    dim].

    Example
    -------
    >>> found = contrast(torch.eye(2)[None], torch.eye(2)[None])
    >>> found.positive.tolist(), found.negative.tolist()
    ([[[1.0, 1.0]]], [[[-inf, 0.0], [0.0, -inf]]])
    """
    batch = anchors.shape[1]
    # [processes, others, batch, dim] to the order of the anchors
    everyone = distributed.gather_with_gradient(others[None])
    everyone = everyone.transpose(0, 1).flatten(1, 2)
    cosine = torch.einsum("abd,vnd->abvn", anchors, everyone)
    row = torch.arange(batch, device=cosine.device)
    mine = distributed.rank() * batch + row
    utterances = torch.arange(everyone.shape[1], device=cosine.device)
    same = (mine[:, None] == utterances)[None, :, None]
    return Cosines(
        cosine[:, row, :, mine].permute(1, 2, 0),
        cosine.masked_fill(same, -math.inf).flatten(2),
    )
