"""VIbCReg: VICReg after whitening, with correlations for covariances.

D. Lee and E. Aune, "VIbCReg: variance-invariance-better-covariance
regularization for self-supervised learning on time series", 2021
(https://arxiv.org/abs/2109.00783). Whitening: L. Huang et al., "Iterative
normalization: beyond standardization towards efficient whitening", CVPR 2019
(https://arxiv.org/abs/1904.03441). Default weights are those of
https://github.com/theolepage/sslsv.
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.nnet.branch import BranchOutput, gather_views
from speechbrain_ssl.nnet.regularizers import (
    squared_off_diagonal,
    variance_hinge,
)


class VIbCReg(torch.nn.Module):
    """Whitens each view over all processes, then regularizes as VICReg does.

    In the authors' code the whitening ends the head, with learnable gains and
    the statistics of one process. Here it belongs to the loss and has neither,
    so that the hinge cannot be met by a gain.

    Arguments
    ---------
    invariance_weight : float
        Weight of the mean squared difference of views.
    variance_weight : float
        Weight of the shortfall of standard deviations from one.
    covariance_weight : float
        Weight of the squared correlations of different dimensions.
    group_size : int
        Number of neighboring dimensions whitened together; must divide their
        number, unless there are fewer.
    iterations : int
        Newton-Schulz iterations of the whitening.
    eps : float
        Added to variances before whitening.

    Example
    -------
    >>> crops = torch.ones(2, 8, 16)
    >>> loss, stats = VIbCReg()(BranchOutput(crops, crops), None, 0.0)
    >>> {name: round(value.item(), 2) for name, value in stats.items()}
    {'invariance': 0.0, 'variance': 0.99, 'covariance': 0.0}
    """

    stats_help = {
        "invariance": (
            "Mean squared difference of the whitened views of an utterance."
        ),
        "variance": (
            "Mean shortfall of the standard deviations after whitening from "
            "one; 1 on collapse."
        ),
        "covariance": (
            "Mean squared correlation of different dimensions; 1 if all are "
            "copies of one."
        ),
    }

    @checked(
        invariance_weight=number(0),
        variance_weight=number(0),
        covariance_weight=number(0),
        group_size=whole(1),
        iterations=whole(1),
        eps=number(above=0),
    )
    def __init__(
        self,
        invariance_weight: float = 1.0,
        variance_weight: float = 1.0,
        covariance_weight: float = 8.0,
        group_size: int = 64,
        iterations: int = 5,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight
        self.group_size = group_size
        self.iterations = iterations
        self.eps = eps

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch; the statistics are without the weights."""
        points = gather_views(self, student).transpose(0, 1)
        dim = points.shape[-1]
        white = self._whiten(points)
        unit = F.normalize(white, dim=1)
        squares = [squared_off_diagonal(view.T @ view) for view in unit]
        # mean over pairs of views of their squared difference
        invariance = 2 * white.var(dim=0).mean()
        variance = variance_hinge(white.transpose(0, 1).flatten(1))
        # over dim * dim, as in the paper: the diagonal counts as zeros
        redundancy = torch.stack(squares).mean() / dim**2
        loss = self.invariance_weight * invariance + 2 * (
            self.variance_weight * variance
            + self.covariance_weight * redundancy
        )
        return loss, {
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": redundancy.detach(),
        }

    def _whiten(self, points):
        """Points [views, batch, dim] centered and nearly uncorrelated."""
        batch, dim = points.shape[1:]
        size = min(self.group_size, dim)
        if dim % size:
            raise ValueError(
                f"VIbCReg expects projections that groups of {size} dimensions "
                f"divide, got {dim}: change group_size or the head"
            )
        # [views, groups, batch, size]
        groups = points.unflatten(-1, (-1, size)).transpose(1, 2)
        groups = groups - groups.mean(dim=2, keepdim=True)
        eye = torch.eye(size, dtype=points.dtype, device=points.device)
        sigma = groups.mT @ groups / batch + self.eps * eye
        # the iteration converges where all eigenvalues are at most one
        trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        rest, root = sigma / trace, eye
        for _ in range(self.iterations):
            # root = 1.5 root - 0.5 root^3 sigma / trace, in the coupled form,
            # whose rounding errors do not grow
            step = 1.5 * eye - 0.5 * root @ rest
            rest, root = rest @ step, step @ root
        white = groups @ root / trace.sqrt()
        return white.transpose(1, 2).flatten(2)
