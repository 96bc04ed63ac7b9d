import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.checks import ArgumentError
from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.count import Levels
from speechbrain_ssl.clustering.whitening import Whitened


def in_places(speakers=30, recordings=12, places=6, dims=32, seed=0):
    """Recordings whose place moves them further than their speaker does."""
    rng = np.random.default_rng(seed)
    voice = np.repeat(np.arange(speakers), recordings)
    place = rng.integers(places, size=len(voice))
    # places differ along few directions, speakers along all
    moves = rng.standard_normal((places, 3)) @ rng.standard_normal((3, dims))
    points = rng.standard_normal((speakers, dims))[voice] + 0.5 * moves[place]
    points += 0.2 * rng.standard_normal(points.shape)
    return points, voice


def by_ward(count):
    return TwoStage(count, linkage="ward")


def test_speakers_are_found_though_places_move_their_recordings():
    points, voice = in_places()
    plain = by_ward(30).fit_predict(points)
    found = Whitened(by_ward(30)).fit_predict(points)
    assert adjusted_rand_score(voice, plain) < 0.5
    assert adjusted_rand_score(voice, found) > 0.95


def test_clusters_are_equally_wide_in_all_directions_after_whitening():
    points, voice = in_places()
    whitening = Whitened(by_ward(30), shrinkage=0.0)._whitening(points, voice)
    spread = points @ whitening
    means = np.stack([spread[voice == v].mean(0) for v in range(30)])
    spread -= means[voice]
    covariance = spread.T @ spread / (len(points) - 30)
    assert np.allclose(covariance, np.eye(32), atol=1e-3)


def test_full_shrinkage_keeps_the_clusters_of_centered_embeddings():
    points, _ = in_places()
    one = Whitened(by_ward(30), iterations=1, shrinkage=1.0)
    none = Whitened(by_ward(30), iterations=0)
    assert (one.fit_predict(points) == none.fit_predict(points)).all()


@pytest.mark.parametrize("recordings", [1, 4])
def test_equal_embeddings_in_each_cluster_are_not_whitened(recordings):
    points = np.repeat(np.eye(3), recordings, axis=0)
    found = Whitened(by_ward(3)).fit_predict(points)
    assert adjusted_rand_score(np.repeat(range(3), recordings), found) == 1


def test_lengths_and_the_mean_of_embeddings_do_not_matter():
    points, _ = in_places()
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    longer = unit * np.linspace(1, 3, len(unit))[:, None]
    found = Whitened(by_ward(30)).fit_predict(unit)
    assert (Whitened(by_ward(30)).fit_predict(longer) == found).all()


def test_levels_set_the_number_of_clusters():
    points, voice = in_places()
    levels = Levels(Whitened(by_ward(2)), len(set(voice)))
    found = levels.fit_predict(points)
    assert adjusted_rand_score(voice, found) > 0.95
    whitened = Whitened(by_ward(2)).set_params(n_clusters=30, iterations=0)
    assert whitened.clusterer.n_clusters == 30 and whitened.iterations == 0


def test_unlabelled_points_do_not_widen_clusters():
    points, voice = in_places()
    outlier = np.concatenate([points, 1e3 * np.ones((1, points.shape[1]))])
    labels = np.append(voice, -1)
    whitened = Whitened(by_ward(30))
    expected = whitened._whitening(points, voice)
    assert np.array_equal(whitened._whitening(outlier, labels), expected)


def test_a_covariance_that_clusters_do_not_determine_is_an_error():
    points, _ = in_places(speakers=5, recordings=2)
    whitened = Whitened(by_ward(5), shrinkage=0.0)
    with pytest.raises(ValueError, match="shrinkage above 0"):
        whitened.fit_predict(points)


def test_noise_alone_stays_noise():
    class AllNoise(TwoStage):
        def fit_predict(self, X, y=None):
            return np.full(len(X), -1)

    points, _ = in_places()
    assert (Whitened(AllNoise(2)).fit_predict(points) == -1).all()


@pytest.mark.parametrize(
    "wrong", [{"iterations": -1}, {"shrinkage": 1.5}, {"shrinkage": -0.1}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Whitened(by_ward(2), **wrong)
