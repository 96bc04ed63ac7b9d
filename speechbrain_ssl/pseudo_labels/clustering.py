"""Clusterers with scikit-learn's ``fit_predict``."""

import faiss
import numpy as np


class KMeans:
    """k-means on faiss.

    Arguments
    ---------
    n_clusters : int
        Number of clusters.
    spherical : bool
        Whether points are compared by cosine and centroids are unit vectors.
    n_iter : int
        Iterations.
    n_init : int
        Starts; the best one is kept.
    random_state : int
        Of the starts.
    max_points_per_centroid : int
        More points than this for each centroid are sampled down while
        centroids are sought; all points are labelled.

    Example
    -------
    >>> points = np.repeat(np.eye(3), 4, axis=0)
    >>> labels = KMeans(3, n_init=5).fit_predict(points)
    >>> labels.shape, len(set(labels[::4]))
    ((12,), 3)
    """

    def __init__(
        self,
        n_clusters,
        spherical=True,
        n_iter=20,
        n_init=1,
        random_state=0,
        max_points_per_centroid=256,
    ):
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.n_iter = n_iter
        self.n_init = n_init
        self.random_state = random_state
        self.max_points_per_centroid = max_points_per_centroid

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
            int64 number of each point's cluster [n]; ``cluster_centers_``
            [n_clusters, dim] are kept.

        Raises
        ------
        ValueError
            If there are fewer points than clusters.
        """
        points = np.ascontiguousarray(X, dtype=np.float32)
        if len(points) < self.n_clusters:
            raise ValueError(
                f"KMeans was asked for {self.n_clusters} clusters of "
                f"{len(points)} points. Lower n_clusters."
            )
        if self.spherical:
            norms = np.linalg.norm(points, axis=1, keepdims=True)
            points = points / np.maximum(norms, 1e-12)
        kmeans = faiss.Kmeans(
            points.shape[1],
            self.n_clusters,
            niter=self.n_iter,
            nredo=self.n_init,
            spherical=self.spherical,
            seed=self.random_state,
            min_points_per_centroid=1,
            max_points_per_centroid=self.max_points_per_centroid,
        )
        kmeans.train(points)
        self.cluster_centers_ = kmeans.centroids
        _, labels = kmeans.index.search(points, 1)
        return labels[:, 0].astype(np.int64)
