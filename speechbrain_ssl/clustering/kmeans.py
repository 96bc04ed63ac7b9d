"""k-means with threads and processes.

Lloyd's algorithm with two changes, which find better clusters in less time. The
first iterations use a sample of the points. After each of these iterations,
pairs of clusters are merged and other clusters are split, as long as this
improves the objective (for mixtures: N. Ueda, R. Nakano, Z. Ghahramani and G. E.
Hinton, "SMEM algorithm for mixture models", Neural Computation 2000). Later
iterations do so only if there are empty clusters, whose merge costs nothing.

The result does not depend on the number of threads and processes. Each block of
points is compared with the centroids by one thread, and blocks have a fixed
size. Coordinates are rounded to multiples of a power of two, so sums of points
are exact in any order.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of, whole

# Points of a block. Larger blocks are not faster; another size may change
# results by rounding.
BLOCK = 2048
# Rounding step of coordinates, relative to the largest one: the precision of
# float32. The float64 sum of 2 ** 29 points is exact.
STEP = 2.0**-24
# Share of the iterations that use a sample, and its points per centroid.
EARLY, SAMPLE = 0.3, 32
# Iterations of two-means in a cluster, to find the gain of a split.
HALVINGS = 4
# Nearest clusters that are candidates for a merge.
NEIGHBORS = 4
# Smaller gains, relative to the contribution of a cluster, are rounding errors.
ROUNDING = 1e-9
# Scores with a smaller relative difference are computed again in float64,
# because float32 products depend on the number of rows of a product.
NEAR = 1e-5
# If float64 scores are equal up to these decimals, the first one wins.
DECIMALS = 12
# Largest number of float64 scores that are computed at once.
SCORES = 1 << 20


class KMeans(ClusterMixin, BaseEstimator):
    """k-means with scikit-learn's interface.

    Points may be memory-mapped and larger than memory, as they are read in
    blocks. If several centroids are equally near, the first one is taken.

    Arguments
    ---------
    n_clusters : int
        Number of clusters.
    spherical : bool
        Whether to compare points by cosine; centroids are then unit vectors.
    n_iter : int
        Number of iterations.
    n_init : int
        Number of random starts. The best one after the iterations on a
        sample continues.
    random_state : int
        Seed of starts and samples.
    max_points_per_centroid : int
        Largest number of points per cluster that are used to find centroids.
        All points are labelled.
    distributed : bool
        Whether all processes of torch.distributed share the work. Each is
        given all points, and reads a part of them. All return the labels
        that a single process would find.

    Example
    -------
    >>> points = np.repeat(np.eye(3), 4, axis=0)
    >>> labels = KMeans(3).fit_predict(points)
    >>> labels.shape, len(set(labels[::4]))
    ((12,), 3)
    """

    @checked(
        n_clusters=number(above=0),
        spherical=one_of(True, False),
        n_iter=whole(1),
        n_init=whole(1),
        max_points_per_centroid=whole(1),
        distributed=one_of(True, False),
    )
    def __init__(
        self,
        n_clusters: int = 8,
        spherical: bool = True,
        n_iter: int = 20,
        n_init: int = 1,
        random_state: int = 0,
        max_points_per_centroid: int = 256,
        distributed: bool = False,
    ):
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.n_iter = n_iter
        self.n_init = n_init
        self.random_state = random_state
        self.max_points_per_centroid = max_points_per_centroid
        self.distributed = distributed

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Finds clusters of points [n, dim].

        Returns
        -------
        np.ndarray
            int64 cluster of each point [n]. Sets ``cluster_centers_``
            [n_clusters, dim] and ``n_empty_``, the number of clusters without
            points.

        Raises
        ------
        ValueError
            If there are fewer points than clusters, or a point is not finite.
        """
        if len(X) < self.n_clusters:
            raise ValueError(
                f"KMeans needs at least n_clusters points, but n_clusters is "
                f"{self.n_clusters} and there are {len(X)} points."
            )
        self.cluster_centers_ = _fit(
            Points(X, self.spherical, self.distributed),
            self.n_clusters,
            self.n_iter,
            self.n_init,
            self.random_state,
            self.n_clusters * self.max_points_per_centroid,
        )
        labels = self.predict(X)
        self.n_empty_ = self.n_clusters - len(np.unique(labels))
        return labels

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Returns the nearest centroid of each point of X, int64 [n]."""
        points = Points(X, self.spherical, self.distributed)
        labels = np.zeros(len(X), np.int64)
        mine = labels[points.part(len(X))]

        def find(place, block):
            mine[place] = nearest(block, self.cluster_centers_, self.spherical)

        points.each(np.arange(len(X)), find)
        return points.total(labels)


class Clusters(NamedTuple):
    """Exact float64 sums [clusters, dim] and int64 numbers of points [clusters]."""

    sums: np.ndarray
    counts: np.ndarray

    def without(self, others: "Clusters") -> "Clusters":
        """Removes the points of other clusters."""
        return Clusters(self.sums - others.sums, self.counts - others.counts)


class Points:
    """Reads points in blocks, with threads and processes.

    Arguments
    ---------
    X : np.ndarray
        All points, in each process; may be memory-mapped [n, dim].
    spherical : bool
        Whether to scale points to unit length and compare them by cosine.
    shared : bool
        Whether all processes take part, or only this one.

    Example
    -------
    >>> points = Points(np.eye(3), spherical=True, shared=False)
    >>> points.each(np.array([0, 2]), lambda place, block: print(block))
    [[1. 0. 0.]
     [0. 0. 1.]]
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

        Arguments
        ---------
        rows : np.ndarray
            Sorted rows of all processes [count].
        function : callable
            Takes a slice, the position of the block in the part of this
            process, and the points of the block, float32 [block, dim].
        """
        part = self.part(len(rows))

        def work(first):
            stop = min(first + BLOCK, part.stop)
            block = read_points(self.X, rows[first:stop], self.spherical)
            if self.step:
                block *= 1 / self.step
                np.rint(block, out=block)
                block *= self.step
            function(slice(first - part.start, stop - part.start), block)

        # one thread per block is faster than OpenMP threads within a block
        pool = ThreadPoolExecutor(
            faiss.omp_get_max_threads(),
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )
        try:
            for _ in pool.map(work, range(part.start, part.stop, BLOCK)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def total(self, x: np.ndarray) -> np.ndarray:
        """Sums an array over the processes."""
        if not self.shared:
            return x
        return _reduced(x, torch.distributed.ReduceOp.SUM)


def read_points(
    X: np.ndarray, rows: np.ndarray | slice, unit: bool
) -> np.ndarray:
    """Copies rows of X to float32 [rows, dim], scaled to unit length if asked.

    Raises
    ------
    ValueError
        If a point is not finite.
    """
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
    """Finds the nearest centroid of each point, whatever the batch is.

    Arguments
    ---------
    points : np.ndarray
        float32 [rows, dim].
    centroids : np.ndarray
        float32 [clusters, dim].
    spherical : bool
        Whether to compare by product, or by distance.

    Returns
    -------
    np.ndarray
        int64 number of the centroid, the first one of equals [rows].
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


