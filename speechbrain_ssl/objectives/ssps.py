"""SSPS: self-supervised positive sampling.

T. Lepage and R. Dehak, "SSPS: self-supervised positive sampling for robust
self-supervised speaker verification", Interspeech 2025
(https://arxiv.org/abs/2505.14561).
"""

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.queues import next_slots

# from an utterance and a time to a draw that looks random (Knuth)
HASH = 2654435761


class SSPS(torch.nn.Module):
    """Lets an objective meet positives of other recordings.

    The projections of the second side (the teacher, or the second view
    where there is none) are replaced by ones from a queue whose utterance is
    in the nearest other cluster, or in the own one. Until the table of
    clusters is filled, and where the queue holds no such utterance, the
    positive stays what it is.

    Arguments
    ---------
    objective : torch.nn.Module
        What is trained; MoCo, DINO, SimCLR, VICReg ...
    table : ClusterTable
        Clusters of clean utterances.
    dim : int
        Width of the projections.
    queue_size : int
        Number of projections kept, in every process and checkpoint. For DINO
        they are as wide as there are prototypes: 25,000 of 65,536 would be
        6.5 GB, and as much again while a batch may still be given up, so take
        fewer of both.
    neighbors : int
        Positives come from one of so many nearest other clusters; 0: from
        the own cluster.

    Example
    -------
    >>> from speechbrain_ssl.clustering.table import ClusterTable
    >>> from speechbrain_ssl.nnet.branch import Views
    >>> from speechbrain_ssl.objectives.simclr import SimCLR
    >>> from speechbrain_ssl.clustering.kmeans import KMeans
    >>> table = ClusterTable(KMeans(), clusters=2)
    >>> table.prepare(8)
    >>> crops = torch.randn(2, 8, 16)
    >>> student = Views(crops, crops, index=torch.arange(8))
    >>> loss, stats = SSPS(SimCLR(), table, dim=16)(student, None, 0.0)
    >>> stats["replaced"].item()  # not clustered yet
    0.0
    """

    def __init__(self, objective, table, dim, queue_size=25000, neighbors=1):
        super().__init__()
        if neighbors < 0:
            raise ValueError(f"neighbors must be 0 or more, not {neighbors}")
        self.objective = objective
        self.table = table
        self.neighbors = neighbors
        self.register_buffer("queue", torch.zeros(queue_size, dim))
        self.register_buffer(
            "row", torch.full((queue_size,), -1, dtype=torch.long)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @property
    def stats_help(self):
        """One line for each statistic: the objective's and ``replaced``."""
        return {
            **getattr(self.objective, "stats_help", {}),
            "replaced": (
                "Share of the utterances whose positive is one of another "
                "utterance."
            ),
        }

    def forward(self, student, teacher, epoch):
        """Loss of one batch; in training mode also fills the queue.

        Arguments
        ---------
        student : Views
            With ``index``.
        teacher : Views
            What the objective wants.
        epoch : float
            Training time.

        Returns
        -------
        loss : torch.Tensor
            Scalar, the objective's.
        stats : dict of torch.Tensor
            The objective's, and the share of ``replaced`` positives.
        """
        if student.index is None:
            raise ValueError("SSPS needs the index of the utterances")
        side = student if teacher is None else teacher
        slot = self._draw(student.index)
        found = slot >= 0
        sampled = self.queue[slot.clamp(min=0)].to(side.projection.dtype)
        kept = side.projection[:1] if teacher is None else side.projection[:0]
        rest = side.projection[len(kept) :]
        rest = torch.where(found[:, None], sampled, rest)
        changed = side._replace(
            projection=torch.cat([kept, rest]), own=side.projection
        )
        if teacher is None:
            loss, stats = self.objective(changed, None, epoch)
        else:
            loss, stats = self.objective(student, changed, epoch)
        if self.training:
            fresh = side.projection[0].detach().to(self.queue.dtype)
            self._enqueue(fresh, student.index)
        return loss, {**stats, "replaced": found.float().mean()}

    def warnings(self, stats):
        """The objective's, if it has any.

        Arguments
        ---------
        stats : dict of str to float
            Means over an epoch.

        Returns
        -------
        list of str
            One sentence for each sign of collapse.
        """
        return getattr(self.objective, "warnings", lambda stats: [])(stats)

    @torch.no_grad()
    def _draw(self, index):
        """Place in the queue of each utterance's positive, or -1 [batch]."""
        nothing = torch.full_like(index, -1)
        labels, centroids = self.table.on(index.device)
        if centroids is None:
            return nothing
        label = labels[index]
        # what looks random must not depend on how many processes there are
        number = (index + 1) * HASH + self.seen * 40503
        wanted = label
        if self.neighbors:
            if len(centroids) < 2:
                return nothing  # no other cluster
            near = self.table.nearest(self.neighbors).to(index.device)
            wanted = near[label.clamp(min=0), number % near.shape[1]]
        held = torch.where(self.row >= 0, labels[self.row.clamp(min=0)], -1)
        fits = (held[None] == wanted[:, None]) & (label[:, None] >= 0)
        fits &= self.row[None] != index[:, None]
        count = fits.sum(1)
        order = (number // 7919) % count.clamp(min=1)
        place = (fits.cumsum(1) == order[:, None] + 1) & fits
        return torch.where(count > 0, place.int().argmax(1), nothing)

    @torch.no_grad()
    def _enqueue(self, projection, index):
        """Overwrites the oldest entries with [batch, dim] and [batch]."""
        projection = distributed.gather(projection)
        index = distributed.gather(index)
        slots = next_slots(self.seen, len(index), len(self.queue))
        self.queue[slots] = projection[-len(slots) :]
        self.row[slots] = index[-len(slots) :]
