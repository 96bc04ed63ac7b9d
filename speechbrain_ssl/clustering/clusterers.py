"""Clusterers for a million points, with scikit-learn's ``fit_predict``.

The label -1 is noise. Clusterers of scikit-learn can replace these, for
example in a YAML::

    clusterer: !new:sklearn.cluster.HDBSCAN
        min_cluster_size: 5
        copy: True

HDBSCAN finds the number of clusters, and labels uncertain points as noise. It
uses Euclidean distances, so give it unit vectors. In hundreds of dimensions its
time is quadratic in the number of points: use it up to tens of thousands.
"""

import random
from typing import Any, NamedTuple

import faiss
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import AgglomerativeClustering

from speechbrain_ssl.checks import checked, number, one_of, optional, whole
from speechbrain_ssl.clustering.device import chosen, knn
from speechbrain_ssl.clustering.kmeans import RULES, KMeans
from speechbrain_ssl.clustering.points import read_points
from speechbrain_ssl.extras import extra

# With more points, neighbors are searched approximately (inverted file index).
EXACT_NEIGHBORS = 200_000
LINKAGES = ("ward", "average", "complete", "single")
# Points whose neighbors are searched at once.
CHUNK = 65536
GRAPH_METHODS = ("components", "leiden")


class TwoStage(ClusterMixin, BaseEstimator):
    """k-means into many small clusters, then agglomerative clustering of these.

    V. Miara, T. Lepage and R. Dehak merge 50,000 clusters of VoxCeleb2 into
    7,500 ("Towards supervised performance on speaker verification with
    self-supervised learning by leveraging large-scale ASR models", Interspeech
    2024, https://arxiv.org/abs/2406.02285). Only clusters that are neighbors in
    a nearest-neighbor graph are merged, so no matrix of all distances is
    needed.

    Without k-means, the points themselves are merged. This needs about 0.1 MB
    for each point: use it up to tens of thousands of utterances. If clusters
    have few members, it is better than k-means.

    Arguments
    ---------
    n_clusters : int
        Final number of clusters.
    fine_clusters : int
        Number of clusters of k-means. None: merge the points themselves, at
        unit length.
    linkage : str
        scikit-learn's linkage: ward, average, complete or single. Without
        k-means, the last three use cosine distances; all others use Euclidean
        distances.
    n_neighbors : int
        Neighbors of each cluster in the graph.
    random_state, n_iter, n_init, distributed, device
        See ``KMeans``.

    Example
    -------
    >>> points = np.random.default_rng(0).standard_normal((200, 4))
    >>> labels = TwoStage(5, fine_clusters=40).fit_predict(points)
    >>> sorted(set(labels.tolist()))
    [0, 1, 2, 3, 4]
    >>> points = np.array([[1, 0], [0, 1], [3, 1], [-1, 5]])
    >>> TwoStage(2, None, linkage="average").fit_predict(points).tolist()
    [1, 0, 1, 0]
    """

    @checked(
        n_clusters=number(above=0),
        fine_clusters=optional(number(above=0)),
        linkage=one_of(*LINKAGES),
        n_neighbors=whole(1),
        **RULES,
    )
    def __init__(
        self,
        n_clusters: int = 8,
        fine_clusters: int | None = None,
        linkage: str = "ward",
        n_neighbors: int = 20,
        random_state: int = 0,
        n_iter: int = 20,
        n_init: int = 1,
        distributed: bool = False,
        device: str = "auto",
    ):
        if fine_clusters is not None and fine_clusters < n_clusters:
            raise ValueError(
                f"fine_clusters is {fine_clusters}; expected n_clusters "
                f"({n_clusters}) or more."
            )
        self.n_clusters = n_clusters
        self.fine_clusters = fine_clusters
        self.linkage = linkage
        self.n_neighbors = n_neighbors
        self.random_state = random_state
        self.n_iter = n_iter
        self.n_init = n_init
        self.distributed = distributed
        self.device = device

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Finds the int64 cluster of each of the points [n, dim].

        Sets ``fine_labels_`` [n] and ``n_empty_``, the number of fine clusters
        without points.
        """
        centroids, fine = self._fine(X)
        joined = np.arange(len(centroids))
        if 1 < len(centroids) != self.n_clusters:
            by_cosine = self.fine_clusters is None and self.linkage != "ward"
            agglomerative = AgglomerativeClustering(
                self.n_clusters,
                metric="cosine" if by_cosine else "euclidean",
                linkage=self.linkage,
                connectivity=_connected(
                    centroids, self.n_neighbors, chosen(self.device)
                ),
                compute_full_tree=False,
            )
            joined = agglomerative.fit_predict(centroids)
        return joined[fine].astype(np.int64)

    def _fine(self, X):
        """Returns the points to merge, and the one of each row of X."""
        if self.fine_clusters is None:
            if len(X) < self.n_clusters:
                raise ValueError(
                    "TwoStage needs at least n_clusters points, but n_clusters "
                    f"is {self.n_clusters} and there are {len(X)} points."
                )
            self.fine_labels_, self.n_empty_ = np.arange(len(X)), 0
            return read_points(X, slice(None), True), self.fine_labels_
        kmeans = KMeans(
            self.fine_clusters,
            n_iter=self.n_iter,
            n_init=self.n_init,
            random_state=self.random_state,
            distributed=self.distributed,
            device=self.device,
        )
        self.fine_labels_ = kmeans.fit_predict(X)
        self.n_empty_ = kmeans.n_empty_
        filled, fine = np.unique(self.fine_labels_, return_inverse=True)
        if len(filled) < self.n_clusters:
            raise ValueError(
                f"Only {len(filled)} of {self.fine_clusters} fine clusters "
                f"have points, fewer than n_clusters ({self.n_clusters}). "
                "Lower n_clusters."
            )
        return kmeans.cluster_centers_[filled], fine


class Graph(ClusterMixin, BaseEstimator):
    """Clusters of a graph of mutual nearest neighbors.

    An edge connects two points if each is among the nearest neighbors of the
    other and their cosine is at least ``threshold``. Points without an edge
    are noise.

    Arguments
    ---------
    threshold : float
        Lowest cosine of an edge, -1 to 1. It determines the number of clusters
        and depends on the encoder. If it is too low, ``components`` finds one
        giant cluster.
    n_neighbors : int
        Number of nearest neighbors of a point.
    method : str
        ``components``: each connected component is a cluster. ``leiden``:
        communities by modularity with edges weighted by cosine (V. A. Traag,
        L. Waltman and N. J. van Eck, "From Louvain to Leiden", Scientific
        Reports 2019, https://arxiv.org/abs/1810.08473); it needs the package
        igraph.
    resolution : float
        Resolution of ``leiden``; higher values give more clusters.
    random_state : int
        Seed of ``leiden``, and of the index for more than 200,000 points.
    device : str
        Where to search neighbors: ``cpu``, ``cuda``, or ``auto``, the GPU if
        there is one, whose search is exact for any number of points.

    Raises
    ------
    ImportError
        If ``leiden`` is chosen and igraph is not installed.

    Example
    -------
    >>> angles = np.array([0.0, 0.1, 0.2, 1.5, 1.6, 3.0])
    >>> points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> Graph(threshold=0.9).fit_predict(points).tolist()
    [0, 0, 0, 1, 1, -1]
    """

    @checked(
        threshold=number(-1, 1),
        n_neighbors=whole(1),
        method=one_of(*GRAPH_METHODS),
        resolution=number(above=0),
        device=one_of("auto", "cpu", "cuda"),
    )
    def __init__(
        self,
        threshold: float = 0.5,
        n_neighbors: int = 20,
        method: str = "components",
        resolution: float = 1.0,
        random_state: int = 0,
        device: str = "auto",
    ):
        if method == "leiden":
            extra("igraph")
        self.threshold = threshold
        self.n_neighbors = n_neighbors
        self.method = method
        self.resolution = resolution
        self.random_state = random_state
        self.device = device

    def fit_predict(self, X: np.ndarray, y: Any = None) -> np.ndarray:
        """Finds the int64 cluster of each of the points [n, dim], -1 for noise."""
        rows, columns, cosines = self._mutual(X)
        if self.method == "leiden":
            members = _leiden(
                (len(X), np.stack([rows, columns], 1), cosines),
                self.resolution,
                self.random_state,
            )
        else:
            ones = np.ones(len(rows), np.int8)
            graph = sparse.coo_array((ones, (rows, columns)), [len(X)] * 2)
            _, members = csgraph.connected_components(graph, directed=False)
        return tidy(members, min_size=2).labels

    def _mutual(self, X):
        """Returns each edge once: its two ends and its cosine."""
        search = _neighbor_search(X, self.random_state, chosen(self.device))
        count = len(X)
        wanted = min(self.n_neighbors + 1, count)
        edges, cosines = [], []
        for first in range(0, count, CHUNK):
            chunk = read_points(X, slice(first, first + CHUNK), True)
            scores, found = search(chunk, wanted)
            near = np.arange(first, first + len(chunk))[:, None]
            kept = (scores >= self.threshold) & (found != near) & (found >= 0)
            low, high = np.minimum(near, found), np.maximum(near, found)
            # the number of a pair does not depend on its order
            edges.append((low * np.int64(count) + high)[kept])
            cosines.append(scores[kept])
        edges, firsts, times = np.unique(
            np.concatenate(edges), return_index=True, return_counts=True
        )
        cosines = np.concatenate(cosines)[firsts]
        mutual = times == 2
        rows, columns = np.divmod(edges[mutual], count)
        return rows, columns, cosines[mutual]


class Tidied(NamedTuple):
    """Result of ``tidy``.

    ``labels`` are int64 clusters from 0 without gaps, -1 for none [n].
    ``report`` has the numbers of ``clusters``, of points that were ``noise``
    before, and of removed clusters and points: ``tiny_clusters``, ``tiny``,
    ``giant_clusters``, ``giant``.
    """

    labels: np.ndarray
    report: dict


def tidy(
    labels: np.ndarray, min_size: int = 1, max_size: float | None = None
) -> Tidied:
    """Removes small and large clusters, and renumbers the others from 0.

    Utterances of a removed cluster get no label. They are not moved to another
    cluster, because a tiny cluster is far from all others, and a giant cluster
    mixes speakers. The remaining clusters keep their order.

    Labels are negative for none [n]. ``max_size`` below one is a share of all
    points; None allows any size. It is an error if no cluster remains.

    Example
    -------
    >>> tidy([7, 7, 3, 9, 9, -1], min_size=2).labels.tolist()
    [0, 0, -1, 1, 1, -1]
    """
    labels = np.asarray(labels)
    most = np.inf if max_size is None else max_size
    most = most * len(labels) if most < 1 else most
    names, place, sizes = np.unique(
        labels, return_inverse=True, return_counts=True
    )
    noise = names < 0
    tiny, giant = ~noise & (sizes < min_size), ~noise & (sizes > most)
    kept = ~(noise | tiny | giant)
    report = {"clusters": int(kept.sum()), "noise": int(sizes[noise].sum())}
    for name, gone in ("tiny", tiny), ("giant", giant):
        report[f"{name}_clusters"] = int(gone.sum())
        report[name] = int(sizes[gone].sum())
    if not kept.any():
        raise ValueError(
            f"No cluster has {min_size} to {most:g} utterances: "
            f"{report['tiny_clusters']} are smaller, "
            f"{report['giant_clusters']} are larger, and {report['noise']} "
            "utterances have no cluster. Change min_size, max_size or the "
            "clusterer."
        )
    new = np.where(kept, np.cumsum(kept) - 1, -1)
    return Tidied(new[place].astype(np.int64), report)


def _connected(centroids, n_neighbors, device):
    """Returns a connected nearest-neighbor graph for AgglomerativeClustering."""
    count = len(centroids)
    wanted = min(n_neighbors + 1, count)
    _, found = knn(centroids, centroids, wanted, False, device)
    rows = np.repeat(np.arange(count), wanted)
    columns = found.ravel()
    parts, member = csgraph.connected_components(
        sparse.coo_array(
            (np.ones(len(rows), np.int8), (rows, columns)), [count] * 2
        ),
        directed=False,
    )
    if parts > 1:
        # scikit-learn would compare all pairs of points to connect the parts.
        # Connect them by a tree, at the points that are nearest to their means.
        sizes = np.bincount(member)[:, None]
        means = np.zeros((parts, centroids.shape[1]))
        np.add.at(means, member, centroids)
        means /= sizes
        distance = np.square(centroids - means[member]).sum(1)
        order = np.lexsort((distance, member))
        middle = order[np.searchsorted(member[order], np.arange(parts))]
        gaps = np.square(means).sum(1)
        gaps = gaps[:, None] + gaps - 2 * means @ means.T
        # scipy treats a zero as no edge
        tree = csgraph.minimum_spanning_tree(np.maximum(gaps, 1e-9)).tocoo()
        rows = np.concatenate([rows, middle[tree.row]])
        columns = np.concatenate([columns, middle[tree.col]])
    graph = sparse.csr_matrix(
        (np.ones(len(rows), np.int8), (rows, columns)), (count, count)
    )
    return graph + graph.T


def _neighbor_search(X, seed, device):
    """Returns a function that finds nearest unit vectors: on a GPU exactly, or
    by an index of faiss, which is exact up to EXACT_NEIGHBORS.
    """
    if device.type != "cpu":
        points = read_points(X, slice(None), True)
        return lambda chunk, wanted: knn(chunk, points, wanted, True, device)
    count, dim = X.shape
    index = faiss.IndexFlatIP(dim)
    if count > EXACT_NEIGHBORS:
        cells = int(4 * count**0.5)
        index = faiss.IndexIVFFlat(
            index, dim, cells, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = max(16, cells // 64)
        index.cp.seed = seed
        rng = np.random.default_rng(seed)
        rows = rng.choice(count, min(count, 64 * cells), replace=False)
        index.train(read_points(X, np.sort(rows), True))
    for first in range(0, count, CHUNK):
        index.add(read_points(X, slice(first, first + CHUNK), True))
    return index.search


def _leiden(edges, resolution, seed):
    """Returns the community of each point [n]."""
    igraph = extra("igraph")
    count, pairs, cosines = edges
    graph = igraph.Graph(n=count, edges=pairs)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            objective_function="modularity",
            weights=np.maximum(cosines, 1e-6).tolist(),
            resolution=resolution,
            n_iterations=-1,
        )
    finally:  # the default generator
        igraph.set_random_number_generator(random)
    return np.array(found.membership)
