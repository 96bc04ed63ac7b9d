"""Points of k-means: exact sums, the nearest centroids, what is refused."""

import numpy as np
import pytest

from speechbrain_ssl.clustering import points as module
from speechbrain_ssl.clustering.points import Points, nearest, read_points

rng = np.random.default_rng


@pytest.mark.parametrize("spherical", [True, False])
def test_sums_are_exact_in_any_order(spherical):
    X = (
        rng(0).standard_normal((5000, 3))
        * 10.0 ** rng(1).uniform(-6, 3, 5000)[:, None]
    )
    points = Points(X, spherical, False)
    rows, shuffled = np.arange(5000), rng(2).permutation(5000)
    points.find_step(rows)
    one = np.ones((1, 3), np.float32)
    _, first = points.assign(rows, one)
    _, second = points.assign(shuffled, one)
    assert np.array_equal(first.sums, second.sums)
    plain = read_points(X, rows, spherical).sum(0, dtype=np.float64)
    # rounded 5000 times to a share of the largest one
    error = 5000 * points.step
    assert first.sums[0] == pytest.approx(plain, abs=error)
    assert first.counts.tolist() == [5000]


@pytest.mark.parametrize("spherical", [True, False])
def test_the_nearest_centroid_does_not_depend_on_the_batch(spherical):
    X = rng(0).standard_normal((300, 7)).astype(np.float32)
    # pairs of centroids that float32 products cannot tell apart
    twins = np.repeat(rng(1).standard_normal((20, 7)), 2, axis=0)
    twins[1::2] *= 1 + 1e-7
    centroids = twins.astype(np.float32)
    found = nearest(X, centroids, spherical)
    alone = [nearest(x[None], centroids, spherical)[0] for x in X]
    assert found.tolist() == alone
    exact = X.astype(np.float64) @ centroids.T.astype(np.float64)
    if not spherical:
        exact -= np.square(centroids.astype(np.float64)).sum(1) / 2
    assert found.tolist() == exact.argmax(1).tolist()


def test_equal_centroids_give_the_first_one():
    centroids = np.ones((3, 2), np.float32)
    assert nearest(np.eye(2, dtype=np.float32), centroids, True).tolist() == [
        0,
        0,
    ]


def test_points_beyond_a_plane_are_summed(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    X = rng(0).standard_normal((90, 4)).astype(np.float32)
    points, rows = Points(X, False, False), np.arange(90)
    points.find_step(rows)
    centroids = X[:5]
    labels, clusters = points.assign(rows, centroids)
    normals, offsets = X[5:10], np.linspace(-1, 1, 5).astype(np.float32)
    beyond = points.beyond(rows, labels, normals, offsets)
    side = (X * normals[labels]).sum(1) > offsets[labels]
    for number in range(5):
        own = side & (labels == number)
        assert beyond.counts[number] == own.sum()
        expected = X[own].sum(0, dtype=np.float64)
        np.testing.assert_allclose(beyond.sums[number], expected, atol=1e-5)
    rest = clusters.without(beyond)
    assert (rest.counts + beyond.counts).tolist() == clusters.counts.tolist()


def test_a_point_that_is_not_finite_is_named():
    X = np.ones((5, 2), np.float32)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="Point 3 is NaN or infinite"):
        read_points(X, np.array([0, 3, 4]), True)
    X[3, 1] = 1e30  # its square is infinite, it is not
    assert np.isfinite(read_points(X, np.array([3]), True)).all()
