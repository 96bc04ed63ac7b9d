"""SimCLR against the formula, known values and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import contrastive


def loss_of(points, **settings):
    loss, stats = SimCLR(**settings)(BranchOutput(points, points), None, 0.0)
    return loss.item(), stats


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_equals_the_written_out_formula(views, margin):
    points = torch.randn(views, 3, 7, dtype=torch.float64)
    loss, _ = loss_of(points, temperature=0.3, margin=margin)
    slow = contrastive.nt_xent(points.tolist(), 0.3, margin)
    assert loss == pytest.approx(slow, rel=1e-9)


def test_equal_embeddings_give_the_log_of_the_number_of_candidates():
    loss, stats = loss_of(torch.ones(2, 64, 8))
    assert loss == pytest.approx(math.log(127), abs=1e-4)
    assert stats["negative_cosine"].item() == pytest.approx(1.0)


def test_orthonormal_pairs_give_the_golden_value():
    points = torch.eye(64).expand(2, 64, 64)
    loss, _ = loss_of(points, temperature=0.5)
    assert loss == pytest.approx(2.89327, abs=1e-5)


def test_perfect_views_are_all_found():
    _, stats = loss_of(torch.eye(8).expand(3, 8, 8))
    assert stats["accuracy"].item() == 1.0
    assert stats["positive_cosine"].item() == pytest.approx(1.0)
    assert stats["negative_cosine"].item() == pytest.approx(0.0)


def test_a_saturated_loss_still_has_a_gradient():
    points = torch.eye(8).repeat(2, 1, 1).requires_grad_()
    loss, _ = SimCLR(temperature=0.03)(BranchOutput(points, points), None, 0.0)
    loss.backward()
    assert 0 < loss.item() < 1e-9
    assert torch.isfinite(points.grad).all()


def test_keeps_the_contract():
    check_objective(SimCLR(), dim=5, views=2, teacher_views=0)
    check_objective(SimCLR(margin=0.1), dim=5, views=4, teacher_views=0)


def test_one_utterance_is_refused():
    with pytest.raises(ValueError, match="2 utterances or more"):
        loss_of(torch.randn(2, 1, 8))


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="two views"):
        loss_of(torch.randn(1, 4, 8))
