"""Choice of the number of clusters."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, clone

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.clustering.quality import centroids, silhouette

logger = logging.getLogger(__name__)

# smallest number of centroids for which the silhouette is meaningful
FEWEST = 10


class Wrapper(ClusterMixin, BaseEstimator):
    """A clusterer that calls another one, its attribute ``clusterer``."""

    clusterer: Any

    @property
    def distributed(self) -> bool:
        """Whether all processes must call ``fit_predict``."""
        return getattr(self.clusterer, "distributed", False)


class BestCount(Wrapper):
    """Tries several numbers of clusters and keeps the best silhouette.

    P. J. Rousseeuw, "Silhouettes", Journal of Computational and Applied
    Mathematics 20, 1987.

    Arguments
    ---------
    clusterer : object
        Clusterer with a parameter ``n_clusters``.
    n_clusters : list of float, or float
        Numbers of clusters; a value below one is a share of the points.

    Example
    -------
    >>> from speechbrain_ssl.clustering.kmeans import KMeans
    >>> points = np.repeat(np.eye(5), 4, axis=0)
    >>> best = BestCount(KMeans(), n_clusters=[2, 0.25, 10])
    >>> len(set(best.fit_predict(points).tolist())), best.n_clusters_
    (5, 5)
    """

    def __init__(self, clusterer: Any, n_clusters: float | Sequence[float]):
        numbers = np.atleast_1d(n_clusters)
        if not len(numbers) or not (numbers > 0).all():
            raise ValueError(
                f"n_clusters must be positive numbers, not {n_clusters}."
            )
        self.clusterer = clusterer
        self.n_clusters = n_clusters

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Finds clusters of points [n, dim], -1 for none.

        Sets ``n_clusters_`` and ``silhouettes_`` (number of clusters ->
        silhouette).
        """
        self.silhouettes_ = {}
        best: Any = None
        for wanted in np.atleast_1d(self.n_clusters).tolist():
            count = max(round(wanted * len(X) if wanted < 1 else wanted), 2)
            clusterer = clone(self.clusterer).set_params(n_clusters=count)
            labels = np.asarray(clusterer.fit_predict(X))
            found = silhouette(X, labels)
            if found > max(self.silhouettes_.values(), default=-np.inf):
                best, self.n_clusters_ = labels, count
            self.silhouettes_[count] = found
            logger.info("%d clusters: silhouette %.4f", count, found)
        return best


