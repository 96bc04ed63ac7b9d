"""DeepCluster v2: predict the clusters of the last clustering.

M. Caron et al., "Deep clustering for unsupervised learning of visual
features", ECCV 2018 (https://arxiv.org/abs/1807.05520), in the form of M. Caron
et al., "Unsupervised learning of visual features by contrasting cluster
assignments", NeurIPS 2020 (https://arxiv.org/abs/2006.09882). Concentrations:
J. Li et al., "Prototypical contrastive learning of unsupervised
representations", ICLR 2021 (https://arxiv.org/abs/2005.04966), for speakers: W.
Xia et al., "Self-supervised text-independent speaker verification using
prototypical momentum contrastive learning", ICASSP 2021
(https://arxiv.org/abs/2012.07178).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of
from speechbrain_ssl.nnet.assignment import prototypes_used
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.precision import full_precision

# keeps the concentration of small clusters finite (alpha in PCL)
SMOOTHING = 10.0


class DeepCluster(torch.nn.Module):
    """Cross-entropy from embeddings to the centroids of their clusters.

    The centroids are those of the last clustering and do not learn. As they
    are in the space of the embeddings, the head is not used. With
    concentrations it is the prototype term of ProtoMoCo; add it to MoCo by
    ``objectives.weighted.Weighted``.

    Arguments
    ---------
    tables : list of ClusterTable
        One or more clusterings; the loss is their mean.
    temperature : float
        Temperature of the softmax over centroids.
    concentrations : bool
        Whether dispersed clusters have a higher temperature than dense ones.

    Example
    -------
    >>> from speechbrain_ssl.clustering.table import ClusterTable
    >>> from speechbrain_ssl.clustering.kmeans import KMeans
    >>> points = torch.eye(2).repeat(4, 1)
    >>> table = ClusterTable(KMeans(), clusters=2)
    >>> table.prepare(8)
    >>> _ = table.refresh(points, epoch=0)
    >>> student = BranchOutput(points[None], None, index=torch.arange(8))
    >>> loss, stats = DeepCluster([table])(student, None, 0.0)
    >>> stats["accuracy"].item()
    1.0
    """

    stats_help = {
        "accuracy": (
            "Share of the views whose nearest centroid is that of their "
            "cluster."
        ),
        "clusters_predicted": (
            "Effective number of clusters that are predicted; 1 on collapse."
        ),
    }

    @checked(temperature=number(above=0), concentrations=one_of(True, False))
    def __init__(
        self,
        tables: Sequence[Any],
        temperature: float = 0.1,
        concentrations: bool = False,
    ):
        super().__init__()
        if not tables:
            raise ValueError("DeepCluster needs one table or more, got none")
        self.tables = list(tables)
        self.temperature = temperature
        self.concentrations = concentrations
        # of each table: its centroids, and the temperatures made for them
        self._made = {}

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over views, clusterings and utterances in a cluster.
        """
        if student.index is None:
            raise ValueError("DeepCluster needs the index of the utterances")
        point = F.normalize(full_precision(student.embedding), dim=-1)
        losses, accuracies, used = [], [], []
        for table in self.tables:
            labels, centroids = table.on(point.device)
            if centroids is None:
                raise ValueError(
                    "DeepCluster has no clusters yet: set cluster_from to 0, "
                    "or see in the log why the first ones were not taken over"
                )
            label = labels[student.index]
            # noise has no cluster to be told from others
            known = (label >= 0).to(point.dtype)
            cosine = point @ centroids.T.to(point.dtype)
            logits = cosine / self._temperatures(table, centroids)
            target = label.clamp(min=0).expand(len(point), -1)
            loss = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), reduction="none"
            ).view_as(target)
            share = known / distributed.mean(known.sum()).clamp(min=1)
            losses.append((loss * share).sum(1).mean())
            hit = logits.argmax(-1) == target
            accuracies.append((hit * share).sum(1).mean())
            used.append(prototypes_used(logits.softmax(-1)))
        return torch.stack(losses).mean(), {
            "accuracy": torch.stack(accuracies).mean(),
            "clusters_predicted": torch.stack(used).mean(),
        }

    @torch.no_grad()
    def _temperatures(self, table, centroids):
        """One temperature, or one for each cluster [clusters]."""
        if not self.concentrations:
            return self.temperature
        made_of, found = self._made.get(table, (None, None))
        if made_of is not centroids:  # it was refreshed
            found = self._concentrated(table).to(centroids.device)
            self._made[table] = centroids, found
        return found

    def _concentrated(self, table):
        """The temperature of each cluster [clusters]."""
        sizes = table.labels[table.labels >= 0].bincount()
        spread = table.spread / (sizes + SMOOTHING).log()
        # a cluster of one point has no spread; PCL gives it the largest one
        spread = torch.where(sizes > 1, spread, spread.max())
        spread = spread.clamp(*spread.quantile(torch.tensor([0.1, 0.9])))
        mean = spread.mean().clamp(min=1e-12)
        return self.temperature * spread / mean
