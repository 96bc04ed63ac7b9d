"""k-means by several threads and processes, each with a part of the points.

Lloyd's algorithm with two changes, which find better clusters in less time. The
first iterations use a sample of the points. After each of these, two clusters
are merged and a third one is split, as long as the objective improves; Lloyd's
algorithm alone cannot do this (for mixtures: N. Ueda, R. Nakano, Z. Ghahramani
and G. E. Hinton, "SMEM algorithm for mixture models", Neural Computation 2000).
Merging an empty cluster costs nothing; while there are empty clusters, the later
iterations move centroids too.

The result does not depend on the number of threads and processes. Points are
compared with centroids in fixed blocks, each by a single thread, and sums of
points are exact in any order, because coordinates are rounded to multiples of a
power of two.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import faiss
import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin

from speechbrain_ssl import distributed

# Points that a thread reads and compares at once. Larger blocks are not faster;
# another size may change results by rounding.
BLOCK = 2048
# Rounding step of coordinates, as a share of the largest one: the precision of
# float32. 2 ** 29 points of a cluster still have an exact sum in float64.
STEP = 2.0**-24
# share of the iterations that use a sample, and its points per centroid
EARLY, SAMPLE = 0.3, 32
# iterations of two-means in a cluster, to find the gain of a split
HALVINGS = 4
# nearest clusters that are candidates for a merge
NEIGHBORS = 4
# gains below this share of a cluster's worth are rounding
ROUNDING = 1e-9
# Scores that differ by less than this share of their scale are computed again
# in float64: float32 products depend on the number of rows of a product.
NEAR = 1e-5
# float64 scores that agree to this many decimals are equal: the first one wins
DECIMALS = 12
# largest number of scores that are computed again at once
SCORES = 1 << 20


class KMeans(ClusterMixin, BaseEstimator):
    """k-means with scikit-learn's interface, by all threads or processes.

    Points may be memory-mapped and larger than memory: they are read piece by
    piece. Of equally near centroids the first one counts.

    Arguments
    ---------
    n_clusters : int
        Number of clusters.
    spherical : bool
        Whether points are compared by cosine and centroids are unit vectors.
    n_iter : int
        Iterations.
    n_init : int
        Random starts; the best one after the iterations on a sample
        continues.
    random_state : int
        Seed of the starts and samples.
    max_points_per_centroid : int
        Centroids are found on a sample of at most this size; all points are
        labelled.
    distributed : bool
        Whether all processes of torch.distributed share the work. Each is
        given all points and reads its part; all get the labels that one
        process alone would find.

    Example
    -------
    >>> points = np.repeat(np.eye(3), 4, axis=0)
    >>> labels = KMeans(3).fit_predict(points)
    >>> labels.shape, len(set(labels[::4]))
    ((12,), 3)
    """

    def __init__(
        self,
        n_clusters=8,
        spherical=True,
        n_iter=20,
        n_init=1,
        random_state=0,
        max_points_per_centroid=256,
        distributed=False,
    ):
        for name, value in (
            ("n_iter", n_iter),
            ("n_init", n_init),
            ("max_points_per_centroid", max_points_per_centroid),
        ):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.n_iter = n_iter
        self.n_init = n_init
        self.random_state = random_state
        self.max_points_per_centroid = max_points_per_centroid
        self.distributed = distributed

    def fit_predict(self, X, y=None):
        """Finds clusters.

        Arguments
        ---------
        X : np.ndarray
            Points [n, dim].

        Returns
        -------
        np.ndarray
            int64 number of each point's cluster [n]; ``cluster_centers_``
            [n_clusters, dim] and ``n_empty_``, the number of clusters without
            points, are kept.

        Raises
        ------
        ValueError
            If there are fewer points than clusters, or a point is not finite.
        """
        if len(X) < self.n_clusters:
            raise ValueError(
                f"KMeans was asked for {self.n_clusters} clusters of "
                f"{len(X)} points. Lower n_clusters."
            )
        self.cluster_centers_ = fit(
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

    def predict(self, X):
        """Finds the nearest centroids.

        Arguments
        ---------
        X : np.ndarray
            Points [n, dim].

        Returns
        -------
        np.ndarray
            int64 number of each point's cluster [n].
        """
        points = Points(X, self.spherical, self.distributed)
        return predict(points, self.cluster_centers_)


class Clusters(NamedTuple):
    """Sums and sizes of clusters, from which centroids are computed.

    Arguments
    ---------
    sums : np.ndarray
        float64 sums of the points, exact [clusters, dim].
    counts : np.ndarray
        int64 numbers of points [clusters].
    """

    sums: np.ndarray
    counts: np.ndarray

    def without(self, others):
        """Clusters that lack the points of others."""
        return Clusters(self.sums - others.sums, self.counts - others.counts)


class Points:
    """Points that threads and processes share.

    Arguments
    ---------
    X : np.ndarray
        All points, in each process; memory-mapped, if they are many: a
        process reads its part only [n, dim].
    spherical : bool
        Whether they are brought to unit length and compared by cosine.
    shared : bool
        Whether all processes are here, or this one is alone.

    Example
    -------
    >>> points = Points(np.eye(3), spherical=True, shared=False)
    >>> points.each(np.array([0, 2]), lambda place, block: print(block))
    [[1. 0. 0.]
     [0. 0. 1.]]
    """

    def __init__(self, X, spherical, shared):
        self.X = X
        self.spherical = spherical
        self.shared = shared and distributed.world_size() > 1
        self.step = None

    def find_step(self, rows):
        """Sets the rounding step, from the largest coordinate of the rows."""
        largest = np.ones(1)
        if not self.spherical:
            found = []
            self.each(rows, lambda _, block: found.append(np.abs(block).max()))
            largest[0] = max(found, default=0.0)
            if self.shared:
                largest = _reduced(largest, torch.distributed.ReduceOp.MAX)
        self.step = STEP * 2.0 ** math.ceil(math.log2(max(largest[0], 1e-30)))

    def part(self, count):
        """Slice of this process in a number of rows, in whole blocks."""
        if not self.shared:
            return slice(0, count)
        rank, world = distributed.rank(), distributed.world_size()
        blocks = -(-count // BLOCK)
        first, stop = rank * blocks // world, (rank + 1) * blocks // world
        return slice(min(first * BLOCK, count), min(stop * BLOCK, count))

    def each(self, rows, function):
        """Calls a function for each block of this process's part, in threads.

        Arguments
        ---------
        rows : np.ndarray
            All processes' rows, in order [count].
        function : callable
            Takes the block's place in this process's part, a slice, and its
            points, float32 [block, dim].
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

        # threads of OpenMP would wait for each other within a block
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

    def total(self, x):
        """Sum over processes of an array."""
        if not self.shared:
            return x
        return _reduced(x, torch.distributed.ReduceOp.SUM)


