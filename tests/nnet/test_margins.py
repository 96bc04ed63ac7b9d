"""Margins against the papers' formulas, and in the losses that use them."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.margins import ArcFace, CosFace, as_margin, turn
from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import contrastive

RAMP = functools.partial(linear, start=0.0, stop=0.4, epochs=2)
ALL = [CosFace(0.2), CosFace(RAMP), ArcFace(0.3), ArcFace(RAMP)]


def turned(cosine, margin):
    """Cosine of angle and margin, or what stands for it beyond pi."""
    angle = math.acos(cosine)
    if angle + margin < math.pi:
        return math.cos(angle + margin)
    return cosine - margin * math.sin(math.pi - margin)


@pytest.mark.parametrize("epoch, margin", [(0.0, 0.0), (1.0, 0.2), (5.0, 0.4)])
def test_a_number_or_a_schedule_is_the_margin_of_cosface(epoch, margin):
    positive = torch.rand(4, 2) * 2 - 1
    assert torch.equal(as_margin(margin)(positive, epoch), positive - margin)
    assert torch.equal(as_margin(RAMP)(positive, epoch), positive - margin)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.5])
def test_arcface_adds_to_the_angle(margin):
    positive = torch.rand(4, 2, dtype=torch.float64) * 2 - 1
    found = ArcFace(margin)(positive, 0.0)
    for cosine, adjusted in zip(positive.flatten(), found.flatten()):
        expected = turned(cosine.item(), margin)
        assert adjusted.item() == pytest.approx(expected, abs=1e-9)


def test_arcface_beyond_pi_still_makes_it_harder():
    # cos(3) is closer than 0.5 to the end: its angle plus 0.5 is beyond pi
    positive = torch.full((3,), math.cos(3.0), requires_grad=True)
    found = ArcFace(0.5)(positive, 0.0)
    expected = math.cos(3.0) - 0.5 * math.sin(0.5)
    assert found[0].item() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()
    # and its gradient still points to a larger cosine
    assert torch.equal(positive.grad, torch.ones(3))


def test_turning_back_undoes_a_turn():
    cosine = torch.tensor([0.9, 0.1, -0.8])
    assert torch.allclose(turn(turn(cosine, 0.2), -0.2), cosine, atol=1e-6)


@pytest.mark.parametrize("end", [1.0, -1.0, 1.0 + 1e-7])
@pytest.mark.parametrize("margin", [CosFace(0.2), ArcFace(0.3)], ids=type)
def test_gradients_are_finite_at_the_ends(margin, end):
    positive = torch.full((4, 2), end, requires_grad=True)
    margin(positive, 0.0).sum().backward()
    assert torch.isfinite(positive.grad).all()


@pytest.mark.parametrize("number", range(len(ALL)))
def test_contrastive_objectives_keep_the_contract(number):
    margin = ALL[number]
    check_objective(SimCLR(0.2, margin), dim=5, views=3, teacher_views=0)
    check_objective(MoCo(5, 7, 0.2, margin), 5, views=3, teacher_views=2)


@pytest.mark.parametrize("margin", [0.3, RAMP])
def test_simclr_and_moco_take_the_margin_of_the_epoch(margin):
    points = torch.randn(2, 4, 5, dtype=torch.float64)
    views = BranchOutput(points, points)
    now = 0.3 if margin == 0.3 else 0.4  # the end of the ramp
    loss, _ = SimCLR(0.3, margin)(views, None, 9.0)
    expected = contrastive.nt_xent(points.tolist(), 0.3, now)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    objective = MoCo(5, 6, 0.3, margin).double()
    objective.queue = F.normalize(objective.queue, dim=-1)
    loss, _ = objective(views, views, 9.0)
    expected = contrastive.info_nce(
        *[x.tolist() for x in (points, points, objective.queue)], 0.3, now
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_arcface_reaches_the_loss():
    points = torch.randn(2, 3, 5, dtype=torch.float64)
    loss, _ = SimCLR(0.3, ArcFace(0.25))(
        BranchOutput(points, points), None, 0.0
    )
    unit = F.normalize(points, dim=-1)
    losses = []
    for a, b in ((0, 1), (1, 0)):
        for i in range(3):
            positive = turned((unit[a, i] * unit[b, i]).sum().item(), 0.25)
            negative = (unit[:, torch.arange(3) != i] @ unit[a, i]).flatten()
            logits = (
                torch.cat([negative.new_tensor([positive]), negative]) / 0.3
            )
            losses.append(-logits.log_softmax(0)[0].item())
    assert loss.item() == pytest.approx(sum(losses) / 6, rel=1e-9)


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: ArcFace(-0.1), "margin"),
        (lambda: ArcFace(4.0), "margin"),
        (lambda: ArcFace(lambda epoch: 4.0), "margin"),
        (lambda: SimCLR(0.1, "0.2"), "margin"),
    ],
)
def test_impossible_settings_are_refused(make, argument):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        make()
