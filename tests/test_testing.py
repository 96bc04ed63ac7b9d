"""check_objective finds what breaks the contract, here and in plugins."""

import pytest
import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.testing import check_objective


class Fair(torch.nn.Module):
    """A simple objective that keeps the contract, with a weight and a queue."""

    stats_help = {"size": "Mean square of the scaled projections."}

    def __init__(self, dim=4):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(dim))
        self.register_buffer("queue", torch.zeros(dim))

    def forward(self, student, teacher, epoch):
        points = student.projection.float() * self.scale
        loss = (points - self.queue).square().mean()
        return loss, {"size": points.detach().square().mean()}

    def commit(self, student, teacher):
        batch = student.projection.float().mean(dim=(0, 1))
        self.queue.lerp_(distributed.mean(batch), 0.1)


class Changed(Fair):
    """Fair, with another loss and other stats."""

    def change(self, loss, stats):
        raise NotImplementedError

    def forward(self, *inputs):
        return self.change(*super().forward(*inputs))


def changing(change):
    """A class that returns something else than Fair."""
    return type("Broken", (Changed,), {"change": staticmethod(change)})


class HalfPrecision(Fair):
    def forward(self, student, teacher, epoch):
        loss = (student.projection * self.scale).square().mean()
        return loss.to(student.projection.dtype), {"size": loss.detach()}


class CommitsInForward(Fair):
    def forward(self, student, teacher, epoch):
        output = super().forward(student, teacher, epoch)
        with torch.no_grad():
            self.commit(student, teacher)
        return output


class CountsInForward(Fair):
    calls = 0

    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        self.calls += 1
        return loss * self.calls, stats


class OtherStats(Fair):
    calls = 0

    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        self.calls += 1
        return loss, {"size": stats["size"] * self.calls}


class Forgetful(Fair):
    """What it keeps is not in a buffer."""

    factor = 1.0

    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        return loss * self.factor, stats

    def commit(self, student, teacher):
        self.factor += 1.0


class KeepsGraph(Fair):
    def commit(self, student, teacher):
        with torch.enable_grad():
            self.queue = student.projection.float().mean(dim=(0, 1))


class SpoilsInputs(Fair):
    def commit(self, student, teacher):
        student.projection.zero_()


class NoGradient(Fair):
    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        return loss.detach(), stats


class ZeroGradient(Fair):
    def forward(self, student, teacher, epoch):
        loss = (self.scale * 0 + student.projection.float() * 0).sum()
        return loss, {"size": loss.detach()}


class OneView(Fair):
    """The second view gets no gradient."""

    def forward(self, student, teacher, epoch):
        first, second = student.projection.float()
        cosine = torch.cosine_similarity(first * self.scale, second.detach())
        return -cosine.mean(), {"size": cosine.detach().mean()}


class InfiniteGradient(Fair):
    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        return loss + (0 * loss).sqrt(), stats


class IdleParameter(Fair):
    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Parameter(torch.ones(1))


class ByPlace(Fair):
    """The first view counts more."""

    def forward(self, student, teacher, epoch):
        weight = torch.arange(1, len(student.projection) + 1)[:, None, None]
        points = student.projection.float() * self.scale * weight
        return points.square().mean(), {"size": points.detach().mean()}


class LocalMean(Fair):
    """Contrasts an utterance with those of its process only."""

    def forward(self, student, teacher, epoch):
        points = student.projection.float() * self.scale
        spread = points.mean(1, keepdim=True).square().mean()
        loss = (points - self.queue).square().mean() - spread
        return loss, {"size": spread.detach()}


class LocalQueue(Fair):
    """Keeps other values in each process."""

    def commit(self, student, teacher):
        self.queue.lerp_(student.projection.float().mean(dim=(0, 1)), 0.1)


BROKEN = {
    "no tuple": (changing(lambda loss, stats: loss), "returns a Tensor"),
    "vector": (changing(lambda loss, stats: (loss[None], stats)), "shape"),
    "number": (changing(lambda loss, stats: (1.0, stats)), "scalar tensor"),
    "float64": (changing(lambda loss, stats: (loss.double(), stats)), "64"),
    "nan": (changing(lambda loss, stats: (loss * torch.nan, stats)), "nan"),
    "silent": (changing(lambda loss, stats: (loss, {})), "no stats"),
    "float stat": (
        changing(lambda loss, stats: (loss, {"size": 1.0})),
        "not a scalar tensor",
    ),
    "vector stat": (
        changing(lambda loss, stats: (loss, {"size": loss.detach()[None]})),
        "not a scalar tensor",
    ),
    "int stat": (
        changing(lambda loss, stats: (loss, {"size": torch.tensor(1)})),
        "not of floating point",
    ),
    "nan stat": (
        changing(lambda loss, stats: (loss, {"size": torch.tensor(torch.nan)})),
        "'size'.* is nan",
    ),
    "attached stat": (
        changing(lambda loss, stats: (loss, {"size": loss})),
        "not detached",
    ),
    "stat without help": (
        changing(lambda loss, stats: (loss, {"other": loss.detach()})),
        "'other'.* no line in stats_help",
    ),
    "half precision": (HalfPrecision, "bfloat16"),
    "commits in forward": (CommitsInForward, "forward changes queue"),
    "counts in forward": (CountsInForward, "a second call gives other values"),
    "other stats": (OtherStats, "a second call gives other values"),
    "forgetful": (Forgetful, "state_dict"),
    "keeps graph": (KeepsGraph, "queue keeps a graph"),
    "spoils inputs": (SpoilsInputs, "changes the embeddings or projections"),
    "no gradient": (NoGradient, "no gradient reaches the student"),
    "zero gradient": (ZeroGradient, "no gradient reaches the student"),
    "one view": (OneView, r"view \[1\]"),
    "infinite gradient": (InfiniteGradient, "not finite"),
    "idle parameter": (IdleParameter, "parameter idle"),
    "by place": (ByPlace, "change places"),
}


def test_a_fair_objective_passes():
    check_objective(Fair(), dim=4)
    check_objective(Fair(), dim=4, teacher_views=0, views=1, batch=2)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_clause_is_named(name):
    objective, clause = BROKEN[name]
    with pytest.raises(AssertionError, match=clause):
        check_objective(objective(), dim=4)


def test_roles_of_views_may_be_declared():
    check_objective(OneView(), 4, learning_views=1, exchangeable=False)
    check_objective(ByPlace(), 4, exchangeable=False)


@pytest.mark.parametrize(
    "objective, clause",
    [
        (Fair, None),
        (LocalMean, "mean must be that of one process"),
        (LocalQueue, "queue differs between processes"),
    ],
)
def test_two_processes_give_what_one_gives(objective, clause):
    if clause is None:
        check_objective(objective(), dim=4, processes=2)
        return
    with pytest.raises(AssertionError, match=clause):
        check_objective(objective(), dim=4, processes=2)


class Faulty(Fair):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, *inputs):
        raise self.error


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError])
def test_a_fault_of_the_objective_keeps_its_traceback(error):
    with pytest.raises(error, match="mine") as caught:
        check_objective(Faulty(error("mine")), dim=4)
    assert caught.traceback[-1].name == "forward"


def test_the_objective_is_left_as_it_was():
    objective = Fair()
    check_objective(objective, dim=4)
    assert not objective.queue.any() and objective.scale.grad is None
