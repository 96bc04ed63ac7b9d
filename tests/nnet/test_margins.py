"""Margins on angles, and those of contrastive objectives."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.pseudo_labels.loss import add_to_angle
from tests.objectives.reference import contrastive

RAMP = functools.partial(linear, start=0.0, stop=0.4, epochs=2)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.5])
def test_a_margin_adds_to_the_angle(margin):
    positive = torch.rand(8, dtype=torch.float64) * 2 - 1
    for cosine, found in zip(positive, add_to_angle(positive, margin)):
        angle = math.acos(cosine) + margin
        expected = math.cos(angle)
        if angle >= math.pi:
            expected = cosine.item() - margin * math.sin(math.pi - margin)
        assert found.item() == pytest.approx(expected, abs=1e-9)


def test_a_margin_beyond_pi_still_makes_it_harder():
    # cos(3) is closer than 0.5 to the end: its angle plus 0.5 is beyond pi
    positive = torch.full((3,), math.cos(3.0), requires_grad=True)
    found = add_to_angle(positive, 0.5)
    expected = math.cos(3.0) - 0.5 * math.sin(0.5)
    assert found[0].item() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()
    # and its gradient still points to a larger cosine
    assert torch.equal(positive.grad, torch.ones(3))


@pytest.mark.parametrize("end", [1.0, -1.0, 1.0 + 1e-7])
def test_gradients_are_finite_at_the_ends(end):
    positive = torch.full((4, 2), end, requires_grad=True)
    add_to_angle(positive, 0.3).sum().backward()
    assert torch.isfinite(positive.grad).all()


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


@pytest.mark.parametrize("make", [SimCLR, functools.partial(MoCo, 5)])
def test_impossible_margins_are_refused(make):
    with pytest.raises(ValueError, match="margin must be"):
        make(margin="0.2")
