"""k-means and neighbors on a GPU, in plain torch.

The steps are those of ``clustering.kmeans`` and give the same clusters but for
rounding errors of float32 products: sums of points are exact here, too. Points
stay in the memory of the GPU as long as there is room for them; otherwise they
are read and sent in pieces.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch

from speechbrain_ssl.clustering.points import (
    DECIMALS,
    NEAR,
    SCORES,
    Clusters,
    Points,
)

# Scores that are computed at once, 256 MB of float32.
AT_ONCE = 1 << 26
# Points of a piece that is read and sent, if not all of them fit.
PIECE = 1 << 18
# Share of the free memory of the device that points may fill.
ROOM = 0.6


def chosen(device: str) -> torch.device:
    """The device that a name stands for.

    ``auto``: the GPU of this process if there is one, or else the CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Multiplies without TF32, whose three digits would mix up centroids."""
    settings = torch.backends.cuda.matmul
    before, settings.allow_tf32 = settings.allow_tf32, False
    try:
        yield
    finally:
        settings.allow_tf32 = before


class DevicePoints(Points):
    """Points on a GPU (for tests on the CPU); see ``Points``."""

    def __init__(
        self, X: np.ndarray, spherical: bool, shared: bool, device: torch.device
    ):
        super().__init__(X, spherical, shared)
        self.device = device
        self.rows, self.kept = None, {}

    def assign(
        self, rows: np.ndarray, centroids: np.ndarray
    ) -> tuple[Any, Clusters]:
        """See ``Points.assign``; labels stay on the device."""
        centers, lengths = self._centers(centroids)
        part = self.part(len(rows))
        labels = torch.empty(
            part.stop - part.start, dtype=torch.long, device=self.device
        )
        sums, counts = self._zeros(centroids.shape)
        with full_precision():
            for place, points in self._chunks(rows, len(centers)):
                own = (points @ centers.T - lengths).argmax(1)
                labels[place] = own
                sums.index_add_(0, own, points.double())
                counts.index_add_(0, own, torch.ones_like(own))
        return labels, self._clusters(sums, counts)

    def beyond(
        self,
        rows: np.ndarray,
        labels: Any,
        normals: np.ndarray,
        offsets: np.ndarray,
    ) -> Clusters:
        """See ``Points.beyond``."""
        planes = torch.from_numpy(normals).float().to(self.device)
        above = torch.from_numpy(offsets).to(self.device)
        sums, counts = self._zeros(normals.shape)
        for place, points in self._chunks(rows, normals.shape[1]):
            own = labels[place]
            side = (points * planes[own]).sum(1) > above[own]
            sums.index_add_(0, own, points.double() * side[:, None])
            counts.index_add_(0, own, side.long())
        return self._clusters(sums, counts)

    def nearest(self, centroids: np.ndarray) -> np.ndarray:
        """See ``Points.nearest``: exact, with ties as on a CPU."""
        rows = np.arange(len(self.X))
        centers, lengths = self._centers(centroids)
        labels = np.empty(len(rows[self.part(len(rows))]), np.int64)
        with full_precision():
            for place, points in self._chunks(rows, len(centers)):
                scores = points @ centers.T - lengths
                best, own = scores.max(1)
                if len(centers) > 1:
                    scores.scatter_(1, own[:, None], -torch.inf)
                    # half a squared distance is a score less a constant
                    scale = 1.0
                    if not self.spherical:
                        scale = points.square().sum(1) / 2 + lengths.max()
                    close = best - scores.amax(1) <= NEAR * scale
                    doubtful = close.nonzero()[:, 0]
                    if len(doubtful):
                        own[doubtful] = self._exact(points[doubtful], centers)
                labels[place] = own.cpu().numpy()
        return labels

    def neighbors(self, means: np.ndarray, count: int) -> np.ndarray:
        """See ``Points.neighbors``."""
        return knn(means, means, count, False, self.device)[1]

    def _exact(self, points, centers):
        """Nearest centers by float64 scores, the first one of equals."""
        centers = centers.double()
        lengths = 0.0 if self.spherical else centers.square().sum(1) / 2
        found = [
            (some.double() @ centers.T - lengths)
            .round(decimals=DECIMALS)
            .argmax(1)
            for some in points.split(max(1, SCORES // len(centers)))
        ]
        return torch.cat(found)

    def _centers(self, centroids):
        """Centroids, and half their squared lengths, 0 for cosines."""
        centers = torch.from_numpy(centroids).to(self.device)
        if self.spherical:
            return centers, centers.new_zeros(())
        return centers, centers.square().sum(1) / 2

    def _zeros(self, shape):
        """Sums and numbers of points of no points."""
        sums = torch.zeros(shape, dtype=torch.double, device=self.device)
        return sums, torch.zeros(shape[0], dtype=torch.long, device=self.device)

    def _clusters(self, sums, counts):
        """Clusters of all processes; NCCL adds them on the GPUs."""
        if self.shared and torch.distributed.get_backend() == "nccl":
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
            return Clusters(sums.cpu().numpy(), counts.cpu().numpy())
        return Clusters(
            self.total(sums.cpu().numpy()), self.total(counts.cpu().numpy())
        )

    def _chunks(self, rows, clusters):
        """Yields places and points of this process, few enough for scores."""
        mine = rows[self.part(len(rows))]
        size = max(1, min(PIECE, AT_ONCE // clusters))
        for first in range(0, len(mine), PIECE):
            piece = self._piece(rows, mine, first)
            for start in range(0, len(piece), size):
                points = piece[start : start + size]
                begin = first + start
                yield slice(begin, begin + len(points)), points

    def _piece(self, rows, mine, first):
        """Points on the device, which stay there if there is room."""
        if self.rows is not rows:
            self.rows, self.kept = rows, {}
        if first not in self.kept:
            some = mine[first : first + PIECE]
            piece = torch.empty(len(some), self.X.shape[1])

            def put(place, block):
                piece[place] = torch.from_numpy(block)

            self.read(some, put)
            piece = piece.to(self.device)
            if not self._has_room(piece):
                return piece
            self.kept[first] = piece
        return self.kept[first]

    def _has_room(self, piece):
        """Whether another piece may stay on the device."""
        if self.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = sum(x.nbytes for x in self.kept.values())
        return kept + piece.nbytes < ROOM * (free + kept)


def knn(
    points: np.ndarray,
    centers: np.ndarray,
    count: int,
    spherical: bool,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centers of points: by faiss on the CPU, by torch on a GPU.

    ``count`` is at most the number of centers; ``spherical`` compares by
    product instead of distance. Gives float32 products or squared distances,
    the nearest first, and int64 numbers of the centers [n, count].
    """
    if device.type == "cpu":
        metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
        return faiss.knn(points, centers, count, metric=metric)
    return torch_knn(points, centers, count, spherical, device)


def torch_knn(
    points: np.ndarray,
    centers: np.ndarray,
    count: int,
    spherical: bool,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """What ``knn`` does on a GPU; on a CPU for tests."""
    there = torch.from_numpy(centers).to(device)
    lengths = 0.0 if spherical else there.square().sum(1) / 2
    parts = []
    size = max(1, AT_ONCE // len(centers))
    with full_precision():
        for first in range(0, len(points), size):
            some = torch.from_numpy(points[first : first + size]).to(device)
            scores, found = (some @ there.T - lengths).topk(count)
            if not spherical:
                scores = some.square().sum(1)[:, None] - 2 * scores
            parts.append((scores.cpu(), found.cpu()))
    scores, found = (torch.cat(x).numpy() for x in zip(*parts))
    return scores, found
