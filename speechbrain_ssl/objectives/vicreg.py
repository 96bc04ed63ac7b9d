"""VICReg: views agree, while dimensions vary and do not repeat each other.

A. Bardes, J. Ponce and Y. LeCun, "VICReg: variance-invariance-covariance
regularization for self-supervised learning", ICLR 2022
(https://arxiv.org/abs/2105.04906). Default weights are those that T. Lepage
and R. Dehak use for speakers (https://github.com/theolepage/sslsv); the paper
has 25, 25 and 1 for images.
"""

import torch

from speechbrain_ssl.checks import checked, number
from speechbrain_ssl.nnet.branch import BranchOutput, gather_views
from speechbrain_ssl.nnet.regularizers import (
    covariance,
    squared_off_diagonal,
    variance_hinge,
)


class VICReg(torch.nn.Module):
    """Squared distance of views, plus a hinge and covariances of each view.

    Lengths matter to it: the projections are not normalized. The last two
    terms are those of all processes together; like the paper's two branches
    they count twice, whatever the number of views.

    Arguments
    ---------
    invariance_weight : float
        Weight of the mean squared difference of views.
    variance_weight : float
        Weight of the shortfall of standard deviations from one.
    covariance_weight : float
        Weight of the squared covariances of different dimensions.

    Example
    -------
    >>> crops = torch.ones(2, 8, 16)
    >>> loss, stats = VICReg()(BranchOutput(crops, crops), None, 0.0)
    >>> {name: round(value.item(), 2) for name, value in stats.items()}
    {'invariance': 0.0, 'variance': 0.99, 'covariance': 0.0}
    """

    stats_help = {
        "invariance": "Mean squared difference of the views of an utterance.",
        "variance": (
            "Mean shortfall of the standard deviations from one; 1 on collapse."
        ),
        "covariance": (
            "Sum of the squared covariances of different dimensions, over the "
            "number of dimensions."
        ),
    }

    @checked(
        invariance_weight=number(0),
        variance_weight=number(0),
        covariance_weight=number(0),
    )
    def __init__(
        self,
        invariance_weight: float = 1.0,
        variance_weight: float = 1.0,
        covariance_weight: float = 0.1,
    ):
        super().__init__()
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch; the statistics are without the weights."""
        points = gather_views(self, student)
        dim = points.shape[-1]
        # mean over pairs of views of their squared difference
        invariance = 2 * points.var(dim=1).mean()
        variance = variance_hinge(points.flatten(1))
        squares = [
            squared_off_diagonal(covariance(view)) for view in points.unbind(1)
        ]
        redundancy = torch.stack(squares).mean() / dim
        loss = self.invariance_weight * invariance + 2 * (
            self.variance_weight * variance
            + self.covariance_weight * redundancy
        )
        return loss, {
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": redundancy.detach(),
        }
