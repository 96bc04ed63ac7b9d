"""MoCo: momentum contrast against a queue of past utterances.

K. He et al., "Momentum contrast for unsupervised visual representation
learning", CVPR 2020 (https://arxiv.org/abs/1911.05722); for speakers: K. Ding,
X. He and G. Wan, "Learning speaker embedding with momentum contrast", 2020
(https://arxiv.org/abs/2001.01986).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of, schedule, whole
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.queues import next_slots
from speechbrain_ssl.nnet.schedules import at


class MoCo(torch.nn.Module):
    """Each view must find its other view among the keys of a queue.

    The papers use 32,000 to 65,536 keys, of which a few belong to the speaker
    of the query. Where the data are few, so must be the keys.

    Arguments
    ---------
    dim : int
        Width of the projections.
    queue_size : int
        Number of negative keys.
    temperature : float
        Temperature of the softmax.
    margin : float or callable
        Subtracted from the positive cosine (CosFace), or a schedule of it; 0
        is plain InfoNCE.
    symmetric : bool
        Whether every view is a query for every other one. Otherwise the
        first view is the query and the second one the key, as in the paper.

    Example
    -------
    >>> views = BranchOutput(*2 * [torch.randn(1, 8, 16).expand(2, 8, 16)])
    >>> loss, stats = MoCo(dim=16, queue_size=64)(views, views, 0.0)
    >>> bool(stats["positive_cosine"] > 0.99), sorted(stats)
    (True, ['accuracy', 'negative_cosine', 'positive_cosine'])
    """

    queue: torch.Tensor
    rows: torch.Tensor
    seen: torch.Tensor

    stats_help = {
        "accuracy": (
            "Share of the queries whose positive has a higher cosine than all "
            "negatives."
        ),
        "positive_cosine": "Mean cosine of queries and their positive keys.",
        "negative_cosine": (
            "Mean cosine of queries and the keys of the queue; near 1 on "
            "collapse."
        ),
    }

    @checked(
        dim=whole(1),
        queue_size=whole(1),
        temperature=number(above=0),
        margin=schedule(number()),
        symmetric=one_of(True, False),
    )
    def __init__(
        self,
        dim: int,
        queue_size: int = 65536,
        temperature: float = 0.07,
        margin: float | Callable[[float], float] = 0.0,
        symmetric: bool = True,
    ):
        super().__init__()
        self.temperature = temperature
        self.margin = margin
        self.symmetric = symmetric
        self.register_buffer(
            "queue", F.normalize(torch.randn(queue_size, dim), dim=-1)
        )
        # the utterance of each key: its row in the training CSV, -1 if unknown
        self.register_buffer(
            "rows", torch.full((queue_size,), -1, dtype=torch.long)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: BranchOutput, teacher: BranchOutput, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views. Where the
        key comes from another utterance (``teacher.index``), the keys of that
        utterance in the queue are not negatives.
        """
        q, k = different_views(student, teacher)
        check_views(self, student, self.queue.shape[1])
        query = full_precision(student.projection)
        if not self.symmetric:
            # the first query and its first key, as if there were no others
            query, q, k = query[q[:1]], q.new_zeros(1), k[:1]
        query = F.normalize(query, dim=-1)
        key = F.normalize(full_precision(teacher.projection.detach()), dim=-1)
        positive = (query[q] * key[k]).sum(-1)
        negative = query @ self.queue.T
        mean_negative = negative.detach().mean()
        mine, theirs = student.index, teacher.index
        # one tensor, unless positives were replaced by those of others
        if not (mine is None or theirs is None or theirs is mine):
            itself = theirs[:, None] == self.rows
            itself &= (theirs != mine)[:, None]
            negative = negative.masked_fill(itself, -torch.inf)
        spread = (negative / self.temperature).logsumexp(-1)[q]
        logit = (positive - at(self.margin, epoch)) / self.temperature
        # -log(e^p / (e^p + sum of e^n)); cross_entropy would add thousands of
        # small terms to a large one and lose them in float32
        loss = F.softplus(spread - logit).mean()
        found = positive > negative.detach().amax(-1)[q]
        return loss, {
            "accuracy": found.float().mean(),
            "positive_cosine": positive.detach().mean(),
            "negative_cosine": mean_negative,
        }

    @torch.no_grad()
    def commit(self, student: BranchOutput, teacher: BranchOutput) -> None:
        """Overwrites the oldest keys of the queue with those of a batch."""
        _, k = different_views(student, teacher)
        key = F.normalize(full_precision(teacher.projection), dim=-1)
        key = key if self.symmetric else key[k[:1]]
        row = teacher.index
        if row is None:
            row = key.new_full(key.shape[1:2], -1, dtype=torch.long)
        # utterance-major over all processes: the order of one process
        keys = distributed.gather(key.transpose(0, 1)).flatten(0, 1)
        rows = distributed.gather(row).repeat_interleave(len(key))
        slots = next_slots(self.seen, len(keys), len(self.queue))
        self.queue[slots] = keys[-len(slots) :]
        self.rows[slots] = rows[-len(slots) :]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Loads a state; version 0.1 had no ``rows``."""
        state_dict.setdefault(prefix + "rows", self.rows)
        super()._load_from_state_dict(state_dict, prefix, *args)
