"""Points of k-means, read in blocks, with threads and processes."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from speechbrain_ssl import distributed

# Points of a block. Larger blocks are not faster; another size may change
# results by rounding.
BLOCK = 2048
# Rounding step of coordinates, relative to the largest one: the precision of
# float32. The float64 sum of 2 ** 29 points is exact.
STEP = 2.0**-24
# Scores with a smaller relative difference are computed again in float64,
# because float32 products depend on the number of rows of a product.
NEAR = 1e-5
# If float64 scores are equal up to these decimals, the first one wins.
DECIMALS = 12
# Largest number of float64 scores that are computed at once.
SCORES = 1 << 20


class Clusters(NamedTuple):
    """Exact float64 sums [clusters, dim] and int64 numbers of points [clusters]."""

    sums: np.ndarray
    counts: np.ndarray

    def without(self, others: "Clusters") -> "Clusters":
        """Removes the points of other clusters."""
        return Clusters(self.sums - others.sums, self.counts - others.counts)


class Points:
    """Reads points in blocks, with threads and processes.

    Each process has all points, which may be memory-mapped [n, dim].
    ``spherical`` scales them to unit length and compares them by cosine. All
    processes take part if they are ``shared``, else only this one.
    """

    def __init__(self, X: np.ndarray, spherical: bool, shared: bool):
        self.X = X
        self.spherical = spherical
        self.shared = shared and distributed.world_size() > 1
        self.step: float | None = None

    def find_step(self, rows: np.ndarray) -> None:
        """Sets the rounding step from the largest coordinate of the rows."""
        largest = np.ones(1)
        if not self.spherical:
            found = []
            self.each(rows, lambda _, block: found.append(np.abs(block).max()))
            largest[0] = max(found, default=0.0)
            if self.shared:
                largest = _reduced(largest, torch.distributed.ReduceOp.MAX)
        self.step = STEP * 2.0 ** math.ceil(math.log2(max(largest[0], 1e-30)))

    def part(self, count: int) -> slice:
        """Slice of the rows of this process, in whole blocks."""
        if not self.shared:
            return slice(0, count)
        rank, world = distributed.rank(), distributed.world_size()
        blocks = -(-count // BLOCK)
        first, stop = rank * blocks // world, (rank + 1) * blocks // world
        return slice(min(first * BLOCK, count), min(stop * BLOCK, count))

    def each(
        self, rows: np.ndarray, function: Callable[[slice, np.ndarray], Any]
    ) -> None:
        """Calls a function for each block of this process, in threads.

        ``rows`` are sorted rows of all processes. The function takes a slice,
        the position of the block in the part of this process, and the points of
        the block, float32 [block, dim].
        """
        self.read(rows[self.part(len(rows))], function)

    def read(
        self, mine: np.ndarray, function: Callable[[slice, np.ndarray], Any]
    ) -> None:
        """Calls a function for each block of some rows, see ``each``."""

        def work(first):
            place = slice(first, min(first + BLOCK, len(mine)))
            block = read_points(self.X, mine[place], self.spherical)
            if self.step:
                block *= 1 / self.step
                np.rint(block, out=block)
                block *= self.step
            function(place, block)

        # one thread per block is faster than OpenMP threads within a block
        pool = ThreadPoolExecutor(
            faiss.omp_get_max_threads(),
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )
        try:
            for _ in pool.map(work, range(0, len(mine), BLOCK)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def total(self, x: np.ndarray) -> np.ndarray:
        """Sums an array over the processes."""
        if not self.shared:
            return x
        return _reduced(x, torch.distributed.ReduceOp.SUM)

    def assign(
        self, rows: np.ndarray, centroids: np.ndarray
    ) -> tuple[Any, Clusters]:
        """Assigns points to the nearest centroids [clusters, dim].

        ``rows`` are sorted rows of all processes. Gives the cluster of each row
        of this process, for ``beyond``, and the Clusters of all processes.
        """
        part = self.part(len(rows))
        labels = np.empty(part.stop - part.start, np.int64)

        def find(place, block):
            _, found = faiss.knn(
                block, centroids, 1, metric=_metric(self.spherical)
            )
            labels[place] = found[:, 0]
            return labels[place], block

        return labels, self._sum(rows, centroids.shape, find)

    def beyond(
        self,
        rows: np.ndarray,
        labels: Any,
        normals: np.ndarray,
        offsets: np.ndarray,
    ) -> Clusters:
        """Sums the points of each cluster on one side of its plane.

        ``labels`` are from ``assign``; planes have ``normals`` [clusters, dim]
        and ``offsets`` [clusters]. Points whose product with the normal is
        above the offset are summed.
        """

        def choose(place, block):
            own = labels[place]
            side = np.einsum("nd,nd->n", block, normals[own]) > offsets[own]
            return own[side], block[side]

        return self._sum(rows, normals.shape, choose)

    def _sum(self, rows, shape, choose):
        """Sums the points that ``choose`` returns, with labels, by cluster."""
        sums, counts = np.zeros(shape), np.zeros(shape[0], np.int64)
        lock = threading.Lock()

        def add(place, block):
            labels, block = choose(place, block)
            block = torch.from_numpy(block.astype(np.float64))
            own = np.bincount(labels, minlength=len(counts))
            with lock:
                # NumPy has no fast equivalent
                torch.from_numpy(sums).index_add_(
                    0, torch.from_numpy(labels), block
                )
                np.add(counts, own, out=counts)

        self.each(rows, add)
        return Clusters(self.total(sums), self.total(counts))

    def nearest(self, centroids: np.ndarray) -> np.ndarray:
        """Nearest centroid of all points of this process, see ``nearest``."""
        rows = np.arange(len(self.X))
        labels = np.empty(len(rows[self.part(len(rows))]), np.int64)

        def find(place, block):
            labels[place] = nearest(block, centroids, self.spherical)

        self.each(rows, find)
        return labels

    def neighbors(self, means: np.ndarray, count: int) -> np.ndarray:
        """Nearest means of each mean, itself included, the nearest first."""
        found = np.empty((len(means), count), np.int64)

        def find(place, block):
            _, found[place] = faiss.knn(block, means, count)

        Points(means, spherical=False, shared=False).each(
            np.arange(len(means)), find
        )
        return found


def read_points(
    X: np.ndarray, rows: np.ndarray | slice, unit: bool
) -> np.ndarray:
    """Copies rows of X to float32 [rows, dim], of unit length if asked."""
    points = np.array(X[rows], np.float32, order="C")
    squares = np.einsum("nd,nd->n", points, points)
    # squares of large numbers may be infinite too
    finite = np.isfinite(squares) | np.isfinite(points).all(axis=1)
    if not finite.all():
        first = np.arange(len(X))[rows][finite.argmin()]
        raise ValueError(
            f"Point {first} is NaN or infinite. Leave this utterance out."
        )
    if unit:
        points /= np.maximum(np.sqrt(squares), 1e-12)[:, None]
    return points


def nearest(
    points: np.ndarray, centroids: np.ndarray, spherical: bool
) -> np.ndarray:
    """Number of the nearest centroid of each point, whatever the batch is.

    ``spherical`` compares by product instead of distance; of equals, the first
    one is taken.
    """
    scores, found = faiss.knn(
        points, centroids, min(2, len(centroids)), metric=_metric(spherical)
    )
    labels = found[:, 0].copy()
    if len(centroids) == 1:
        return labels
    # scale of rounding errors: a squared distance contains both squared norms
    scale = 1.0
    if not spherical:
        scale = np.square(points).sum(1) + np.square(centroids).sum(1).max()
    close = np.abs(scores[:, 0] - scores[:, 1]) <= NEAR * scale
    rows = np.flatnonzero(close)
    if not len(rows):
        return labels
    centroids = centroids.astype(np.float64)
    lengths = 0.0 if spherical else np.square(centroids).sum(1) / 2
    step = max(1, SCORES // len(centroids))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        exact = points[some].astype(np.float64) @ centroids.T - lengths
        labels[some] = exact.round(DECIMALS).argmax(1)
    return labels


def _reduced(x, operation):
    """Reduces an array over all processes."""
    x = torch.from_numpy(x)
    # NCCL needs tensors on a GPU
    on_gpu = torch.distributed.get_backend() == "nccl"
    sent = x.cuda() if on_gpu else x
    torch.distributed.all_reduce(sent, operation)
    return sent.cpu().numpy()


def _metric(spherical):
    """Returns the metric of faiss."""
    return faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
