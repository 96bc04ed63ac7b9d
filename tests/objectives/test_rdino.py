"""RDINO: DINO plus what keeps the wide layer in use."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.rdino import RDINO
from speechbrain_ssl.testing import check_objective

WIDTH, PROTOTYPES = 5, 7


def views(count, batch=4, dim=WIDTH + PROTOTYPES, dtype=None):
    points = torch.randn(count, batch, dim, dtype=dtype)
    return BranchOutput(points[..., :3], points)


def logits(views):
    return views._replace(projection=views.projection[..., WIDTH:])


@pytest.mark.parametrize("crops", [(2, 2), (6, 2), (4, 3), (8, 3), (6, 1)])
@pytest.mark.parametrize("batch", [2, 4])
def test_equals_the_written_out_formula(crops, batch):
    student, teacher = (views(n, batch, dtype=torch.float64) for n in crops)
    dino = DINO(PROTOTYPES)
    objective = RDINO(dino, WIDTH, 0.3, 4.0, 2.0).eval().double()
    loss, stats = objective(student, teacher, 0.0)
    plain, _ = dino(logits(student), logits(teacher), 0.0)
    wide = student.projection[: crops[1], :, :WIDTH].mean(0)
    centered = wide - wide.mean(0)
    hinge, squares = 0.0, 0.0
    for a in range(WIDTH):
        variance = (centered[:, a] ** 2).sum() / (batch - 1)
        hinge += max(0.0, 1 - (variance + 1e-4).sqrt().item()) / WIDTH
        for b in range(WIDTH):
            if a != b:
                entry = (centered[:, a] * centered[:, b]).sum() / (batch - 1)
                squares += entry.item() ** 2 / WIDTH
    wanted = plain.item() + 0.3 * (4.0 * 0.5 * hinge + 2.0 * squares)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    assert stats["variance"].item() == pytest.approx(hinge, rel=1e-9)


def figures(points):
    objective = RDINO(DINO(PROTOTYPES), WIDTH)
    both = BranchOutput(points, points)
    _, stats = objective(both, both, 0.0)
    stats = {name: float(value) for name, value in stats.items()}
    return stats, objective.warnings(stats)


def test_a_collapsed_wide_layer_shows():
    stats, _ = figures(torch.ones(2, 4, WIDTH + PROTOTYPES))
    assert stats["variance"] == pytest.approx(0.99, abs=1e-4)
    healthy, warnings = figures(3 * torch.randn(2, 64, WIDTH + PROTOTYPES))
    assert healthy["variance"] < 0.3
    assert warnings == []


def test_a_collapse_of_its_dino_is_said():
    points = 3 * torch.randn(2, 64, WIDTH + PROTOTYPES)
    points[..., WIDTH] += 99.0  # one prototype for all
    stats, warnings = figures(points)
    assert stats["variance"] < 0.3
    assert "uses 1.0 prototypes" in warnings[0]


def test_a_single_utterance_is_refused():
    with pytest.raises(ValueError, match="2 utterances or more, got 1"):
        RDINO(DINO(PROTOTYPES), WIDTH)(views(2, 1), views(2, 1), 0.0)


def test_keeps_the_contract():
    dim = WIDTH + PROTOTYPES
    check_objective(RDINO(DINO(PROTOTYPES), WIDTH), dim=dim, views=3)


def test_a_head_of_another_width_is_refused():
    with pytest.raises(ValueError, match="expects projections of 12"):
        RDINO(DINO(PROTOTYPES), WIDTH)(views(2, dim=9), views(2, dim=9), 0.0)
