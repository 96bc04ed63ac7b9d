"""NNCLR: the positive is the nearest neighbor of the other view in a queue.

D. Dwibedi et al., "With a little help from my friends: nearest-neighbor
contrastive learning of visual representations", ICCV 2021
(https://arxiv.org/abs/2104.14548).
"""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.heads import mlp
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.queues import next_slots


class NNCLR(torch.nn.Module):
    """Each view's neighbor must find the predictions of its other views.

    The neighbor may be another utterance of the speaker. Negatives are the
    predictions from the other utterances of the batch.

    Arguments
    ---------
    dim : int
        Width of the projections.
    hidden : int
        Width of the predictor's hidden layer.
    queue_size : int
        Number of past utterances among which neighbors are looked for.
    temperature : float
        Temperature of the softmax.
    norm : type
        Normalization class of the predictor, or None.
    neighbors_from : float
        Epoch from which on positives are neighbors. Before it they are the
        views themselves, as in SimCLR: neighbors that an untrained encoder
        finds are alike in their channel, and training on them makes it worse.
        0 is the paper.

    Example
    -------
    >>> crops = torch.randn(2, 8, 16)
    >>> objective = NNCLR(dim=16, hidden=32, queue_size=64)
    >>> loss, stats = objective(BranchOutput(crops, crops), None, 0.0)
    >>> sorted(stats)
    ['accuracy', 'negative_cosine', 'neighbor_cosine', 'positive_cosine']
    """

    queue: torch.Tensor
    seen: torch.Tensor

    stats_help = {
        "accuracy": (
            "Share of the targets whose own prediction has the highest cosine."
        ),
        "positive_cosine": (
            "Mean cosine of targets and predictions of the same utterance."
        ),
        "negative_cosine": (
            "Mean cosine of targets and predictions of other utterances; near "
            "1 on collapse."
        ),
        "neighbor_cosine": (
            "Mean cosine of views and their nearest neighbors in the queue; "
            "near 1 on collapse."
        ),
    }

    @checked(
        dim=whole(1),
        hidden=whole(1),
        queue_size=whole(1),
        temperature=number(above=0),
        neighbors_from=number(0),
    )
    def __init__(
        self,
        dim: int,
        hidden: int = 4096,
        queue_size: int = 65536,
        temperature: float = 0.2,
        norm: type | None = torch.nn.BatchNorm1d,
        neighbors_from: float = 0.0,
    ):
        super().__init__()
        self.predictor = mlp([dim, hidden, dim], torch.nn.ReLU, norm)
        self.temperature = temperature
        self.neighbors_from = neighbors_from
        self.register_buffer(
            "queue", F.normalize(torch.randn(queue_size, dim), dim=-1)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The mean is over utterances and pairs of different views.
        """
        s, t = different_views(student, student)
        check_views(self, student, self.queue.shape[1])
        point = full_precision(student.projection)
        prediction = full_precision(self.predictor(point.flatten(0, 1)))
        prediction = F.normalize(prediction, dim=-1).view_as(point)
        # [processes, views, batch, dim] to [views, everyone, dim]
        everyone = distributed.gather_with_gradient(prediction[None])
        everyone = everyone.transpose(0, 1).flatten(1, 2)
        view = F.normalize(point, dim=-1)
        key = view.detach()
        nearest, place = (key @ self.queue.T).max(-1)
        target = self.queue[place] if epoch >= self.neighbors_from else view
        cosine = torch.einsum("pbd,pnd->pbn", target[s], everyone[t])
        batch = point.shape[1]
        own = torch.arange(batch, device=point.device)
        own = (own + distributed.rank() * batch).repeat(len(s))
        cosine = cosine.flatten(0, 1)
        loss = F.cross_entropy(cosine / self.temperature, own)

        with torch.no_grad():
            positive = cosine.gather(1, own[:, None])
            others = max(cosine.numel() - len(cosine), 1)
            stats = {
                "accuracy": (cosine.argmax(1) == own).float().mean(),
                "positive_cosine": positive.mean(),
                "negative_cosine": (cosine.sum() - positive.sum()) / others,
                "neighbor_cosine": nearest.mean(),
            }
        return loss, stats

    @torch.no_grad()
    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Overwrites the oldest views of the queue with the first of a batch.

        One view of an utterance is enough, as its views are much alike.
        """
        key = F.normalize(full_precision(student.projection[0]), dim=-1)
        keys = distributed.gather(key)
        slots = next_slots(self.seen, len(keys), len(self.queue))
        self.queue[slots] = keys[-len(slots) :]
