"""BYOL: the student predicts what the teacher says about other views.

J.-B. Grill et al., "Bootstrap your own latent: a new approach to
self-supervised learning", NeurIPS 2020 (https://arxiv.org/abs/2006.07733).
"""

import torch

from speechbrain_ssl.nnet.branch import check_views, different_views
from speechbrain_ssl.nnet.heads import mlp, predicted_cosine


class BYOL(torch.nn.Module):
    """Squared distance of unit vectors: predictions to teacher's projections.

    There are no negatives. The predictor, the slow teacher and batch
    normalisation are all that stands against a collapse.

    Arguments
    ---------
    dim : int
        Width of the projections.
    hidden : int
        Width of the predictor's hidden layer.
    norm : type
        Normalisation class of the predictor, or None. BatchNorm1d sees one
        process, unless it is converted to SyncBatchNorm.

    Example
    -------
    >>> from speechbrain_ssl.nnet.branch import Views
    >>> crops = torch.randn(2, 8, 16)
    >>> views = Views(crops, crops)
    >>> loss, stats = BYOL(dim=16, hidden=32)(views, views, 0.0)
    >>> 0 <= loss.item() <= 4, sorted(stats)
    (True, ['cosine', 'negative_cosine'])
    """

    stats_help = {
        "cosine": "Mean cosine of predictions and their targets.",
        "negative_cosine": (
            "Mean cosine of predictions and targets of other utterances; near "
            "1 on collapse."
        ),
    }

    def __init__(self, dim, hidden=4096, norm=torch.nn.BatchNorm1d):
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(
                f"dim and hidden must be positive, not {dim} and {hidden}"
            )
        self.dim = dim
        self.predictor = mlp([dim, hidden, dim], torch.nn.ReLU, norm)

    def forward(self, student, teacher, epoch):
        """Loss of one batch.

        Arguments
        ---------
        student : Views
            Any views.
        teacher : Views
            Of the same utterances.
        epoch : float
            Not used.

        Returns
        -------
        loss : torch.Tensor
            Scalar, mean over utterances and pairs of different views: 2 - 2
            cos. The paper adds the two orders of two views, which is twice
            this.
        stats : dict of torch.Tensor
            ``cosine`` of predictions and their targets; ``negative_cosine``
            of predictions and targets of other utterances, near ``cosine``
            and 1 on collapse.

        Raises
        ------
        ValueError
            If there is no teacher, no pair of different views, or if the
            projections are not ``dim`` wide.
        """
        s, t = different_views(student, teacher)
        check_views(self, student, self.dim)
        cosine, negative = predicted_cosine(
            self.predictor, student.projection, teacher.projection, s, t
        )
        return 2 - 2 * cosine, {
            "cosine": cosine.detach(),
            "negative_cosine": negative,
        }
