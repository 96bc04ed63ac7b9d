"""How many clusters there are, where nobody knows the number of speakers."""

import logging

import numpy as np

from speechbrain_ssl.pseudo_labels.quality import silhouette

logger = logging.getLogger(__name__)


class BestCount:
    """Tries numbers of clusters and keeps that of the largest silhouette.

    P. J. Rousseeuw, "Silhouettes", Journal of Computational and Applied
    Mathematics 20, 1987.

    Arguments
    ---------
    clusterer : callable
        Takes ``n_clusters`` and returns an object with scikit-learn's
        ``fit_predict``.
    n_clusters : list of float, or float
        Numbers to try; those below one are shares of the number of points.

    Example
    -------
    >>> from speechbrain_ssl.pseudo_labels.clustering import KMeans
    >>> points = np.repeat(np.eye(5), 4, axis=0)
    >>> best = BestCount(KMeans, n_clusters=[2, 0.25, 10])
    >>> len(set(best.fit_predict(points).tolist())), best.n_clusters_
    (5, 5)
    """

    def __init__(self, clusterer, n_clusters):
        numbers = np.atleast_1d(n_clusters).tolist()
        if not numbers or not all(number > 0 for number in numbers):
            raise ValueError(
                "n_clusters must be numbers of clusters, or shares of the "
                f"number of points, not {n_clusters}."
            )
        self.clusterer = clusterer
        self.n_clusters = numbers

    @property
    def distributed(self):
        """Whether all processes must call ``fit_predict``."""
        return getattr(self.clusterer(n_clusters=2), "distributed", False)

    def fit_predict(self, X, y=None):
        """Finds clusters.

        Arguments
        ---------
        X : np.ndarray
            Points [n, dim].
        y : None
            Not used; scikit-learn has it.

        Returns
        -------
        np.ndarray
            Number of each point's cluster, -1 for none [n]; ``n_clusters_``
            and ``silhouettes_`` (dict of number of clusters to silhouette)
            are kept.
        """
        self.silhouettes_ = {}
        best = None
        for number in self.n_clusters:
            count = max(round(number * len(X) if number < 1 else number), 2)
            labels = np.asarray(self.clusterer(n_clusters=count).fit_predict(X))
            found = silhouette(X, labels)
            if found > max(self.silhouettes_.values(), default=-np.inf):
                best, self.n_clusters_ = labels, count
            self.silhouettes_[count] = found
            logger.info("%d clusters: silhouette %.4f", count, found)
        return best
