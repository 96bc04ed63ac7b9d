"""The number of clusters is found without labels."""

import numpy as np
import pytest

from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.count import BestCount
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
