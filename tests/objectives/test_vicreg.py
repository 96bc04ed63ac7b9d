"""VICReg against the formula, known values and the contract."""

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.vicreg import VICReg
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding


def loss_of(points, *weights):
    loss, stats = VICReg(*weights)(BranchOutput(points, points), None, 0.0)
    return loss.item(), {name: value.item() for name, value in stats.items()}


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("batch, dim", [(2, 7), (3, 1), (13, 5)])
def test_equals_the_written_out_formula(views, batch, dim):
    points = 0.7 * torch.randn(views, batch, dim, dtype=torch.float64) + 3.0
    weights = 1.3, 0.7, 0.4
    loss, stats = loss_of(points, *weights)
    listed = points.tolist()
    slow = joint_embedding.regularised(
        listed, weights, joint_embedding.covariance
    )
    assert loss == pytest.approx(slow, rel=1e-9)
    each = [joint_embedding.variance(view) for view in listed]
    assert stats["variance"] == pytest.approx(sum(each) / views, rel=1e-9)
    assert stats["invariance"] == pytest.approx(
        joint_embedding.invariance(listed), rel=1e-9
    )


def test_two_views_give_the_loss_of_the_paper():
    a, b = 0.8 * torch.randn(2, 9, 4, dtype=torch.float64)
    expected = F.mse_loss(a, b)
    for x in (a, b):
        cov = torch.cov(x.T)
        off = cov.square().sum() - cov.diagonal().square().sum()
        hinge = F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()
        expected = expected + 25 * hinge + 0.1 * off / 4
    loss, _ = loss_of(torch.stack([a, b]), 1.0, 25.0, 0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("views", [2, 5])
def test_equal_points_give_a_variance_of_099_for_each_of_two_views(views):
    loss, stats = loss_of(torch.ones(views, 4, 8))
    assert loss == pytest.approx(1.98, abs=1e-6)
    assert stats["variance"] == pytest.approx(0.99, abs=1e-6)
    assert stats["invariance"] == stats["covariance"] == 0.0


def test_copies_of_one_dimension_show_in_the_covariance():
    line = torch.randn(1, 64, 1).expand(2, 64, 8)
    squared = line[0, :, 0].var().square().item()
    _, stats = loss_of(line)
    assert stats["covariance"] == pytest.approx(7 * squared, rel=1e-5)


def test_spread_uncorrelated_equal_views_cost_nothing():
    corners = torch.cartesian_prod(*3 * [torch.tensor([-2.0, 2.0])])
    loss, _ = loss_of(corners.expand(3, 8, 3))
    assert loss == 0.0


def test_each_weight_is_that_of_its_term():
    points = 0.5 * torch.randn(2, 6, 5)
    _, stats = loss_of(points)
    for place, (name, times) in enumerate(
        [("invariance", 1), ("variance", 2), ("covariance", 2)]
    ):
        weights = [0.0, 0.0, 0.0]
        weights[place] = 3.0
        loss, _ = loss_of(points, *weights)
        assert loss == pytest.approx(3 * times * stats[name], rel=1e-6)


def test_the_gradient_of_equal_points_is_finite():
    points = torch.ones(2, 4, 8, requires_grad=True)
    VICReg()(BranchOutput(points, points), None, 0.0)[0].backward()
    assert torch.isfinite(points.grad).all()


def test_keeps_the_contract():
    check_objective(VICReg(), dim=5, teacher_views=0)
    check_objective(VICReg(25.0, 25.0, 1.0), dim=7, views=5, batch=3)


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 1, 8)])
def test_one_view_or_one_utterance_is_refused(shape):
    with pytest.raises(ValueError, match="two views or more of two"):
        loss_of(torch.randn(shape))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="covariance_weight must be"):
        VICReg(covariance_weight=-0.1)
