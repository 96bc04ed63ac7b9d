"""Barlow Twins against the formula, known values and the contract."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.barlow_twins import BarlowTwins
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding


def loss_of(points, **settings):
    loss, stats = BarlowTwins(**settings)(
        BranchOutput(points, points), None, 0.0
    )
    return loss.item(), {name: value.item() for name, value in stats.items()}


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("batch, dim", [(2, 7), (3, 1), (13, 5)])
def test_equals_the_written_out_formula(views, batch, dim):
    points = torch.randn(views, batch, dim, dtype=torch.float64) + 3.0
    loss, _ = loss_of(points, off_diagonal_weight=0.3, scale=0.7)
    slow = joint_embedding.barlow_twins(points.tolist(), 0.3, 0.7)
    assert loss == pytest.approx(slow, rel=1e-9)


def test_uncorrelated_equal_views_cost_nothing():
    corners = torch.cartesian_prod(*3 * [torch.tensor([-20.0, 20.0])])
    loss, stats = loss_of(corners.expand(3, 8, 3))
    assert loss == pytest.approx(0.0, abs=1e-9)
    assert stats["diagonal"] == pytest.approx(1.0)
    assert stats["off_diagonal"] == 0.0


def test_equal_points_give_the_scale_times_the_dimensions():
    loss, stats = loss_of(torch.ones(2, 4, 12))
    assert loss == pytest.approx(0.025 * 12)
    assert stats["diagonal"] == 0.0


def test_views_that_know_nothing_of_each_other_give_the_same():
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]])
    loss, stats = loss_of(signs[:, :, None])
    assert loss == pytest.approx(0.025)
    assert stats["diagonal"] == 0.0


def test_copies_of_one_dimension_show_in_off_diagonal():
    line = torch.randn(1, 64, 1).expand(2, 64, 8)
    loss, stats = loss_of(line)
    assert stats["off_diagonal"] == pytest.approx(1.0, abs=1e-4)
    assert loss == pytest.approx(0.025 * 0.005 * 8 * 7, rel=1e-3)


def test_the_gradient_of_equal_points_is_finite():
    points = torch.ones(2, 4, 8, requires_grad=True)
    BarlowTwins()(BranchOutput(points, points), None, 0.0)[0].backward()
    assert torch.isfinite(points.grad).all()


def test_evaluation_mode_does_the_same():
    points = torch.randn(2, 5, 3)
    views = BranchOutput(points, points)
    objective = BarlowTwins()
    trained, _ = objective(views, None, 0.0)
    assert torch.equal(objective.eval()(views, None, 0.0)[0], trained)


def test_keeps_the_contract():
    check_objective(BarlowTwins(), dim=5, teacher_views=0)
    check_objective(BarlowTwins(0.05), dim=7, views=3, batch=3)


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 1, 8)])
def test_one_view_or_one_utterance_is_refused(shape):
    with pytest.raises(ValueError, match="two views or more of two"):
        loss_of(torch.randn(shape))


@pytest.mark.parametrize(
    "settings", [{"off_diagonal_weight": -0.1}, {"scale": 0.0}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be a number"):
        BarlowTwins(**settings)
