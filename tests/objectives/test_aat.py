"""AAT against the written-out formula, and the contract."""

import math

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.aat import AAT
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import contrastive


def make(**settings):
    torch.manual_seed(0)
    return AAT(7, hidden=8, **settings).double()


def test_equals_nt_xent_over_two_views_at_the_learned_scale():
    points = torch.randn(3, 5, 7, dtype=torch.float64)
    loss, stats = make(scale=4.0)(BranchOutput(points, points), None, 0.0)
    slow = contrastive.nt_xent(points[:2].tolist(), temperature=1 / 4.0)
    found = (loss - stats["adversary_loss"]).item()
    assert found == pytest.approx(slow, rel=1e-9)


def test_equal_embeddings_give_the_log_of_the_number_of_candidates():
    points = torch.ones(3, 64, 7, dtype=torch.float64)
    loss, stats = make()(BranchOutput(points, points), None, 0.0)
    found = (loss - stats["adversary_loss"]).item()
    assert found == pytest.approx(math.log(127), abs=1e-6)


def test_orthonormal_pairs_give_the_golden_value():
    points = torch.eye(7, dtype=torch.float64).expand(3, 7, 7)
    loss, stats = make(scale=10.0)(BranchOutput(points, points), None, 0.0)
    found = (loss - stats["adversary_loss"]).item()
    wanted = math.log(math.exp(10) + 12) - 10
    assert found == pytest.approx(wanted, rel=1e-9)
    assert stats["positive_cosine"].item() == pytest.approx(1.0)
    assert stats["negative_cosine"].item() == pytest.approx(0.0)


def test_the_adversary_sees_the_pairs_of_its_task():
    """The view that is its alone is the last one, with the label 1."""
    objective, points = make(), torch.randn(3, 5, 7, dtype=torch.float64)
    _, stats = objective(BranchOutput(points, points), None, 0.0)
    anchor, other, same = points
    pairs = torch.cat(
        [torch.cat([anchor, same], 1), torch.cat([anchor, other], 1)]
    )
    log_prob = objective.adversary.discriminator(pairs).log_softmax(1)
    slow = -(log_prob[:5, 1].sum() + log_prob[5:, 0].sum()) / 10
    assert stats["adversary_loss"].item() == pytest.approx(slow.item())


def test_scale_learns_and_the_bias_changes_nothing():
    points = torch.randn(3, 5, 7, dtype=torch.float64)
    objective = make()
    loss, _ = objective(BranchOutput(points, points), None, 0.0)
    loss.backward()
    assert objective.scale.grad.abs() > 1e-6
    assert objective.bias.grad.abs() < 1e-9


def test_the_third_view_is_no_positive():
    points = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    embedding = points.detach()
    loss, _ = make()(BranchOutput(embedding, points), None, 0.0)
    loss.backward()
    assert points.grad[:2].any() and not points.grad[2].any()


def test_keeps_the_contract():
    # the adversary compares both other views with the first one
    check_objective(
        AAT(5, hidden=8), dim=5, views=3, teacher_views=0, exchangeable=False
    )


@pytest.mark.parametrize("views", [2, 4])
def test_other_numbers_of_views_are_refused(views):
    points = torch.randn(views, 4, 5)
    with pytest.raises(ValueError, match="same_augmentation"):
        AAT(5)(BranchOutput(points, points), None, 0.0)
