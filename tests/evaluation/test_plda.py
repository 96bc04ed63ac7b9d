"""PLDA's ratios against the densities that they are made of."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.evaluation.calibration import draw_trials
from speechbrain_ssl.evaluation.plda import PLDA, _Statistics


def population(classes=60, each=6, dim=8, rank=3, seed=0):
    """Speakers in a few dimensions, strong sessions in the first one."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(99).normal(size=(rank, dim))
    sessions = np.ones(dim)
    sessions[0] = 12.0
    labels = np.repeat(np.arange(classes), each)
    speakers = rng.normal(size=(classes, rank)) @ axes
    noise = sessions * rng.normal(size=(len(labels), dim))
    return 2 * speakers[labels] + noise + 0.5, labels


def test_ratios_equal_those_of_the_joint_densities():
    points, labels = population()
    plda = PLDA(rank=3).fit(points, labels)
    rows = plda._prepare(points) - plda.model.mean
    between = plda.model.F @ plda.model.F.T
    total = plda.model.Sigma + between
    joint = np.block([[total, between], [between, total]])
    one = multivariate_normal(cov=total)
    both = multivariate_normal(cov=joint)
    enrol, test = np.array([0, 0, 7, 100]), np.array([1, 50, 300, 5])
    expected = [
        both.logpdf(np.r_[rows[a], rows[b]])
        - one.logpdf(rows[a])
        - one.logpdf(rows[b])
        for a, b in zip(enrol, test)
    ]
    np.testing.assert_allclose(plda(points, enrol, test), expected, rtol=1e-6)


def test_new_speakers_are_told_apart_better_than_by_cosine():
    plda = PLDA(rank=3).fit(*population())
    points, labels = population(seed=1)
    enrol, test, targets = draw_trials(labels, count=2000)
    cosine = scoring.cosine_scores(points, enrol, test)
    llrs = plda(points, enrol, test)
    rates = [metrics.eer(s, targets)[0] for s in (llrs, cosine)]
    assert rates[0] < rates[1] - 0.05
    assert metrics.cllr(llrs, targets) < 1


def test_the_length_of_embeddings_and_the_order_of_sides_do_not_matter():
    points, labels = population(20)
    plda = PLDA(rank=2).fit(points, labels)
    scale = np.random.default_rng(0).uniform(0.1, 9, (len(points), 1))
    enrol, test = np.array([0, 4, 9]), np.array([1, 70, 30])
    expected = plda(points, enrol, test)
    found = plda((scale * points).astype(np.float32), test, enrol)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sums_of_classes_are_those_of_speechbrain():
    points, labels = population(9)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    mine = _Statistics(points[shuffled], labels[shuffled])
    sums, sizes = mine.sum_stat_per_model()
    expected, counts = super(_Statistics, mine).sum_stat_per_model()
    np.testing.assert_array_equal(sums.modelset, expected.modelset)
    np.testing.assert_array_equal(sizes, counts)
    np.testing.assert_allclose(sums.stat0, expected.stat0)
    np.testing.assert_allclose(sums.stat1, expected.stat1)


@pytest.mark.parametrize(
    "rank, count, message",
    [
        (9, 60, "rank of PLDA is 9.*8 dimensions"),
        (3, 1, "two clusters and more than 8 utterances.*found 1 and 6"),
    ],
)
def test_too_little_for_the_rank_is_refused(rank, count, message):
    points, labels = population(count)
    with pytest.raises(ValueError, match=message):
        PLDA(rank).fit(points, labels)


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(ValueError, match="rank of at least 1"):
        PLDA(0)


def test_embeddings_in_fewer_dimensions_are_refused():
    points, labels = population()
    points[:, 1:] = points[:, 1:2]
    with pytest.raises(ValueError, match="fewer dimensions"):
        PLDA(rank=3).fit(points, labels)
