"""BYOL against the formula, known values and the contract."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.byol import BYOL
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding


def views(*shape, dtype=None):
    points = torch.randn(*shape, dtype=dtype)
    return BranchOutput(points, points)


def layers_of(predictor):
    """Numbers of a predictor whose statistics are made up."""
    first, norm, _, last = predictor
    with torch.no_grad():
        for values in (norm.running_mean, norm.weight, norm.bias):
            values.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    normalised = norm.running_mean, norm.running_var, norm.weight, norm.bias
    groups = (first.weight, first.bias), normalised, (last.weight, last.bias)
    return [[x.tolist() for x in group] for group in groups]


@pytest.mark.parametrize("mine, theirs", [(2, 2), (3, 3), (5, 2)])
def test_equals_the_written_out_formula(mine, theirs):
    objective = BYOL(7, hidden=11).eval().double()
    layers = layers_of(objective.predictor)
    student = views(mine, 3, 7, dtype=torch.float64)
    teacher = views(theirs, 3, 7, dtype=torch.float64)
    loss, stats = objective(student, teacher, 0.0)
    predictions = [
        [joint_embedding.predict(point, layers) for point in view]
        for view in student.projection.tolist()
    ]
    same, others = joint_embedding.predictive_cosines(
        predictions, teacher.projection.tolist()
    )
    assert loss.item() == pytest.approx(2 - 2 * same, rel=1e-9)
    assert stats["cosine"].item() == pytest.approx(same, rel=1e-9)
    assert stats["negative_cosine"].item() == pytest.approx(others, rel=1e-9)


def without_predictor(student, teacher):
    objective = BYOL(student.shape[-1], hidden=4)
    objective.predictor = torch.nn.Identity()
    loss, stats = objective(
        BranchOutput(student, student), BranchOutput(teacher, teacher), 0.0
    )
    return loss.item(), {name: value.item() for name, value in stats.items()}


def test_equality_gives_0_orthogonality_2_and_opposites_4():
    point = torch.eye(4).expand(2, 4, 4)
    assert without_predictor(point, 3 * point)[0] == pytest.approx(0.0)
    assert without_predictor(point, point.roll(1, -1))[0] == 2.0
    assert without_predictor(point, -point)[0] == pytest.approx(4.0)


def test_a_collapse_shows_in_negative_cosine():
    point = torch.randn(6).expand(2, 5, 6)
    loss, stats = without_predictor(point, point)
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert stats["negative_cosine"] == pytest.approx(1.0, abs=1e-6)
    _, healthy = without_predictor(*2 * [torch.eye(6).expand(2, 6, 6)])
    assert healthy["negative_cosine"] == pytest.approx(0.0, abs=1e-6)


def test_batch_normalisation_sees_all_views_together():
    objective = BYOL(5, hidden=3)
    student = views(3, 4, 5)
    objective(student, views(3, 4, 5), 0.0)
    first, norm = objective.predictor[:2]
    hidden = first(student.projection).flatten(0, 1)
    assert norm.num_batches_tracked.item() == 1
    assert torch.allclose(norm.running_mean, 0.1 * hidden.mean(0), atol=1e-6)


def test_the_teacher_gets_no_gradient_and_the_predictor_does():
    objective = BYOL(5, hidden=3)
    student, teacher = views(2, 4, 5), views(2, 4, 5)
    teacher.projection.requires_grad_()
    student.projection.requires_grad_()
    objective(student, teacher, 0.0)[0].backward()
    assert teacher.projection.grad is None
    assert student.projection.grad.any()
    assert objective.predictor[-1].weight.grad.any()


def test_keeps_the_contract():
    check_objective(BYOL(5, hidden=8), dim=5)
    check_objective(BYOL(5, hidden=3, norm=None), dim=5, views=5, batch=3)


def test_a_missing_teacher_is_named():
    with pytest.raises(ValueError, match="teacher"):
        BYOL(4, 8)(views(2, 3, 4), None, 0.0)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        BYOL(4, 8)(views(1, 3, 4), views(1, 3, 4), 0.0)


def test_projections_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expects projections of 4"):
        BYOL(4, 8)(views(2, 3, 5), views(2, 3, 5), 0.0)


@pytest.mark.parametrize("sizes", [(0, 8), (4, 0)])
def test_bad_settings_are_refused(sizes):
    with pytest.raises(ValueError, match="must be a whole number"):
        BYOL(*sizes)
