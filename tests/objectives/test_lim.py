"""LIM against the formulas, known values and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.lim import LIM
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import neighbours

KINDS = ["nce", "bce", "mine"]


def loss_of(points, kind):
    loss, stats = LIM(kind)(BranchOutput(points, points), None, 0.0)
    return loss.item(), stats


@pytest.mark.parametrize("views, batch", [(2, 2), (3, 3), (5, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_written_out_formula(views, batch, kind):
    points = torch.randn(views, batch, 5, dtype=torch.float64)
    loss, _ = loss_of(points, kind)
    expected = neighbours.lim(points.tolist(), kind)
    assert loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "kind, golden",
    [
        # p = 1 and n = 0 for all of 8 utterances
        ("nce", math.log(1 + 8 * math.exp(-1))),
        ("bce", math.log(1 + math.exp(-1)) + math.log(2)),
        ("mine", -1.0),
    ],
)
def test_orthonormal_utterances_give_the_golden_value(kind, golden):
    loss, stats = loss_of(torch.eye(8).expand(2, 8, 8), kind)
    assert loss == pytest.approx(golden, rel=1e-6)
    assert stats["accuracy"].item() == 1.0
    assert stats["positive_cosine"].item() == pytest.approx(1.0)
    assert stats["negative_cosine"].item() == pytest.approx(0.0)


@pytest.mark.parametrize(
    "kind, golden",
    [
        ("nce", math.log(7)),
        ("bce", math.log(1 + math.exp(-1)) + math.log(1 + math.e)),
        ("mine", 0.0),
    ],
)
def test_collapse_shows_in_the_negatives(kind, golden):
    loss, stats = loss_of(torch.ones(2, 6, 4), kind)
    assert loss == pytest.approx(golden, rel=1e-5, abs=1e-6)
    assert stats["negative_cosine"].item() == pytest.approx(1.0)
    assert stats["accuracy"].item() < 1.0


def test_no_utterance_is_its_own_negative():
    points = torch.eye(6).expand(2, 6, 6)
    assert loss_of(points, "mine")[1]["negative_cosine"].item() == 0.0


def test_two_calls_in_training_give_the_same_loss():
    points = torch.randn(2, 5, 4)
    objective = LIM().train()
    first, _ = objective(BranchOutput(points, points), None, 0.0)
    assert torch.equal(
        objective(BranchOutput(points, points), None, 0.0)[0], first
    )


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(kind):
    check_objective(LIM(kind), dim=5, teacher_views=0)
    check_objective(LIM(kind), dim=5, views=3, teacher_views=0)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        loss_of(torch.randn(1, 4, 8), "nce")


def test_a_single_utterance_is_refused():
    with pytest.raises(ValueError, match="two utterances"):
        loss_of(torch.randn(2, 1, 8), "nce")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="nce or bce or mine, not 'jsd'"):
        LIM("jsd")
