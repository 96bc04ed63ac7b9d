"""Margins against loops over the papers' formulas."""

import copy
import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import Views
from speechbrain_ssl.nnet.margins import (
    AdaFace,
    ArcFace,
    CosFace,
    CurricularFace,
    MagFace,
    as_margin,
)
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.testing import check_objective

PAIRS, VIEWS, BATCH, OTHERS = 4, 3, 2, 7
ANCHOR = [0, 0, 2, 1]
ALL = [
    CosFace(0.2),
    ArcFace(0.3),
    CurricularFace(0.3),
    MagFace((0.1, 0.4), (1.0, 3.0), 2.0),
    AdaFace(0.2),
]


def cosines(dtype=None):
    """Positives, negatives and norms, of which one negative is masked."""
    positive = torch.rand(PAIRS, BATCH, dtype=dtype) * 2 - 1
    negative = torch.rand(VIEWS, BATCH, OTHERS, dtype=dtype) * 2 - 1
    negative[1, 1, 3] = -math.inf
    return positive, negative, torch.rand(PAIRS, BATCH, dtype=dtype) * 5


def turned(cosine, margin):
    """Cosine of angle and margin, or what stands for it beyond pi."""
    angle = math.acos(cosine)
    if angle + margin < math.pi:
        return math.cos(angle + margin)
    return cosine - margin * math.sin(math.pi - margin)


def assert_positive(found, formula, *inputs):
    """Compares each positive with a formula of the inputs at its place."""
    for p in range(PAIRS):
        for i in range(BATCH):
            expected = formula(*[x[p, i].item() for x in inputs])
            assert found[p, i].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "margin", [0.3, CosFace(0.3), ArcFace(), MagFace(), AdaFace()]
)
def test_plain_margins_hand_on_the_negatives_themselves(margin):
    positive, negative, norm = cosines()
    adjusted = as_margin(margin)(positive, negative, norm, ANCHOR)
    assert adjusted.negative is negative
    assert adjusted.row is ANCHOR


def test_a_number_is_the_margin_of_cosface():
    positive, negative, norm = cosines()
    adjusted = as_margin(0.25)(positive, negative, norm, ANCHOR)
    assert torch.equal(adjusted.positive, positive - 0.25)
    assert adjusted.penalty == 0.0


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.5])
def test_arcface_adds_to_the_angle(margin):
    positive, negative, norm = cosines(torch.float64)
    adjusted = ArcFace(margin)(positive, negative, norm, ANCHOR)
    assert_positive(adjusted.positive, lambda c: turned(c, margin), positive)


def test_arcface_beyond_pi_still_makes_it_harder():
    # cos(3) is closer than 0.5 to the end: its angle plus 0.5 is beyond pi
    positive = torch.full((PAIRS, BATCH), math.cos(3.0), requires_grad=True)
    _, negative, norm = cosines()
    found = ArcFace(0.5)(positive, negative, norm, ANCHOR).positive
    expected = math.cos(3.0) - 0.5 * math.sin(0.5)
    assert found[0, 0].item() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()
    # and its gradient still points to a larger cosine
    assert torch.equal(positive.grad, torch.ones(PAIRS, BATCH))


@pytest.mark.parametrize("end", [1.0, -1.0, 1.0 + 1e-7])
@pytest.mark.parametrize("margin", ALL, ids=lambda m: type(m).__name__)
def test_gradients_are_finite_at_the_ends(margin, end):
    positive, negative, norm = cosines()
    inputs = torch.full_like(positive, end), negative, norm
    inputs = [x.requires_grad_() for x in inputs]
    adjusted = margin(*inputs, ANCHOR)
    loss = adjusted.positive.sum() + adjusted.penalty
    (loss + adjusted.negative.logsumexp(-1).sum()).backward()
    for x in inputs:
        assert x.grad is None or torch.isfinite(x.grad).all()


