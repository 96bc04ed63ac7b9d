"""Choice of the number of clusters."""

import logging

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, clone

from speechbrain_ssl.clustering.quality import silhouette

logger = logging.getLogger(__name__)


class BestCount(ClusterMixin, BaseEstimator):
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

    def __init__(self, clusterer, n_clusters):
        numbers = np.atleast_1d(n_clusters)
        if not len(numbers) or not (numbers > 0).all():
            raise ValueError(
                f"n_clusters must be positive numbers, not {n_clusters}."
            )
        self.clusterer = clusterer
        self.n_clusters = n_clusters

    @property
    def distributed(self):
        """Whether all processes must call ``fit_predict``."""
        return getattr(self.clusterer, "distributed", False)

    def fit_predict(self, X, y=None):
        """Finds clusters.

        Arguments
        ---------
        X : np.ndarray
            Points [n, dim].

        Returns
        -------
        np.ndarray
            Cluster of each point, -1 for none [n]. Sets ``n_clusters_`` and
            ``silhouettes_`` (number of clusters -> silhouette).
        """
        self.silhouettes_ = {}
        best = None
        for number in np.atleast_1d(self.n_clusters).tolist():
            count = max(round(number * len(X) if number < 1 else number), 2)
            clusterer = clone(self.clusterer).set_params(n_clusters=count)
            labels = np.asarray(clusterer.fit_predict(X))
            found = silhouette(X, labels)
            if found > max(self.silhouettes_.values(), default=-np.inf):
                best, self.n_clusters_ = labels, count
            self.silhouettes_[count] = found
            logger.info("%d clusters: silhouette %.4f", count, found)
        return best
