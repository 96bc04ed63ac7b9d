"""check_objective finds what breaks the contract, here and in plugins."""

import pytest
import torch

from speechbrain_ssl.testing import check_objective


class Fair(torch.nn.Module):
    """The simplest objective that keeps the contract."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, teacher, epoch):
        if self.training:
            self.seen += 1
        loss = student.projection.float().square().mean()
        return loss, {"size": loss.detach()}


class Vector(Fair):
    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        return loss[None], stats


class HalfPrecision(Fair):
    def forward(self, student, teacher, epoch):
        loss = student.projection.square().mean()
        return loss, {"size": loss.detach()}


class Silent(Fair):
    def forward(self, *inputs):
        return super().forward(*inputs)[0], {}


class Attached(Fair):
    def forward(self, *inputs):
        loss, _ = super().forward(*inputs)
        return loss, {"size": loss}


class MovesInEvaluation(Fair):
    def forward(self, *inputs):
        self.seen += 1
        return super().forward(*inputs)


class Forgetful(Fair):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, *inputs):
        loss, stats = super().forward(*inputs)
        loss = loss * self.scale
        if self.training:
            self.scale += 1
        return loss, stats


class NoGradient(Fair):
    def forward(self, student, teacher, epoch):
        loss = torch.zeros((), requires_grad=True) * 1.0
        return loss, {"size": loss.detach()}


def test_a_fair_objective_passes():
    check_objective(Fair(), dim=4)
    check_objective(Fair(), dim=4, teacher_views=0, views=1, batch=2)


@pytest.mark.parametrize(
    "objective, clause",
    [
        (Vector, "shape"),
        (HalfPrecision, "bfloat16"),
        (Silent, "no stats"),
        (Attached, "not detached"),
        (MovesInEvaluation, "evaluation mode"),
        (Forgetful, "state_dict"),
        (NoGradient, "no gradient"),
    ],
)
def test_a_broken_clause_is_named(objective, clause):
    with pytest.raises(AssertionError, match=clause):
        check_objective(objective(), dim=4)


def test_the_objective_is_left_as_it_was():
    objective = Fair()
    check_objective(objective, dim=4)
    assert objective.seen == 0
