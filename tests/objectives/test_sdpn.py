"""SDPN against the formula, known values and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.sdpn import SDPN
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step
from tests.objectives.reference import distillation


def both(locals_=4, globals_=1, batch=3, dim=5, emb_dim=6, dtype=None):
    numbers = range(globals_ + locals_)
    student = BranchOutput(
        torch.randn(locals_, batch, emb_dim, dtype=dtype),
        torch.randn(locals_, batch, dim, dtype=dtype),
        view_id=tuple(numbers[globals_:]),
    )
    teacher = BranchOutput(
        torch.randn(globals_, batch, emb_dim, dtype=dtype),
        torch.randn(globals_, batch, dim, dtype=dtype),
        view_id=tuple(numbers[:globals_]),
    )
    return student, teacher


@pytest.mark.parametrize("locals_", [1, 4, 5])
@pytest.mark.parametrize("globals_", [1, 3])
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("shared", [0, 1])
def test_equals_the_written_out_formula(locals_, globals_, batch, shared):
    """``shared`` of the student's views are crops of the teacher's, too."""
    locals_ += shared  # one local crop at least
    student, teacher = both(locals_, globals_, batch, dtype=torch.float64)
    view_id = (*range(shared), *student.view_id[shared:])
    student = student._replace(view_id=view_id)
    weights = (0.7, 0.3, 0.4, 0.6)
    objective = SDPN(5, 7, 0.2, 0.5, 3, True, *weights).double()
    loss, _ = objective(student, teacher, 0.0)
    slow = distillation.sdpn(
        student.projection.tolist(),
        teacher.projection.tolist(),
        objective.prototypes.weight.tolist(),
        student.embedding.tolist(),
        teacher.embedding.tolist(),
        0.2,
        0.5,
        weights,
        [(v, v) for v in range(shared)],
    )
    assert loss.item() == pytest.approx(slow, rel=1e-9)


def test_equal_similarities_give_the_log_of_the_number_of_prototypes():
    student, teacher = both(batch=8)
    objective = SDPN(5, 1024)
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.ones(1024, 5))
    _, stats = objective(student, teacher, 0.0)
    assert stats["cross_entropy"].item() == pytest.approx(6.93147, abs=1e-4)
    assert abs(stats["entropy_gap"].item()) < 1e-4


def on_prototypes(prototypes, batch):
    """An objective, and its stats of utterances that lie on prototypes."""
    objective = SDPN(256, 1024)
    unit = torch.nn.functional.normalize(objective.prototypes.weight, dim=-1)
    points = unit[:prototypes].detach().expand(4, batch, 256)
    emb = torch.randn(4, batch, 6)
    student = BranchOutput(emb, points, view_id=(1, 2, 3, 4))
    teacher = BranchOutput(emb[:1], points[:1], view_id=(0,))
    return objective, step(objective, student, teacher)[1]


def test_collapse_onto_one_prototype_gives_the_golden_values_and_a_warning():
    objective, stats = on_prototypes(prototypes=1, batch=8)
    assert stats["cross_entropy"].item() == pytest.approx(10.0, abs=0.1)
    assert stats["entropy_gap"].item() == pytest.approx(6.36, abs=0.1)
    stats = {name: value.item() for name, value in stats.items()}
    assert "only 1.8 are used" in objective.warnings(stats)[0]


def test_random_points_are_healthy():
    objective = SDPN(256, 1024)
    student, teacher = both(batch=96, dim=256)
    _, stats = objective(student, teacher, 0.0)
    assert stats["cross_entropy"].item() == pytest.approx(7.13, abs=0.1)
    assert stats["entropy_gap"].item() < 2e-3
    stats = {name: value.item() for name, value in stats.items()}
    assert objective.warnings(stats) == []


def test_a_batch_smaller_than_the_prototypes_is_healthy():
    """Each utterance on a prototype of its own is all that a step can do."""
    objective, stats = on_prototypes(prototypes=32, batch=32)
    stats = {name: value.item() for name, value in stats.items()}
    assert stats["prototypes_used"] < 100
    assert objective.warnings(stats) == []


def test_prototypes_learn_from_the_student_only():
    student, teacher = both()
    objective = SDPN(5, 7, consistency_weight=1.0)
    teacher.projection.requires_grad_()
    teacher.embedding.requires_grad_()
    objective(student, teacher, 0.0)[0].backward()
    assert objective.prototypes.weight.grad.any()
    assert teacher.projection.grad is None and teacher.embedding.grad is None


def test_frozen_prototypes_are_no_parameters_to_learn():
    objective = SDPN(5, 7, train_prototypes=False)
    assert not [p for p in objective.parameters() if p.requires_grad]
    check_objective(objective, dim=5)


def test_keeps_the_contract():
    check_objective(SDPN(5, 7), dim=5)
    check_objective(
        SDPN(5, 7, dimension_weight=0.5, consistency_weight=1.0),
        dim=5,
        views=5,
        teacher_views=1,
    )


def test_moments_range_from_isotropic_to_collapsed():
    weights = {"entropy_weight": 0.0, "koleo_weight": 0.0}
    spread = torch.eye(6)[None].expand(2, 6, 6)
    point = torch.ones(2, 6, 6)
    for embedding, moments in ((spread, 1 / 6), (point, 1.0)):
        projection = torch.randn(2, 6, 5)
        views = BranchOutput(embedding, projection)
        with_term, without = (
            SDPN(5, 7, dimension_weight=weight, **weights) for weight in (1, 0)
        )
        without.load_state_dict(with_term.state_dict())
        losses = [f(views, views, 0.0)[0].item() for f in (with_term, without)]
        assert losses[0] - losses[1] == pytest.approx(moments, abs=1e-5)


def test_bad_temperatures_are_refused():
    with pytest.raises(ValueError, match="temperature must be"):
        SDPN(5, 7, temperature=0.0)
    assert math.isfinite(SDPN(5, 7, temperature=0.01).temperature)
