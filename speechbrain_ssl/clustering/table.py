"""Cluster assignments of the training set, and views drawn from clusters.

Cluster-aware views are those of CA-DINO (B. Han, Z. Chen and Y. Qian,
"Self-supervised learning with cluster-aware-DINO for high-performance robust
speaker verification", 2023, https://arxiv.org/abs/2304.05754). The view sampler
draws them, so every objective can use them.
"""

import copy
import logging
import math

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import distributed
from speechbrain_ssl.clustering.quality import centroids
from speechbrain_ssl.nnet.schedules import at

logger = logging.getLogger(__name__)

MODES = ("global_from_anchor", "global_split", "all_random")
# number of the random stream that draws the partners of an utterance
PARTNERS = 1001
# Norm of the noise that is added to unit embeddings to test the clusters. The
# cosine of an embedding before and after is 0.9. The norm does not depend on
# the embeddings, so an encoder whose embeddings are all similar fails the test.
NOISE = 0.5


@register_checkpoint_hooks
class ClusterTable:
    """Cluster assignments of the training set, in shared memory.

    Loader workers read the table to draw views. Before the first refresh, and
    in clusters that are too small or too large, an utterance has no partner.
    Objectives that read labels and centroids see all clusters.

    Arguments
    ---------
    clusterer : object
        With scikit-learn's ``fit_predict``. If it has a parameter
        ``random_state``, the table sets it. If its attribute ``distributed``
        is true, all processes call it; otherwise the first process clusters
        for all.
    clusters : float or callable
        Number of clusters, or a schedule of it, for the clusterer's parameter
        ``n_clusters``; a float up to 1.0 is a share of the number of
        utterances. None: the clusterer decides.
    start : float
        Epoch of the first refresh; infinity: never.
    every : int
        Epochs from one refresh to the next.
    min_size, max_size : int
        Utterances in smaller or larger clusters have no partners. A new table
        without any partners is rejected.
    min_agreement : float
        Least agreement with a clustering of noisy embeddings, 0 to 1; a table
        below it is rejected. 0 skips the test.
    seed : int
        Seed of the clusterer and of the noise.

    Raises
    ------
    ValueError
        If the clusterer has no ``fit_predict``, or ``clusters`` does not fit
        it, or ``every`` is below one.

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
        "cluster_accepted": "1 if the new clusters replaced the previous ones.",
    }

    def __init__(
        self,
        clusterer,
        clusters=None,
        start=0.0,
        every=1,
        min_size=2,
        max_size=500,
        min_agreement=0.0,
        seed=0,
    ):
        if every < 1:
            raise ValueError(f"every must be 1 epoch or more, not {every}")
        check_clusterer(clusterer, clusters)
        self.clusterer = clusterer
        self.clusters = clusters
        self.start = start
        self.every = every
        self.min_size = min_size
        self.max_size = max_size
        self.min_agreement = min_agreement
        self.seed = seed
        self.labels = None
        # unit means [clusters, emb_dim], and mean distances to them [clusters]
        self.centroids = None
        self.spread = None
        self._nearest = None
        self._copies = {}
        self.last = -1

    def prepare(self, count):
        """Allocates the table; a second call changes nothing.

        Arguments
        ---------
        count : int
            Number of utterances.

        Raises
        ------
        ValueError
            If the first refresh would want more clusters than utterances.
        """
        if self.labels is None:
            if self.start < math.inf:
                self._configured(self._number(math.ceil(self.start), count))
            self.labels = torch.full((count,), -1).share_memory_()
            # rows sorted by cluster, and the place where each cluster begins
            self.order = torch.arange(count).share_memory_()
            self.begin = torch.zeros(count + 1, dtype=torch.long)
            self.begin.share_memory_()

    def due(self, epoch):
        """Whether it should be refreshed at the start of an epoch.

        Arguments
        ---------
        epoch : int
            Number of epochs done.

        Returns
        -------
        bool
            True from ``start`` on, every so many epochs, but only once in
            an epoch that is resumed half-way.
        """
        if epoch < self.start or epoch == self.last:
            return False
        return (epoch - math.ceil(self.start)) % self.every == 0

    def refresh(self, embeddings, epoch):
        """Clusters again; all processes get the same table.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of all utterances, the same in all processes [N, emb_dim]. Zeros
            stand for an utterance that cannot be read: it has no cluster.
        epoch : float
            Training time, for the schedule of the number of clusters.

        Returns
        -------
        dict of str to float
            The statistics of ``stats_help``; ``cluster_agreement`` only with
            ``min_agreement``.
        """
        self.last = int(epoch)
        unit = F.normalize(embeddings.float(), dim=-1)
        number = self._number(epoch, int(unit.any(1).sum()))
        labels = self._cluster(unit, number, self.seed)
        if (labels < 0).all():
            logger.warning(
                "The cluster table stays as it was: the clusterer assigned no "
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
            logger.warning("The cluster table stays as it was: %s.", problem)
        return {**report, "cluster_accepted": float(problem is None)}

    def members(self, row):
        """Rows of the utterances in the cluster of one utterance.

        Arguments
        ---------
        row : int
            The utterance.

        Returns
        -------
        torch.Tensor
            Rows, itself included [members].
        """
        label = self.labels[row].item()
        if label >= 0:
            first, last = self.begin[label : label + 2].tolist()
            if self.min_size <= last - first <= self.max_size:
                return self.order[first:last]
        return torch.tensor([row])

    def on(self, device):
        """Labels and centroids on a device.

        Arguments
        ---------
        device : torch.device
            The copy is made once after each refresh.

        Returns
        -------
        labels : torch.Tensor
            Cluster of each utterance, -1 for none [N].
        centroids : torch.Tensor
            [clusters, emb_dim]; both are None before the first table.
        """
        if self.centroids is None:
            return None, None
        if device not in self._copies:
            found = self.labels.to(device), self.centroids.to(device)
            self._copies[device] = found
        return self._copies[device]

    def nearest(self, count):
        """The nearest other clusters of each cluster, by centroid.

        Arguments
        ---------
        count : int
            How many; fewer if there are not so many.

        Returns
        -------
        torch.Tensor
            Their numbers, the nearest first [clusters, count].
        """
        if self._nearest is None or self._nearest.shape[1] < count:
            points = self.centroids.numpy()
            # with ties a cluster need not be its own first neighbor: take one
            # more, and drop the cluster itself
            wanted = min(count + 1, len(points))
            _, found = faiss.knn(
                points, points, wanted, metric=faiss.METRIC_INNER_PRODUCT
            )
            found = torch.from_numpy(found)
            other = found != torch.arange(len(found))[:, None]
            order = other.int().argsort(dim=1, descending=True, stable=True)
            self._nearest = found.gather(1, order)[:, : wanted - 1]
        return self._nearest[:, :count]

    def _number(self, epoch, count):
        """Number of clusters wanted of so many utterances, or None."""
        if self.clusters is None:
            return None
        asked = at(self.clusters, epoch)
        # schedules give floats: from 0.5 to 1.0 is from half of them to all
        share = asked <= 1 and not isinstance(asked, int)
        number = round(asked * count) if share else round(asked)
        if not 1 <= number <= count:
            raise ValueError(
                f"The cluster table can have 1 to {count} clusters of {count} "
                f"utterances, but clusters is {asked} at epoch {epoch}. Give "
                "a number in between, or a share of them like 0.5."
            )
        return number

    def _configured(self, number, seed=0):
        """A clusterer of this number and seed; its constructor checks both."""
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
        """Labels of unit embeddings, the same in all processes."""
        clusterer = self._configured(number, seed)
        labels = torch.empty(len(unit), dtype=torch.long)
        # a distributed clusterer waits for all processes
        if distributed.rank() == 0 or getattr(clusterer, "distributed", False):
            # zeros stand for an utterance that cannot be read
            readable = unit.any(1)
            unit = unit[readable]
            if noise:
                unit = _disturbed(unit, noise, seed)
            found = clusterer.fit_predict(unit.numpy())
            # without gaps, whatever numbers the clusterer uses; -1 is noise
            names, found = np.unique(found, return_inverse=True)
            labels.fill_(-1)
            labels[readable] = torch.from_numpy(found - int(names[0] < 0))
        return distributed.from_first(labels)

    def _describe(self, unit, labels):
        """Label-free statistics of a clustering."""
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
        """Writes the table into the memory that all workers read."""
        sizes = labels[labels >= 0].bincount()
        ends = sizes.cumsum(0)
        self.begin.fill_(len(labels))
        # noise sorts first, before the first cluster begins
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
        """Writes the clusters and when they were made."""
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
                f"The cluster table of the checkpoint is of {len(labels)} "
                f"utterances, the training CSV has {len(self.labels)}. Train "
                "on the same CSV, or start in a new output_folder."
            )
        if self.centroids is not None:
            self._fill(labels)


class ClusterPartners:
    """Draws the views of an utterance from several utterances of its cluster.

    Arguments
    ---------
    table : ClusterTable
        The clusters.
    mode : str
        ``global_split``: global crops from different utterances, the anchor
        among them, local ones from all in turn; ``global_from_anchor``:
        global crops from the anchor, local ones from the others in turn;
        ``all_random``: every view from any of them.
    """

    def __init__(self, table, mode="global_split"):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
        self.table = table
        self.mode = mode
        self.utterances = None

    def prepare(self, utterances):
        """Takes the training set.

        Arguments
        ---------
        utterances : Utterances
            The rows that may be drawn.
        """
        self.utterances = utterances
        self.table.prepare(len(utterances))

    def __call__(self, rng_key, counts):
        """Draws the utterance of each view.

        Arguments
        ---------
        rng_key : tuple of int
            Seed, epoch and row of the anchor.
        counts : tuple of int
            Number of global and of local crops.

        Returns
        -------
        list of int
            Row of each view, global crops first [views].
        """
        row, views = rng_key[-1], sum(counts)
        members = self.table.members(row)
        others = members[members != row].numpy()
        if not len(others):
            return [row] * views
        rng = np.random.default_rng((*rng_key, PARTNERS))
        if self.mode == "all_random":
            return rng.choice(members.numpy(), views).tolist()
        drawn = rng.permutation(others)[: views - 1].tolist()
        if self.mode == "global_from_anchor":
            turns = [drawn[view % len(drawn)] for view in range(counts[1])]
            return [row] * counts[0] + turns
        everyone = [row, *drawn]
        return [everyone[view % len(everyone)] for view in range(views)]


def check_clusterer(clusterer, clusters=None):
    """Checks a clusterer before training, not at the first refresh.

    Arguments
    ---------
    clusterer : object
        With scikit-learn's ``fit_predict``.
    clusters : float or callable
        Number of clusters that it will be asked for; None: none.

    Raises
    ------
    ValueError
        If it has no ``fit_predict``, or cannot be asked for a number.
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
            "Set clusters to null: it finds the number itself."
        )


def parameters_of(clusterer):
    """scikit-learn's parameters of a clusterer; empty if it has none.

    Arguments
    ---------
    clusterer : object
        Any clusterer.

    Returns
    -------
    dict of str to object
        As given to its constructor.
    """
    get = getattr(clusterer, "get_params", None)
    return {} if get is None else get(deep=False)


def _disturbed(unit, noise, seed):
    """Unit embeddings after Gaussian noise of a given norm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(unit.shape, generator=generator)
    return F.normalize(unit + noise / unit.shape[1] ** 0.5 * drawn, dim=-1)


def _kept_together(labels, other, min_size, max_size):
    """Share of an utterance's partners that another clustering keeps.

    The mean over utterances with partners, corrected for chance (1: all, 0: as
    many as by chance, or no utterance has partners). Unlike the adjusted Rand
    index it does not fall with the size of clusters, and each utterance has
    the same weight.
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
