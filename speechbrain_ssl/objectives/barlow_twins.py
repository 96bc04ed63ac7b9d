"""Barlow Twins: the cross-correlation of views becomes the identity.

J. Zbontar et al., "Barlow Twins: self-supervised learning via redundancy
reduction", ICML 2021 (https://arxiv.org/abs/2103.03230).
"""

import itertools

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number
from speechbrain_ssl.nnet.branch import BranchOutput, gather_views
from speechbrain_ssl.nnet.regularizers import squared_off_diagonal


class BarlowTwins(torch.nn.Module):
    """Each dimension agrees with itself in other views, and only with itself.

    Dimensions are standardized over the utterances of all processes.

    Arguments
    ---------
    off_diagonal_weight : float
        Weight of correlations between different dimensions.
    scale : float
        Factor of the whole loss, which grows with the number of dimensions.

    Example
    -------
    >>> crops = torch.randn(1, 64, 8).expand(2, 64, 8)
    >>> loss, stats = BarlowTwins()(BranchOutput(crops, crops), None, 0.0)
    >>> round(stats["diagonal"].item(), 3), sorted(stats)
    (1.0, ['diagonal', 'off_diagonal'])
    """

    stats_help = {
        "diagonal": (
            "Mean correlation of a dimension with itself in another view; 0 if "
            "all projections are equal."
        ),
        "off_diagonal": (
            "Root mean square of the correlations of different dimensions; 1 "
            "if all are copies of one."
        ),
    }

    @checked(off_diagonal_weight=number(0), scale=number(above=0))
    def __init__(
        self, off_diagonal_weight: float = 0.005, scale: float = 0.025
    ):
        super().__init__()
        self.off_diagonal_weight = off_diagonal_weight
        self.scale = scale

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch, the mean over pairs of different views."""
        points = gather_views(self, student)
        batch, _, dim = points.shape
        standard = F.batch_norm(points.flatten(1), None, None, training=True)
        standard = standard.view_as(points).unbind(1)
        # the other order of a pair is the transpose, with the same loss;
        correlations = [
            a.T @ b / batch for a, b in itertools.combinations(standard, 2)
        ]
        diagonal = torch.stack([c.diagonal() for c in correlations])
        others = torch.stack([squared_off_diagonal(c) for c in correlations])
        others = others.mean()
        agreement = (1 - diagonal).square().sum(-1).mean()
        loss = self.scale * (agreement + self.off_diagonal_weight * others)
        return loss, {
            "diagonal": diagonal.detach().mean(),
            "off_diagonal": (others.detach() / max(dim * (dim - 1), 1)).sqrt(),
        }