def _fit(points, n_clusters, n_iter, n_init, seed, most):
    """Finds float32 centroids [n_clusters, dim] from at most ``most`` points."""
    rng = np.random.default_rng(seed)
    rows = _some(np.arange(len(points.X)), most, rng)
    points.find_step(rows)
    sample = _some(rows, SAMPLE * n_clusters, rng)
    early, best = round(EARLY * n_iter), -np.inf
    for _ in range(n_init):
        start = _some(sample, n_clusters, rng)
        found, worth = read_points(points.X, start, points.spherical), 0.0
        for iteration in range(early):
            # in the first iteration, centroids are single points
            found, worth = _iterate(points, sample, found, rng, iteration > 0)
        if worth > best:
            best, centroids = worth, found
    for _ in range(early, n_iter):
        centroids, _ = _iterate(points, rows, centroids, rng, False)
    return centroids


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


def _some(rows, count, rng):
    """Draws at most ``count`` rows and sorts them."""
    if count >= len(rows):
        return rows
    return np.sort(rng.choice(rows, count, replace=False))


def _iterate(points, rows, centroids, rng, move):
    """Returns new centroids, and the objective before merges and splits."""
    labels, clusters = _assign(points, rows, centroids)
    worth = _worth(clusters, points.spherical).sum()
    if move or not clusters.counts.all():
        halves = _halves(points, rows, labels, clusters, rng)
        clusters = _moved(clusters, halves, points.spherical)
    means = _centroids(clusters, centroids, points.spherical)
    return means.astype(np.float32), worth


def _assign(points, rows, centroids):
    """Returns labels of the rows of this process, and clusters of all rows."""
    part = points.part(len(rows))
    labels = np.empty(part.stop - part.start, np.int64)

    def find(place, block):
        _, found = faiss.knn(
            block, centroids, 1, metric=_metric(points.spherical)
        )
        labels[place] = found[:, 0]
        return labels[place], block

    return labels, _sum(points, rows, centroids.shape, find)


def _sum(points, rows, shape, choose):
    """Sums the points that ``choose`` returns, with labels, for each block."""
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

    points.each(rows, add)
    return Clusters(points.total(sums), points.total(counts))


def _worth(clusters, spherical):
    """Contribution of each cluster to the objective, up to a constant: the sum
    of cosines, or the negative sum of squared distances [clusters].
    """
    squares = np.einsum("kd,kd->k", clusters.sums, clusters.sums)
    if spherical:
        return np.sqrt(squares)
    return squares / np.maximum(clusters.counts, 1)


