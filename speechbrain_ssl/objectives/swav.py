"""SwAV: each view must predict the prototypes that another view is assigned to.

M. Caron et al., "Unsupervised learning of visual features by contrasting
cluster assignments", NeurIPS 2020 (https://arxiv.org/abs/2006.09882).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.nnet.assignment import prototypes_used, sinkhorn
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.heads import Prototypes
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.queues import next_slots


class SwAV(torch.nn.Module):
    """Swapped prediction of assignments that use all prototypes equally.

    The authors use 3000 prototypes, freeze them in the first epoch, and use a
    queue if the batch has fewer utterances than prototypes.

    Arguments
    ---------
    dim : int
        Width of the projections.
    prototypes : int
        Number of prototypes.
    temperature : float
        Temperature of the predictions.
    epsilon : float
        Temperature of the targets, before Sinkhorn iterations.
    iterations : int
        Sinkhorn iterations, which make targets use all prototypes equally.
    queue_size : int
        Past utterances that are assigned along with the batch; 0 for none.
    queue_from : float
        Epoch from which on they are.
    target_views : int
        How many views, the first ones, give targets.

    Example
    -------
    >>> crops = torch.randn(6, 8, 16)
    >>> loss, stats = SwAV(dim=16)(BranchOutput(crops, crops), None, 0.0)
    >>> sorted(stats)
    ['kl', 'predictions_used', 'prototypes_used', 'target_entropy']
    """

    queue: torch.Tensor
    seen: torch.Tensor

    stats_help = {
        "target_entropy": (
            "Mean entropy of the targets in nats; the logarithm of the number "
            "of prototypes on collapse."
        ),
        "kl": "Mean divergence of the predictions from the targets in nats.",
        "prototypes_used": (
            "Effective number of prototypes that the targets use."
        ),
        "predictions_used": (
            "Effective number of prototypes that the predictions use; 1 on "
            "collapse."
        ),
    }

    @checked(
        dim=whole(1),
        prototypes=whole(1),
        temperature=number(above=0),
        epsilon=number(above=0),
        iterations=whole(1),
        queue_size=whole(0),
        queue_from=number(0),
        target_views=whole(1),
    )
    def __init__(
        self,
        dim: int,
        prototypes: int = 512,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_from: float = 15.0,
        target_views: int = 2,
    ):
        super().__init__()
        self.prototypes = Prototypes(dim, prototypes)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.queue_from = queue_from
        self.target_views = target_views
        self.register_buffer(
            "queue", torch.zeros(queue_size, target_views, dim)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._full = False

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views.
        """
        point = full_precision(student.projection)
        key = F.normalize(point.detach()[: self.target_views], dim=-1)
        view_id = student.view_id and student.view_id[: len(key)]
        s, t = different_views(student, BranchOutput(key, key, view_id=view_id))
        check_views(self, student, self.prototypes.weight.shape[1])
        score = self.prototypes(point)
        target = self._target(score.detach()[: len(key)], epoch)
        log_prob = F.log_softmax(score / self.temperature, dim=-1)
        # one sum over batch and prototypes would lose digits
        cross = -torch.einsum("sbk,tbk->stb", log_prob, target).mean(-1)
        cross = cross[s, t].mean()
        entropy = torch.special.entr(target).sum(-1).mean(1)[t].mean()
        return cross, {
            "target_entropy": entropy,
            "kl": cross.detach() - entropy,
            "prototypes_used": prototypes_used(target),
            "predictions_used": prototypes_used(log_prob.exp()),
        }

    @torch.no_grad()
    def _target(self, score, epoch):
        """Assignments of the batch [target views, batch, K]."""
        views, batch, _ = score.shape
        # [utterances, target views, K]: each view has its own assignment
        rows = score.transpose(0, 1)
        size = len(self.queue)
        if size and epoch >= self.queue_from and self._is_full():
            # every process holds the whole queue and contributes a share, as
            # the sums in sinkhorn go over processes
            share = self.queue[distributed.rank() :: distributed.world_size()]
            rows = torch.cat([rows, self.prototypes(share[:, :views])])
        rows = sinkhorn(rows / self.epsilon, self.iterations)
        return rows[:batch].transpose(0, 1)

    def _is_full(self):
        """Whether the queue is full; it stays so, and is not asked again."""
        self._full = self._full or bool(self.seen >= len(self.queue))
        return self._full

    def _load_from_state_dict(self, *args):
        """Loads a state, whose queue may not be full."""
        super()._load_from_state_dict(*args)
        self._full = False

    @torch.no_grad()
    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Overwrites the oldest views of the queue with those of a batch."""
        if not len(self.queue):
            return
        key = full_precision(student.projection[: self.target_views])
        key = F.normalize(key, dim=-1)
        keys = distributed.gather(key.transpose(0, 1))
        slots = next_slots(self.seen, len(keys), len(self.queue))
        self.queue[slots, : len(key)] = keys[-len(slots) :]
