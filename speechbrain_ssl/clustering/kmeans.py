"""k-means with threads and processes, or on a GPU.

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

A GPU does the same, see ``clustering.device``: it multiplies with other
rounding errors, so a point goes to another cluster where float32 cannot tell
which of two centroids is nearer.
"""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin

from speechbrain_ssl.checks import checked, number, one_of, whole
from speechbrain_ssl.clustering.device import DevicePoints, chosen
from speechbrain_ssl.clustering.points import (
    BLOCK,
    Clusters,
    Points,
    read_points,
)

# Share of the iterations that use a sample, and its points per centroid.
EARLY, SAMPLE = 0.3, 32
# Iterations of two-means in a cluster, to find the gain of a split.
HALVINGS = 4
# Nearest clusters that are candidates for a merge.
NEIGHBORS = 4
# Smaller gains, relative to the contribution of a cluster, are rounding errors.
ROUNDING = 1e-9


# Arguments of k-means, and of clusterers that begin with it.
RULES = {
    "n_iter": whole(1),
    "n_init": whole(1),
    "distributed": one_of(True, False),
    "device": one_of("auto", "cpu", "cuda"),
}


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
    device : str
        Where to compute: ``cpu``, ``cuda``, or ``auto``, the GPU if there is
        one.

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
        max_points_per_centroid=whole(1),
        **RULES,
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
        device: str = "auto",
    ):
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.n_iter = n_iter
        self.n_init = n_init
        self.random_state = random_state
        self.max_points_per_centroid = max_points_per_centroid
        self.distributed = distributed
        self.device = device

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Finds the int64 cluster of each of the points [n, dim].

        Sets ``cluster_centers_`` [n_clusters, dim] and ``n_empty_``, the number
        of clusters without points.
        """
        if len(X) < self.n_clusters:
            raise ValueError(
                f"KMeans needs at least n_clusters points, but n_clusters is "
                f"{self.n_clusters} and there are {len(X)} points."
            )
        self.cluster_centers_ = _fit(
            self._points(X),
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
        points = self._points(X)
        labels = np.zeros(len(X), np.int64)
        labels[points.part(len(X))] = points.nearest(self.cluster_centers_)
        return points.total(labels)

    def _points(self, X):
        """The points, on the device."""
        device = chosen(self.device)
        if device.type == "cpu":
            return Points(X, self.spherical, self.distributed)
        return DevicePoints(X, self.spherical, self.distributed, device)


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


def _some(rows, count, rng):
    """Draws at most ``count`` rows and sorts them."""
    if count >= len(rows):
        return rows
    return np.sort(rng.choice(rows, count, replace=False))


def _iterate(points, rows, centroids, rng, move):
    """Returns new centroids, and the objective before merges and splits."""
    labels, clusters = points.assign(rows, centroids)
    worth = _worth(clusters, points.spherical).sum()
    if move or not clusters.counts.all():
        halves = _halves(points, rows, labels, clusters, rng)
        clusters = _moved(clusters, halves, points)
    means = _centroids(clusters, centroids, points.spherical)
    return means.astype(np.float32), worth


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
        halves = points.beyond(
            rows, labels, normals, offsets.astype(np.float32)
        )
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


def _moved(clusters, halves, points):
    """Merges pairs of clusters and splits others while the objective improves."""
    spherical = points.spherical
    worth = _worth(clusters, spherical)
    gains = _worth(halves, spherical) - (1 + ROUNDING) * worth
    gains += _worth(clusters.without(halves), spherical)
    split = np.argsort(-gains, kind="stable")
    gone, into, losses = _joins(clusters, worth, points)
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


def _joins(clusters, worth, points):
    """Finds disjoint pairs of clusters to merge, and the loss of each merge.

    An empty cluster is paired with itself, without loss.
    """
    spherical = points.spherical
    empty = np.flatnonzero(clusters.counts == 0)
    full = np.flatnonzero(clusters.counts)
    sums, counts, worth = (x[full] for x in (*clusters, worth))
    means = _centroids(Clusters(sums, counts), sums, spherical)
    means = means.astype(np.float32)
    found = points.neighbors(means, min(NEIGHBORS + 1, len(means)))
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
