"""Clustering in a space in which clusters are equally wide in all directions."""

import logging
from typing import Any

import numpy as np

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.clustering.count import Wrapper
from speechbrain_ssl.clustering.points import read_points

logger = logging.getLogger(__name__)


class Whitened(Wrapper):
    """Clusters, whitens the covariance within the clusters, clusters again.

    Directions in which the recordings of one cluster differ carry device, room
    and noise more than the speaker. Dividing by their deviations (within-class
    covariance normalization; A. O. Hatch, S. Kajarekar and A. Stolcke,
    Interspeech 2006) needs labels; those of the previous clustering are used,
    as in the unsupervised domain adaptation of speaker recognition (D.
    Garcia-Romero et al., Odyssey 2014).

    Give it to ``Levels`` or ``BestCount`` as their clusterer: they compare
    numbers of clusters in the space of the embeddings. The other way round
    (``Whitened(Levels(...))``), they would do so in the whitened space, in which
    too few clusters won on one test set.

    The mean of the embeddings is subtracted, and they have unit length before
    and after whitening. Copies of them take about 16 x n x dim bytes in memory.

    Arguments
    ---------
    clusterer : object
        Clusterer with ``fit_predict``; its ``n_clusters`` can be set by
        ``set_params``.
    iterations : int
        Number of times to whiten and cluster again; 0 only subtracts the mean.
    shrinkage : float
        Share of the identity (times the mean variance) in the covariance, 0 to
        1. It bounds the weight of directions with little variance.

    Raises
    ------
    ValueError
        If fewer points than dimensions have a cluster and ``shrinkage`` is 0.

    Example
    -------
    >>> from speechbrain_ssl.clustering.clusterers import TwoStage
    >>> rng = np.random.default_rng(0)
    >>> speakers = np.repeat(rng.standard_normal((10, 16)), 20, axis=0)
    >>> device = np.outer(rng.standard_normal(200), rng.standard_normal(16))
    >>> whitened = Whitened(TwoStage(10, linkage="ward"))
    >>> found = whitened.fit_predict(speakers + 0.7 * device)
    >>> [len(set(found[i : i + 20])) for i in range(0, 200, 20)]
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """

    @checked(iterations=whole(0), shrinkage=number(0, 1))
    def __init__(
        self, clusterer: Any, iterations: int = 2, shrinkage: float = 0.1
    ):
        self.clusterer = clusterer
        self.iterations = iterations
        self.shrinkage = shrinkage

    def set_params(self, n_clusters: Any = None, **others: Any) -> "Whitened":
        """Sets the number of clusters of the clusterer, or own arguments."""
        if n_clusters is not None:
            self.clusterer.set_params(n_clusters=n_clusters)
        return super().set_params(**others)

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Cluster of each embedding of any norm, -1 for none [n]."""
        points = read_points(X, slice(None), unit=True)
        points -= points.mean(0)
        points /= _norms(points)
        labels = np.asarray(self.clusterer.fit_predict(points))
        for _ in range(self.iterations if (labels >= 0).any() else 0):
            whitened = points @ self._whitening(points, labels)
            whitened /= _norms(whitened)
            labels = np.asarray(self.clusterer.fit_predict(whitened))
        return labels

    def _whitening(self, points, labels):
        """Returns W with W W^T = (covariance within the clusters)^-1."""
        known = labels >= 0
        _, cluster = np.unique(labels[known], return_inverse=True)
        sizes = np.bincount(cluster)
        spread = points[known].astype(np.float64)
        means = np.zeros((len(sizes), points.shape[1]))
        np.add.at(means, cluster, spread)
        spread -= (means / sizes[:, None])[cluster]
        within = spread.T @ spread / max(len(spread) - len(sizes), 1)
        scale = np.trace(within) / len(within)
        if scale == 0:  # the points of each cluster are equal
            return np.eye(len(within), dtype=np.float32)
        within = (1 - self.shrinkage) * within
        within += self.shrinkage * scale * np.eye(len(within))
        try:
            root = np.linalg.cholesky(np.linalg.inv(within))
        except np.linalg.LinAlgError:
            raise ValueError(
                f"{len(spread)} embeddings in {len(sizes)} clusters do not "
                f"determine a covariance of {len(within)} dimensions. Set "
                "shrinkage above 0, or cluster with fewer clusters."
            ) from None
        return root.astype(np.float32)


def _norms(points):
    """Returns lengths of the rows, none of which is 0 [n, 1]."""
    return np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
