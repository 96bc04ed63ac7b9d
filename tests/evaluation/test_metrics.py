"""Error rates, costs and bootstrap against independent, slower ways."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from speechbrain_ssl.evaluation import metrics


def trials(count, seed=0, decimals=None):
    """Scores of two overlapping classes; few decimals make ties."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(count) < 0.3).astype(np.uint8)
    targets[:2] = 0, 1
    scores = rng.standard_normal(count) + 1.5 * targets
    if decimals is not None:
        scores = scores.round(decimals)
    return scores, targets


def slow_points(scores, targets):
    """Miss and false alarm at each distinct score, counted one by one."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    miss = [(scores[targets == 1] < t).mean() for t in thresholds]
    alarm = [(scores[targets == 0] >= t).mean() for t in thresholds]
    return np.array(miss), np.array(alarm)


def judged(scores, target):
    """EER and minDCF trial by trial, right for scores without ties."""
    y = target[np.argsort(-scores, kind="stable")].astype(float)
    miss = np.r_[1, 1 - np.cumsum(y) / y.sum()]
    alarm = np.r_[0, np.cumsum(1 - y) / (1 - y).sum()]
    best = np.argmin(np.abs(miss - alarm))
    costs = [
        (p * miss + (1 - p) * alarm).min() / min(p, 1 - p) for p in (0.01, 0.05)
    ]
    return (miss[best] + alarm[best]) / 2, *costs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [7, 100, 3001])
def test_rates_equal_the_cumulative_formula_without_ties(count, seed):
    scores, targets = trials(count, seed)
    eer, cost_1, cost_5 = judged(scores, targets)
    assert metrics.eer(scores, targets)[0] == pytest.approx(eer, abs=1e-12)
    assert metrics.min_dcf(scores, targets, 0.01) == pytest.approx(cost_1)
    assert metrics.min_dcf(scores, targets, 0.05) == pytest.approx(cost_5)


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_eer_equals_sklearns_roc_curve(decimals):
    scores, targets = trials(2000, decimals=decimals)
    alarm, hit, thresholds = roc_curve(targets, scores, drop_intermediate=False)
    best = np.argmin(np.abs(1 - hit - alarm))
    rate, threshold = metrics.eer(scores, targets)
    assert rate == (1 - hit[best] + alarm[best]) / 2
    assert threshold == thresholds[best]


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(10))
def test_operating_points_equal_counting_with_ties(decimals, seed):
    scores, targets = trials(60, seed, decimals)
    miss, alarm = slow_points(scores, targets)
    points = metrics.error_rates(scores, targets)
    np.testing.assert_allclose(points.miss, miss, atol=1e-12)
    np.testing.assert_allclose(points.false_alarm, alarm, atol=1e-12)
    cost = (0.05 * miss + 0.95 * alarm).min() / 0.05
    assert metrics.min_dcf(scores, targets, 0.05) == pytest.approx(cost)


def test_order_of_tied_trials_does_not_matter():
    scores, targets = trials(400, decimals=0)
    order = np.random.default_rng(1).permutation(400)
    assert metrics.eer(scores, targets) == metrics.eer(
        scores[order], targets[order]
    )


@pytest.mark.parametrize(
    "scores, targets, rate",
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 1.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0], 0.5),
        ([0.9, 0.6, 0.7, 0.1], [1, 1, 0, 0], 0.5),
        ([3, 2, 2, 2, 2, 1], [1, 1, 0, 1, 0, 0], 1 / 3),
        ([4, 3, 2, 1], [1, 0, 1, 1], 5 / 6),
    ],
)
def test_eer_of_lists_worked_out_by_hand(scores, targets, rate):
    assert metrics.eer(scores, targets)[0] == pytest.approx(rate)


def test_min_dcf_of_a_list_worked_out_by_hand():
    # best threshold 0.8: misses 1 of 2, no false alarm; 0.01 * 0.5 / 0.01
    assert metrics.min_dcf([0.8, 0.6, 0.5], [1, 0, 1], 0.01) == 0.5
    # normalised by 1 - p: accepting all costs 0.1 * 1 / 0.1
    assert metrics.min_dcf([1, 2], [1, 0], 0.9) == pytest.approx(1.0)


def test_trials_at_the_eer_threshold_are_accepted():
    scores, targets = trials(500, decimals=1)
    rate, threshold = metrics.eer(scores, targets)
    miss = (scores[targets == 1] < threshold).mean()
    alarm = (scores[targets == 0] >= threshold).mean()
    assert rate == pytest.approx((miss + alarm) / 2)


def test_threshold_that_rejects_all_is_finite():
    _, threshold = metrics.eer([0.5, 0.5], [1, 0])
    assert 0.5 < threshold < 0.6


def test_lists_tensors_and_arrays_agree():
    scores, targets = trials(50)
    scores = scores.astype(np.float32)
    expected = metrics.eer(scores, targets)
    assert metrics.eer(scores.tolist(), targets.tolist()) == expected
    tensor = torch.from_numpy(scores).requires_grad_()
    assert metrics.eer(tensor, torch.from_numpy(targets)) == expected


def slow_bootstrap(scores, targets, enrol, test, draws, seed):
    """Repeats each trial as often as its groups were drawn."""
    names, index = np.unique(np.r_[enrol, test], return_inverse=True)
    enrol, test = np.split(index, 2)
    rng, rates = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = rng.integers(0, len(names), len(names))
        times = np.bincount(drawn, minlength=len(names))
        times = np.where(targets == 1, times[enrol], times[enrol] * times[test])
        rows = np.repeat(np.arange(len(scores)), times)
        if 0 < targets[rows].sum() < len(rows):
            rates.append(metrics.eer(scores[rows], targets[rows])[0])
    return tuple(np.percentile(rates, [2.5, 97.5]))


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("groups", [2, 12, 200])
def test_bootstrap_equals_repeating_trials(decimals, groups):
    scores, targets = trials(1500, decimals=decimals)
    rng = np.random.default_rng(3)
    sides = rng.integers(0, groups, (2, 1500))
    names = np.array([f"speaker {n}" for n in range(groups)])[sides]
    expected = slow_bootstrap(scores, targets, *names, draws=40, seed=5)
    found = metrics.bootstrap(scores, targets, *names, draws=40, seed=5)
    assert found == pytest.approx(expected, abs=1e-12)


def test_bootstrap_of_two_scores_equals_repeating_trials():
    """Draws move the EER to points that are the last ones."""
    scores = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0])
    targets = np.repeat([1, 0], 5)
    groups = np.arange(10)
    expected = slow_bootstrap(scores, targets, groups, groups, 40, seed=5)
    found = metrics.bootstrap(scores, targets, groups, groups, 40, seed=5)
    assert found == pytest.approx(expected, abs=1e-12)


def test_bootstrap_contains_the_eer_and_repeats_with_its_seed():
    scores, targets = trials(3000)
    sides = np.random.default_rng(3).integers(0, 40, (2, 3000))
    low, high = metrics.bootstrap(scores, targets, *sides)
    assert low < metrics.eer(scores, targets)[0] < high
    assert metrics.bootstrap(scores, targets, *sides) == (low, high)
    assert metrics.bootstrap(scores, targets, *sides, seed=1) != (low, high)


def test_difference_is_that_of_two_models_on_each_draw():
    before, targets = trials(300)
    after = before + np.random.default_rng(4).normal(size=300)
    sides = np.random.default_rng(3).integers(0, 12, (2, 300))
    index = np.unique(sides, return_inverse=True)[1].reshape(2, 300)
    rng, wanted = np.random.default_rng(5), []
    for _ in range(40):
        drawn = rng.integers(0, 12, 12)
        times = np.bincount(drawn, minlength=12)[index]
        times = np.where(targets == 1, times[0], times[0] * times[1])
        rows = np.repeat(np.arange(300), times)
        rates = [
            metrics.eer(scores[rows], targets[rows])[0]
            for scores in (before, after)
        ]
        wanted.append(rates[1] - rates[0])
    found = metrics.bootstrap_difference(
        before, after, targets, *sides, draws=40, seed=5
    )
    assert found == pytest.approx(np.percentile(wanted, [2.5, 97.5]), abs=1e-12)


def test_difference_of_a_model_to_itself_is_zero():
    scores, targets = trials(300)
    sides = np.random.default_rng(3).integers(0, 12, (2, 300))
    found = metrics.bootstrap_difference(scores, scores, targets, *sides)
    assert found == (0, 0)


def test_a_million_trials_are_no_quadratic_problem():
    scores, targets = trials(1_000_000)
    assert metrics.eer(scores, targets)[0] == pytest.approx(0.227, abs=0.003)


@pytest.mark.parametrize(
    "scores, targets, message",
    [
        ([], [], "found none"),
        ([0.1, 0.2], [1], "2 scores and 1 targets"),
        ([0.1, np.nan, np.inf], [1, 0, 1], "found nan at trial 1.*2 of 3"),
        ([0.1, -np.inf], [1, 0], "found -inf at trial 1"),
        ([0.1, 0.2, 0.3], [1, 0, 2], "0 or 1, found 2.0 at trial 2"),
        ([0.1, 0.2], [1, np.nan], "0 or 1, found nan"),
        ([0.1, 0.2], [1, 1], "2 targets and 0 non-targets"),
        ([0.1, 0.2], [0, 0], "0 targets and 2 non-targets"),
        ([[0.1, 0.2]], [1, 0], r"one axis \[trials\].*\(1, 2\)"),
    ],
)
def test_scores_that_mean_nothing_are_refused(scores, targets, message):
    groups = np.arange(len(scores))
    for measure in (
        metrics.eer,
        lambda *pair: metrics.min_dcf(*pair, 0.01),
        lambda *pair: metrics.bootstrap(*pair, groups, groups),
    ):
        with pytest.raises(ValueError, match=message):
            measure(scores, targets)


@pytest.mark.parametrize("p_target", [0, 1, -0.5, float("nan")])
def test_impossible_prior_is_refused(p_target):
    with pytest.raises(ValueError, match="p_target"):
        metrics.min_dcf([0.1, 0.2], [0, 1], p_target)


def test_bootstrap_refuses_groups_of_another_length():
    with pytest.raises(ValueError, match="found 3 and 1 for 2"):
        metrics.bootstrap([0.1, 0.2], [0, 1], [1, 2, 3], [1])


def gaussian_llrs(count=4000, deviation=2.0, seed=0):
    """Ratios that are right: those of two Gaussians, at their own samples."""
    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], count)
    means = np.where(targets == 1, 0.5, -0.5) * deviation**2
    return rng.normal(means, deviation), targets


def slow_cllr(llrs, targets):
    """The definition of Brummer and du Preez, trial by trial."""
    costs = {0: [], 1: []}
    for llr, target in zip(llrs, targets):
        sign = -1 if target else 1
        costs[target].append(np.log2(1 + np.exp(sign * llr)))
    return (np.mean(costs[0]) + np.mean(costs[1])) / 2


def slow_pooled(scores, targets):
    """Share of targets by pooling adjacent violators, pair by pair."""
    blocks = []
    for score in sorted(set(scores.tolist())):
        mine = targets[scores == score]
        blocks.append([int(mine.sum()), len(mine), [score]])
        while len(blocks) > 1 and (
            blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]
        ):
            hits, trials, members = blocks.pop()
            blocks[-1][0] += hits
            blocks[-1][1] += trials
            blocks[-1][2] += members
    return {s: hits / n for hits, n, members in blocks for s in members}


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_cllr_equals_its_definition(decimals):
    scores, targets = trials(200, decimals=decimals)
    expected = slow_cllr(scores, targets)
    assert metrics.cllr(scores, targets) == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(4))
def test_min_cllr_equals_pooling_by_hand(decimals, seed):
    scores, targets = trials(80, seed, decimals)
    share = slow_pooled(scores, targets)
    prior = np.log(targets.sum() / (1 - targets.astype(int)).sum())
    odds = {
        s: np.log(p / (1 - p)) if 0 < p < 1 else (p - 0.5) * np.inf
        for s, p in share.items()
    }
    expected = slow_cllr([odds[s] - prior for s in scores], targets)
    assert metrics.min_cllr(scores, targets) == pytest.approx(expected)


def test_right_ratios_lose_next_to_nothing():
    llrs, targets = gaussian_llrs()
    found, least = metrics.cllr(llrs, targets), metrics.min_cllr(llrs, targets)
    assert least <= found < least + 0.01
    for p_target in (0.05, 0.5):
        actual = metrics.act_dcf(llrs, targets, p_target)
        assert actual < metrics.min_dcf(llrs, targets, p_target) + 0.05


def test_what_calibration_loses_is_told_from_what_scores_cannot_tell():
    llrs, targets = gaussian_llrs()
    least = metrics.min_cllr(llrs, targets)
    for wrong in (llrs + 3, 5 * llrs):
        assert metrics.cllr(wrong, targets) > least + 0.1
        assert metrics.min_cllr(wrong, targets) == pytest.approx(least)
    actual = metrics.act_dcf(llrs + 3, targets, 0.05)
    assert actual > 1.2 * metrics.min_dcf(llrs, targets, 0.05)


def test_ratios_that_say_nothing_cost_one_bit():
    targets = [1, 0, 0, 1, 0]
    assert metrics.cllr(np.zeros(5), targets) == 1.0
    assert metrics.min_cllr(np.full(5, 3.0), targets) == pytest.approx(1.0)
    # all rejected, all accepted: the better one is what a prior can do
    assert metrics.act_dcf(np.zeros(5), targets, 0.01) == 1.0
    assert metrics.act_dcf(np.zeros(5), targets, 0.99) == pytest.approx(1.0)
    assert metrics.cllr(np.full(5, 9.0), targets) > 5


def test_min_cllr_of_classes_apart_is_zero_and_of_turned_ones_is_one():
    assert metrics.min_cllr([3, 2, 1, 0], [1, 1, 0, 0]) == 0.0
    assert metrics.min_cllr([0, 1, 2, 3], [1, 1, 0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5, 0.9])
def test_act_dcf_counts_errors_at_the_threshold_of_bayes(p_target):
    llrs, targets = gaussian_llrs(300)
    threshold = np.log((1 - p_target) / p_target)
    miss = np.mean([x < threshold for x in llrs[targets == 1]])
    alarm = np.mean([x >= threshold for x in llrs[targets == 0]])
    cost = p_target * miss + (1 - p_target) * alarm
    found = metrics.act_dcf(llrs, targets, p_target)
    assert found == pytest.approx(cost / min(p_target, 1 - p_target))
    assert found >= metrics.min_dcf(llrs, targets, p_target) - 1e-12


def test_a_prior_that_is_none_is_refused_for_the_actual_cost():
    with pytest.raises(ValueError, match="p_target"):
        metrics.act_dcf([1.0, 0.0], [1, 0], 1.0)


def test_costs_of_the_errors_weigh_and_normalise_the_detection_cost():
    """SRE08's point is p 0.01, miss 10; only the ratio of all three counts."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 200)
    scores = rng.normal(size=200) + targets
    slow = min(
        0.01 * 10 * (scores[targets == 1] < t).mean()
        + 0.99 * 2 * (scores[targets == 0] >= t).mean()
        for t in [*scores, np.inf]
    ) / min(0.01 * 10, 0.99 * 2)
    found = metrics.min_dcf(scores, targets, 0.01, c_miss=10, c_fa=2)
    assert found == pytest.approx(slow)
    with pytest.raises(ValueError, match="c_miss"):
        metrics.min_dcf(scores, targets, 0.01, c_miss=0)
