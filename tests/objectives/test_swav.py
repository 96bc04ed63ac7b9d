"""SwAV against the formula, known values and the contract."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.swav import SwAV
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step
from tests.objectives.reference import clustering


def views(*shape, dtype=None):
    points = torch.randn(*shape, dtype=dtype)
    return BranchOutput(points, points)


def slow(objective, points, **settings):
    return clustering.swav(
        points.tolist(),
        objective.prototypes.weight.tolist(),
        objective.temperature,
        objective.epsilon,
        objective.iterations,
        objective.target_views,
        **settings,
    )


@pytest.mark.parametrize("count, targets", [(2, 2), (3, 2), (5, 2), (5, 1)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_the_written_out_formula(count, targets, iterations):
    objective = SwAV(7, 5, 0.2, 0.3, iterations, target_views=targets).double()
    student = views(count, 3, 7, dtype=torch.float64)
    loss, stats = objective(student, None, 0.0)
    expected, entropy = slow(objective, student.projection)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert stats["target_entropy"].item() == pytest.approx(entropy, rel=1e-9)
    divergence = expected - entropy
    assert stats["kl"].item() == pytest.approx(divergence, rel=1e-9)


def test_fewer_views_than_targets_all_give_targets():
    objective = SwAV(7, 5, queue_size=3, target_views=4).double()
    student = views(2, 3, 7, dtype=torch.float64)
    loss, _ = objective(student, None, 20.0)
    expected, _ = slow(objective, student.projection)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_views_are_told_apart_by_their_numbers():
    objective = SwAV(7, 5, target_views=1)
    student = views(3, 3, 7)
    plain, _ = objective(student, None, 0.0)
    # view 1 is the same crop as view 0: it may not predict its own target
    student = student._replace(view_id=(0, 0, 1))
    found, _ = objective(student, None, 0.0)
    points = student.projection[[0, 2]]
    expected, _ = objective(BranchOutput(points, points), None, 0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() != pytest.approx(plain.item(), rel=1e-6)


def test_a_full_queue_is_assigned_along_with_the_batch():
    objective = SwAV(7, 5, epsilon=0.3, queue_size=4, queue_from=1.0).double()
    past = [views(3, 2, 7, dtype=torch.float64) for _ in range(2)]
    for student in past:
        step(objective, student)
    student = views(3, 3, 7, dtype=torch.float64)
    without, _ = objective(student, None, 0.9)
    found, _ = objective(student, None, 1.0)
    queues = torch.cat([x.projection[:2] for x in past], dim=1).tolist()
    expected, _ = slow(objective, student.projection, queues=queues)
    alone, _ = slow(objective, student.projection)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert without.item() == pytest.approx(alone, rel=1e-9)
    assert expected != pytest.approx(alone, rel=1e-3)


def test_a_queue_that_is_not_full_is_not_used():
    objective = SwAV(7, 5, queue_size=4, queue_from=0.0).double()
    step(objective, views(2, 3, 7, dtype=torch.float64))
    student = views(2, 3, 7, dtype=torch.float64)
    loss, _ = objective(student, None, 9.0)
    alone, _ = slow(objective, student.projection)
    assert loss.item() == pytest.approx(alone, rel=1e-9)


def test_queue_keeps_the_newest_utterances_after_wrapping():
    objective = SwAV(4, 5, queue_size=5)
    seen = []
    for _ in range(4):
        student = views(3, 3, 4)
        step(objective, student)
        seen.append(F.normalize(student.projection[:2], dim=-1))
    newest = torch.cat(seen, dim=1)[:, -5:].transpose(0, 1)
    assert objective.seen.item() == 12
    assert torch.equal(objective.queue.roll(-(12 % 5), 0), newest)


def test_a_batch_larger_than_the_queue_fills_it_with_its_last_utterances():
    objective = SwAV(4, 5, queue_size=3)
    student = views(2, 5, 4)
    step(objective, student)
    keys = F.normalize(student.projection, dim=-1).transpose(0, 1)
    stored = sorted(objective.queue.tolist())
    assert stored == sorted(keys[-3:].tolist())


def test_targets_have_no_gradient():
    objective = SwAV(4, 5, target_views=1).requires_grad_(False)
    points = torch.randn(2, 3, 4, requires_grad=True)
    loss, _ = objective(BranchOutput(points, points), None, 0.0)
    loss.backward()
    assert not points.grad[0].any()
    assert points.grad[1].any()


def test_as_many_utterances_as_prototypes_each_have_their_own():
    objective = SwAV(8, 8, temperature=0.1, epsilon=0.02)
    objective.prototypes.weight.data.copy_(torch.eye(8))
    points = torch.eye(8).expand(2, 8, 8)
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    golden = math.log(1 + 7 * math.exp(-10))
    assert loss.item() == pytest.approx(golden, rel=1e-3)
    assert stats["prototypes_used"].item() == pytest.approx(8.0, abs=1e-3)
    assert stats["predictions_used"].item() == pytest.approx(8.0, abs=1e-3)
    assert stats["target_entropy"].item() == pytest.approx(0.0, abs=1e-4)


def test_collapse_of_the_embeddings_leaves_targets_no_choice():
    objective = SwAV(8, 16)
    objective.prototypes.weight.data[0] = 1.0
    points = torch.ones(2, 6, 8)
    _, stats = objective(BranchOutput(points, points), None, 0.0)
    assert stats["target_entropy"].item() == pytest.approx(math.log(16))
    # the prediction is the one of the prototype that all are close to
    assert stats["predictions_used"].item() < 2


def test_keeps_the_contract():
    check_objective(SwAV(5, 9), dim=5, teacher_views=0)
    queue = SwAV(5, 9, queue_size=6, queue_from=0.0)
    check_objective(queue, dim=5, views=4, teacher_views=0)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        SwAV(4, 5)(views(1, 3, 4), None, 0.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0},
        {"epsilon": -0.1},
        {"iterations": 0},
        {"target_views": 0},
        {"queue_size": -1},
    ],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SwAV(4, 5, **setting)
