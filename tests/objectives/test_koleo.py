"""KoLeo as an objective: the formula, known values and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.koleo import KoLeo
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import distillation


def loss_of(embedding):
    return KoLeo()(BranchOutput(embedding, embedding[..., :1]), None, 0.0)


@pytest.mark.parametrize("views, batch", [(1, 2), (2, 3), (5, 7)])
def test_equals_the_written_out_formula(views, batch):
    embedding = torch.randn(views, batch, 5, dtype=torch.float64)
    loss, _ = loss_of(embedding)
    each = [distillation.koleo(view) for view in embedding.tolist()]
    assert loss.item() == pytest.approx(sum(each) / views, rel=1e-9)


def test_orthonormal_utterances_give_the_golden_value():
    loss, stats = loss_of(torch.eye(8).expand(2, 8, 8))
    assert loss.item() == pytest.approx(-math.log(2) / 2, rel=1e-6)
    assert stats["nearest_distance"].item() == pytest.approx(math.sqrt(2))


def test_views_of_one_utterance_may_be_equal():
    view = torch.randn(1, 4, 3)
    assert loss_of(view.expand(2, 4, 3))[0] == loss_of(view)[0]


def test_collapse_shows_in_the_distance():
    _, stats = loss_of(torch.ones(2, 6, 8))
    assert stats["nearest_distance"].item() < 1e-6
    healthy = loss_of(torch.randn(2, 6, 8))[1]
    assert healthy["nearest_distance"].item() > 0.3


def test_its_gradient_drives_the_nearest_apart():
    embedding = torch.randn(1, 6, 3, requires_grad=True)
    loss, before = loss_of(embedding)
    loss.backward()
    with torch.no_grad():
        moved = embedding - 0.05 * embedding.grad
    assert loss_of(moved)[1]["nearest_distance"] > before["nearest_distance"]


def test_keeps_the_contract():
    check_objective(KoLeo(), dim=5, teacher_views=0)
    check_objective(KoLeo(), dim=5, views=3, emb_dim=7)


def test_a_single_utterance_is_refused():
    with pytest.raises(ValueError, match="two points"):
        loss_of(torch.randn(2, 1, 4))