def read_points(X, rows, unit):
    """Reads some points.

    Arguments
    ---------
    X : np.ndarray
        All points [n, dim].
    rows : np.ndarray or slice
        Those to read.
    unit : bool
        Whether to bring them to unit length.

    Returns
    -------
    np.ndarray
        float32, a copy [rows, dim].

    Raises
    ------
    ValueError
        If one is not finite.
    """
    points = np.array(X[rows], np.float32, order="C")
    squares = np.einsum("nd,nd->n", points, points)
    # squares of large numbers may be infinite too
    finite = np.isfinite(squares) | np.isfinite(points).all(axis=1)
    if not finite.all():
        first = np.arange(len(X))[rows][finite.argmin()]
        raise ValueError(
            f"Point {first} is NaN or infinite. Leave it out: what cannot be "
            "embedded has no cluster."
        )
    if unit:
        points /= np.maximum(np.sqrt(squares), 1e-12)[:, None]
    return points


def nearest(points, centroids, spherical):
    """Finds the nearest centroid of each point; batches do not change it.

    Arguments
    ---------
    points : np.ndarray
        float32 [rows, dim].
    centroids : np.ndarray
        float32 [clusters, dim].
    spherical : bool
        Whether the largest product counts, or the smallest distance.

    Returns
    -------
    np.ndarray
        int64 number of the centroid, the first of equals [rows].
    """
    scores, found = faiss.knn(
        points, centroids, min(2, len(centroids)), metric=_metric(spherical)
    )
    labels = found[:, 0].copy()
    if len(centroids) == 1:
        return labels
    # what rounding may change: both lengths stand in a squared distance
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