@pytest.mark.parametrize("t", [0.0, 0.6])
def test_curricularface_weighs_hard_negatives(t):
    positive, negative, norm = cosines(torch.float64)
    margin = CurricularFace(0.4).eval().double()
    margin.t.fill_(t)
    adjusted = margin(positive, negative, norm, ANCHOR)
    assert_positive(adjusted.positive, lambda c: turned(c, 0.4), positive)
    weighed = 0
    found = adjusted.negative[adjusted.row]
    for p, v in enumerate(ANCHOR):
        for i in range(BATCH):
            angle = math.acos(positive[p, i].item())
            for j in range(OTHERS):
                c = negative[v, i, j].item()
                hard = c > math.cos(angle + 0.4)
                expected = c * (t + c) if hard else c
                weighed += hard
                wanted = pytest.approx(expected, rel=1e-9)
                assert found[p, i, j].item() == wanted
    assert 0 < weighed < PAIRS * BATCH * OTHERS


def test_curriculum_follows_the_mean_positive_in_training_only():
    margin = CurricularFace(0.4, momentum=0.9).double()
    expected = 0.0
    for _ in range(3):
        inputs = cosines(torch.float64)
        margin(*inputs, ANCHOR)
        expected = 0.9 * expected + 0.1 * inputs[0].mean().item()
        assert margin.t.item() == pytest.approx(expected, rel=1e-9)
    margin.eval()(*cosines(torch.float64), ANCHOR)
    assert margin.t.item() == pytest.approx(expected, rel=1e-9)


def test_magface_margin_and_penalty_follow_the_norm():
    positive, negative, norm = cosines(torch.float64)
    norm[0, 0], norm[1, 1] = 0.01, 50.0
    margin = MagFace((0.1, 0.4), (1.0, 3.0), weight=2.0)
    adjusted = margin(positive, negative, norm, ANCHOR)

    def formula(cosine, length):
        length = min(max(length, 1.0), 3.0)
        return turned(cosine, 0.1 + 0.3 * (length - 1.0) / 2.0)

    assert_positive(adjusted.positive, formula, positive, norm)
    lengths = [min(max(x, 1.0), 3.0) for x in norm.flatten().tolist()]
    penalty = sum(x / 9.0 + 1.0 / x for x in lengths) / len(lengths)
    assert adjusted.penalty.item() == pytest.approx(2.0 * penalty, rel=1e-9)


