"""SDPN: self-distillation prototypes network.

Y. Chen et al., "Self-distillation prototypes network: learning robust speaker
representations without supervision", ICASSP 2025
(https://arxiv.org/abs/2308.02774). Dimension regularization: Y. Chen et al.,
"Self-distillation network with dimension regularization and score
normalization", 2025 (https://arxiv.org/abs/2505.13826). Consistency of
embeddings is not theirs, but cluster-aware DINO's.
"""

import math

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of, whole
from speechbrain_ssl.nnet.assignment import prototypes_used, sinkhorn
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.heads import Prototypes
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.regularizers import consistency, koleo

# prototypes in use, as a share of all, below which a warning is due
FEW_PROTOTYPES = 0.1


class SDPN(torch.nn.Module):
    """Local crops must choose the prototypes that their global crop chose.

    Arguments
    ---------
    dim : int
        Width of the projections.
    prototypes : int
        Number of prototypes; student and teacher share them.
    temperature : float
        Temperature of the softmax over prototypes.
    sharpening : float
        Factor of the temperature of the targets.
    sinkhorn_iterations : int
        Sinkhorn iterations, which make targets use all prototypes equally.
    train_prototypes : bool
        Whether prototypes learn. The authors' first release left them as
        they were drawn.
    entropy_weight : float
        Weight of log K minus the entropy of the mean prediction.
    koleo_weight : float
        Weight of the regularizer on embeddings, summed over views.
    dimension_weight : float
        Weight of the squared Frobenius norm of the second moments of unit
        embeddings, diagonal included (the extension of 2025, whose weight is
        not public).
    consistency_weight : float
        Weight of 1 - cosine between embeddings of student and teacher.
    prototype_std : float
        Standard deviation of the initial prototypes, see ``Prototypes``.

    Example
    -------
    >>> crops = torch.randn(5, 8, 32)  # a global view and 4 local ones
    >>> student = BranchOutput(crops[1:], crops[1:], view_id=(1, 2, 3, 4))
    >>> teacher = BranchOutput(crops[:1], crops[:1], view_id=(0,))
    >>> loss, stats = SDPN(dim=32, prototypes=16)(student, teacher, 0.0)
    >>> sorted(stats)
    ['cross_entropy', 'entropy_gap', 'koleo', 'prototypes_used']
    """

    stats_help = {
        "cross_entropy": (
            "Mean cross-entropy of the predictions and their targets in nats."
        ),
        "entropy_gap": (
            "Logarithm of the number of prototypes minus the entropy of the "
            "mean prediction, in nats; 0 if all are predicted equally often."
        ),
        "koleo": (
            "Mean of minus the logarithm of the distance of an embedding to "
            "the nearest other one; large on collapse."
        ),
        "prototypes_used": (
            "Effective number of prototypes that the predictions use; 1 on "
            "collapse."
        ),
    }

    @checked(
        dim=whole(1),
        prototypes=whole(1),
        temperature=number(above=0),
        sharpening=number(above=0),
        sinkhorn_iterations=whole(0),
        train_prototypes=one_of(True, False),
        entropy_weight=number(0),
        koleo_weight=number(0),
        dimension_weight=number(0),
        consistency_weight=number(0),
        prototype_std=number(above=0),
    )
    def __init__(
        self,
        dim: int,
        prototypes: int = 1024,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        sinkhorn_iterations: int = 3,
        train_prototypes: bool = True,
        entropy_weight: float = 1.0,
        koleo_weight: float = 0.1,
        dimension_weight: float = 0.0,
        consistency_weight: float = 0.0,
        prototype_std: float = 0.02,
    ):
        super().__init__()
        self.prototypes = Prototypes(dim, prototypes, prototype_std)
        self.prototypes.requires_grad_(train_prototypes)
        self.temperature = temperature
        self.sharpening = sharpening
        self.sinkhorn_iterations = sinkhorn_iterations
        self.entropy_weight = entropy_weight
        self.koleo_weight = koleo_weight
        self.dimension_weight = dimension_weight
        self.consistency_weight = consistency_weight
        self.utterances = prototypes  # of the last step, for warnings

    def forward(
        self, student: BranchOutput, teacher: BranchOutput, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The cross-entropy is the mean over utterances and pairs of different
        views.
        """
        s, t = different_views(student, teacher)
        check_views(self, student, self.prototypes.weight.shape[1], 2)
        log_prob = F.log_softmax(self._score(student), dim=-1)
        with torch.no_grad():
            score = self._score(teacher) / self.sharpening
            target = F.log_softmax(score, dim=-1).flatten(0, 1)
            target = sinkhorn(target, self.sinkhorn_iterations).view_as(score)
        # one sum over batch and prototypes would lose digits
        cross = -torch.einsum("sbk,tbk->stb", log_prob, target).mean(-1)
        cross_entropy = cross[s, t].mean()
        prob = log_prob.exp()
        mean_prob = distributed.mean(prob.mean(dim=(0, 1)))
        gap = math.log(len(mean_prob)) - torch.special.entr(mean_prob).sum()
        embedding = full_precision(student.embedding)
        spread = torch.stack([koleo(x) for x in embedding])
        loss = (
            cross_entropy
            + self.entropy_weight * gap
            + self.koleo_weight * spread.sum()
        )
        if self.dimension_weight:
            loss = loss + self.dimension_weight * self._dimensions(embedding)
        if self.consistency_weight:
            apart = consistency(student.embedding[s], teacher.embedding[t])
            loss = loss + self.consistency_weight * apart
        return loss, {
            "cross_entropy": cross_entropy.detach(),
            "entropy_gap": gap.detach(),
            "koleo": spread.detach().mean(),
            "prototypes_used": prototypes_used(prob),
        }

    @torch.no_grad()
    def commit(self, student: BranchOutput, teacher: BranchOutput) -> None:
        """Notes how many utterances a step has, for ``warnings``."""
        self.utterances = student.projection.shape[1] * distributed.world_size()

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """Warns of collapse."""
        # a step uses no more prototypes than it has utterances
        count = min(len(self.prototypes.weight), self.utterances)
        if stats["prototypes_used"] < max(FEW_PROTOTYPES * count, 2.0):
            return [
                f"Collapse: of {count} prototypes that a step may use only "
                f"{stats['prototypes_used']:.1f} are used. Raise "
                "entropy_weight or koleo_weight, or take fewer prototypes."
            ]
        return []

    def _score(self, views):
        """Cosines to the prototypes over the temperature."""
        return self.prototypes(views.projection) / self.temperature

    def _dimensions(self, embedding):
        """Squared Frobenius norm of their second moments [views, batch, dim].

        It is 1 / dim for unit vectors that point everywhere, 1 on collapse.
        """
        unit = F.normalize(embedding.flatten(0, 1), dim=-1)
        moments = distributed.mean(unit.T @ unit / len(unit))
        return moments.square().sum()
