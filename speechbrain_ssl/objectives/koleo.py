"""KoLeo, a term to add to an objective whose embeddings crowd.

A. Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019
(https://arxiv.org/abs/1806.03198); beside another objective as in M. Oquab et
al., "DINOv2", TMLR 2024 (https://arxiv.org/abs/2304.07193).
"""

import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.regularizers import koleo


class KoLeo(torch.nn.Module):
    """Pushes each embedding away from its nearest one of another utterance.

    It does not use that views belong together; combine it with an objective
    by ``Weighted``. DINO and SDPN have it as an option.

    Example
    -------
    >>> from speechbrain_ssl.objectives.byol import BYOL
    >>> from speechbrain_ssl.objectives.weighted import Weighted
    >>> crops = torch.randn(2, 8, 16)
    >>> views = BranchOutput(crops, crops)
    >>> both = Weighted([BYOL(dim=16, hidden=32), KoLeo()], weights=[1.0, 0.5])
    >>> loss, stats = both(views, views, 0.0)
    >>> bool(stats["koleo_loss"] < 0)  # random points are far apart
    True
    """

    stats_help = {
        "nearest_distance": (
            "Geometric mean of the distance of an embedding to the nearest "
            "other one; 0 on collapse."
        )
    }

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        It is the mean over views of minus the logarithm of the distance of a
        unit embedding to the nearest other one of the same view.
        """
        embedding = full_precision(student.embedding)
        loss = torch.stack([koleo(view) for view in embedding]).mean()
        return loss, {"nearest_distance": torch.exp(-loss.detach())}
