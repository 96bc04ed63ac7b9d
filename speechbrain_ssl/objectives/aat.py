"""Contrastive learning with augmentation-adversarial training: LGL's stage I.

R. Tao et al., "Self-supervised speaker recognition with loss-gated learning",
ICASSP 2022 (https://arxiv.org/abs/2110.03869); J. Huh et al., "Augmentation
adversarial training for self-supervised speaker recognition", 2020
(https://arxiv.org/abs/2007.12085).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number, schedule, whole
from speechbrain_ssl.nnet.adversary import AugmentationAdversary
from speechbrain_ssl.nnet.branch import BranchOutput, check_views
from speechbrain_ssl.nnet.contrast import contrast
from speechbrain_ssl.nnet.precision import full_precision


class AAT(torch.nn.Module):
    """Two segments of an utterance find one another, and hide augmentation.

    The similarity of two segments is ``scale * cosine + bias``; both numbers
    are learned. It needs three views, as the view sampler makes them with
    ``global_crops: 2`` and ``same_augmentation: True``: two segments, each with
    its own augmentation, and the second segment with that of the first one.

    Arguments
    ---------
    emb_dim : int
        Width of the embeddings, which the adversary sees.
    weight : float
        Weight of the adversary's gradient for the encoder; 0: no adversary.
    scale, bias : float
        First values.
    hidden : int
        Width of the adversary's hidden layer.
    norm : type
        Its normalization class, or None.

    Example
    -------
    >>> crops = torch.randn(3, 8, 16)
    >>> loss, stats = AAT(emb_dim=16)(BranchOutput(crops, crops), None, 0.0)
    >>> loss.shape, len(stats)
    (torch.Size([]), 6)
    """

    stats_help = {
        "accuracy": (
            "Share of the segments that are nearer to the other segment of "
            "their utterance than to those of all others."
        ),
        "positive_cosine": "Mean cosine of the two segments of an utterance.",
        "negative_cosine": (
            "Mean cosine of segments of different utterances; near 1 on "
            "collapse."
        ),
        "augmentation_found": (
            "Share of the pairs of segments of which the adversary knows "
            "whether they have the same augmentation; 0.5 by chance."
        ),
        "adversary_loss": (
            "Cross-entropy of the adversary in nats; 0.69 by chance."
        ),
        "scale": "Learned factor of the cosines.",
    }

    @checked(
        emb_dim=whole(1),
        weight=schedule(number(0)),
        scale=number(above=0),
        hidden=whole(1),
    )
    def __init__(
        self,
        emb_dim: int,
        weight: float = 3.0,
        scale: float = 10.0,
        bias: float = -5.0,
        hidden: int = 512,
        norm: type[torch.nn.Module] = torch.nn.BatchNorm1d,
    ):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))
        self.bias = torch.nn.Parameter(torch.tensor(float(bias)))
        self.adversary = AugmentationAdversary(emb_dim, weight, hidden, norm)

    def forward(
        self, student: BranchOutput, teacher: None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch of three views, plus the adversary's."""
        if len(student.projection) != 3:
            raise ValueError(
                f"AAT needs three views, got {len(student.projection)}: set "
                "global_crops to 2, local_crops to 0 and same_augmentation to "
                "True in the view sampler"
            )
        check_views(self, student, utterances=2)
        # without the view that is the adversary's alone
        point = F.normalize(full_precision(student.projection[:2]), dim=-1)
        scale = self.scale.clamp(min=1e-6)
        # scaled before what is no negative becomes minus infinity, whose
        # product would give the scale a gradient that is not finite
        scaled = contrast(scale * point, point)
        positive = torch.stack([scaled.positive[0, 1], scaled.positive[1, 0]])
        # no softmax changes with the bias, which the public code has as well
        spread = (scaled.negative + self.bias).logsumexp(-1)
        contrastive = F.softplus(spread - (positive + self.bias)).mean()
        anchor, other, same = full_precision(student.embedding)
        adversary, found = self.adversary(anchor, same, other)
        with torch.no_grad():
            stats = {
                "accuracy": (positive > scaled.negative.amax(-1))
                .float()
                .mean(),
                "positive_cosine": positive.mean() / scale,
                "negative_cosine": scaled.mean_negative() / scale,
                "augmentation_found": found,
                "adversary_loss": adversary.detach(),
                "scale": self.scale.detach().clone(),
            }
        return contrastive + adversary, stats
