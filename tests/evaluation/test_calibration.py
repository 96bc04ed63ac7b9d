"""Calibration learns ratios from clusters, and no more than that."""

import numpy as np
import pytest
import torch

from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.evaluation.calibration import (
    Calibrator,
    draw_trials,
    split_classes,
)


def two_gaussians(embeddings, enrol, test, cohort):
    """Cosines of no embedding: the first column says the class, the second
    is noise; scores of a pair are known Gaussians."""
    same = embeddings[enrol, 0] == embeddings[test, 0]
    noise = (embeddings[enrol, 1] + embeddings[test, 1]) / np.sqrt(2)
    return 0.1 * (noise + np.where(same, 2.0, 0.0))


def population(classes=300, each=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    return np.stack([labels, rng.normal(size=len(labels))], 1), labels


def test_scores_of_two_gaussians_become_their_log_likelihood_ratio():
    points, labels = population()
    calibrator = Calibrator(two_gaussians).fit(points, None, labels)
    points, labels = population(seed=1)
    enrol, test, targets = draw_trials(labels, seed=3)
    scores = two_gaussians(points, enrol, test, None)
    llrs = calibrator(points, None, enrol, test)
    # of N(2, 1) and N(0, 1) at x: 2 x - 2
    expected = 2 * 10 * scores - 2
    assert np.abs(llrs - expected).max() < 0.6
    least = metrics.min_cllr(llrs, targets)
    assert metrics.cllr(llrs, targets) < least + 0.02
    assert metrics.cllr(scores, targets) > least + 0.1
    # a rising function changes no order
    assert metrics.eer(llrs, targets)[0] == metrics.eer(scores, targets)[0]


def test_a_measure_that_says_how_much_to_trust_scores_lowers_cllr():
    def score(embeddings, enrol, test, cohort):
        short = np.minimum(embeddings[enrol, 2], embeddings[test, 2])
        # a short side shifts all scores
        return two_gaussians(embeddings, enrol, test, cohort) + np.log(short)

    points, labels = population()
    seconds = np.random.default_rng(5).uniform(1, 20, len(points))
    points = np.c_[points, seconds]
    enrol, test, targets = draw_trials(labels, seed=3)
    found = {}
    for measures in ((), ("duration",)):
        calibrator = Calibrator(score, measures).fit(points, seconds, labels)
        llrs = calibrator(points, seconds, enrol, test)
        found[measures] = metrics.cllr(llrs, targets)
    assert found[("duration",)] < found[()] - 0.1


def test_measures_do_not_depend_on_the_order_of_the_sides():
    points, labels = population(40)
    points = np.c_[points, np.random.default_rng(1).normal(size=(320, 6))]
    cohort = torch.randn(9, 8)
    seconds = np.linspace(1, 9, 320)
    measures = ("duration", "magnitude", "cohort_mean")
    calibrator = Calibrator(two_gaussians, measures, top_n=4)
    calibrator.fit(points, seconds, labels, cohort)
    sides = np.array([0, 5, 9]), np.array([100, 6, 200])
    one = calibrator(points, seconds, *sides, cohort)
    other = calibrator(points, seconds, *sides[::-1], cohort)
    np.testing.assert_allclose(one, other)


def test_measures_are_what_they_are_called():
    points = np.random.default_rng(0).normal(size=(4, 3))
    cohort, seconds = torch.randn(5, 3), np.array([1.0, 2.0, 4.0, 8.0])
    measures = ("duration", "magnitude", "cohort_mean")
    calibrator = Calibrator(two_gaussians, measures, top_n=2)
    (row,) = calibrator._features(points, seconds, [0], [2], cohort)
    lengths = np.log(np.linalg.norm(points, axis=1))
    means, _ = scoring.cohort_statistics(points, cohort, 2)
    expected = [two_gaussians(points, [0], [2], None)[0], 0.0, np.log(4)]
    expected += sorted(lengths[[0, 2]]) + sorted(means[[0, 2]])
    np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_unknown_measures_are_refused():
    with pytest.raises(ValueError, match="'loudness'"):
        Calibrator(two_gaussians, ("duration", "loudness"))


def test_clusters_that_know_nothing_of_the_scores_are_refused():
    points, labels = population(30)

    def score(*arguments):
        return -two_gaussians(*arguments)

    with pytest.raises(ValueError, match="cannot calibrate"):
        Calibrator(score).fit(points, None, labels)


def test_scores_without_an_error_give_finite_ratios():
    points, labels = population(30)
    points[:, 1] = 0
    calibrator = Calibrator(two_gaussians).fit(points, None, labels)
    llrs = calibrator(points, None, [0, 0], [1, 9])
    assert np.isfinite(llrs).all() and llrs[0] > 3 > -3 > llrs[1]


def test_trials_are_of_one_class_or_of_two_and_never_of_one_row():
    classes = np.array([3, 5, 3, 9, 9, 9, 5, 3, 1])
    enrol, test, targets = draw_trials(classes, count=500)
    assert ((classes[enrol] == classes[test]) == targets).all()
    assert (enrol != test).all() and targets.sum() == 500
    assert set(enrol.tolist()) == set(range(9))
    pairs = set(zip(enrol[:500].tolist(), test[:500].tolist()))
    assert len(pairs) == 6 + 2 + 6


def test_large_classes_have_no_more_trials_than_small_ones():
    classes = np.repeat([0, 1], [1000, 10])
    enrol, _, targets = draw_trials(classes, count=4000)
    assert abs((enrol[targets == 1] >= 1000).mean() - 0.5) < 0.05


@pytest.mark.parametrize("classes", [[1, 1, 1], [1, 2, 3], []])
def test_too_few_classes_for_trials_are_refused(classes):
    with pytest.raises(ValueError, match="two clusters"):
        draw_trials(np.array(classes, dtype=np.int64))


def test_halves_share_no_class_and_leave_out_what_has_none():
    classes = np.random.default_rng(0).integers(-1, 21, 400)
    first, second = split_classes(classes)
    assert not set(classes[first]) & set(classes[second])
    rows = np.sort(np.r_[first, second])
    np.testing.assert_array_equal(rows, np.flatnonzero(classes >= 0))
    few = split_classes(classes, most=60)
    for half, all_of_it in zip(few, (first, second)):
        assert 20 < len(half) <= 60
        # classes are whole
        for name in set(classes[half]):
            assert (classes[half] == name).sum() == (classes == name).sum()
        assert set(half) <= set(all_of_it)
