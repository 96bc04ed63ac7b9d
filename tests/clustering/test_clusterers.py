"""Clusterers with scikit-learn's contract."""

import sys

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.clustering import clusterers
from speechbrain_ssl.clustering.clusterers import (
    Graph,
    TwoStage,
    tidy,
)
from speechbrain_ssl.clustering.kmeans import KMeans


def clouds(spread=0.1):
    rng = np.random.default_rng(0)
    centers = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5]])
    truth = rng.integers(0, 3, 300)
    return centers[truth] + spread * rng.standard_normal((300, 3)), truth


def many_clouds(count=40, each=25, dim=16, spread=0.05):
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((count, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    truth = np.repeat(np.arange(count), each)
    noise = spread * rng.standard_normal((len(truth), dim))
    return (centers[truth] + noise).astype(np.float32), truth


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


@pytest.mark.parametrize(
    "name", ["n_iter", "n_init", "max_points_per_centroid"]
)
def test_settings_of_k_means_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .* at least 1"):
        KMeans(2, **{name: 0})
    points = np.random.default_rng(0).standard_normal((50, 3))
    labels = KMeans(2, **{name: 1}).fit_predict(points)
    assert set(labels) == {0, 1}


def test_more_clusters_than_points_are_refused():
    with pytest.raises(
        ValueError, match="n_clusters is 5 and there are 3 points"
    ):
        KMeans(5).fit_predict(np.zeros((3, 2)))


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("most", [4, 256])
def test_a_memory_map_gets_the_labels_of_memory(tmp_path, spherical, most):
    points = np.random.default_rng(0).standard_normal((1003, 7))
    points[500:] = points[:503]  # ties and near ties
    np.save(tmp_path / "points.npy", points.astype(np.float16))
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    first, second = (
        KMeans(
            60, spherical, max_points_per_centroid=most, random_state=2
        ).fit_predict(given)
        for given in (mapped, mapped[:].astype(np.float64))
    )
    assert np.array_equal(first, second)
    assert np.array_equal(first[:500], first[500:1000])


@pytest.mark.parametrize("spherical", [True, False])
def test_labels_are_the_nearest_centroids_the_first_of_equals(spherical):
    points = np.random.default_rng(3).standard_normal((500, 5))
    kmeans = KMeans(9, spherical)
    kmeans.fit_predict(points)
    centers = np.concatenate([kmeans.cluster_centers_] * 2)
    kmeans.cluster_centers_ = centers
    if spherical:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    gaps = points[:, None].astype(np.float32).astype(float) - centers
    nearest = np.square(gaps).sum(-1).round(6).argmin(1)
    labels = kmeans.predict(points)
    assert labels.max() < 9
    assert (labels == nearest).mean() > 0.99


def test_fewer_distinct_points_than_clusters_leave_empty_ones():
    points = np.repeat(np.eye(4), 5, axis=0)
    kmeans = KMeans(10)
    labels = kmeans.fit_predict(points)
    assert np.isfinite(kmeans.cluster_centers_).all()
    assert kmeans.n_empty_ == 10 - len(set(labels))
    assert kmeans.n_empty_ >= 6


@pytest.mark.parametrize("clusterer", [KMeans(2), Graph(), TwoStage(2, None)])
def test_a_point_that_is_not_finite_is_named(clusterer):
    points = np.ones((9, 2))
    points[6, 1] = np.nan
    with pytest.raises(ValueError, match="Point 6"):
        clusterer.fit_predict(points)


@pytest.mark.parametrize("linkage", ["ward", "average"])
def test_two_stages_find_the_clouds_from_many_small_clusters(linkage):
    points, truth = many_clouds()
    two = TwoStage(40, fine_clusters=250, linkage=linkage, n_neighbors=3)
    labels = two.fit_predict(points)
    assert adjusted_rand_score(truth, labels) == 1.0
    assert np.array_equal(np.unique(labels), np.arange(40))
    assert len(np.unique(two.fine_labels_)) == 250 - two.n_empty_
    assert np.array_equal(labels, two.fit_predict(points))


def test_with_all_neighbors_two_stages_equal_plain_agglomeration():
    points = np.random.default_rng(5).standard_normal((300, 6))
    two = TwoStage(12, fine_clusters=50, n_neighbors=49)
    labels = two.fit_predict(points)
    kmeans = KMeans(50)
    fine = kmeans.fit_predict(points)
    plain = AgglomerativeClustering(12).fit_predict(kmeans.cluster_centers_)
    assert adjusted_rand_score(plain[fine], labels) == 1.0


def test_fewer_fine_clusters_than_clusters_are_refused():
    with pytest.raises(ValueError, match="fine_clusters"):
        TwoStage(10, fine_clusters=5)
    points = np.repeat(np.eye(3), 20, axis=0)
    with pytest.raises(ValueError, match="3 of 20 fine clusters"):
        TwoStage(10, fine_clusters=20).fit_predict(points)


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_without_k_means_all_neighbors_give_plain_agglomeration(linkage):
    rng = np.random.default_rng(5)
    points = rng.standard_normal((150, 6))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    metric = "euclidean" if linkage == "ward" else "cosine"
    plain = AgglomerativeClustering(50, metric=metric, linkage=linkage)
    wanted = plain.fit_predict(unit)
    # cosines know no lengths
    scaled = points * rng.uniform(0.1, 10, (150, 1))
    two = TwoStage(50, None, linkage=linkage, n_neighbors=149)
    labels = two.fit_predict(scaled)
    assert adjusted_rand_score(wanted, labels) == 1.0
    assert two.fine_labels_.tolist() == list(range(150))
    assert two.n_empty_ == 0


def test_average_linkage_of_points_means_cosine_distances():
    points = np.random.default_rng(5).standard_normal((150, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    by_length = AgglomerativeClustering(20, linkage="average")
    labels = TwoStage(20, None, "average", 149).fit_predict(points)
    # averages of distances and of their squares differ in order
    assert adjusted_rand_score(by_length.fit_predict(points), labels) < 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("linkage", ["average", "ward"])
def test_points_are_joined_along_few_neighbors(linkage):
    # 2 neighbors of 25 points leave parts, which scikit-learn would warn of
    points, truth = many_clouds()
    two = TwoStage(40, None, linkage, n_neighbors=2)
    labels = two.fit_predict(points)
    assert adjusted_rand_score(truth, labels) == 1.0
    seeded = TwoStage(40, None, linkage, n_neighbors=2, random_state=9)
    assert np.array_equal(labels, seeded.fit_predict(points))


def test_as_many_clusters_as_points_leave_each_alone():
    labels = TwoStage(9, None, "average").fit_predict(np.eye(9))
    assert sorted(labels) == list(range(9))


def test_two_stage_refuses_more_clusters_than_points():
    with pytest.raises(ValueError, match="is 4 and there are 3 points"):
        TwoStage(4, None).fit_predict(np.eye(3))


def test_components_find_the_number_of_clouds(monkeypatch):
    monkeypatch.setattr(clusterers, "CHUNK", 77)
    points, truth = many_clouds()
    far = -points[:1] * 3  # like nothing else
    labels = Graph(threshold=0.8).fit_predict(np.concatenate([points, far]))
    assert adjusted_rand_score(truth, labels[:-1]) == 1.0
    assert labels[-1] == -1


def test_only_mutual_neighbors_are_joined():
    # b is a's nearest, but c is b's
    angles = np.array([0.0, 0.3, 0.4])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = Graph(threshold=0.5, n_neighbors=1).fit_predict(points)
    assert labels.tolist() == [-1, 0, 0]


def test_neighbors_in_cells_find_the_same_clouds(monkeypatch):
    points, truth = many_clouds()
    monkeypatch.setattr(clusterers, "EXACT_NEIGHBORS", 100)
    labels = Graph(threshold=0.8).fit_predict(points)
    kept = labels >= 0
    assert kept.mean() > 0.95
    assert adjusted_rand_score(truth[kept], labels[kept]) > 0.95


def test_leiden_parts_clouds_that_a_bridge_joins():
    pytest.importorskip("igraph")
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 25)
    points = np.eye(8)[truth] + 0.05 * rng.standard_normal((150, 8))
    bridge = points[:1] + points[25:26]
    points = np.concatenate([points, bridge])
    loose = {"threshold": 0.6, "n_neighbors": 50}
    plain = Graph(**loose).fit_predict(points)
    assert np.unique(plain).tolist() == [0, 1, 2, 3, 4]
    first, again = (
        Graph(**loose, method="leiden").fit_predict(points) for _ in range(2)
    )
    assert adjusted_rand_score(truth, first[:-1]) == 1.0
    assert np.array_equal(first, again)


def test_leiden_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ImportError, match="pip install"):
        Graph(method="leiden").fit_predict(np.eye(3))


@pytest.mark.parametrize("bad", [{"method": "x"}, {"threshold": 2.0}])
def test_bad_settings_of_the_graph_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Graph(**bad)


def test_tidy_dissolves_tiny_and_giant_clusters_and_counts_them():
    labels = np.array([9] * 6 + [4] * 3 + [2] + [7] * 3 + [-1] * 2)
    found = tidy(labels, min_size=2, max_size=0.3)  # 0.3 * 15 = 4.5
    wanted = [-1] * 6 + [0] * 3 + [-1] + [1] * 3 + [-1] * 2
    assert found.labels.tolist() == wanted
    assert found.report == {
        "clusters": 2,
        "noise": 2,
        "tiny_clusters": 1,
        "tiny": 1,
        "giant_clusters": 1,
        "giant": 6,
    }
    assert labels[0] == 9


def test_tidy_refuses_to_leave_nothing():
    with pytest.raises(ValueError, match="3 are smaller"):
        tidy(np.arange(3), min_size=2)
