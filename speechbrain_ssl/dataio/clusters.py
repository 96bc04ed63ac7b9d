"""Cluster-aware views: utterances that seem to be of one speaker.

B. Han, Z. Chen and Y. Qian, "Self-supervised learning with cluster-aware-DINO
for high-performance robust speaker verification", 2023
(https://arxiv.org/abs/2304.05754). Here it is a matter of the sampler, so that
it serves every objective.
"""

import inspect
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
from speechbrain_ssl.nnet.schedules import at

logger = logging.getLogger(__name__)

MODES = ("global_from_anchor", "global_split", "all_random")
# streams of random numbers that belong to an utterance, not to one view
PARTNERS = 1001
# Length of the noise that clusters have to withstand, for unit embeddings:
# it takes them to a cosine of 0.9 with themselves. It has no regard to how
# alike all embeddings are, so that an encoder that tells little apart fails,
# however stable its clusters are otherwise.
NOISE = 0.5


@register_checkpoint_hooks
class ClusterTable:
    """Which utterances belong together, in memory that loader workers share.

    Until the first refresh, and for utterances whose cluster is too small or
    too large, every utterance stands alone where views are drawn; objectives
    that read labels and centroids see all clusters.

    Arguments
    ---------
    clusterer : callable
        Takes ``n_clusters`` and, if it has an argument of that name,
        ``random_state``; returns an object with scikit-learn's
        ``fit_predict``, which all processes call if it has an attribute
        ``distributed`` that is True, and the first one for all otherwise.
    clusters : float or callable
        Number of clusters, or a schedule of it; a float up to 1.0 is a share
        of the number of utterances.
    start : float
        Epoch of the first refresh; infinity: never.
    every : int
        Epochs from one refresh to the next.
    min_size, max_size : int
        Clusters outside are not trusted: their utterances stand alone. A
        new table in which all do is not taken over.
    min_agreement : float
        Agreement with a clustering of noisy embeddings, below which a new
        table is not taken over; 0 does not ask.
    seed : int
        Of the clusterer and of that noise.

    Example
    -------
    >>> from speechbrain_ssl.pseudo_labels.clustering import KMeans
    >>> table = ClusterTable(KMeans, clusters=2)
    >>> table.prepare(6)
    >>> report = table.refresh(torch.eye(2).repeat(3, 1), epoch=0.0)
    >>> table.members(0).tolist(), report["cluster_count"]
    ([0, 2, 4], 2.0)
    """

    def __init__(
        self,
        clusterer,
        clusters,
        start=0.0,
        every=1,
        min_size=2,
        max_size=500,
        min_agreement=0.0,
        seed=0,
    ):
        if every < 1:
            raise ValueError(f"every must be 1 epoch or more, not {every}")
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
        """Makes room for a training set; a second call changes nothing.

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
                self._number(math.ceil(self.start), count)
            self.labels = torch.full((count,), -1).share_memory_()
            # rows sorted by cluster, and where each cluster begins there
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
        """Clusters anew; all processes get the same table.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of all utterances, the same in all processes [N, emb_dim].
        epoch : float
            Training time, for the schedule of the number of clusters.

        Returns
        -------
        dict of str to float
            ``cluster_count``, ``cluster_largest`` (share of the utterances),
            ``cluster_alone`` (share that has no partners),
            ``cluster_cosine`` (mean cosine to the own centroid),
            ``cluster_agreement`` if asked for (share of an utterance's
            partners that it keeps when noise is added to all embeddings
            and another seed is taken, less what chance would keep), and
            ``cluster_accepted``.
        """
        self.last = int(epoch)
        unit = F.normalize(embeddings.float(), dim=-1)
        number = self._number(epoch, len(unit))
        labels = self._cluster(unit, number, self.seed)
        if (labels < 0).all():
            logger.warning(
                "The table stays as it was: the clusterer calls all utterances "
                "noise."
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
                    f"the clusters agree by {agreement:.2f} only with those of "
                    f"noisy embeddings (min_agreement {self.min_agreement:.2f})"
                )
        if report["cluster_alone"] == 1.0:
            problem = (
                "no utterance has a partner in a cluster of "
                f"{self.min_size} to {self.max_size} (min_size, max_size). "
                "Change clusters, or these"
            )
        if problem is None:
            self._fill(labels, unit)
        else:
            logger.warning("The table stays as it was: %s.", problem)
        return {**report, "cluster_accepted": float(problem is None)}

    def members(self, row):
        """Rows of the utterances that belong with one of them.

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
        """Labels and centroids where an objective needs them.

        Arguments
        ---------
        device : torch.device
            Copied there once after each refresh.

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
        """The clusters whose centroids are nearest to each one's.

        Arguments
        ---------
        count : int
            How many; fewer if there are not so many.

        Returns
        -------
        torch.Tensor
            Their numbers, the nearest first, never itself [clusters, count].
        """
        if self._nearest is None or self._nearest.shape[1] < count:
            points = self.centroids.numpy()
            # a tie may put a cluster after its twin: take one more, drop it
            wanted = min(count + 1, len(points))
            _, found = faiss.knn(
                points, points, wanted, metric=faiss.METRIC_INNER_PRODUCT
            )
            found = torch.from_numpy(found)
            other = found != torch.arange(len(found))[:, None]
            # at most one of a row is the cluster itself
            order = other.int().argsort(dim=1, descending=True, stable=True)
            self._nearest = found.gather(1, order)[:, : wanted - 1]
        return self._nearest[:, :count]

    def _number(self, epoch, count):
        """Clusters wanted of so many utterances."""
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

    def _cluster(self, unit, number, seed, noise=0.0):
        """Labels of unit embeddings, the same in all processes."""
        settings = {"n_clusters": number}
        # what has no use for chance, as agglomeration, does not take it
        if "random_state" in inspect.signature(self.clusterer).parameters:
            settings["random_state"] = seed
        clusterer = self.clusterer(**settings)
        labels = torch.empty(len(unit), dtype=torch.long)
        # one that shares the work would wait for the other processes forever
        if distributed.rank() == 0 or getattr(clusterer, "distributed", False):
            if noise:
                unit = _disturbed(unit, noise, seed)
            found = clusterer.fit_predict(unit.numpy())
            # without gaps, whatever the clusterer calls them; -1 is noise
            names, found = np.unique(found, return_inverse=True)
            labels = torch.from_numpy(found - int(names[0] < 0)).long()
        return distributed.from_first(labels)

    def _describe(self, unit, labels):
        """Label-free figures of a clustering."""
        sizes = labels[labels >= 0].bincount()
        alone = (sizes < max(self.min_size, 2)) | (sizes > self.max_size)
        trusted = sizes[~alone].sum().item()
        centroid = F.normalize(_means(unit, labels), dim=-1)
        cosine = (unit * centroid[labels.clamp(min=0)]).sum(-1)[labels >= 0]
        return {
            "cluster_count": float(len(sizes)),
            "cluster_largest": sizes.max().item() / len(labels),
            "cluster_alone": 1.0 - trusted / len(labels),
            "cluster_cosine": cosine.mean().item(),
        }

    def _fill(self, labels, unit=None):
        """Writes a table where all workers read it."""
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
            means = _means(unit, labels)
            distance = (unit - means[labels]).norm(dim=-1, keepdim=True)
            self.centroids = F.normalize(means, dim=-1)
            self.spread = _means(distance, labels)[:, 0]
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
    """Gives the views of a sample to several utterances of a cluster.

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
        """Is told the training set.

        Arguments
        ---------
        utterances : Utterances
            The rows that may be drawn.
        """
        self.utterances = utterances
        self.table.prepare(len(utterances))

    def __call__(self, rng_key, counts):
        """Draws who gives each view.

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


def _means(unit, labels):
    """Mean embedding of each cluster [clusters, emb_dim]."""
    kept = labels >= 0
    total = torch.zeros(int(labels.max()) + 1, unit.shape[1])
    total.index_add_(0, labels[kept], unit[kept])
    return total / labels[kept].bincount()[:, None]


def _disturbed(unit, noise, seed):
    """Unit embeddings after noise of a length in all directions."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(unit.shape, generator=generator)
    return F.normalize(unit + noise / unit.shape[1] ** 0.5 * drawn, dim=-1)


def _kept_together(labels, other, min_size, max_size):
    """Share of an utterance's partners that another clustering leaves it.

    The mean over utterances that have partners, less what chance would leave
    (1: all, 0: not more than by chance, or nobody has any). Unlike the
    adjusted Rand index it does not sink because clusters are small, nor do
    large ones count for more than their utterances.
    """
    _, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    _, theirs, found = np.unique(other, return_inverse=True, return_counts=True)
    cells = own * np.int64(len(found)) + theirs
    _, cell, shared = np.unique(cells, return_inverse=True, return_counts=True)
    size = sizes[own]
    asked = (labels >= 0) & (size >= max(min_size, 2)) & (size <= max_size)
    if not asked.any():
        return 0.0
    # what is noise is with nobody
    together = (other >= 0)[asked]
    kept = together * (shared[cell][asked] - 1) / (size[asked] - 1)
    chance = together * (found[theirs][asked] - 1) / (len(labels) - 1)
    kept, chance = kept.mean(), chance.mean()
    return float((kept - chance) / (1 - chance)) if chance < 1 else 0.0
