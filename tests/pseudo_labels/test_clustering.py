"""k-means on faiss with scikit-learn's contract."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.pseudo_labels.clustering import KMeans


def clouds(spread=0.1):
    rng = np.random.default_rng(0)
    centers = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5]])
    truth = rng.integers(0, 3, 300)
    return centers[truth] + spread * rng.standard_normal((300, 3)), truth


@pytest.mark.parametrize("spherical", [True, False])
def test_finds_separate_clouds(spherical):
    points, truth = clouds()
    kmeans = KMeans(3, spherical, n_init=5)
    labels = kmeans.fit_predict(points)
    assert adjusted_rand_score(truth, labels) == 1.0
    norms = np.linalg.norm(kmeans.cluster_centers_, axis=1)
    assert norms == pytest.approx(1.0 if spherical else 5.0, rel=0.02)


def test_spherical_clusters_ignore_lengths():
    points, truth = clouds()
    points *= np.random.default_rng(1).uniform(0.1, 10, (300, 1))
    labels = KMeans(3, n_init=5).fit_predict(points)
    assert adjusted_rand_score(truth, labels) == 1.0


def test_a_seed_gives_one_result():
    points = np.random.default_rng(0).standard_normal((200, 4))
    first, again = (
        KMeans(20, random_state=3).fit_predict(points) for _ in range(2)
    )
    assert np.array_equal(first, again)
    other = KMeans(20, random_state=4).fit_predict(points)
    assert not np.array_equal(first, other)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(ValueError, match="5 clusters of 3 points"):
        KMeans(5).fit_predict(np.zeros((3, 2)))
