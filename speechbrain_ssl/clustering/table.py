"""Cluster assignments of the training set, and views from clusters.

CA-DINO introduced views from clusters (B. Han, Z. Chen and Y. Qian,
"Self-supervised learning with cluster-aware-DINO for high-performance robust
speaker verification", 2023, https://arxiv.org/abs/2304.05754). Here the view
sampler draws them, so every objective can use them.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, optional, schedule, whole
from speechbrain_ssl.clustering.device import chosen, knn
from speechbrain_ssl.clustering.quality import centroids
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.nnet.schedules import at

logger = logging.getLogger(__name__)

# number of the random stream that draws the partners of an utterance
PARTNERS = 1001
# Norm of the noise that is added to unit embeddings to test the clusters; it
# changes an embedding to a cosine of 0.9. The norm is fixed, so that an encoder
# whose embeddings are all similar fails the test.
NOISE = 0.5


@register_checkpoint_hooks
class ClusterTable:
    """Cluster assignments of the training set, in shared memory.

    Loader workers read the table to draw views. The partners of an utterance
    are the other utterances of its cluster. There are none before the first
    refresh, and in clusters that are too small or too large. Objectives that
    read labels and centroids use all clusters.

    Arguments
    ---------
    clusterer : object
        Clusterer with scikit-learn's ``fit_predict``. The table sets its
        parameter ``random_state``, if it has one. If its attribute
        ``distributed`` is true, all processes call it, otherwise only the
        first process.
    clusters : float or callable
        Number of clusters, or a schedule of it, for the parameter
        ``n_clusters`` of the clusterer. A float up to 1.0 is a share of the
        utterances. None: the clusterer finds the number.
    start : float
        Epoch of the first refresh; infinity: never.
    every : int
        Epochs between refreshes.
    min_size, max_size : int
        Utterances of smaller or larger clusters have no partners. A new table
        without any partners is rejected.
    min_agreement : float
        Lowest agreement with a clustering of noisy embeddings, 0 to 1. A table
        with a lower agreement is rejected. 0: no test.
    seed : int
        Seed of the clusterer and of the noise.

    Raises
    ------
    ValueError
        If the clusterer has no ``fit_predict``, or ``clusters`` does not fit it.

    Example
    -------
    >>> from speechbrain_ssl.clustering.kmeans import KMeans
    >>> table = ClusterTable(KMeans(), clusters=2)
    >>> table.prepare(6)
    >>> report = table.refresh(torch.eye(2).repeat(3, 1), epoch=0.0)
    >>> table.members(0).tolist(), report["cluster_count"]
    ([0, 2, 4], 2.0)
    """

    stats_help = {
        "cluster_count": "Number of clusters.",
        "cluster_largest": "Share of the utterances in the largest cluster.",
        "cluster_singletons": "Share of the utterances without partners.",
        "cluster_cosine": "Mean cosine of an embedding to its cluster's mean.",
        "cluster_agreement": (
            "Share of the partners that an utterance keeps when noise is added "
            "to the embeddings, corrected for chance."
        ),
        "cluster_accepted": "1 if the new clusters replace the previous ones.",
    }

    @checked(
        clusters=optional(schedule(number(above=0))),
        start=number(0),
        every=whole(1),
        min_size=whole(1),
        max_size=number(1),
        min_agreement=number(0, 1),
        seed=whole(0),
    )
    def __init__(
        self,
        clusterer: Any,
        clusters: float | Callable[[float], float] | None = None,
        start: float = 0.0,
        every: int = 1,
        min_size: int = 2,
        max_size: int = 500,
        min_agreement: float = 0.0,
        seed: int = 0,
    ):
        check_clusterer(clusterer, clusters)
        self.clusterer = clusterer
        self.clusters = clusters
        self.start = start
        self.every = every
        self.min_size = min_size
        self.max_size = max_size
        self.min_agreement = min_agreement
        self.seed = seed
        self.labels: Any = None  # tensor [N] once prepared
        # [clusters, emb_dim], and mean distances to the means [clusters]
        self.centroids: Any = None
        self.spread: Any = None
        self._nearest: Any = None
        self._copies = {}
        self.last = -1

    def prepare(self, count: int) -> None:
        """Allocates the table for a number of utterances; a second call has no
        effect. Raises ValueError if ``clusters`` is impossible for them.
        """
        if self.labels is None:
            if self.start < math.inf:
                self._configured(self._number(math.ceil(self.start), count))
            self.labels = torch.full((count,), -1).share_memory_()
            # rows sorted by cluster, and the first position of each cluster
            self.order = torch.arange(count).share_memory_()
            self.begin = torch.zeros(count + 1, dtype=torch.long)
            self.begin.share_memory_()

    def due(self, epoch: int) -> bool:
        """Whether to refresh the table after a number of epochs, at most once
        in an epoch that is resumed.
        """
        if epoch < self.start or epoch == self.last:
            return False
        return (epoch - math.ceil(self.start)) % self.every == 0

    def refresh(
        self, embeddings: torch.Tensor, epoch: float
    ) -> dict[str, float]:
        """Clusters the embeddings; all processes get the same table.

        Embeddings of all utterances are the same in all processes [N, emb_dim];
        an unreadable utterance has zeros, and no cluster. The epoch is for the
        schedule of the number of clusters. Gives the statistics of
        ``stats_help``; ``cluster_agreement`` only with ``min_agreement``.
        """
        self.last = int(epoch)
        unit = F.normalize(embeddings.float(), dim=-1)
        number = self._number(epoch, int(unit.any(1).sum()))
        labels = self._cluster(unit, number, self.seed)
        if (labels < 0).all():
            logger.warning(
                "The cluster table is not updated: the clusterer assigned no "
                "utterance to a cluster."
            )
            return {"cluster_count": 0.0, "cluster_accepted": 0.0}
        report = self._describe(unit, labels)
        problem = None
        if self.min_agreement > 0:
            other = self._cluster(unit, number, self.seed + 1, NOISE)
            agreement = _kept_together(
                labels.numpy(), other.numpy(), self.min_size, self.max_size
            )
            report["cluster_agreement"] = agreement
            if agreement < self.min_agreement:
                problem = (
                    f"its agreement with clusters of noisy embeddings is "
                    f"{agreement:.2f} (min_agreement {self.min_agreement:.2f})"
                )
        if report["cluster_singletons"] == 1.0:
            problem = (
                "no utterance has a partner: no cluster has "
                f"{max(self.min_size, 2)} to {self.max_size} utterances "
                "(min_size, max_size). Change clusters, or these limits"
            )
        if problem is None:
            self._fill(labels, unit)
        else:
            logger.warning("The cluster table is not updated: %s.", problem)
        return {**report, "cluster_accepted": float(problem is None)}

    def members(self, row: int) -> torch.Tensor:
        """Rows of an utterance and its partners [members]."""
        label = self.labels[row].item()
        if label >= 0:
            first, last = self.begin[label : label + 2].tolist()
            if self.min_size <= last - first <= self.max_size:
                return self.order[first:last]
        return torch.tensor([row])

    def on(
        self, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Labels (-1: no cluster) [N] and centroids [clusters, emb_dim] on a
        device; both are None before the first refresh.
        """
        if self.centroids is None:
            return None, None
        if device not in self._copies:
            found = self.labels.to(device), self.centroids.to(device)
            self._copies[device] = found
        return self._copies[device]

    def nearest(
        self, count: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Up to ``count`` nearest other clusters of each cluster, the nearest
        first [clusters, count], on a device.
        """
        if (count, device) not in self._copies:
            found = self._nearest_clusters(count).to(device)
            self._copies[count, device] = found
        return self._copies[count, device]

    def _nearest_clusters(self, count):
        """Computes what ``nearest`` keeps for each device."""
        if self._nearest is None or self._nearest.shape[1] < count:
            points = self.centroids.numpy()
            # with ties, a cluster may not be its own first neighbor
            wanted = min(count + 1, len(points))
            _, found = knn(points, points, wanted, True, chosen("auto"))
            found = torch.from_numpy(found)
            other = found != torch.arange(len(found))[:, None]
            order = other.int().argsort(dim=1, descending=True, stable=True)
            self._nearest = found.gather(1, order)[:, : wanted - 1]
        return self._nearest[:, :count]

    def _number(self, epoch, count):
        """Number of clusters for ``count`` utterances at an epoch, or None."""
        if self.clusters is None:
            return None
        asked = at(self.clusters, epoch)
        # a schedule gives floats: 1.0 is a share, 1 is a number
        share = asked <= 1 and not isinstance(asked, int)
        number = round(asked * count) if share else round(asked)
        if not 1 <= number <= count:
            raise ValueError(
                f"The cluster table can have 1 to {count} clusters of {count} "
                f"utterances, but clusters is {asked} at epoch {epoch}. Set "
                "a number in this range, or a share such as 0.5."
            )
        return number

    def _configured(self, number, seed=0):
        """Returns a clusterer with this number and seed, which it checks."""
        settings = {}
        known = parameters_of(self.clusterer)
        if number is not None:
            settings["n_clusters"] = number
        if "random_state" in known:
            settings["random_state"] = seed
        if not settings:
            return copy.deepcopy(self.clusterer)
        return type(self.clusterer)(**{**known, **settings})

    def _cluster(self, unit, number, seed, noise=0.0):
        """Clusters unit embeddings; all processes get the same labels."""
        clusterer = self._configured(number, seed)
        labels = torch.empty(len(unit), dtype=torch.long)
        # a distributed clusterer waits for all processes
        if distributed.rank() == 0 or getattr(clusterer, "distributed", False):
            readable = unit.any(1)
            unit = unit[readable]
            if noise:
                unit = _disturbed(unit, noise, seed)
            found = clusterer.fit_predict(unit.numpy())
            # number the clusters from 0 without gaps; -1 is noise
            names, found = np.unique(found, return_inverse=True)
            labels.fill_(-1)
            labels[readable] = torch.from_numpy(found - int(names[0] < 0))
        return distributed.from_first(labels)

    def _describe(self, unit, labels):
        """Computes statistics of a clustering without labels."""
        sizes = labels[labels >= 0].bincount()
        single = (sizes < max(self.min_size, 2)) | (sizes > self.max_size)
        with_partners = sizes[~single].sum().item()
        _, cohesion = centroids(unit.numpy(), labels.numpy())
        return {
            "cluster_count": float(len(sizes)),
            "cluster_largest": sizes.max().item() / len(labels),
            "cluster_singletons": 1.0 - with_partners / len(labels),
            "cluster_cosine": float(np.average(cohesion, weights=sizes)),
        }

    def _fill(self, labels, unit=None):
        """Writes the table into shared memory."""
        sizes = labels[labels >= 0].bincount()
        ends = sizes.cumsum(0)
        self.begin.fill_(len(labels))
        # noise comes before the first cluster
        noise = len(labels) - int(ends[-1])
        self.begin[0] = noise
        self.begin[1 : len(ends) + 1] = noise + ends
        self.order.copy_(labels.argsort(stable=True))
        self.labels.copy_(labels)
        if unit is not None:
            units, cohesion = centroids(unit.numpy(), labels.numpy())
            self.centroids = torch.from_numpy(units)
            means = self.centroids * torch.from_numpy(cohesion).float()[:, None]
            kept = labels >= 0
            distance = (unit[kept] - means[labels[kept]]).norm(dim=-1)
            total = labels[kept].bincount(distance, len(sizes))
            self.spread = (total / sizes).float()
        self._nearest, self._copies = None, {}

    @mark_as_saver
    def _save(self, path):
        """Writes the clusters and the epoch of the last refresh."""
        names = ("labels", "centroids", "spread", "last")
        torch.save({name: getattr(self, name) for name in names}, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        """Reads what ``_save`` wrote."""
        state = torch.load(path, weights_only=True)
        labels, self.last = state["labels"], state["last"]
        self.centroids, self.spread = state["centroids"], state["spread"]
        if labels is None:
            return
        self.prepare(len(labels))
        if len(labels) != len(self.labels):
            raise ValueError(
                f"The cluster table of the checkpoint has {len(labels)} "
                f"utterances, but the training CSV has {len(self.labels)}. Use "
                "the same CSV, or a new output_folder."
            )
        if self.centroids is not None:
            self._fill(labels)


class ClusterPartners:
    """Chooses the utterances of a cluster from which views are cut.

    The utterance itself and its partners give one view each, in turn, the
    global crops first.

    Arguments
    ---------
    table : ClusterTable
        The clusters.
    """

    def __init__(self, table: ClusterTable):
        self.table = table
        self.utterances: Any = None

    def prepare(self, utterances: Utterances) -> None:
        """Sets the training set."""
        self.utterances = utterances
        self.table.prepare(len(utterances))

    def __call__(
        self, rng_key: tuple[int, ...], counts: tuple[int, ...]
    ) -> Sequence[int]:
        """Draws the utterance of each view: rows, global crops first [views].

        ``rng_key`` is seed, epoch and row of the utterance; ``counts`` are the
        numbers of global and of local crops.
        """
        row, views = rng_key[-1], sum(counts)
        members = self.table.members(row)
        others = members[members != row].numpy()
        if not len(others):
            return [row] * views
        rng = np.random.default_rng((*rng_key, PARTNERS))
        everyone = [row, *rng.permutation(others)[: views - 1].tolist()]
        return [everyone[view % len(everyone)] for view in range(views)]


def check_clusterer(clusterer: Any, clusters: Any = None) -> None:
    """Raises ValueError if a clusterer has no ``fit_predict``, or if a number
    of clusters is given and it has no parameter ``n_clusters``.
    """
    name = getattr(clusterer, "__name__", type(clusterer).__name__)
    if isinstance(clusterer, type) or not hasattr(clusterer, "fit_predict"):
        raise ValueError(
            f"clusterer must be an object with scikit-learn's fit_predict, not "
            f"{name}. In YAML write !new:, not !name:."
        )
    takes = "n_clusters" in parameters_of(clusterer)
    if clusters is not None and not takes:
        raise ValueError(
            f"clusters is {clusters}, but {name} has no parameter n_clusters. "
            "Set clusters to null: this clusterer finds the number itself."
        )


def parameters_of(clusterer: Any) -> dict[str, Any]:
    """Returns scikit-learn's parameters of a clusterer, or an empty dict."""
    get = getattr(clusterer, "get_params", None)
    return {} if get is None else get(deep=False)


def _disturbed(unit, noise, seed):
    """Adds Gaussian noise of a given norm to unit embeddings."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(unit.shape, generator=generator)
    return F.normalize(unit + noise / unit.shape[1] ** 0.5 * drawn, dim=-1)


def _kept_together(labels, other, min_size, max_size):
    """Mean share of partners that an utterance keeps in another clustering.

    Corrected for chance: 1 if all are kept, 0 for the expected value of random
    clusters or if no utterance has partners. Unlike the adjusted Rand index, it
    does not depend on cluster sizes, and all utterances have the same weight.
    """
    _, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    _, theirs, found = np.unique(other, return_inverse=True, return_counts=True)
    cells = own * np.int64(len(found)) + theirs
    _, cell, shared = np.unique(cells, return_inverse=True, return_counts=True)
    size = sizes[own]
    asked = (labels >= 0) & (size >= max(min_size, 2)) & (size <= max_size)
    if not asked.any():
        return 0.0
    # noise has no partners
    together = (other >= 0)[asked]
    kept = together * (shared[cell][asked] - 1) / (size[asked] - 1)
    chance = together * (found[theirs][asked] - 1) / (len(labels) - 1)
    kept, chance = kept.mean(), chance.mean()
    return float((kept - chance) / (1 - chance)) if chance < 1 else 0.0
