"""SimSiam against the formula, known values and the contract."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.byol import BYOL
from speechbrain_ssl.objectives.simsiam import SimSiam
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding
from tests.objectives.test_byol import layers_of, views


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equals_the_written_out_formula(count):
    objective = SimSiam(7, hidden=11).eval().double()
    layers = layers_of(objective.predictor)
    student = views(count, 3, 7, dtype=torch.float64)
    loss, stats = objective(student, None, 0.0)
    points = student.projection.tolist()
    predictions = [
        [joint_embedding.predict(point, layers) for point in view]
        for view in points
    ]
    same, others = joint_embedding.predictive_cosines(predictions, points)
    assert loss.item() == pytest.approx(-same, rel=1e-9)
    assert stats["cosine"].item() == pytest.approx(same, rel=1e-9)
    assert stats["negative_cosine"].item() == pytest.approx(others, rel=1e-9)


def without_predictor(points):
    objective = SimSiam(points.shape[-1], hidden=4)
    objective.predictor = torch.nn.Identity()
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    return loss, {name: value.item() for name, value in stats.items()}


def test_equality_gives_minus_1_and_orthogonality_0():
    one = torch.eye(4)
    loss, _ = without_predictor(torch.stack([one, 3 * one]))
    assert loss.item() == pytest.approx(-1.0)
    loss, _ = without_predictor(torch.stack([one, one.roll(1, -1)]))
    assert loss.item() == 0.0


def test_a_collapse_shows_in_negative_cosine():
    loss, stats = without_predictor(torch.randn(6).expand(2, 5, 6))
    assert loss.item() == pytest.approx(-1.0, abs=1e-6)
    assert stats["negative_cosine"] == pytest.approx(1.0, abs=1e-6)
    _, healthy = without_predictor(torch.eye(6).expand(2, 6, 6))
    assert healthy["negative_cosine"] == pytest.approx(0.0, abs=1e-6)


def test_targets_get_no_gradient():
    points = torch.randn(2, 3, 4, requires_grad=True)
    without_predictor(points)[0].backward()
    said = points.detach().clone().requires_grad_()
    cosine = torch.cosine_similarity(said, points.detach().flip(0), dim=-1)
    (-cosine.mean()).backward()
    # with the gradient of the targets it would be twice as long
    assert torch.allclose(points.grad, said.grad, atol=1e-7)


def test_is_byol_whose_teacher_is_the_student():
    points = torch.randn(3, 4, 5, requires_grad=True)
    objective, byol = SimSiam(5, hidden=3).eval(), BYOL(5, hidden=3).eval()
    byol.load_state_dict(objective.state_dict())
    student = BranchOutput(points, points)
    mine, _ = objective(student, None, 0.0)
    other, _ = byol(student, student, 0.0)
    assert other.item() == pytest.approx(2 + 2 * mine.item(), rel=1e-6)
    gradients = [torch.autograd.grad(x, points)[0] for x in (2 * mine, other)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_teacher_changes_nothing():
    objective, student = SimSiam(5, hidden=3).eval(), views(2, 4, 5)
    alone, _ = objective(student, None, 0.0)
    assert torch.equal(objective(student, views(2, 4, 5), 0.0)[0], alone)


def test_keeps_the_contract():
    check_objective(SimSiam(5, hidden=8), dim=5, teacher_views=0)
    check_objective(SimSiam(5, hidden=3, norm=None), dim=5, views=5, batch=3)


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        SimSiam(4, 8)(views(1, 3, 4), None, 0.0)


def test_projections_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expects projections of 4"):
        SimSiam(4, 8)(views(2, 3, 5), None, 0.0)


@pytest.mark.parametrize("sizes", [(0, 8), (4, 0)])
def test_bad_settings_are_refused(sizes):
    with pytest.raises(ValueError, match="must be a whole number"):
        SimSiam(*sizes)
