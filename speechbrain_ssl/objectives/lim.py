"""LIM: views of one utterance must share more than views of two.

M. Ravanelli and Y. Bengio, "Learning speaker representations with mutual
information", Interspeech 2019 (https://arxiv.org/abs/1812.00271).
"""

import math

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, one_of
from speechbrain_ssl.nnet.branch import BranchOutput, different_views
from speechbrain_ssl.nnet.precision import full_precision


class LIM(torch.nn.Module):
    """Local info max: a bound on the mutual information of two views.

    A cosine takes the place of the paper's discriminator network. With p the
    cosine of two views of an utterance and n that to another utterance, the
    loss is minus the mean of ``p - log(exp(p) + sum of exp(n))`` (nce),
    ``log sigmoid(p) + log(1 - sigmoid(n))`` (bce) or
    ``p - log(mean of exp(n))`` (mine), where sums go over the batch.

    Arguments
    ---------
    kind : str
        ``nce``, ``bce`` or ``mine``.

    Example
    -------
    >>> crops = torch.randn(2, 8, 16)
    >>> loss, stats = LIM("bce")(BranchOutput(crops, crops), None, 0.0)
    >>> loss.shape, sorted(stats)
    (torch.Size([]), ['accuracy', 'negative_cosine', 'positive_cosine'])
    """

    stats_help = {
        "accuracy": (
            "Share of the positives with a higher cosine than their negative."
        ),
        "positive_cosine": "Mean cosine of views of the same utterance.",
        "negative_cosine": (
            "Mean cosine of views of different utterances; near 1 on collapse."
        ),
    }

    @checked(kind=one_of("nce", "bce", "mine"))
    def __init__(self, kind: str = "nce"):
        super().__init__()
        self.kind = kind

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views.
        """
        s, t = different_views(student, student)
        point = F.normalize(full_precision(student.projection), dim=-1)
        other = self._next_utterances(point)
        positive = (point[s] * point[t]).sum(-1)
        negative = (point[s] * other[t]).sum(-1)
        if self.kind == "bce":
            loss = F.softplus(-positive) + F.softplus(negative)
        else:
            # mean of exp(n) over utterances of all processes [pairs, 1]
            mass = distributed.mean(negative.exp().mean(1, keepdim=True))
            count = distributed.world_size() * point.shape[1]
            loss = mass.log() - positive
            if self.kind == "nce":
                # -log(e^p / (e^p + sum of e^n))
                loss = F.softplus(loss + math.log(count))
        return loss.mean(), {
            "accuracy": (positive > negative).float().mean(),
            "positive_cosine": positive.detach().mean(),
            "negative_cosine": negative.detach().mean(),
        }

    def _next_utterances(self, point):
        """Negatives [views, batch, dim]: for each utterance the next one.

        Utterances are shuffled, so the next one is random and never the same
        one, and each is a negative once. Unlike a draw it does not depend on
        the number of processes.
        """
        batch = point.shape[1]
        # [everyone, views, dim], in the order of one process
        everyone = distributed.gather_with_gradient(point.transpose(0, 1))
        if len(everyone) < 2:
            raise ValueError(
                "LIM needs two utterances or more, got one: enlarge the batch"
            )
        start = distributed.rank() * batch
        following = everyone.roll(-1, 0)[start : start + batch]
        return following.transpose(0, 1)