def predict(points, centroids):
    """Finds the nearest centroids of all points.

    Arguments
    ---------
    points : Points
        The points.
    centroids : np.ndarray
        float32 [clusters, dim].

    Returns
    -------
    np.ndarray
        int64 number of each point's centroid, in all processes [n].
    """
    labels = np.zeros(len(points.X), np.int64)
    mine = labels[points.part(len(labels))]

    def find(place, block):
        mine[place] = nearest(block, centroids, points.spherical)

    points.each(np.arange(len(labels)), find)
    return points.total(labels)


def fit(points, n_clusters, n_iter, n_init, seed, most):
    """Finds centroids.

    Arguments
    ---------
    points : Points
        The points.
    n_clusters : int
        Number of centroids.
    n_iter : int
        Iterations, those on the sample among them.
    n_init : int
        Starts; the one that is best on the sample goes on.
    seed : int
        Of rows, starts and splits.
    most : int
        Points that are looked at.

    Returns
    -------
    np.ndarray
        float32, of unit length if the points are [n_clusters, dim].
    """
    rng = np.random.default_rng(seed)
    rows = _some(np.arange(len(points.X)), most, rng)
    points.find_step(rows)
    sample = _some(rows, SAMPLE * n_clusters, rng)
    early, best = round(EARLY * n_iter), -np.inf
    for _ in range(n_init):
        start = _some(sample, n_clusters, rng)
        found, worth = read_points(points.X, start, points.spherical), 0.0
        for iteration in range(early):
            # means of no more than their own point would be moved at first
            found, worth = _iterate(points, sample, found, rng, iteration > 0)
        if worth > best:
            best, centroids = worth, found
    for _ in range(early, n_iter):
        centroids, _ = _iterate(points, rows, centroids, rng, False)
    return centroids


def _reduced(x, operation):
    """Reduction of an array over all processes."""
    x = torch.from_numpy(x)
    # NCCL needs tensors on a GPU
    on_gpu = torch.distributed.get_backend() == "nccl"
    sent = x.cuda() if on_gpu else x
    torch.distributed.all_reduce(sent, operation)
    return sent.cpu().numpy()


def _metric(spherical):
    """The metric of faiss."""
    return faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2


def _some(rows, count, rng):
    """A sorted random choice of at most ``count`` rows."""
    if count >= len(rows):
        return rows
    return np.sort(rng.choice(rows, count, replace=False))


def _iterate(points, rows, centroids, rng, move):
    """New centroids, and the objective before clusters are moved."""
    labels, clusters = _assign(points, rows, centroids)
    worth = _worth(clusters, points.spherical).sum()
    if move or not clusters.counts.all():
        halves = _halves(points, rows, labels, clusters, rng)
        clusters = _moved(clusters, halves, points.spherical)
    means = _centroids(clusters, centroids, points.spherical)
    return means.astype(np.float32), worth


