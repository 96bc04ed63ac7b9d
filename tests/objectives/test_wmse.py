"""W-MSE against the formula, known values and the contract."""

import itertools

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.wmse import WMSE
from speechbrain_ssl.testing import check_objective
from tests.objectives.reference import joint_embedding
from tests.objectives.reference.contrastive import cosine


def call(objective, points):
    loss, stats = objective(BranchOutput(points, points), None, 0.0)
    return loss.item(), {name: value.item() for name, value in stats.items()}


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("batch, dim, eps", [(7, 3, 0.0), (5, 2, 0.3)])
def test_equals_the_written_out_formula(views, batch, dim, eps):
    points = torch.randn(views, batch, dim, dtype=torch.float64) + 1.0
    loss, stats = call(WMSE(dim, 64, eps=eps), points)
    listed = points.tolist()
    slow = joint_embedding.wmse(listed, [range(batch)], eps)
    assert loss == pytest.approx(slow, rel=1e-9)
    negative = [
        cosine(a, b)
        for view in listed
        for a, b in itertools.permutations(view, 2)
    ]
    assert stats["negative_cosine"] == pytest.approx(
        sum(negative) / len(negative), rel=1e-9
    )


def halves():
    """All cuts of six utterances into two halves."""
    for chosen in itertools.combinations(range(1, 6), 2):
        one = {0, *chosen}
        yield [sorted(one), sorted(set(range(6)) - one)]


def test_all_views_are_cut_alike_and_every_batch_otherwise():
    torch.manual_seed(0)
    points = torch.randn(3, 6, 2, dtype=torch.float64)
    slow = [joint_embedding.wmse(points.tolist(), cut) for cut in halves()]
    objective = WMSE(2, whitening_size=3)
    cuts = set()
    for _ in range(8):
        loss, _ = call(objective, points)
        objective.commit(None, None)
        distance, place = min((abs(loss - x), i) for i, x in enumerate(slow))
        assert distance < 1e-9
        cuts.add(place)
    assert len(cuts) > 2


def test_iterations_are_averaged():
    points = torch.randn(2, 6, 2, dtype=torch.float64)
    slow = [joint_embedding.wmse(points.tolist(), cut) for cut in halves()]
    loss, _ = call(WMSE(2, whitening_size=3, iterations=2), points)
    means = [(a + b) / 2 for a, b in itertools.product(slow, repeat=2)]
    assert min(abs(loss - x) for x in means) < 1e-9
    many, _ = call(WMSE(2, whitening_size=3, iterations=400), points)
    assert many == pytest.approx(sum(slow) / len(slow), rel=0.05)


def test_a_batch_is_always_cut_alike_until_the_next_one():
    points = torch.randn(2, 12, 2)
    objective = WMSE(2, whitening_size=4)
    wanted = call(objective, points)
    assert call(objective, points) == wanted
    objective.commit(None, None)
    assert call(objective, points) != wanted


def test_a_resumed_run_cuts_as_the_uninterrupted_one():
    points = torch.randn(2, 12, 2)
    objective, resumed = WMSE(2, whitening_size=4), WMSE(2, whitening_size=4)
    objective.commit(None, None)
    resumed.load_state_dict(objective.state_dict())
    torch.manual_seed(1)
    expected = call(objective, points)
    torch.manual_seed(2)
    assert call(resumed, points) == expected


def test_cutting_draws_no_random_numbers_of_the_run():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    objective = WMSE(2, whitening_size=4)
    ramp = torch.arange(48.0).sin().view(2, 12, 2)
    call(objective, ramp)
    assert torch.equal(torch.rand(3), expected)


def test_any_linear_map_of_a_lower_triangle_changes_nothing():
    points = torch.randn(2, 16, 3)
    lower = torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [-1, 3, 1.5]])
    loss, _ = call(WMSE(3), points)
    assert call(WMSE(3), points @ lower.T + 1.0)[0] == pytest.approx(
        loss, rel=1e-4
    )


def test_equal_views_cost_nothing():
    loss, stats = call(WMSE(4), torch.randn(1, 16, 4).expand(3, 16, 4))
    assert loss == pytest.approx(0.0, abs=1e-5)
    assert stats["whitened_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_nothing_to_whiten_costs_as_much_as_knowing_nothing():
    assert call(WMSE(4, eps=0.1), torch.ones(2, 16, 4))[0] == 2.0


def test_a_collapse_shows_in_negative_cosine_or_is_refused():
    point = torch.randn(4).expand(2, 16, 4)
    _, stats = call(WMSE(4, eps=0.1), point)
    assert stats["negative_cosine"] == pytest.approx(1.0, abs=1e-5)
    flat = torch.randn(2, 16, 4)
    flat[..., 3] = 0.0
    with pytest.raises(ValueError, match="Set eps"):
        call(WMSE(4), flat)


def test_keeps_the_contract():
    check_objective(WMSE(3), dim=3, batch=10, teacher_views=0)
    check_objective(
        WMSE(3, 5, iterations=2), dim=3, views=3, batch=15, emb_dim=4
    )


@pytest.mark.parametrize("batch", [3, 9])
def test_a_batch_that_cannot_be_cut_is_refused(batch):
    with pytest.raises(ValueError, match=r"min\(whitening_size, batch\)"):
        call(WMSE(3, whitening_size=5), torch.randn(2, batch, 3))


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="two different views"):
        call(WMSE(3), torch.randn(1, 8, 3))


def test_projections_of_another_width_are_refused():
    with pytest.raises(ValueError, match="expects projections of 3"):
        call(WMSE(3), torch.randn(2, 8, 4))


@pytest.mark.parametrize(
    "settings",
    [{"whitening_size": 3}, {"iterations": 0}, {"eps": -0.1}, {"eps": 1.1}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        WMSE(3, **settings)


def test_one_utterance_without_numbers_gives_a_loss_without():
    """The brain then names it and goes on; Cholesky would end the run."""
    points = torch.randn(2, 8, 3)
    points[0, 2] = torch.nan
    points.requires_grad_()
    loss, _ = WMSE(3, 64)(BranchOutput(points, points), None, 0.0)
    assert loss.isnan()
    loss.backward()
