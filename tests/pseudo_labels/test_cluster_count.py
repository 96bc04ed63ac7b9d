"""The number of clusters is found without labels."""

import functools

import numpy as np
import pytest

from speechbrain_ssl.pseudo_labels.cluster_count import BestCount
from speechbrain_ssl.pseudo_labels.clustering import KMeans, TwoStage


def by_ward(n_clusters):
    return TwoStage(n_clusters, fine_clusters=None, linkage="ward")


def groups(count, size, noise=0.1):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((count, 16))
    points = np.repeat(centers, size, axis=0)
    return points + noise * rng.standard_normal(points.shape)


def test_the_number_of_groups_is_found_among_shares_and_numbers():
    points = groups(12, 5)
    best = BestCount(by_ward, [0.05, 8, 0.2, 20, 0.5])
    labels = best.fit_predict(points)
    assert best.n_clusters_ == 12
    assert sorted(best.silhouettes_) == [3, 8, 12, 20, 30]
    assert len(set(zip(labels, np.arange(60) // 5))) == 12


def test_a_single_number_is_taken_as_it_is():
    labels = BestCount(by_ward, 7).fit_predict(groups(12, 5))
    assert len(set(labels)) == 7


@pytest.mark.parametrize("numbers", [[], [0], [5, -0.1]])
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises(ValueError, match="n_clusters"):
        BestCount(by_ward, numbers)


def test_all_processes_cluster_if_the_clusterer_asks_for_them():
    assert not BestCount(by_ward, [2]).distributed
    for shared in (False, True):
        best = BestCount(functools.partial(KMeans, distributed=shared), [2])
        assert best.distributed is shared
