"""VIbCReg against the formula, known values and the contract."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.vibcreg import VIbCReg
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding


def loss_of(points, *weights, **settings):
    objective = VIbCReg(*weights, **settings)
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    return loss.item(), {name: value.item() for name, value in stats.items()}


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("batch, dim, size", [(3, 5, 64), (7, 6, 3), (9, 7, 1)])
def test_equals_the_written_out_formula(views, batch, dim, size):
    points = torch.randn(views, batch, dim, dtype=torch.float64) + 2.0
    weights = 1.3, 0.7, 4.0
    loss, stats = loss_of(points, *weights, group_size=size, iterations=4)
    white = [
        joint_embedding.iterative_normalization(x, min(size, dim), 4, 1e-5)
        for x in points.tolist()
    ]
    slow = joint_embedding.regularised(
        white, weights, joint_embedding.correlation
    )
    assert loss == pytest.approx(slow, rel=1e-9)
    each = [joint_embedding.correlation(view) for view in white]
    assert stats["covariance"] == pytest.approx(sum(each) / views, rel=1e-9)


def test_enough_iterations_leave_nothing_but_the_distance_of_views():
    points = torch.randn(2, 32, 4) @ torch.randn(4, 4)
    _, stats = loss_of(points, iterations=40, eps=1e-9)
    # 1 / batch within the whitening, 1 / (batch - 1) within the hinge
    assert stats["variance"] == pytest.approx(0.0, abs=1e-5)
    assert stats["covariance"] == pytest.approx(0.0, abs=1e-8)


def test_lengths_and_offsets_do_not_matter():
    points = torch.randn(2, 16, 4)
    loss, _ = loss_of(points, eps=1e-12)
    assert loss_of(3.0 * points - 5.0, eps=1e-12)[0] == pytest.approx(
        loss, rel=1e-5
    )


def test_equal_points_give_a_variance_of_099_for_each_of_two_views():
    loss, stats = loss_of(torch.ones(3, 4, 8))
    assert loss == pytest.approx(1.98, abs=1e-6)
    assert stats["variance"] == pytest.approx(0.99, abs=1e-6)


def test_copies_of_one_dimension_show_in_the_covariance():
    line = torch.randn(1, 64, 1).expand(2, 64, 8)
    _, stats = loss_of(line)
    # 8 * 7 correlations of one over 8 * 8
    assert stats["covariance"] == pytest.approx(7 / 8, rel=1e-4)


def test_the_gradient_of_equal_points_is_finite():
    points = torch.ones(2, 4, 8, requires_grad=True)
    VIbCReg()(BranchOutput(points, points), None, 0.0)[0].backward()
    assert torch.isfinite(points.grad).all()


def test_keeps_the_contract():
    check_objective(VIbCReg(), dim=5, teacher_views=0)
    check_objective(VIbCReg(group_size=2), dim=6, views=3, batch=7)


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 1, 8)])
def test_one_view_or_one_utterance_is_refused(shape):
    with pytest.raises(ValueError, match="two views or more of two"):
        loss_of(torch.randn(shape))


def test_dimensions_left_over_are_refused():
    with pytest.raises(ValueError, match="groups of 3 dimensions"):
        loss_of(torch.randn(2, 4, 8), group_size=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"variance_weight": -1.0},
        {"group_size": 0},
        {"iterations": 0},
        {"eps": 0.0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VIbCReg(**settings)
