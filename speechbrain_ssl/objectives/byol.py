"""BYOL: the student predicts the teacher's projections of other views.

J.-B. Grill et al., "Bootstrap your own latent: a new approach to
self-supervised learning", NeurIPS 2020 (https://arxiv.org/abs/2006.07733).
"""

import torch

from speechbrain_ssl.checks import checked, whole
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.heads import PREDICTION_HELP, mlp, predicted_cosine


class BYOL(torch.nn.Module):
    """Squared distance of unit vectors: predictions to teacher's projections.

    There are no negatives. Only the predictor, the slow teacher and batch
    normalization prevent a collapse.

    Arguments
    ---------
    dim : int
        Width of the projections.
    hidden : int
        Width of the predictor's hidden layer.
    norm : type
        Normalization class of the predictor, or None. BatchNorm1d sees one
        process, unless it is converted to SyncBatchNorm.

    Example
    -------
    >>> crops = torch.randn(2, 8, 16)
    >>> views = BranchOutput(crops, crops)
    >>> loss, stats = BYOL(dim=16, hidden=32)(views, views, 0.0)
    >>> 0 <= loss.item() <= 4, sorted(stats)
    (True, ['cosine', 'negative_cosine'])
    """

    stats_help = PREDICTION_HELP

    @checked(dim=whole(1), hidden=whole(1))
    def __init__(
        self,
        dim: int,
        hidden: int = 4096,
        norm: type | None = torch.nn.BatchNorm1d,
    ):
        super().__init__()
        self.dim = dim
        self.predictor = mlp([dim, hidden, dim], torch.nn.ReLU, norm)

    def forward(
        self, student: BranchOutput, teacher: BranchOutput, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch, the mean of 2 - 2 cos over utterances and pairs.

        The pairs are those of different views. The paper adds the two orders
        of two views, which is twice this.
        """
        s, t = different_views(student, teacher)
        check_views(self, student, self.dim)
        cosine, stats = predicted_cosine(
            self.predictor, student.projection, teacher.projection, s, t
        )
        return 2 - 2 * cosine, stats
