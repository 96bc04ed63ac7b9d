"""The weighted sum of objectives."""

import functools

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.objectives.lim import LIM
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.objectives.weighted import Weighted
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step


def views(*shape):
    points = torch.randn(*shape)
    return BranchOutput(points, points)


class Alarmed(torch.nn.Module):
    """Repeats the statistics that it is shown."""

    def warnings(self, stats):
        return [str(stats)]


def test_is_the_sum_of_weight_times_loss():
    student, teacher = views(2, 3, 5), views(2, 3, 5)
    moco = MoCo(5, 7)
    objective = Weighted([SimCLR(), moco, LIM()], [0.3, 2.0, 1.5])
    loss, _ = objective(student, teacher, 0.0)
    parts = [x(student, teacher, 0.0)[0] for x in (SimCLR(), moco, LIM())]
    expected = sum(w * x.item() for w, x in zip([0.3, 2.0, 1.5], parts))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_weights_follow_their_schedules():
    ramp = functools.partial(linear, start=0.0, stop=4.0, epochs=2)
    objective = Weighted([LIM("bce"), SimCLR()], [1.0, ramp])
    student = views(2, 3, 5)
    for epoch, weight in [(0.0, 0.0), (0.5, 1.0), (3.0, 4.0)]:
        loss, stats = objective(student, None, epoch)
        expected = stats["lim_loss"] + weight * stats["simclr_loss"]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_statistics_say_whose_they_are():
    student = views(2, 3, 5)
    _, stats = Weighted([LIM(), SimCLR()], [1, 1])(student, None, 0.0)
    names = ["accuracy", "loss", "negative_cosine", "positive_cosine"]
    expected = [f"lim_{x}" for x in names] + [f"simclr_{x}" for x in names]
    assert sorted(stats) == expected
    assert torch.equal(
        stats["simclr_accuracy"], SimCLR()(student, None, 0.0)[1]["accuracy"]
    )


def test_objectives_of_one_class_are_numbered():
    objective = Weighted([LIM("bce"), SimCLR(), LIM("mine")], [1, 1, 1])
    student = views(2, 3, 5)
    _, stats = objective(student, None, 0.0)
    for name, kind in [("lim_1_loss", "bce"), ("lim_2_loss", "mine")]:
        assert torch.equal(stats[name], LIM(kind)(student, None, 0.0)[0])
    assert "simclr_loss" in stats and "lim_loss" not in stats


def test_a_weight_of_zero_still_fills_the_queue():
    moco = MoCo(5, 7)
    before = moco.queue.clone()
    both = Weighted([LIM(), moco], [1.0, 0.0])
    step(both, views(2, 3, 5), views(2, 3, 5))
    assert not torch.equal(moco.queue, before)


def test_warnings_of_the_objectives_are_passed_on():
    objective = Weighted([Alarmed(), SimCLR(), Alarmed()], [1, 1, 1])
    stats = {"alarmed_1_x": 1.0, "alarmed_2_x": 2.0, "simclr_loss": 3.0}
    assert objective.warnings(stats) == ["{'x': 1.0}", "{'x': 2.0}"]


def test_parameters_and_buffers_are_those_of_the_objectives():
    state = Weighted([SimCLR(), MoCo(5, 7)], [1, 1]).state_dict()
    assert sorted(state) == [
        f"objectives.1.{name}" for name in ("queue", "rows", "seen")
    ]


def test_keeps_the_contract():
    check_objective(Weighted([SimCLR(), MoCo(5, 7)], [0.5, 2.0]), dim=5)
    objective = Weighted([SimCLR(), LIM()], [1.0, lambda epoch: epoch])
    check_objective(objective, dim=5, views=3, teacher_views=0)


def test_what_an_objective_refuses_is_refused():
    with pytest.raises(ValueError, match="teacher"):
        Weighted([SimCLR(), MoCo(4)], [1, 1])(views(2, 3, 4), None, 0.0)


@pytest.mark.parametrize("objectives, weights", [([], []), ([LIM()], [1, 2])])
def test_each_objective_needs_a_weight(objectives, weights):
    with pytest.raises(ValueError, match=f"{len(weights)} weights"):
        Weighted(objectives, weights)
