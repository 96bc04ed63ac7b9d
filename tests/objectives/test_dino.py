"""DINO against the formula, known values, the contract and collapse."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step
from tests.objectives.reference import distillation


def views(count, batch=3, dim=7, dtype=None, **kwargs):
    return BranchOutput(
        torch.randn(count, batch, 5, dtype=dtype),
        torch.randn(count, batch, dim, dtype=dtype),
        **kwargs,
    )


def pairs_of(students, teachers):
    return [(s, t) for s in students for t in teachers if s != t]


@pytest.mark.parametrize("global_crops", [1, 2, 3])
@pytest.mark.parametrize("local_crops", [0, 1, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_written_out_formula(global_crops, local_crops, batch):
    numbers = range(global_crops + local_crops)
    student = views(len(numbers), batch, dtype=torch.float64)
    teacher = views(global_crops, batch, dtype=torch.float64)
    objective = DINO(7, 0.3, 0.2).eval().double()
    objective.center.copy_(torch.randn(7))
    pairs = pairs_of(numbers, range(global_crops))
    if not pairs:
        with pytest.raises(ValueError, match="two different views"):
            objective(student, teacher, 0.0)
        return
    loss, _ = objective(student, teacher, 0.0)
    slow = distillation.dino(
        student.projection.tolist(),
        teacher.projection.tolist(),
        objective.center.tolist(),
        0.3,
        0.2,
        pairs,
    )
    assert loss.item() == pytest.approx(slow, rel=1e-9)


def test_a_view_meets_every_other_one_when_the_student_sees_no_global_crop():
    student = views(4, view_id=(1, 2, 3, 4), dtype=torch.float64)
    teacher = views(1, view_id=(0,), dtype=torch.float64)
    loss, _ = DINO(7).eval().double()(student, teacher, 0.0)
    slow = distillation.dino(
        student.projection.tolist(),
        teacher.projection.tolist(),
        [0.0] * 7,
        0.1,
        0.04,
        [(s, 0) for s in range(4)],
    )
    assert loss.item() == pytest.approx(slow, rel=1e-9)


def test_logits_of_zero_give_the_log_of_the_number_of_prototypes():
    zero = torch.zeros(6, 2, 65536)
    loss, stats = DINO(65536)(
        BranchOutput(zero, zero), BranchOutput(zero[:2], zero[:2]), 0.0
    )
    assert loss.item() == pytest.approx(11.09035, abs=1e-4)
    assert stats["teacher_entropy"].item() == pytest.approx(11.09035, abs=1e-4)
    assert stats["prototypes_used"].item() == pytest.approx(65536, rel=1e-3)


def test_random_unit_vectors_give_the_golden_values():
    torch.manual_seed(0)
    prototypes = F.normalize(torch.randn(65536, 256), dim=-1)
    points = F.normalize(torch.randn(6, 24, 256), dim=-1) @ prototypes.T
    loss, stats = DINO(65536)(
        BranchOutput(points, points), BranchOutput(points[:2], points[:2]), 0.0
    )
    # independent views, as in methods where 11.294 and 9.88 were measured
    assert loss.item() == pytest.approx(11.294, abs=0.03)
    assert stats["teacher_entropy"].item() == pytest.approx(9.88, abs=0.05)


def test_loss_is_the_teachers_entropy_for_equal_distributions():
    crops = torch.randn(1, 4, 9).expand(2, 4, 9)
    both = BranchOutput(crops, crops)
    loss, stats = DINO(9, 0.5, 0.5)(both, both, 0.0)
    assert loss.item() == pytest.approx(stats["teacher_entropy"].item())
    assert stats["kl"].item() == pytest.approx(0.0, abs=1e-6)
    other, stats = DINO(9, 0.5, 0.2)(both, both, 0.0)
    assert stats["kl"].item() > 0.01


def test_center_follows_the_batch_after_it_was_used():
    objective = DINO(7)
    teacher = BranchOutput(torch.zeros(2, 3, 5), torch.full((2, 3, 7), 2.0))
    student = views(2)
    before = objective(student, teacher, 0.0)[0]
    assert step(objective, student, teacher)[0] == before
    for _ in range(21):
        step(objective, student, teacher)
    # a (1 - 0.9^n)
    assert torch.allclose(objective.center, torch.tensor(2 * 0.9015), atol=1e-4)


def test_temperature_of_the_teacher_follows_its_schedule():
    schedule = functools.partial(linear, start=0.04, stop=0.07, epochs=30)
    student, teacher = views(2), views(2)
    at_15 = DINO(7, 0.1, schedule).eval()(student, teacher, 15.0)[0]
    assert at_15 == DINO(7, 0.1, 0.055).eval()(student, teacher, 0.0)[0]


def test_sinkhorn_targets_use_all_prototypes():
    student, teacher = views(2, 40, 5), views(2, 40, 5)
    teacher.projection[..., 0] += 3.0  # everybody's favourite
    _, centered = DINO(5, 1.0, 0.5).eval()(student, teacher, 0.0)
    _, spread = DINO(5, 1.0, 0.5, sinkhorn_iterations=5).eval()(
        student, teacher, 0.0
    )
    assert centered["prototypes_used"] < 2
    assert spread["prototypes_used"] == pytest.approx(5, abs=0.01)


def test_sinkhorn_targets_are_those_of_all_global_crops_together():
    student, teacher = (views(n, dtype=torch.float64) for n in (3, 2))
    objective = DINO(7, 0.3, 0.2, sinkhorn_iterations=3).eval().double()
    loss, _ = objective(student, teacher, 0.0)
    flat = teacher.projection.flatten(0, 1).div(0.2).exp()
    target = distillation.sinkhorn(flat.numpy(), 3).reshape(2, 3, 7)
    losses = [
        distillation.cross_entropy(target[t][i], distillation.softmax(x, 0.3))
        for s, t in pairs_of(range(3), range(2))
        for i, x in enumerate(student.projection[s].tolist())
    ]
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_consistency_and_koleo_are_added_on_embeddings():
    student, teacher = (views(n, dtype=torch.float64) for n in (3, 2))
    plain, _ = DINO(7).eval().double()(student, teacher, 0.0)
    added = DINO(7, consistency_weight=2.0, koleo_weight=0.5).eval().double()
    loss, _ = added(student, teacher, 0.0)
    gaps = [
        1
        - F.cosine_similarity(student.embedding[s], teacher.embedding[t]).mean()
        for s, t in pairs_of(range(3), range(2))
    ]
    spread = [distillation.koleo(x.tolist()) for x in student.embedding]
    wanted = plain + 2.0 * sum(gaps) / len(gaps) + 0.5 * sum(spread) / 3
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_no_gradient_reaches_the_teacher():
    student, teacher = views(2), views(2)
    for points in (*student[:2], *teacher[:2]):
        points.requires_grad_()
    loss, _ = DINO(7, consistency_weight=1.0)(student, teacher, 0.0)
    loss.backward()
    assert student.projection.grad.any() and student.embedding.grad.any()
    assert teacher.projection.grad is None and teacher.embedding.grad is None


def train(objective, steps=150, offset=0.0):
    """Stats of a linear student and its moving average on random points.

    With an offset all points have something in common to collapse along.
    """
    torch.manual_seed(0)
    student = torch.nn.Linear(6, 16, bias=False)
    teacher = torch.nn.Linear(6, 16, bias=False)
    teacher.load_state_dict(student.state_dict())
    moving = torch.optim.Adam(student.parameters(), lr=0.05)
    points = torch.randn(64, 6)
    for _ in range(steps):
        crops = points + offset + 0.3 * torch.randn(2, 64, 6)
        mine = student(crops)
        with torch.no_grad():
            theirs = teacher(crops)
        both = BranchOutput(crops, mine), BranchOutput(crops, theirs)
        loss, stats = step(objective, *both)
        moving.zero_grad()
        loss.backward()
        moving.step()
        with torch.no_grad():
            teacher.weight.lerp_(student.weight, 0.1)
    return {name: value.item() for name, value in stats.items()}


def test_without_sharpening_it_collapses_to_uniform_and_says_so():
    stats = train(DINO(16, student_temperature=1.0, teacher_temperature=1.5))
    objective = DINO(16)
    assert stats["teacher_entropy"] > 0.98 * math.log(16)
    assert "all prototypes alike" in objective.warnings(stats)[0]


def test_without_center_it_collapses_to_a_point_and_says_so():
    still = DINO(16, 0.5, 0.2, center_momentum=1.0)
    stats = train(still, offset=2.0)
    assert "uses 1.0 prototypes" in still.warnings(stats)[0]


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_a_healthy_run_is_silent(iterations, offset):
    objective = DINO(16, 0.5, 0.2, sinkhorn_iterations=iterations)
    stats = train(objective, offset=offset)
    assert objective.warnings(stats) == []
    assert stats["prototypes_used"] > 6


def test_keeps_the_contract():
    check_objective(DINO(5), dim=5)
    check_objective(DINO(5), dim=5, views=6, teacher_views=2)
    settings = {"consistency_weight": 1.0, "koleo_weight": 0.1}
    check_objective(DINO(5, sinkhorn_iterations=3, **settings), dim=5, views=3)


def test_settings_that_make_no_distributions_are_refused():
    with pytest.raises(ValueError, match="student_temperature"):
        DINO(5, student_temperature=0.0)
    with pytest.raises(ValueError, match="sinkhorn_iterations"):
        DINO(5, sinkhorn_iterations=-1)


def test_another_number_of_prototypes_is_refused():
    with pytest.raises(ValueError, match="DINO expects projections of 5"):
        DINO(5, sinkhorn_iterations=3)(views(2), views(2), 0.0)


def test_a_center_momentum_beyond_one_is_refused():
    with pytest.raises(ValueError, match="center_momentum"):
        DINO(5, center_momentum=1.1)