def _centroids(clusters, before, spherical):
    """Returns means (unit vectors if spherical), or ``before`` if undefined."""
    scale = clusters.counts.astype(np.float64)
    if spherical:
        scale = np.sqrt(np.einsum("kd,kd->k", clusters.sums, clusters.sums))
    there = (clusters.counts > 0) & (scale > 1e-12)
    return np.divide(
        clusters.sums,
        scale[:, None],
        out=np.array(before, np.float64),
        where=there[:, None],
    )


def _halves(points, rows, labels, clusters, rng):
    """Splits each cluster by two-means, from a random plane; returns one half."""
    normals = rng.standard_normal(clusters.sums.shape, np.float32)
    offsets = np.einsum("kd,kd->k", clusters.sums, normals)
    offsets /= np.maximum(clusters.counts, 1)
    for _ in range(HALVINGS):
        halves = _beyond(points, rows, labels, normals, offsets)
        # in parts, to save memory
        for first in range(0, len(offsets), BLOCK):
            part = slice(first, first + BLOCK)
            normals[part], offsets[part] = _between(
                Clusters(*(x[part] for x in halves)),
                Clusters(*(x[part] for x in clusters)),
                points.spherical,
            )
    return halves


def _between(halves, clusters, spherical):
    """Returns the planes between the centroids of the halves of clusters."""
    middle = clusters.sums / np.maximum(clusters.counts, 1)[:, None]
    one = _centroids(halves, middle, spherical)
    two = _centroids(clusters.without(halves), middle, spherical)
    return one - two, np.einsum("kd,kd->k", one + two, one - two) / 2


def _beyond(points, rows, labels, normals, offsets):
    """Sums the points of each cluster on one side of its plane."""
    offsets = offsets.astype(np.float32)

    def choose(place, block):
        own = labels[place]
        side = np.einsum("nd,nd->n", block, normals[own]) > offsets[own]
        return own[side], block[side]

    return _sum(points, rows, normals.shape, choose)


def _moved(clusters, halves, spherical):
    """Merges pairs of clusters and splits others while the objective improves."""
    worth = _worth(clusters, spherical)
    gains = _worth(halves, spherical) - (1 + ROUNDING) * worth
    gains += _worth(clusters.without(halves), spherical)
    split = np.argsort(-gains, kind="stable")
    gone, into, losses = _joins(clusters, worth, spherical)
    # a cluster that is split is not merged
    split = split[: _paying(gains[split], losses)]
    free = ~(np.isin(gone, split) | np.isin(into, split))
    count = _paying(gains[split], losses[free])
    split, gone, into = split[:count], gone[free][:count], into[free][:count]
    sums, counts = clusters.sums.copy(), clusters.counts.copy()
    for all_of, half in (sums, halves.sums), (counts, halves.counts):
        all_of[into] += all_of[gone]
        all_of[gone] = half[split]
        all_of[split] -= half[split]
    return Clusters(sums, counts)


def _paying(gains, losses):
    """Counts the pairs of descending gains and ascending losses that improve."""
    count = min(len(gains), len(losses))
    return int((gains[:count] > losses[:count]).sum())


def _joins(clusters, worth, spherical):
    """Finds disjoint pairs of clusters to merge, and the loss of each merge.

    An empty cluster is paired with itself, without loss.
    """
    empty = np.flatnonzero(clusters.counts == 0)
    full = np.flatnonzero(clusters.counts)
    sums, counts, worth = (x[full] for x in (*clusters, worth))
    means = _centroids(Clusters(sums, counts), sums, spherical)
    means = means.astype(np.float32)
    found = _neighbors(means)
    losses = np.empty(found.shape)
    for column, other in enumerate(found.T):
        both = Clusters(sums + sums[other], counts + counts[other])
        losses[:, column] = worth + worth[other] - _worth(both, spherical)
    numbers = np.arange(len(full))
    losses[found == numbers[:, None]] = np.inf
    best = losses.argmin(1)
    other, losses = found[numbers, best], losses[numbers, best]
    order = np.argsort(losses, kind="stable")
    pairs = np.stack([order, other[order]], axis=1)
    # keep a pair if no better pair contains one of its clusters
    _, first, place = np.unique(pairs, return_index=True, return_inverse=True)
    place = first[place].reshape(pairs.shape)
    kept = (place == np.arange(pairs.size).reshape(pairs.shape)).all(1)
    gone, into = full[pairs[kept]].T
    return (
        np.concatenate([empty, gone]),
        np.concatenate([empty, into]),
        np.concatenate([np.zeros(len(empty)), losses[order][kept]]),
    )


def _neighbors(means):
    """Finds the nearest means of each mean, including itself [clusters, few]."""
    found = np.empty((len(means), min(NEIGHBORS + 1, len(means))), np.int64)

    def find(place, block):
        _, found[place] = faiss.knn(block, means, found.shape[1])

    points = Points(means, spherical=False, shared=False)
    points.each(np.arange(len(means)), find)
    return found
