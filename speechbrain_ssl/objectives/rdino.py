"""RDINO: DINO with variance and covariance regularization.

Y. Chen et al., "Pushing the limits of self-supervised speaker verification
using regularized distillation framework", ICASSP 2023
(https://arxiv.org/abs/2211.04168).
"""

from collections.abc import Callable
from typing import Any

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, schedule, whole
from speechbrain_ssl.nnet.branch import BranchOutput, check_views
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.regularizers import (
    covariance,
    squared_off_diagonal,
    variance_hinge,
)
from speechbrain_ssl.nnet.schedules import at


class RDINO(torch.nn.Module):
    """DINO plus variance and covariance terms of the head's wide layer.

    The head is a wide ``nnet.heads.PrototypeHead``, whose output is the wide
    layer followed by DINO's logits.

    Arguments
    ---------
    dino : DINO
        The objective to which the terms are added.
    width : int
        Width of the wide layer.
    weight : float or callable
        Weight of the regularization, or a schedule of it.
    variance_weight : float
        Weight of the hinge on standard deviations within it.
    covariance_weight : float
        Weight of the squared covariances, over the width, within it. The
        published code divides by its 65,536 prototypes instead of its width of
        8,192, which is an eighth.

    Example
    -------
    >>> from speechbrain_ssl.objectives.dino import DINO
    >>> crops = torch.randn(3, 8, 16 + 32)
    >>> student = BranchOutput(crops, crops)
    >>> teacher = BranchOutput(crops[:2], crops[:2])
    >>> objective = RDINO(DINO(prototypes=32), width=16)
    >>> loss, stats = objective(student, teacher, 0.0)
    >>> "covariance" in stats, "teacher_entropy" in stats
    (True, True)
    """

    dino: Any  # a module with the attributes of DINO

    @checked(
        width=whole(1),
        weight=schedule(number(0)),
        variance_weight=number(0),
        covariance_weight=number(0),
    )
    def __init__(
        self,
        dino: torch.nn.Module,
        width: int,
        weight: float | Callable[[float], float] = 0.2,
        variance_weight: float = 10.0,
        covariance_weight: float = 0.125,
    ):
        super().__init__()
        self.dino = dino
        self.width = width
        self.weight = weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    @property
    def stats_help(self) -> dict[str, str]:
        """One line for each statistic: DINO's and those of the wide layer."""
        return {
            **self.dino.stats_help,
            "variance": (
                "Mean shortfall of the standard deviations of the wide layer "
                "from one; 1 on collapse."
            ),
            "covariance": (
                "Sum of the squared covariances of different dimensions of the "
                "wide layer, over its width."
            ),
        }

    def forward(
        self, student: BranchOutput, teacher: BranchOutput, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch, DINO's and the regularization."""
        wide, logits = self._parts(student)
        check_views(self, student, utterances=2)
        loss, stats = self.dino(
            student._replace(projection=logits),
            teacher and teacher._replace(projection=self._parts(teacher)[1]),
            epoch,
        )
        # the paper's code takes the mean of the two global crops and adds the
        # teacher's terms, which have no gradient and change nothing
        views = len(teacher.projection)
        wide = distributed.gather_with_gradient(
            full_precision(wide[:views]).mean(0)
        )
        variance = 0.5 * variance_hinge(wide)
        redundancy = squared_off_diagonal(covariance(wide)) / self.width
        loss = loss + at(self.weight, epoch) * (
            self.variance_weight * variance
            + self.covariance_weight * redundancy
        )
        return loss, {
            **stats,
            "variance": 2 * variance.detach(),
            "covariance": redundancy.detach(),
        }

    @torch.no_grad()
    def commit(self, student: BranchOutput, teacher: BranchOutput) -> None:
        """Moves DINO's center."""
        _, logits = self._parts(teacher)
        self.dino.commit(student, teacher._replace(projection=logits))

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """The warnings of DINO."""
        return self.dino.warnings(stats)

    def _parts(self, views):
        """Wide layer and logits [views, batch, ...] of a head's output."""
        found = views.projection.shape[-1]
        expected = self.width + len(self.dino.center)
        if found != expected:
            raise ValueError(
                f"RDINO expects projections of {expected} (width {self.width} "
                f"and {len(self.dino.center)} prototypes), got {found}: give "
                "the PrototypeHead wide: True, and its last hidden width here"
            )
        return views.projection.split([self.width, found - self.width], dim=-1)
