"""SSPS: self-supervised positive sampling.

T. Lepage and R. Dehak, "SSPS: self-supervised positive sampling for robust
self-supervised speaker verification", Interspeech 2025
(https://arxiv.org/abs/2505.14561).
"""

from typing import Any

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, whole
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.queues import next_slots

# factor of Knuth's multiplicative hash, for pseudo-random draws
HASH = 2654435761


class SSPS(torch.nn.Module):
    """Gives an objective positives of other recordings.

    The projections of the teacher, or of all views but the first where there
    is no teacher, are replaced by projections from a queue. These are of an
    utterance in the nearest other cluster, or in the same cluster. The
    positive is not replaced until the table of clusters is filled, and where
    the queue holds no such utterance. ``teacher.index`` tells the objective
    which utterance a replaced positive is of.

    Arguments
    ---------
    objective : torch.nn.Module
        The objective to train, such as MoCo, DINO, SimCLR or VICReg.
    table : ClusterTable
        Clusters of clean utterances.
    dim : int
        Width of the projections.
    queue_size : int
        Number of projections kept, in every process and checkpoint. For DINO
        they are as wide as there are prototypes: 25,000 of 65,536 would be
        6.5 GB, so take fewer of both.
    neighbors : int
        Positives come from one of so many nearest other clusters; 0: from
        the own cluster.

    Example
    -------
    >>> from speechbrain_ssl.clustering.table import ClusterTable
    >>> from speechbrain_ssl.objectives.simclr import SimCLR
    >>> from speechbrain_ssl.clustering.kmeans import KMeans
    >>> table = ClusterTable(KMeans(), clusters=2)
    >>> table.prepare(8)
    >>> crops = torch.randn(2, 8, 16)
    >>> student = BranchOutput(crops, crops, index=torch.arange(8))
    >>> loss, stats = SSPS(SimCLR(), table, dim=16)(student, None, 0.0)
    >>> stats["replaced"].item()  # not clustered yet
    0.0
    """

    queue: torch.Tensor
    row: torch.Tensor
    seen: torch.Tensor
    objective: Any

    @checked(dim=whole(1), queue_size=whole(1), neighbors=whole(0))
    def __init__(
        self,
        objective: torch.nn.Module,
        table: Any,
        dim: int,
        queue_size: int = 25000,
        neighbors: int = 1,
    ):
        super().__init__()
        self.objective = objective
        self.table = table
        self.neighbors = neighbors
        self.register_buffer("queue", torch.zeros(queue_size, dim))
        self.register_buffer(
            "row", torch.full((queue_size,), -1, dtype=torch.long)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @property
    def stats_help(self) -> dict[str, str]:
        """One line for each statistic: the objective's and ``replaced``."""
        return {
            **getattr(self.objective, "stats_help", {}),
            "replaced": (
                "Share of the utterances whose positive is one of another "
                "utterance."
            ),
        }

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the objective, with positives of other utterances."""
        if student.index is None:
            raise ValueError("SSPS needs the index of the utterances")
        index = student.index
        slot = self._draw(index)
        found = slot >= 0
        slot = slot.clamp(min=0)

        def replaced(projection):
            sampled = self.queue[slot].to(projection.dtype)
            return torch.where(found[:, None], sampled, projection)

        if teacher is None:
            first, rest = student.projection[:1], student.projection[1:]
            student = student._replace(
                projection=torch.cat([first, replaced(rest)])
            )
        else:
            teacher = teacher._replace(
                projection=replaced(teacher.projection),
                index=torch.where(found, self.row[slot], index),
            )
        loss, stats = self.objective(student, teacher, epoch)
        return loss, {**stats, "replaced": found.float().mean()}

    @torch.no_grad()
    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Keeps the utterances' own projections, and lets the objective do so."""
        if hasattr(self.objective, "commit"):
            self.objective.commit(student, teacher)
        side = student if teacher is None else teacher
        own = distributed.gather(side.projection[0].to(self.queue.dtype))
        # forward has refused None
        index: Any = student.index
        index = distributed.gather(index)
        slots = next_slots(self.seen, len(index), len(self.queue))
        self.queue[slots] = own[-len(slots) :]
        self.row[slots] = index[-len(slots) :]

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """The warnings of the objective, if it has any."""
        return getattr(self.objective, "warnings", lambda stats: [])(stats)

    @torch.no_grad()
    def _draw(self, index):
        """Slot of each utterance's positive in the queue, or -1 [batch]."""
        nothing = torch.full_like(index, -1)
        labels, centroids = self.table.on(index.device)
        if centroids is None:
            return nothing
        label = labels[index]
        # pseudo-random, and the same for any number of processes
        number = (index + 1) * HASH + self.seen * 40503
        wanted = label
        if self.neighbors:
            if len(centroids) < 2:
                return nothing  # no other cluster
            near = self.table.nearest(self.neighbors, index.device)
            wanted = near[label.clamp(min=0), number % near.shape[1]]
        held = torch.where(self.row >= 0, labels[self.row.clamp(min=0)], -1)
        fits = (held[None] == wanted[:, None]) & (label[:, None] >= 0)
        fits &= self.row[None] != index[:, None]
        count = fits.sum(1)
        order = (number // 7919) % count.clamp(min=1)
        place = (fits.cumsum(1) == order[:, None] + 1) & fits
        return torch.where(count > 0, place.int().argmax(1), nothing)
