"""DINO: self-distillation with no labels.

M. Caron et al., "Emerging properties in self-supervised vision transformers",
ICCV 2021 (https://arxiv.org/abs/2104.14294). Consistency of embeddings: B.
Han, Z. Chen and Y. Qian, "Self-supervised learning with cluster-aware-DINO for
high-performance robust speaker verification", 2023
(https://arxiv.org/abs/2304.05754). Sinkhorn targets and KoLeo: M. Oquab et
al., "DINOv2", 2023 (https://arxiv.org/abs/2304.07193).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, schedule, whole
from speechbrain_ssl.nnet.assignment import prototypes_used, sinkhorn
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.regularizers import consistency, koleo
from speechbrain_ssl.nnet.schedules import at

# entropy of the targets, as a share of its maximum, and their distance to the
# predictions in nats, beyond which a warning is due
UNIFORM, PEAKED, FOLLOWED = 0.98, 0.05, 0.01


class DINO(torch.nn.Module):
    """Cross-entropy from the teacher's prototype distribution to the student's.

    The projections are cosines to prototypes (``nnet.heads.Prototypes``), which
    the teacher copies with the rest of the head.

    Arguments
    ---------
    prototypes : int
        Width of the projections.
    student_temperature : float
        Temperature of the student's softmax.
    teacher_temperature : float or callable
        Temperature of the teacher's softmax, or a schedule of it.
    center_momentum : float
        Share of the old center kept by each batch.
    sinkhorn_iterations : int
        If positive, targets use all prototypes equally within each batch, and
        there is no center.
    consistency_weight : float
        Weight of 1 - cosine between embeddings of student and teacher.
    koleo_weight : float
        Weight of the regularizer that spreads the student's embeddings.

    Example
    -------
    >>> crops = torch.randn(6, 8, 32)  # 6 views of 8 utterances
    >>> student, teacher = BranchOutput(crops, crops), BranchOutput(crops[:2], crops[:2])
    >>> loss, stats = DINO(prototypes=32)(student, teacher, 0.0)
    >>> loss.shape, sorted(stats)
    (torch.Size([]), ['kl', 'prototypes_used', 'teacher_entropy'])
    """

    center: torch.Tensor

    stats_help = {
        "teacher_entropy": (
            "Mean entropy of the targets in nats; on collapse the logarithm of "
            "the number of prototypes, or 0."
        ),
        "kl": (
            "Mean divergence of the predictions from the targets in nats; 0 "
            "with a constant teacher_entropy is collapse."
        ),
        "prototypes_used": (
            "Effective number of prototypes that the targets use; 1 on "
            "collapse."
        ),
    }

    @checked(
        prototypes=whole(1),
        student_temperature=number(above=0),
        teacher_temperature=schedule(number(above=0)),
        center_momentum=number(0, 1),
        sinkhorn_iterations=whole(0),
        consistency_weight=number(0),
        koleo_weight=number(0),
    )
    def __init__(
        self,
        prototypes: int,
        student_temperature: float = 0.1,
        teacher_temperature: float | Callable[[float], float] = 0.04,
        center_momentum: float = 0.9,
        sinkhorn_iterations: int = 0,
        consistency_weight: float = 0.0,
        koleo_weight: float = 0.0,
    ):
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.center_momentum = center_momentum
        self.sinkhorn_iterations = sinkhorn_iterations
        self.consistency_weight = consistency_weight
        self.koleo_weight = koleo_weight
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(
        self, student: BranchOutput, teacher: BranchOutput, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views.
        """
        s, t = different_views(student, teacher)
        check_views(self, teacher, len(self.center))
        logits = full_precision(teacher.projection.detach())
        target = self._target(logits, at(self.teacher_temperature, epoch))
        cross = self._cross_entropy(student.projection, target)[s, t].mean()
        loss = cross
        if self.consistency_weight:
            apart = consistency(student.embedding[s], teacher.embedding[t])
            loss = loss + self.consistency_weight * apart
        if self.koleo_weight:
            embedding = full_precision(student.embedding)
            spread = torch.stack([koleo(x) for x in embedding])
            loss = loss + self.koleo_weight * spread.mean()

        entropy = torch.special.entr(target).sum(-1).mean(1)[t].mean()
        return loss, {
            "teacher_entropy": entropy,
            "kl": cross.detach() - entropy,
            "prototypes_used": prototypes_used(target),
        }

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """Warns of collapse."""
        share = stats["teacher_entropy"] / math.log(len(self.center))
        if share > UNIFORM:
            return [
                "Collapse: the teacher finds all prototypes alike (entropy "
                f"{100 * share:.1f} % of its maximum). Lower "
                "teacher_temperature, or look at the center."
            ]
        if stats["prototypes_used"] < 2 or (
            share < PEAKED and stats["kl"] < FOLLOWED
        ):
            return [
                "Collapse: the teacher uses "
                f"{stats['prototypes_used']:.1f} prototypes for all "
                "utterances. Raise teacher_temperature, lower "
                "center_momentum, or set sinkhorn_iterations to 3."
            ]
        return []

    def _target(self, logits, temperature):
        """The teacher's distributions [views, batch, K]."""
        if self.sinkhorn_iterations:
            rows = (logits / temperature).flatten(0, 1)
            return sinkhorn(rows, self.sinkhorn_iterations).view_as(logits)
        return F.softmax((logits - self.center) / temperature, dim=-1)

    def _cross_entropy(self, projection, target):
        """Cross-entropies of views of student and teacher [s, t]."""
        # logsumexp(x) - <target, x> instead of log_softmax, which would hold
        # another copy of what may be 65,536 logits for each view
        scaled = full_precision(projection) / self.student_temperature
        # [s, t, batch]: one sum over batch and prototypes would lose digits
        chosen = torch.einsum("sbk,tbk->stb", scaled, target).mean(-1)
        return scaled.logsumexp(-1).mean(1, keepdim=True) - chosen

    @torch.no_grad()
    def commit(self, student: BranchOutput, teacher: BranchOutput) -> None:
        """Moves the center towards the mean of a batch."""
        if self.sinkhorn_iterations:
            return
        logits = full_precision(teacher.projection)
        batch_center = distributed.mean(logits.mean(dim=(0, 1)))
        self.center.lerp_(batch_center, 1.0 - self.center_momentum)
