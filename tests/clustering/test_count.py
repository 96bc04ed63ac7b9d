"""The number of clusters is found without labels."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.checks import ArgumentError
from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.count import (
    BestCount,
    Levels,
    _gaussian_like,
)
from speechbrain_ssl.clustering.kmeans import KMeans

BY_WARD = TwoStage(linkage="ward")


def groups(count, size, noise=0.1):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((count, 16))
    points = np.repeat(centers, size, axis=0)
    return points + noise * rng.standard_normal(points.shape)


def test_the_number_of_groups_is_found_among_shares_and_numbers():
    points = groups(12, 5)
    best = BestCount(BY_WARD, [0.05, 8, 0.2, 20, 0.5])
    labels = best.fit_predict(points)
    assert best.n_clusters_ == 12
    assert sorted(best.silhouettes_) == [3, 8, 12, 20, 30]
    assert len(set(zip(labels, np.arange(60) // 5))) == 12


def test_a_single_number_is_taken_as_it_is():
    labels = BestCount(BY_WARD, 7).fit_predict(groups(12, 5))
    assert len(set(labels)) == 7


@pytest.mark.parametrize("numbers", [[], [0], [5, -0.1]])
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises(ValueError, match="n_clusters"):
        BestCount(BY_WARD, numbers)


def test_all_processes_cluster_if_the_clusterer_asks_for_them():
    assert not BestCount(BY_WARD, [2]).distributed
    for shared in (False, True):
        best = BestCount(KMeans(distributed=shared), [2])
        assert best.distributed is shared


SHARES = [0.1, 0.25, 1 / 3, 0.5]


def occasions(speakers, per_speaker, recordings, seed=0):
    """Points of recordings; those of one occasion are closer to each other."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((speakers, 24))
    for count, noise in ((per_speaker, 0.5), (recordings, 0.1)):
        points = np.repeat(points, count, axis=0)
        points = points + noise * rng.standard_normal(points.shape)
    return points, np.arange(len(points)) // (per_speaker * recordings)


def test_occasions_of_a_speaker_are_joined():
    points, speaker = occasions(20, 3, 4)
    assert len(set(BestCount(BY_WARD, SHARES).fit_predict(points))) == 60
    levels = Levels(BY_WARD, SHARES, max_levels=3)
    labels = levels.fit_predict(points)
    assert adjusted_rand_score(speaker, labels) > 0.95
    assert [level["points"] for level in levels.levels_][:2] == [240, 60]
    assert levels.levels_[1]["accepted"]
    assert not levels.levels_[-1]["accepted"]
    assert levels.n_clusters_ == len(set(labels)) == 20


@pytest.mark.parametrize("seed", range(3))
def test_speakers_of_one_occasion_are_not_joined(seed):
    points, speaker = occasions(50, 1, 4, seed)
    levels = Levels(BY_WARD, SHARES)
    labels = levels.fit_predict(points)
    assert adjusted_rand_score(speaker, labels) == 1.0
    first, second = levels.levels_
    assert first["reference"] is None and first["accepted"]
    assert not second["accepted"]
    assert second["silhouette"] <= 1.25 * second["reference"]


def test_sessions_are_the_first_and_speakers_the_last_of_two_levels():
    points, _ = occasions(20, 3, 4)
    levels = Levels(BY_WARD, SHARES)
    levels.fit_predict(points)
    assert [level["clusters"] for level in levels.levels_] == [60, 20]


def test_a_further_level_has_the_largest_gap_to_points_without_clusters():
    class Scripted(TwoStage):
        """2 or 6 clusters of the 12 centroids, which are on a line."""

        def fit_predict(self, X, y=None):
            if len(X) > 12:
                return np.repeat(np.arange(12), 2)
            order = np.argsort(np.argsort(X[:, 0]))
            return order // (12 // int(self.n_clusters))

    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((12, 4)), 2, axis=0)
    levels = Levels(Scripted(2), [1 / 6, 1 / 2], ratio=0.0)
    labels = levels.fit_predict(points)
    centers = points[::2]
    gaps = {}
    for count in (2, 6):
        draws = np.random.default_rng(0)
        unit = centers / np.linalg.norm(centers, axis=1, keepdims=True)
        unit = unit.astype(np.float32)
        one = BestCount(Scripted(2), count)
        one.fit_predict(unit)
        mean = 0
        for _ in range(3):
            chance = BestCount(Scripted(2), count)
            chance.fit_predict(_gaussian_like(unit, draws))
            mean += max(chance.silhouettes_.values()) / 3
        gaps[count] = max(one.silhouettes_.values()) - mean
    assert len(set(labels)) == max(gaps, key=gaps.get)
    assert max(gaps.values()) - min(gaps.values()) > 0.01


def test_one_level_is_what_the_counter_finds():
    points, _ = occasions(20, 3, 4)
    labels = Levels(BY_WARD, SHARES, max_levels=1).fit_predict(points)
    assert (labels == BestCount(BY_WARD, SHARES).fit_predict(points)).all()


def test_noise_is_noise_at_all_levels():
    class LastIsNoise(TwoStage):
        def fit_predict(self, X, y=None):
            labels = super().fit_predict(X)
            return np.where(len(X) == 240 and X[:, 0] == X[-1, 0], -1, labels)

    points, speaker = occasions(20, 3, 4)
    levels = Levels(LastIsNoise(linkage="ward"), [0.25, 1 / 3])
    labels = levels.fit_predict(points)
    assert labels[-1] == -1 and (labels[:-1] >= 0).all()
    assert adjusted_rand_score(speaker[:-1], labels[:-1]) > 0.95


def test_points_without_clusters_have_mean_and_covariance_of_the_others():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4000, 3)) @ rng.standard_normal((3, 6)) + 2
    drawn = _gaussian_like(points, rng)
    assert np.allclose(drawn.mean(0), points.mean(0), atol=0.15)
    assert np.allclose(np.cov(drawn.T), np.cov(points.T), atol=0.4)


def test_a_negative_ratio_is_refused():
    with pytest.raises(ArgumentError, match="ratio"):
        Levels(BY_WARD, SHARES, ratio=-1.0)


def test_a_number_that_is_no_share_makes_one_level():
    points, _ = occasions(20, 3, 4)
    levels = Levels(BY_WARD, 60)
    assert len(set(levels.fit_predict(points))) == 60
    assert len(levels.levels_) == 1
