"""W-MSE: views agree after whitening, which leaves no room for a collapse.

A. Ermolov et al., "Whitening for self-supervised representation learning",
ICML 2021 (https://arxiv.org/abs/2007.06346).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.branch import check_views, different_views
from speechbrain_ssl.nnet.precision import full_precision


class WMSE(torch.nn.Module):
    """Squared distance of unit vectors, whitened within parts of the batch.

    The batch of all processes is cut at random into parts of
    min(whitening_size, batch) utterances, which must divide it and be more
    than ``dim``. Each view of a part is whitened by its own covariance.

    Arguments
    ---------
    dim : int
        Width of the projections.
    whitening_size : int
        Number of utterances whitened together; twice ``dim`` or more is
        advisable.
    iterations : int
        Number of random cuts whose losses are averaged.
    eps : float
        Share of the identity in the covariance, from 0 to 1. Positive values
        let it be inverted even where points do not fill all dimensions.

    Example
    -------
    >>> from speechbrain_ssl.nnet.branch import Views
    >>> crops = torch.randn(1, 32, 8).expand(2, 32, 8)
    >>> loss, stats = WMSE(8, whitening_size=16)(Views(crops, crops), None, 0.0)
    >>> abs(loss.item()) < 1e-5, sorted(stats)
    (True, ['negative_cosine', 'whitened_cosine'])
    """

    stats_help = {
        "whitened_cosine": (
            "Mean cosine of views of the same utterance after whitening."
        ),
        "negative_cosine": (
            "Mean cosine of different utterances before whitening; near 1 on "
            "collapse."
        ),
    }

    def __init__(self, dim, whitening_size=128, iterations=1, eps=0.0):
        super().__init__()
        if whitening_size <= dim:
            raise ValueError(
                f"whitening_size must be larger than dim ({dim}), not "
                f"{whitening_size}: fewer points do not fill all dimensions"
            )
        if iterations < 1 or not 0 <= eps <= 1:
            raise ValueError(
                "iterations must be positive and eps in 0..1, got "
                f"{iterations} and {eps}"
            )
        self.dim = dim
        self.whitening_size = whitening_size
        self.iterations = iterations
        self.eps = eps
        # seeds the cuts: the same in all processes, and after resuming
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, student, teacher, epoch):
        """Loss of one batch; in training mode the next one is cut otherwise.

        Arguments
        ---------
        student : Views
            Two views or more.
        teacher : None
            Not used.
        epoch : float
            Not used.

        Returns
        -------
        loss : torch.Tensor
            Scalar, mean over utterances and pairs of different views; 0 when
            views agree, 2 when they know nothing of each other.
        stats : dict of torch.Tensor
            ``whitened_cosine`` of views of an utterance after whitening;
            ``negative_cosine`` of different utterances before, 1 on collapse.

        Raises
        ------
        ValueError
            If there is only one view, if the batch cannot be cut, if the
            projections are not ``dim`` wide, or if they do not fill all their
            dimensions although ``eps`` is 0.
        """
        s, t = different_views(student, student)
        check_views(self, student, self.dim)
        # utterances first, as that is where processes are put together
        points = full_precision(student.projection).transpose(0, 1)
        points = distributed.gather_with_gradient(points).transpose(0, 1)
        batch = points.shape[1]
        self._check(batch)
        parts = points[:, self._cut(batch).to(points.device)]
        unit = F.normalize(self._whiten(parts), dim=-1)
        cosine = (unit[s] * unit[t]).sum(-1).mean()
        if self.training:
            self.batches += 1
        with torch.no_grad():
            # the mean over all pairs of utterances, less those with themselves
            center = F.normalize(points, dim=-1).mean(1)
            total = batch * center.square().sum(-1).mean()
        return 2 - 2 * cosine, {
            "whitened_cosine": cosine.detach(),
            "negative_cosine": (total - 1) / (batch - 1),
        }

    def _check(self, batch):
        """Refuses what cannot be whitened."""
        size = min(self.whitening_size, batch)
        if size <= self.dim or batch % size:
            raise ValueError(
                "W-MSE whitens parts of min(whitening_size, batch) utterances, "
                f"here {size}, which must be more than dim ({self.dim}) and divide "
                f"the batch of all processes ({batch}): change the batch size, "
                "whitening_size or the width of the head"
            )

    def _cut(self, batch):
        """Utterances of each part [iterations, parts, size]."""
        generator = torch.Generator().manual_seed(int(self.batches))
        orders = [
            torch.randperm(batch, generator=generator)
            for _ in range(self.iterations)
        ]
        size = min(self.whitening_size, batch)
        return torch.stack(orders).unflatten(1, (-1, size))

    def _whiten(self, parts):
        """Parts [..., size, dim] with the identity as covariance."""
        parts = parts - parts.mean(dim=-2, keepdim=True)
        sigma = parts.mT @ parts / (parts.shape[-2] - 1)
        if not sigma.isfinite().all():
            return parts * torch.nan  # the loss says it, not Cholesky
        eye = torch.eye(self.dim, dtype=parts.dtype, device=parts.device)
        try:
            root = torch.linalg.cholesky(
                (1 - self.eps) * sigma + self.eps * eye
            )
        except torch.linalg.LinAlgError as error:
            raise ValueError(
                "W-MSE expects projections that fill all their dimensions, but "
                "a covariance cannot be inverted: they have collapsed, or dim "
                f"({self.dim}) is too large. Set eps to 1e-3 or so, raise "
                "whitening_size, or narrow the head."
            ) from error
        return torch.linalg.solve_triangular(root, parts.mT, upper=False).mT