def test_magface_gives_longer_projections_a_gradient():
    positive, negative, norm = cosines()
    norm = torch.full_like(norm, 2.0, requires_grad=True)
    margin = MagFace((0.1, 0.1), (1.0, 3.0), weight=2.0)
    margin(positive, negative, norm, ANCHOR).penalty.backward()
    # of norm / 9 + 1 / norm, each a share of the mean
    expected = 2.0 * (1 / 9 - 1 / 4) / norm.numel()
    assert norm.grad[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_adaface_turns_short_ones_and_shortens_long_ones():
    positive, negative, norm = cosines(torch.float64)
    margin = AdaFace(0.3, concentration=0.5).eval().double()
    margin.mean.fill_(2.0)
    margin.deviation.fill_(1.5)
    norm[0, 0], norm[1, 1] = 0.0, 90.0
    positive[2, 0], positive[1, 1] = -0.99, 0.99
    found = margin(positive, negative, norm, ANCHOR).positive

    def formula(cosine, length):
        q = min(max(0.5 * (length - 2.0) / 1.501, -1.0), 1.0)
        angle = min(max(math.acos(cosine) - 0.3 * q, 0.0), math.pi)
        return math.cos(angle) - 0.3 * (1.0 + q)

    assert_positive(found, formula, positive, norm)


def test_adaface_of_a_mean_projection_is_cosface():
    positive, negative, norm = cosines()
    margin = AdaFace(0.3).eval()
    norm = torch.full_like(norm, margin.mean.item())
    found = margin(positive, negative, norm, ANCHOR).positive
    assert torch.allclose(found, positive - 0.3, atol=1e-6)


def test_adaface_statistics_move_in_training_only():
    margin = AdaFace(0.3, momentum=0.9).double()
    mean, deviation = 20.0, 100.0
    for _ in range(3):
        inputs = cosines(torch.float64)
        margin(*inputs, ANCHOR)
        lengths = inputs[2].flatten().tolist()
        center = sum(lengths) / len(lengths)
        square = sum((x - center) ** 2 for x in lengths) / len(lengths)
        mean = 0.9 * mean + 0.1 * center
        deviation = 0.9 * deviation + 0.1 * math.sqrt(square)
    margin.eval()(*cosines(torch.float64), ANCHOR)
    assert margin.mean.item() == pytest.approx(mean, rel=1e-9)
    assert margin.deviation.item() == pytest.approx(deviation, rel=1e-9)


def test_adaface_gives_the_norm_no_gradient():
    positive, negative, norm = cosines()
    norm.requires_grad_()
    found = AdaFace()(positive, negative, norm, ANCHOR).positive
    assert not found.requires_grad


@pytest.mark.parametrize("margin", ALL, ids=lambda m: type(m).__name__)
def test_contrastive_objectives_keep_the_contract(margin):
    check_objective(SimCLR(0.2, margin), dim=5, views=3, teacher_views=0)
    check_objective(MoCo(5, 7, 0.2, margin), 5, views=3, teacher_views=2)
    check_objective(MoCo(5, 7, 0.2, margin, symmetric=False), dim=5)


@pytest.mark.parametrize("margin", ALL, ids=lambda m: type(m).__name__)
def test_simclr_equals_the_loop_with_the_margin_of_each_pair(margin):
    margin = copy.deepcopy(margin).eval().double()
    points = torch.randn(3, 4, 5, dtype=torch.float64)
    loss, _ = SimCLR(0.3, margin)(Views(points, points), None, 0.0)
    unit = torch.nn.functional.normalize(points, dim=-1)
    losses, penalties = [], []
    for a in range(3):
        for b in range(3):
            if a == b:
                continue
            for i in range(4):
                positive = (unit[a, i] * unit[b, i]).sum()
                negative = unit[:, torch.arange(4) != i] @ unit[a, i]
                x = margin(
                    positive.view(1, 1),
                    negative.view(1, 1, -1),
                    points[a, i].norm().view(1, 1),
                    [0],
                )
                logits = torch.cat([x.positive[0], x.negative[0, 0]]) / 0.3
                losses.append(-logits.log_softmax(0)[0].item())
                penalties.append(float(x.penalty))
    expected = (sum(losses) + sum(penalties)) / len(losses)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("margin", ALL, ids=lambda m: type(m).__name__)
def test_moco_equals_the_loop_with_the_margin_of_each_pair(margin):
    student, teacher = (
        torch.randn(n, 3, 5, dtype=torch.float64) for n in (4, 2)
    )
    objective = MoCo(5, 6, 0.3, copy.deepcopy(margin)).eval().double()
    margin = objective.margin
    loss, _ = objective(Views(student, student), Views(teacher, teacher), 0.0)
    query = torch.nn.functional.normalize(student, dim=-1)
    key = torch.nn.functional.normalize(teacher, dim=-1)
    losses, penalties = [], []
    for s in range(4):
        for t in range(2):
            for i in range(3) if s != t else ():
                x = margin(
                    (query[s, i] * key[t, i]).sum().view(1, 1),
                    (objective.queue @ query[s, i]).view(1, 1, -1),
                    student[s, i].norm().view(1, 1),
                    [0],
                )
                logits = torch.cat([x.positive[0], x.negative[0, 0]]) / 0.3
                losses.append(-logits.log_softmax(0)[0].item())
                penalties.append(float(x.penalty))
    expected = (sum(losses) + sum(penalties)) / len(losses)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ArcFace(-0.1),
        lambda: CurricularFace(4.0),
        lambda: CurricularFace(momentum=1.5),
        lambda: AdaFace(momentum=-1.0),
        lambda: AdaFace(4.0),
        lambda: MagFace(margins=(0.8, 0.4)),
        lambda: MagFace(norms=(10.0, 5.0)),
        lambda: MagFace(margins=(-0.1, 0.4)),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
