"""SimSiam: BYOL without a teacher, a negative control for speech.

X. Chen and K. He, "Exploring simple siamese representation learning", CVPR
2021 (https://arxiv.org/abs/2011.10566).
"""

import torch

from speechbrain_ssl.checks import checked, whole
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.heads import PREDICTION_HELP, mlp, predicted_cosine


class SimSiam(torch.nn.Module):
    """The student predicts its other views, which get no gradient.

    On speech it nearly collapses: 28.94 % EER on VoxCeleb1-O in sslsv
    (https://github.com/theolepage/sslsv), where BYOL has 13.99 %. It serves
    as an example of a collapse. The paper's head ends in batch
    normalization without gains, and its predictor has a constant learning
    rate.

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
    >>> loss, stats = SimSiam(16, hidden=8)(BranchOutput(crops, crops), None, 0.0)
    >>> -1 <= loss.item() <= 1, sorted(stats)
    (True, ['cosine', 'negative_cosine'])
    """

    stats_help = PREDICTION_HELP

    @checked(dim=whole(1), hidden=whole(1))
    def __init__(
        self,
        dim: int,
        hidden: int = 512,
        norm: type | None = torch.nn.BatchNorm1d,
    ):
        super().__init__()
        self.dim = dim
        self.predictor = mlp([dim, hidden, dim], torch.nn.ReLU, norm)

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch, minus the mean cosine, from -1 to 1.

        The mean is over utterances and pairs of different views.
        """
        s, t = different_views(student, student)
        check_views(self, student, self.dim)
        cosine, stats = predicted_cosine(
            self.predictor, student.projection, student.projection, s, t
        )
        return -cosine, stats
