"""MoCo against the formula, known values and the contract."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step
from tests.objectives.reference import contrastive


def views(*shape, dtype=None):
    points = torch.randn(*shape, dtype=dtype)
    return BranchOutput(points, points)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_equals_the_written_out_formula(count, symmetric, margin):
    objective = MoCo(7, 5, 0.2, margin, symmetric).eval().double()
    # of unit length in float64 as well
    objective.queue = F.normalize(objective.queue, dim=-1)
    student, teacher = (
        views(count, 3, 7, dtype=torch.float64) for _ in range(2)
    )
    loss, _ = objective(student, teacher, 0.0)
    slow = contrastive.info_nce(
        student.projection.tolist(),
        teacher.projection.tolist(),
        objective.queue.tolist(),
        0.2,
        margin,
        symmetric,
    )
    assert loss.item() == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("size, loss", [(65536, 11.09037), (32768, 10.39724)])
def test_orthogonal_everything_gives_log_of_one_plus_queue(size, loss):
    objective = MoCo(3, size)
    objective.queue.zero_()
    query, key = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    query[..., 0], key[..., 1] = 1.0, 1.0
    found, _ = objective(
        BranchOutput(query, query), BranchOutput(key, key), 0.0
    )
    assert found.item() == pytest.approx(loss, abs=1e-4)


def test_perfect_keys_give_the_floor_of_the_loss():
    objective = MoCo(3, 65536, temperature=0.07)
    objective.queue.zero_()
    point = torch.ones(2, 4, 3)
    loss, _ = objective(
        BranchOutput(point, point), BranchOutput(point, point), 0.0
    )
    floor = math.log1p(65536 * math.exp(-1 / 0.07))
    assert loss.item() == pytest.approx(floor, rel=1e-4)


def test_collapse_shows_in_negatives_and_accuracy():
    objective = MoCo(8, queue_size=6)
    point = torch.ones(2, 6, 8)
    for _ in range(2):
        _, stats = step(
            objective, BranchOutput(point, point), BranchOutput(point, point)
        )
    assert stats["negative_cosine"].item() == pytest.approx(1.0)
    assert stats["accuracy"].item() == 0.0


def test_orthonormal_utterances_are_healthy():
    objective = MoCo(8, queue_size=8)
    objective.queue.copy_(torch.eye(8))
    point = torch.eye(8)[:4].expand(2, 4, 8)
    objective.queue[:4] = 0.0  # nobody's
    _, stats = objective(
        BranchOutput(point, point), BranchOutput(point, point), 0.0
    )
    assert stats["negative_cosine"].item() == pytest.approx(0.0)
    assert stats["positive_cosine"].item() == pytest.approx(1.0)
    assert stats["accuracy"].item() == 1.0


@pytest.mark.parametrize("turn", [0.0, 1e-2])
def test_keys_of_the_utterance_of_a_replaced_positive_are_no_negatives(turn):
    """Also where TF32 gives its cosine to itself as 0.999 only."""
    objective = MoCo(4, queue_size=6, temperature=1.0).double()
    # of unit length in float64 as well
    objective.queue = F.normalize(objective.queue, dim=-1)
    objective.rows.copy_(torch.tensor([7, 8, 9, 9, 0, 1]))
    student, teacher = (
        views(2, 3, 4, dtype=torch.float64)._replace(index=torch.arange(3))
        for _ in range(2)
    )
    # the first two utterances have keys in the queue, too: negatives still
    other = F.normalize(objective.queue[2] + turn, dim=-1)
    replaced = teacher._replace(
        projection=other.expand(2, 3, 4), index=torch.tensor([9, 9, 2])
    )
    loss, _ = objective(student, replaced, 0.0)
    unit = F.normalize(student.projection, dim=-1)
    cosine = (unit @ objective.queue.T).exp()
    rest = cosine.sum(-1)
    rest[:, :2] -= cosine[:, :2, 2:4].sum(-1)
    positive = (unit @ other).exp()
    expected = -(positive / (positive + rest)).log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_own_keys_of_past_epochs_stay_negatives():
    objective = MoCo(4, queue_size=6)
    student, teacher = views(2, 3, 4), views(2, 3, 4)
    plain, _ = objective(student, teacher, 0.0)
    objective.rows.copy_(torch.tensor([0, 1, 2, 0, 1, 2]))
    rows = torch.arange(3)
    loss, _ = objective(
        student._replace(index=rows), teacher._replace(index=rows.clone()), 0.0
    )
    assert torch.equal(loss, plain)


def test_keys_know_their_utterances():
    objective = MoCo(4, queue_size=5)
    teacher = views(2, 3, 4)._replace(index=torch.tensor([4, 9, 6]))
    step(objective, views(2, 3, 4), teacher)
    assert objective.rows.tolist() == [6, 4, 9, 9, 6]


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="MoCo expects projections of 4"):
        MoCo(4, 6)(views(2, 3, 5), views(2, 3, 5), 0.0)


def test_queue_keeps_the_newest_keys_after_wrapping():
    objective = MoCo(4, queue_size=10)
    seen = []
    for _ in range(4):
        teacher = views(2, 3, 4)
        step(objective, views(2, 3, 4), teacher)
        keys = F.normalize(teacher.projection, dim=-1)
        seen.append(keys.transpose(0, 1).flatten(0, 1))
    newest = torch.cat(seen)[-10:]
    assert objective.seen.item() == 24
    in_order = objective.queue.roll(-(24 % 10), 0)
    assert torch.equal(in_order, newest)


def test_a_batch_larger_than_the_queue_fills_it_with_its_last_keys():
    objective = MoCo(4, queue_size=3)
    teacher = views(2, 5, 4)
    step(objective, views(2, 5, 4), teacher)
    keys = F.normalize(teacher.projection, dim=-1).transpose(0, 1)
    stored = sorted(objective.queue.tolist())
    assert stored == sorted(keys.flatten(0, 1)[-3:].tolist())


def test_own_keys_enter_the_queue_after_the_loss():
    objective = MoCo(4, queue_size=6)
    student, teacher = views(2, 3, 4), views(2, 3, 4)
    with_old_queue = objective(student, teacher, 0.0)[0]
    assert torch.equal(step(objective, student, teacher)[0], with_old_queue)
    assert not torch.equal(objective(student, teacher, 0.0)[0], with_old_queue)


def test_only_the_key_of_the_query_is_kept_where_one_view_asks():
    objective = MoCo(4, queue_size=6, symmetric=False)
    teacher = views(2, 3, 4)
    step(objective, views(2, 3, 4), teacher)
    keys = F.normalize(teacher.projection[1], dim=-1)
    assert torch.equal(objective.queue[:3], keys)
    assert objective.seen.item() == 3


def test_a_state_without_rows_can_be_loaded():
    """Version 0.1 did not keep whose the keys are."""
    old = MoCo(4, queue_size=6)
    state = {k: v for k, v in old.state_dict().items() if k != "rows"}
    new = MoCo(4, queue_size=6)
    new.load_state_dict(state)
    assert torch.equal(new.queue, old.queue)
    assert new.rows.tolist() == [-1] * 6


def test_keeps_the_contract():
    check_objective(MoCo(5, queue_size=7), dim=5)
    check_objective(MoCo(5, 64, margin=0.2), dim=5, views=3, teacher_views=3)


def test_a_missing_teacher_is_named():
    with pytest.raises(ValueError, match="teacher"):
        MoCo(4)(views(2, 3, 4), None, 0.0)


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        MoCo(4, 8)(views(1, 3, 4), views(1, 3, 4), 0.0)