def _assign(points, rows, centroids):
    """Labels of this process's rows, and clusters of all rows."""
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
    """Clusters of the labels and points that ``choose`` returns for blocks."""
    sums, counts = np.zeros(shape), np.zeros(shape[0], np.int64)
    lock = threading.Lock()

    def add(place, block):
        labels, block = choose(place, block)
        block = torch.from_numpy(block.astype(np.float64))
        own = np.bincount(labels, minlength=len(counts))
        with lock:
            # NumPy has no fast way to do this in place
            torch.from_numpy(sums).index_add_(
                0, torch.from_numpy(labels), block
            )
            np.add(counts, own, out=counts)

    points.each(rows, add)
    return Clusters(points.total(sums), points.total(counts))


def _worth(clusters, spherical):
    """Contribution of each cluster to the objective, up to a constant [clusters].

    The sum of cosines, or minus the sum of squared distances.
    """
    squares = np.einsum("kd,kd->k", clusters.sums, clusters.sums)
    if spherical:
        return np.sqrt(squares)
    return squares / np.maximum(clusters.counts, 1)


def _centroids(clusters, before, spherical):
    """Means, at unit length if spherical; empty clusters keep theirs."""
    scale = clusters.counts.astype(np.float64)
    if spherical:
        scale = np.sqrt(np.einsum("kd,kd->k", clusters.sums, clusters.sums))
    # opposite points have no direction
    there = (clusters.counts > 0) & (scale > 1e-12)
    return np.divide(
        clusters.sums,
        scale[:, None],
        out=np.array(before, np.float64),
        where=there[:, None],
    )


def _halves(points, rows, labels, clusters, rng):
    """One half of each cluster by two-means, started at a random plane."""
    normals = rng.standard_normal(clusters.sums.shape, np.float32)
    offsets = np.einsum("kd,kd->k", clusters.sums, normals)
    offsets /= np.maximum(clusters.counts, 1)
    for _ in range(HALVINGS):
        halves = _beyond(points, rows, labels, normals, offsets)
        # in parts: all means at once would be as large as many points
        for first in range(0, len(offsets), BLOCK):
            part = slice(first, first + BLOCK)
            normals[part], offsets[part] = _between(
                Clusters(*(x[part] for x in halves)),
                Clusters(*(x[part] for x in clusters)),
                points.spherical,
            )
    return halves


def _between(halves, clusters, spherical):
    """Planes between the centroids of the two halves of clusters."""
    middle = clusters.sums / np.maximum(clusters.counts, 1)[:, None]
    one = _centroids(halves, middle, spherical)
    two = _centroids(clusters.without(halves), middle, spherical)
    return one - two, np.einsum("kd,kd->k", one + two, one - two) / 2


def _beyond(points, rows, labels, normals, offsets):
    """Points of each cluster on one side of its plane."""
    offsets = offsets.astype(np.float32)

    def choose(place, block):
        own = labels[place]
        side = np.einsum("nd,nd->n", block, normals[own]) > offsets[own]
        return own[side], block[side]

    return _sum(points, rows, normals.shape, choose)


def _moved(clusters, halves, spherical):
    """Merges pairs of clusters and splits others, while this pays."""
    worth = _worth(clusters, spherical)
    gains = _worth(halves, spherical) - (1 + ROUNDING) * worth
    gains += _worth(clusters.without(halves), spherical)
    split = np.argsort(-gains, kind="stable")
    gone, into, losses = _joins(clusters, worth, spherical)
    # what is split is not joined too
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
    """Number of largest gains that exceed the smallest losses, in pairs."""
    count = min(len(gains), len(losses))
    return int((gains[:count] > losses[:count]).sum())


def _joins(clusters, worth, spherical):
    """Disjoint pairs of clusters, by the cost of a merge.

    An empty cluster is paired with itself, at no cost.
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
    # a pair counts if no better one has either of its clusters
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
    """Nearest means of each mean, itself included [clusters, few]."""
    found = np.empty((len(means), min(NEIGHBORS + 1, len(means))), np.int64)

    def find(place, block):
        _, found[place] = faiss.knn(block, means, found.shape[1])

    alone = Points(means, spherical=False, shared=False)
    alone.each(np.arange(len(means)), find)
    return found