class Levels(Wrapper):
    """Clusters the centroids of clusters as long as they form clusters.

    The silhouette finds the finest groups. If a speaker has several sessions,
    these are the sessions, because recordings of a session share device and
    room. Therefore the centroids of the clusters are clustered again; all
    centroids have the same weight.

    A new level is compared with points without clusters: the same number of
    points from a Gaussian with the mean and covariance of the centroids, as in
    the gap statistic (R. Tibshirani, G. Walther and T. Hastie, "Estimating the
    number of clusters in a data set via the gap statistic", J. R. Stat. Soc. B
    63, 2001). The level is accepted if its best silhouette is higher than the
    best one of these points, and has the number of clusters at which its
    silhouette exceeds theirs by most. The numbers of speakers and of levels
    need not be known.

    Arguments
    ---------
    clusterer : object
        Clusterer with a parameter ``n_clusters``.
    n_clusters : list of float, or float
        Numbers that ``BestCount`` tries at each level. A number that is not a
        share of the points gives a single level.
    ratio : float
        Smallest ratio of the silhouette of a new level to that of the Gaussian
        points.
    max_levels : int
        Largest number of levels; 1 gives the labels of ``BestCount``. With 2,
        the levels are sessions and speakers.
    references : int
        Number of draws of the Gaussian points; their silhouettes are averaged.
    seed : int
        Seed of the draws.

    Example
    -------
    >>> from speechbrain_ssl.clustering.clusterers import TwoStage
    >>> rng = np.random.default_rng(0)
    >>> speakers = np.repeat(rng.standard_normal((20, 16)), 3, axis=0)
    >>> occasions = speakers + 0.5 * rng.standard_normal((60, 16))
    >>> points = np.repeat(occasions, 4, axis=0)
    >>> points = points + 0.1 * rng.standard_normal((240, 16))
    >>> levels = Levels(TwoStage(linkage="ward"), n_clusters=[0.25, 1 / 3])
    >>> len(set(levels.fit_predict(points).tolist()))
    20
    >>> [level["clusters"] for level in levels.levels_]
    [60, 20]
    """

    @checked(
        ratio=number(0), max_levels=whole(1), references=whole(1), seed=whole(0)
    )
    def __init__(
        self,
        clusterer: Any,
        n_clusters: float | Sequence[float],
        ratio: float = 1.25,
        max_levels: int = 2,
        references: int = 3,
        seed: int = 0,
    ):
        BestCount(clusterer, n_clusters)  # checks n_clusters
        self.clusterer = clusterer
        self.n_clusters = n_clusters
        self.ratio = ratio
        self.max_levels = max_levels
        self.references = references
        self.seed = seed

    def fit_predict(self, X: np.ndarray, y: None = None) -> np.ndarray:
        """Finds clusters of points [n, dim], -1 for none.

        Sets ``n_clusters_`` and ``levels_``, a list with ``points``,
        ``clusters``, ``silhouette`` and ``reference`` (the best ones of the
        points and of the Gaussian points, None for the first level) and
        ``accepted`` of each level.
        """
        rng = np.random.default_rng(self.seed)
        labels, _ = self._level(X, None)
        shares = (np.atleast_1d(self.n_clusters) < 1).all()
        most = self.max_levels if shares else 1
        while len(self.levels_) < most and labels.max() >= FEWEST:
            centers, _ = centroids(X, labels)
            joined, accepted = self._level(centers, rng)
            if not accepted:
                break
            known = labels >= 0
            labels[known] = joined[labels[known]]
            labels = _renumber(labels)
        self.n_clusters_ = int(labels.max()) + 1
        return labels

    def _level(self, points, rng):
        """Clusters the points of a level; returns labels and acceptance."""
        labels, found = self._try(points)
        gaps, reference = found, None
        if rng is None:
            self.levels_ = []
        else:
            draws = [
                self._try(_gaussian_like(points, rng))[1]
                for _ in range(self.references)
            ]
            gaps = found - np.mean(draws, axis=0)
            reference = float(np.mean([draw.max() for draw in draws]))
        silhouette = float(found.max())
        best = labels[gaps.argmax()]
        level = {
            "points": len(points),
            "clusters": int(best.max()) + 1,
            "silhouette": silhouette,
            "reference": reference,
            "accepted": reference is None
            or silhouette > self.ratio * reference,
        }
        logger.info("Level %d: %s", len(self.levels_) + 1, level)
        self.levels_.append(level)
        return best, level["accepted"]

    def _try(self, points):
        """Returns the labels of each number of clusters, and silhouettes."""
        tried = [
            BestCount(self.clusterer, wanted)
            for wanted in np.atleast_1d(self.n_clusters).tolist()
        ]
        labels = [_renumber(count.fit_predict(points)) for count in tried]
        found = [max(count.silhouettes_.values()) for count in tried]
        return labels, np.array(found)


def _renumber(labels):
    """Renumbers labels from 0 without gaps; negative ones become -1."""
    names, found = np.unique(labels, return_inverse=True)
    return found - int(names[0] < 0)


def _gaussian_like(points, rng):
    """Draws points from a Gaussian with the mean and covariance of points."""
    mean = points.mean(0)
    # square root of the covariance from a QR decomposition: stable for any rank
    root = np.linalg.qr(points - mean, mode="r") / len(points) ** 0.5
    drawn = rng.standard_normal((len(points), len(root))) @ root
    return (mean + drawn).astype(np.float32)
