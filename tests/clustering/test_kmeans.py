"""k-means: as good as it should be, and the same however it is shared."""

import sys

import faiss
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from speechbrain_ssl.clustering import kmeans as algorithm
from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.device import DevicePoints, torch_knn
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.points import nearest
from tests.test_distributed import WORLD, run

rng = np.random.default_rng


def mixture(count, dim, clusters, noise):
    """Unit points around random directions, groups of very unlike sizes."""
    draw = rng(4)
    shares = draw.lognormal(0, 0.8, clusters)
    truth = draw.choice(clusters, count, p=shares / shares.sum())
    centers = draw.standard_normal((clusters, dim)) / dim**0.5
    points = centers[truth]
    points += noise / dim**0.5 * draw.standard_normal((count, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), truth


class Watched:
    """Points that count how many of them are read."""

    def __init__(self, points):
        self.points, self.shape, self.read = points, points.shape, 0

    def __len__(self):
        return len(self.points)

    def __getitem__(self, rows):
        found = self.points[rows]
        self.read += len(found)
        return found


SETTINGS = {
    "spherical": {"n_clusters": 150},
    "euclidean": {"n_clusters": 40, "spherical": False, "n_init": 2},
    "sampled": {"n_clusters": 150, "max_points_per_centroid": 36},
}


def found_by(path, name, distributed=False):
    """Labels, centroids and rows read, with points that call for moves."""
    points = Watched(np.load(path, mmap_mode="r"))
    kmeans = KMeans(**SETTINGS[name], n_iter=6, distributed=distributed)
    labels = kmeans.fit_predict(points)
    return labels.tolist(), kmeans.cluster_centers_.tolist(), points.read


def _worker(rank, folder, path):
    found = {name: found_by(path, name, True) for name in SETTINGS}
    two = TwoStage(20, fine_clusters=60, n_iter=3, distributed=True)
    alone = KMeans(9, random_state=rank)  # with no word to the others
    points = np.load(path)
    return (
        found,
        two.fit_predict(points).tolist(),
        alone.fit_predict(points[: 50 + rank]).tolist(),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_two_processes_find_the_bits_of_one_and_share_the_reading(tmp_path):
    path = str(tmp_path / "points.npy")
    np.save(path, mixture(3 * algorithm.BLOCK + 77, 12, 130, 0.7)[0])
    first, second = run(_worker, tmp_path, path)
    for name in SETTINGS:
        labels, centroids, read = found_by(path, name)
        for mine, others, part in first[0][name], second[0][name]:
            assert mine == labels and others == centroids
            assert part < read / WORLD * 1.3
    two = TwoStage(20, fine_clusters=60, n_iter=3)
    assert first[1] == second[1] == two.fit_predict(np.load(path)).tolist()
    assert (len(first[2]), len(second[2])) == (50, 51)


def test_threads_change_no_bit():
    points, _ = mixture(3 * algorithm.BLOCK, 12, 100, 0.7)
    threads, results = faiss.omp_get_max_threads(), []
    try:
        for number in (1, 3):
            faiss.omp_set_num_threads(number)
            kmeans = KMeans(100, n_iter=5)
            labels = kmeans.fit_predict(points)
            results.append((labels.tolist(), kmeans.cluster_centers_.tolist()))
            assert faiss.omp_get_max_threads() == number
    finally:
        faiss.omp_set_num_threads(threads)
    assert results[0] == results[1]


def test_euclidean_clusters_do_not_depend_on_the_unit():
    points = rng(0).standard_normal((900, 5)).astype(np.float32)
    first, second = KMeans(40, False), KMeans(40, False)
    labels = first.fit_predict(points)
    assert np.array_equal(labels, second.fit_predict(points * 2.0**40))
    scaled = first.cluster_centers_ * 2.0**40
    assert np.array_equal(second.cluster_centers_, scaled)


@pytest.mark.parametrize("spherical", [True, False])
def test_no_iteration_makes_the_objective_worse(spherical, monkeypatch):
    monkeypatch.setattr(algorithm, "BLOCK", 32)
    X, _ = mixture(2000, 8, 60, 0.8)
    points, rows = algorithm.Points(X, spherical, False), np.arange(2000)
    points.find_step(rows)
    draw, centroids, worths = rng(0), X[:60], []
    for iteration in range(12):
        centroids, worth = algorithm._iterate(
            points, rows, centroids, draw, iteration < 6
        )
        worths.append(worth)
    assert (np.diff(worths) > -1e-6 * worths[0]).all()
    own = X @ centroids.T
    if not spherical:
        own -= np.square(centroids).sum(1) / 2
    gained = own.max(1).sum() if spherical else 2 * own.max(1).sum()
    assert gained == pytest.approx(worths[-1], rel=0.01)


def badly_started():
    """Two of five centroids in one cloud, and one for two clouds."""
    truth = np.repeat(np.arange(5), 40)
    X = np.eye(6)[truth] + 0.05 * rng(0).standard_normal((200, 6))
    points = algorithm.Points(X, True, False)
    points.find_step(np.arange(200))
    start = np.eye(6)[[0, 0, 1, 2, 3]]
    start[0, 5], start[1, 5], start[4, 4] = 0.3, -0.3, 1
    return points, truth, start.astype(np.float32)


@pytest.mark.parametrize("move", [False, True])
def test_moved_centroids_leave_a_bad_start(move):
    points, truth, centroids = badly_started()
    for _ in range(4):
        centroids, _ = algorithm._iterate(
            points, np.arange(200), centroids, rng(2), move
        )
    labels = nearest(points.X.astype(np.float32), centroids, True)
    assert (adjusted_rand_score(truth, labels) == 1.0) == move


@pytest.mark.parametrize("spherical", [True, False])
def test_an_empty_cluster_gets_a_half_of_the_one_that_gains_most(spherical):
    X = np.repeat(np.eye(4), 10, axis=0)
    points = algorithm.Points(X, spherical, False)
    points.find_step(np.arange(40))
    # the last one is nearest to nothing, the third stands between two
    start = np.eye(4)[[0, 1, 2, 0]]
    start[2, 3], start[3] = 1, [-1, -1, -1, -1]
    centroids, worth = algorithm._iterate(
        points, np.arange(40), start.astype(np.float32), rng(0), False
    )
    labels = nearest(X.astype(np.float32), centroids, spherical)
    assert labels[::10].tolist() in ([0, 1, 2, 3], [0, 1, 3, 2])


def test_opposite_points_leave_the_centroid_where_it_was():
    points = np.array([[1.0, 0.0], [-1.0, 0.0]])
    kmeans = KMeans(1)
    assert kmeans.fit_predict(points).tolist() == [0, 0]
    assert np.linalg.norm(kmeans.cluster_centers_) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_clusters_are_better_than_those_of_plain_iterations(seed):
    points, truth = mixture(4000, 24, 80, 0.5)
    plain = faiss.Kmeans(24, 80, niter=20, spherical=True, seed=seed)
    plain.train(points)
    _, labels = plain.assign(points)
    kmeans = KMeans(80, random_state=seed)
    mine = kmeans.fit_predict(points)
    assert kmeans.n_empty_ == 0
    own = normalized_mutual_info_score(truth, mine)
    assert own > normalized_mutual_info_score(truth, labels) + 0.03


def test_pairs_to_join_are_disjoint_and_the_cheapest_come_first():
    draw = rng(0)
    counts = draw.integers(0, 3, 30)
    sums = draw.standard_normal((30, 4)) * counts[:, None]
    clusters = algorithm.Clusters(sums, counts)
    worth = algorithm._worth(clusters, False)
    gone, into, losses = algorithm._joins(
        clusters, worth, algorithm.Points(sums, False, False)
    )
    empty = np.flatnonzero(counts == 0)
    assert gone[: len(empty)].tolist() == into[: len(empty)].tolist()
    assert gone[: len(empty)].tolist() == empty.tolist()
    pairs = np.concatenate([gone[len(empty) :], into[len(empty) :]])
    assert len(np.unique(pairs)) == len(pairs) > 0
    assert (counts[pairs] > 0).all()
    assert (np.diff(losses) >= 0).all()
    a, b = gone[-1], into[-1]
    gap = sums[a] / counts[a] - sums[b] / counts[b]
    ward = counts[a] * counts[b] / (counts[a] + counts[b]) * gap @ gap
    assert losses[-1] == pytest.approx(ward)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("room", [True, False], ids=["resident", "in pieces"])
def test_a_device_finds_the_clusters_of_threads(name, room, monkeypatch):
    """Plain torch, here on the CPU: the objective of each iteration."""
    monkeypatch.setattr("speechbrain_ssl.clustering.device.PIECE", 700)
    monkeypatch.setattr("speechbrain_ssl.clustering.device.AT_ONCE", 9000)
    monkeypatch.setattr(DevicePoints, "_has_room", lambda *_: room)
    points, _ = mixture(4000, 12, 130, 0.7)
    points *= 2.0
    settings = {**SETTINGS[name], "n_iter": 6}
    one, other = KMeans(**settings, device="cpu"), KMeans(**settings)
    monkeypatch.setattr(
        other,
        "_points",
        lambda X: DevicePoints(X, other.spherical, False, torch.device("cpu")),
    )
    labels, found = one.fit_predict(points), other.fit_predict(points)
    assert adjusted_rand_score(labels, found) > 0.995
    assert other.n_empty_ == one.n_empty_
    # the same centroids give the same labels, ties included
    other.cluster_centers_ = one.cluster_centers_
    assert (other.predict(points) == labels).all()


@pytest.mark.parametrize("spherical", [True, False])
def test_a_device_settles_ties_as_threads_do(spherical):
    """Rounding errors of float32 must not choose between equal centroids."""
    draw = rng(3)
    centroids = draw.standard_normal((9, 24)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    centroids[7] = centroids[2]  # equal: the first one is taken
    centroids[8] = centroids[4] + 1e-7
    points = centroids[draw.integers(0, 9, 300)]
    points += 0.01 * draw.standard_normal(points.shape).astype(np.float32)
    there = DevicePoints(points, spherical, False, torch.device("cpu"))
    near = nearest(there.X, centroids, spherical)
    if spherical:
        near = nearest(
            algorithm.read_points(points, slice(None), True), centroids, True
        )
    assert (there.nearest(centroids) == near).all()
    assert 7 not in near and 2 in near


@pytest.mark.parametrize("spherical", [True, False])
def test_neighbors_on_a_device_are_those_of_faiss(spherical):
    points = rng(0).standard_normal((50, 8)).astype(np.float32)
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    wanted = faiss.knn(points[:20], points, 5, metric=metric)
    found = torch_knn(points[:20], points, 5, spherical, torch.device("cpu"))
    assert (found[1] == wanted[1]).all()
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
