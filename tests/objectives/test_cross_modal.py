"""CrossModal against the formula, its parts, and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.cross_modal import CrossModal
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import contrastive


def views_of(points):
    return BranchOutput(points, points, None, tuple(range(len(points))))


def step(points, **settings):
    return CrossModal(**settings)(views_of(points), None, 0.0)


@pytest.mark.parametrize(("voices", "faces"), [(1, 1), (2, 1), (2, 3)])
def test_equals_the_written_out_formula(voices, faces):
    points = torch.randn(voices + faces, 3, 7, dtype=torch.float64)
    loss, _ = step(points, voices=voices, temperature=0.3, weight=0.5)
    slow = contrastive.between(
        points[:voices].tolist(), points[voices:].tolist(), 0.3
    )
    assert loss.item() == pytest.approx(0.5 * slow, rel=1e-9)


def test_losses_within_are_those_of_the_views_of_one_modality():
    points = torch.randn(5, 6, 8)
    cross, _ = step(points)
    voice, face = SimCLR(0.2), SimCLR(0.5)
    loss, stats = step(points, voice=voice, face=face)
    within = [
        objective(views_of(part), None, 0.0)
        for objective, part in ((voice, points[:2]), (face, points[2:]))
    ]
    assert torch.allclose(loss, cross + within[0][0] + within[1][0])
    assert torch.equal(stats["cross_loss"], cross)
    for name, (own, said) in zip(("voice", "face"), within):
        assert torch.equal(stats[f"{name}_loss"], own)
        assert torch.equal(stats[f"{name}_accuracy"], said["accuracy"])


def test_queue_within_the_faces_has_faces_only():
    alone, within = MoCo(4, queue_size=9), MoCo(4, queue_size=9)
    within.load_state_dict(alone.state_dict())
    points = torch.randn(4, 5, 4)
    views, faces = views_of(points), views_of(points[2:])
    CrossModal(voices=2, face=within).commit(views, views)
    before = alone.queue.clone()
    alone.commit(faces, faces)
    assert torch.equal(within.queue, alone.queue)
    assert not torch.equal(within.queue, before)


def test_clips_whose_voice_and_face_agree_are_all_found():
    _, stats = step(torch.eye(8).expand(3, 8, 8))
    assert stats["accuracy"].item() == 1.0
    assert stats["positive_cosine"].item() == pytest.approx(1.0)
    assert stats["negative_cosine"].item() == pytest.approx(0.0)


def test_modalities_that_do_not_share_directions_are_at_chance():
    points = torch.eye(16).view(2, 8, 16)
    loss, stats = step(points, voices=1)
    assert loss.item() == pytest.approx(math.log(8))
    assert stats["accuracy"].item() == 0.0


@pytest.mark.parametrize("name", ["voice", "face"])
def test_collapse_of_one_modality_is_a_warning(name):
    points = torch.eye(8).expand(4, 8, 8).clone()
    points[slice(2) if name == "voice" else slice(2, 4)] = torch.ones(8)
    objective = CrossModal(voices=2)
    _, stats = objective(views_of(points), None, 0.0)
    found = {key: x.item() for key, x in stats.items()}
    (warning,) = objective.warnings(found)
    assert f"all {name}s point the same way" in warning
    assert found[f"{name}_spread"] == pytest.approx(0.0, abs=1e-6)
    assert sum(found[f"{x}_spread"] for x in ("voice", "face")) > 0.8


def test_keeps_the_contract():
    check_objective(CrossModal(voices=2), dim=5, views=4, teacher_views=0)
    within = CrossModal(2, 0.3, voice=MoCo(5, 24), face=MoCo(5, 24))
    check_objective(within, dim=5, views=4, teacher_views=4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4, 8), "one face or more"), ((3, 1, 8), "2 utterances or more")],
)
def test_too_few_views_or_clips_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        step(torch.randn(shape))
