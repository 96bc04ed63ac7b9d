"""W-MSE: views agree after whitening, which leaves no room for a collapse.

A. Ermolov et al., "Whitening for self-supervised representation learning",
ICML 2021 (https://arxiv.org/abs/2007.06346).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.devices import Later, send
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
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
    >>> crops = torch.randn(1, 32, 8).expand(2, 32, 8)
    >>> loss, stats = WMSE(8, whitening_size=16)(BranchOutput(crops, crops), None, 0.0)
    >>> abs(loss.item()) < 1e-5, sorted(stats)
    (True, ['negative_cosine', 'whitened_cosine'])
    """

    batches: torch.Tensor

    stats_help = {
        "whitened_cosine": (
            "Mean cosine of views of the same utterance after whitening."
        ),
        "negative_cosine": (
            "Mean cosine of different utterances before whitening; near 1 on "
            "collapse."
        ),
    }

    @checked(
        dim=whole(1),
        whitening_size=whole(2),
        iterations=whole(1),
        eps=number(0, 1),
    )
    def __init__(
        self,
        dim: int,
        whitening_size: int = 128,
        iterations: int = 1,
        eps: float = 0.0,
    ):
        super().__init__()
        if whitening_size <= dim:
            raise ValueError(
                f"whitening_size must be larger than dim ({dim}), not "
                f"{whitening_size}: fewer points do not fill all dimensions"
            )
        self.dim = dim
        self.whitening_size = whitening_size
        self.iterations = iterations
        self.eps = eps
        # seeds the cuts: the same in all processes, and after resuming
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        # their number on the host; None: not known
        self._count: int | None = None
        # of the last batch, unless it has been read
        self._singular: Later | None = None

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views: 0 if the
        whitened views of an utterance are equal, 2 if they are independent.

        Projections that do not fill all their dimensions are an error if
        ``eps`` is 0; on an accelerator it is raised in the next batch, and the
        loss of this one is not finite.
        """
        s, t = different_views(student, student)
        check_views(self, student, self.dim)
        # utterances first: processes are concatenated along the first axis
        points = full_precision(student.projection).transpose(0, 1)
        points = distributed.gather_with_gradient(points).transpose(0, 1)
        batch = points.shape[1]
        self._check(batch)
        self._refuse_singular()
        parts = points[:, send(self._cut(batch), points.device)]
        unit = F.normalize(self._whiten(parts), dim=-1)
        cosine = (unit[s] * unit[t]).sum(-1).mean()
        with torch.no_grad():
            # the mean over all pairs of utterances, less those with themselves
            center = F.normalize(points, dim=-1).mean(1)
            total = batch * center.square().sum(-1).mean()
        return 2 - 2 * cosine, {
            "whitened_cosine": cosine.detach(),
            "negative_cosine": (total - 1) / (batch - 1),
        }

    @torch.no_grad()
    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Lets the next batch be cut into other parts."""
        self.batches += 1
        self._count = self._count and self._count + 1

    def _load_from_state_dict(self, *args):
        """Loads a state, with another number of batches."""
        super()._load_from_state_dict(*args)
        self._count = None

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
        if not self._count:
            self._count = int(self.batches)
        generator = torch.Generator().manual_seed(self._count)
        orders = [
            torch.randperm(batch, generator=generator)
            for _ in range(self.iterations)
        ]
        size = min(self.whitening_size, batch)
        return torch.stack(orders).unflatten(1, (-1, size))

    def _whiten(self, parts):
        """Parts [..., size, dim] with the identity as covariance."""
        dtype = parts.dtype
        # rounded to TF32, a covariance may have no Cholesky decomposition
        parts = (parts - parts.mean(dim=-2, keepdim=True)).double()
        sigma = parts.mT @ parts / (parts.shape[-2] - 1)
        eye = torch.eye(self.dim, dtype=parts.dtype, device=parts.device)
        finite = sigma.isfinite().all()
        sigma = torch.where(finite, sigma, eye)
        root, info = torch.linalg.cholesky_ex(
            (1 - self.eps) * sigma + self.eps * eye
        )
        singular = (info > 0).any()
        self._singular = Later(singular)
        if parts.device.type == "cpu":  # nothing to wait for
            self._refuse_singular()
        white = torch.linalg.solve_triangular(root, parts.mT, upper=False).mT
        # a product: what is not finite must show in the loss
        white = white * torch.where(finite & ~singular, 1.0, torch.nan)
        return white.to(dtype)

    def _refuse_singular(self):
        """Raises ValueError if a covariance had no Cholesky decomposition."""
        found, self._singular = self._singular, None
        if found is not None and found.read():
            raise ValueError(
                "W-MSE expects projections that fill all their dimensions, but "
                "a covariance cannot be inverted: they have collapsed, or dim "
                f"({self.dim}) is too large. Set eps to 1e-3 or so, raise "
                "whitening_size, or narrow the head."
            )
