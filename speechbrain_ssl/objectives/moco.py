"""MoCo: momentum contrast against a queue of past utterances.

K. He et al., "Momentum contrast for unsupervised visual representation
learning", CVPR 2020 (https://arxiv.org/abs/1911.05722); for speakers: K. Ding,
X. He and G. Wan, "Learning speaker embedding with momentum contrast", 2020
(https://arxiv.org/abs/2001.01986).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.branch import check_views, different_views
from speechbrain_ssl.nnet.margins import as_margin
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.queues import next_slots

# the cosine of a key to itself, less what float32 may lose of it
SAME = 1 - 1e-5


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
    margin : float or torch.nn.Module
        Taken off the positive cosine (CosFace); 0 is plain InfoNCE. Or one
        of ``speechbrain_ssl.nnet.margins``.
    symmetric : bool
        Whether every view is a query for every other one. Otherwise the
        first view is the query and the second one the key, as in the paper.

    Example
    -------
    >>> from speechbrain_ssl.nnet.branch import Views
    >>> views = Views(*2 * [torch.randn(1, 8, 16).expand(2, 8, 16)])
    >>> loss, stats = MoCo(dim=16, queue_size=64)(views, views, 0.0)
    >>> bool(stats["positive_cosine"] > 0.99), sorted(stats)
    (True, ['accuracy', 'negative_cosine', 'positive_cosine'])
    """

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

    def __init__(
        self,
        dim,
        queue_size=65536,
        temperature=0.07,
        margin=0.0,
        symmetric=True,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.temperature = temperature
        self.margin = as_margin(margin)
        self.symmetric = symmetric
        self.register_buffer(
            "queue", F.normalize(torch.randn(queue_size, dim), dim=-1)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, student, teacher, epoch):
        """Loss of one batch; in training mode also fills the queue.

        Arguments
        ---------
        student : Views
            Queries, two views or more.
        teacher : Views
            Keys of the same utterances; view v of the teacher is view v of
            the student.
        epoch : float
            Not used.

        Returns
        -------
        loss : torch.Tensor
            Scalar, mean over utterances and pairs of different views.
        stats : dict of torch.Tensor
            ``accuracy`` of finding the positive; mean ``positive_cosine``
            and ``negative_cosine``, both near 1 on collapse.

        Raises
        ------
        ValueError
            If there is no teacher, or no pair of different views.
        """
        q, k = different_views(student, teacher)
        check_views(self, student, self.queue.shape[1])
        point = full_precision(student.projection)
        key = F.normalize(full_precision(teacher.projection.detach()), dim=-1)
        fresh = key
        if teacher.own is not None:
            fresh = F.normalize(full_precision(teacher.own.detach()), dim=-1)
        if not self.symmetric:
            # the first query and its first key, as if there were no others
            point, key, fresh = point[q[:1]], key[k[:1]], fresh[k[:1]]
            q, k = [0], [0]
        query = F.normalize(point, dim=-1)
        positive = (query[q] * key[k]).sum(-1)
        # a copy, as the queue moves on before the gradient is computed
        negative = query @ self.queue.T.clone()
        mean_negative = negative.detach().mean()
        if teacher.own is not None:
            # the positive of another utterance may wait in the queue as well
            itself = (key @ self.queue.T > SAME).any(0)
            negative = negative.masked_fill(itself, -torch.inf)
        harder = self.margin(positive, negative, point.norm(dim=-1)[q], q)
        spread = (harder.negative / self.temperature).logsumexp(-1)[harder.row]
        logit = harder.positive / self.temperature
        # -log(e^p / (e^p + sum of e^n)); cross_entropy would add thousands of
        # small terms to a large one and lose them in float32
        loss = F.softplus(spread - logit).mean() + harder.penalty

        if self.training:
            self._enqueue(fresh)
        found = positive > negative.detach().amax(-1)[q]
        return loss, {
            "accuracy": found.float().mean(),
            "positive_cosine": positive.detach().mean(),
            "negative_cosine": mean_negative,
        }

    @torch.no_grad()
    def _enqueue(self, key):
        """Overwrites the oldest keys with new ones [views, batch, dim]."""
        # utterance-major over all processes: the order of one process
        keys = distributed.gather(key.transpose(0, 1)).flatten(0, 1)
        slots = next_slots(self.seen, len(keys), len(self.queue))
        self.queue[slots] = keys[-len(slots) :]
