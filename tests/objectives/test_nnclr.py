"""NNCLR against the formula, known values and the contract."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.nnclr import NNCLR
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step
from tests.objectives.reference import neighbours


def views(*shape, dtype=None):
    points = torch.randn(*shape, dtype=dtype)
    return BranchOutput(points, points)


def identity(dim, queue_size, **settings):
    """An objective whose predictor changes nothing."""
    objective = NNCLR(dim, 3, queue_size, **settings)
    objective.predictor = torch.nn.Identity()
    return objective


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("norm", [None, torch.nn.BatchNorm1d])
def test_equals_the_written_out_formula(count, norm):
    objective = NNCLR(7, 11, 5, 0.3, norm).eval().double()
    # of unit length in float64 as well
    objective.queue = F.normalize(objective.queue, dim=-1)
    student = views(count, 3, 7, dtype=torch.float64)
    loss, _ = objective(student, None, 0.0)
    predicted = [objective.predictor(x) for x in student.projection]
    expected = neighbours.nnclr(
        student.projection.tolist(),
        [x.tolist() for x in predicted],
        objective.queue.tolist(),
        0.3,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_before_its_epoch_it_is_contrast_of_the_views_themselves():
    objective = identity(7, 5, temperature=0.3, neighbors_from=2.0).eval()
    points = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    student = BranchOutput(points, points)
    early, stats = objective.double()(student, None, 1.9)
    assert stats["neighbor_cosine"].item() < 0.99
    unit = F.normalize(points, dim=-1)
    losses = [
        F.cross_entropy(unit[s] @ unit[t].T / 0.3, torch.arange(3))
        for s, t in [(0, 1), (1, 0)]
    ]
    expected = sum(losses) / 2
    assert early.item() == pytest.approx(expected.item(), rel=1e-9)
    # both sides learn
    gradients = [torch.autograd.grad(x, points)[0] for x in (early, expected)]
    assert torch.allclose(*gradients, atol=1e-6)
    # from its epoch on: the same, where the queue holds just the views
    objective.queue = unit.detach().flatten(0, 1)
    late, _ = objective(student, None, 2.0)
    assert late.item() == pytest.approx(early.item(), rel=1e-9)


def test_the_queue_fills_before_neighbors_are_taken():
    objective = NNCLR(4, 5, queue_size=3, neighbors_from=9.0)
    student = views(2, 3, 4)
    step(objective, student)
    keys = F.normalize(student.projection[0], dim=-1)
    assert torch.equal(objective.queue, keys)


def test_equal_predictions_give_the_log_of_the_batch_size():
    objective = identity(8, 16)
    points = torch.ones(2, 64, 8)
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    assert loss.item() == pytest.approx(math.log(64), abs=1e-5)
    assert stats["accuracy"].item() == pytest.approx(1 / 64)


def test_neighbors_of_the_same_speaker_give_the_golden_value():
    objective = identity(8, 9, temperature=0.5)
    objective.queue.copy_(F.normalize(torch.eye(9, 8) + 1e-3, dim=-1))
    points = torch.eye(8).expand(2, 8, 8)
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    # -log(e^2 / (e^2 + 7))
    golden = math.log(1 + 7 * math.exp(-2))
    assert loss.item() == pytest.approx(golden, rel=5e-3)
    assert stats["accuracy"].item() == 1.0
    assert stats["positive_cosine"].item() == pytest.approx(1.0, abs=1e-2)
    assert stats["neighbor_cosine"].item() == pytest.approx(1.0, abs=1e-2)
    assert stats["negative_cosine"].item() == pytest.approx(0.0, abs=1e-2)


def test_collapse_shows_in_the_negatives():
    objective = identity(8, 4)
    points = torch.ones(2, 6, 8)
    for _ in range(2):
        _, stats = step(objective, BranchOutput(points, points))
    assert stats["negative_cosine"].item() == pytest.approx(1.0)
    assert stats["neighbor_cosine"].item() == pytest.approx(1.0)


def test_queue_keeps_the_newest_first_views_after_wrapping():
    objective = NNCLR(4, 5, queue_size=7)
    seen = []
    for _ in range(4):
        student = views(3, 3, 4)
        step(objective, student)
        seen.append(F.normalize(student.projection[0], dim=-1))
    assert objective.seen.item() == 12
    in_order = objective.queue.roll(-(12 % 7), 0)
    assert torch.equal(in_order, torch.cat(seen)[-7:])


def test_a_batch_larger_than_the_queue_fills_it_with_its_last_keys():
    objective = NNCLR(4, 5, queue_size=3)
    student = views(2, 5, 4)
    step(objective, student)
    keys = F.normalize(student.projection[0], dim=-1)
    assert sorted(objective.queue.tolist()) == sorted(keys[-3:].tolist())


def test_own_keys_enter_the_queue_after_the_loss():
    objective = NNCLR(4, 5, queue_size=6, norm=None)
    student = views(2, 3, 4)
    before = objective(student, None, 0.0)[0]
    assert torch.equal(step(objective, student)[0], before)
    assert not torch.equal(objective(student, None, 0.0)[0], before)


def test_gradients_flow_through_predictions_only():
    objective = identity(4, 6, temperature=0.5)
    queue = objective.queue.clone()
    points = torch.randn(2, 3, 4, requires_grad=True)
    objective(BranchOutput(points, points), None, 0.0)[0].backward()
    unit = F.normalize(points, dim=-1)
    neighbors = queue[(unit @ queue.T).argmax(-1)]
    losses = [
        F.cross_entropy(neighbors[s] @ unit[t].T / 0.5, torch.arange(3))
        for s, t in [(0, 1), (1, 0)]
    ]
    (expected,) = torch.autograd.grad(sum(losses) / 2, points)
    assert torch.allclose(points.grad, expected, atol=1e-6)


def test_the_predictor_learns():
    objective = NNCLR(4, 5, queue_size=6)
    objective(views(2, 3, 4), None, 0.0)[0].backward()
    for layer in (objective.predictor[0], objective.predictor[-1]):
        assert layer.weight.grad.any()


def test_keeps_the_contract():
    check_objective(NNCLR(5, 7, 9), dim=5, teacher_views=0)
    check_objective(NNCLR(5, 7, 9, norm=None), 5, views=4, teacher_views=0)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        NNCLR(4, 5, 8)(views(1, 3, 4), None, 0.0)


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"queue_size": 0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        NNCLR(4, 5, **{"queue_size": 8, **setting})
