"""Quality of clusterings, without and with true speakers."""

import numpy as np
import pytest
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.clustering.kmeans import KMeans


def slow_description(matrix, labels):
    """Cosines to the own and to the nearest other centroid, one by one."""
    unit = [row / np.sqrt(sum(row * row)) for row in matrix.astype(float)]
    centroids = {}
    for label in {*labels.tolist()} - {-1}:
        total = sum(u for u, own in zip(unit, labels) if own == label)
        centroids[label] = total / np.sqrt(sum(total * total))
    own, margin = [], []
    for u, label in zip(unit, labels.tolist()):
        if label >= 0 and (labels == label).sum() > 1:
            own.append(sum(u * centroids[label]))
            others = [
                sum(u * c) for name, c in centroids.items() if name != label
            ]
            margin.append(own[-1] - max(others))
    return np.array(own), np.array(margin)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_description_equals_the_slow_one(chunk_size, monkeypatch):
    monkeypatch.setattr(quality, "CHUNK", chunk_size)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((53, 5)).astype(np.float16)
    labels = rng.integers(-1, 6, 53)
    labels[0] = 6  # alone
    found = quality.describe(matrix, labels)
    own, margin = slow_description(matrix, labels)
    assert found["intra_cluster_cosine"] == pytest.approx(
        {"mean": own.mean(), "p10": np.percentile(own, 10)}, rel=1e-5
    )
    assert found["margin"] == pytest.approx(
        {"mean": margin.mean(), "p10": np.percentile(margin, 10)}, rel=1e-5
    )
    assert found["misplaced"] == (margin < 0).mean() > 0
    assert found["labelled"] == (labels >= 0).sum()
    assert found["clusters"] == 7
    assert sum(found["size_histogram"].values()) == 7
    assert found["size_histogram"]["1"] == 1
    assert found["singletons"] == 1 / found["labelled"]


def test_sizes_are_counted_in_powers_of_two():
    labels = np.repeat(np.arange(5), [1, 2, 3, 4, 9])
    found = quality.describe(np.ones((19, 2)), labels)
    assert found["size_histogram"] == {
        "1": 1,
        "2": 1,
        "3-4": 2,
        "5-8": 0,
        "9-16": 1,
    }
    assert found["size"] == {"min": 1, "median": 3.0, "mean": 3.8, "max": 9}
    assert found["largest"] == 9 / 19


def test_one_cluster_has_no_margin_and_a_warning():
    found = quality.describe(np.eye(3), np.zeros(3, int))
    assert found["margin"] == {"mean": None, "p10": None}
    assert found["misplaced"] is None
    assert found["warnings"] == ["There is only one cluster."]


def test_a_giant_cluster_and_loners_are_warned_of():
    labels = np.concatenate([np.zeros(60, int), np.arange(1, 41)])
    found = quality.describe(np.ones((100, 2)), labels)["warnings"]
    assert len(found) == 2
    assert "41 clusters has 60 %" in found[0]
    assert found[1].startswith("40 %")
    fine = np.repeat(np.arange(10), 10)
    assert quality.describe(np.ones((100, 2)), fine)["warnings"] == []


def test_labels_of_other_embeddings_are_refused():
    with pytest.raises(ValueError, match="each of 3 embeddings, found 2"):
        quality.describe(np.eye(3), np.zeros(2, int))
    with pytest.raises(ValueError, match="No utterance has a label"):
        quality.describe(np.eye(3), -np.ones(3, int))


def test_agreement_counts_only_what_both_label():
    first, other = np.array([0, 0, 1, 1, -1]), np.array([1, -1, 0, 0, 0])
    assert quality.agreement(first, other) == {"ARI": 1.0, "utterances": 3}
    nothing = quality.agreement(first, -np.ones(5, int))
    assert nothing == {"ARI": None, "utterances": 0}


def test_stability_is_high_for_clouds_and_low_for_noise():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((300, 8))
    clouds = np.repeat(np.eye(8)[:3], 100, axis=0) + 0.05 * noise
    found = []
    for points in clouds, noise:
        kmeans = KMeans(3, n_init=5, random_state=4)
        labels = kmeans.fit_predict(points)
        found.append(quality.stability(kmeans, points, labels)["ARI"])
        assert kmeans.random_state == 4
    assert found[0] == 1.0
    assert found[1] < 0.9


def test_a_clusterer_without_seed_has_no_stability():
    assert quality.stability(object(), np.eye(3), np.zeros(3)) is None


def test_oracle_equals_tables_and_leaves_the_unknown_out():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(-1, 5, 80), rng.integers(-1, 7, 80) * 3
    truth[truth < 0] = -1
    found = quality.oracle(labels, truth)
    known = (labels >= 0) & (truth >= 0)
    labels, truth = labels[known], truth[known]
    table = np.zeros((5, 22))
    for pair in zip(labels, truth):
        table[pair] += 1
    assert found == pytest.approx(
        {
            "NMI": normalized_mutual_info_score(truth, labels),
            "ARI": adjusted_rand_score(truth, labels),
            "purity": table.max(1).sum() / len(labels),
            "inverse_purity": table.max(0).sum() / len(labels),
            "utterances": len(labels),
            "clusters": len(set(labels)),
            "speakers": len(set(truth)),
        }
    )


def test_oracle_needs_a_known_speaker():
    with pytest.raises(ValueError, match="known speaker"):
        quality.oracle(np.zeros(3, int), -np.ones(3, int))


@pytest.mark.parametrize("chunk_size", [7, 4096])
def test_silhouette_is_that_of_scikit_learn(chunk_size, monkeypatch):
    monkeypatch.setattr(quality, "SILHOUETTE_CHUNK", chunk_size)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 5)) * rng.uniform(0.1, 9, (60, 1))
    labels = rng.integers(0, 9, 60) * 3  # with gaps
    labels[:2] = 99, 100  # alone
    wanted = silhouette_score(points, labels, metric="cosine")
    found = quality.silhouette(points, labels)
    assert found == pytest.approx(wanted, abs=1e-5)
    noise = np.append(labels, [-1, -1])
    points = np.append(points, points[:2], axis=0)
    assert quality.silhouette(points, noise) == pytest.approx(wanted, abs=1e-5)


def test_one_cluster_has_no_silhouette():
    assert quality.silhouette(np.eye(4), np.zeros(4, int)) == 0.0


def test_decisions_are_right_if_the_class_is_that_of_the_speaker():
    given = np.array([0, 0, 0, 1, 1, 2])
    label = np.array([0, 0, 1, 1, 0, 2])
    selected = np.array([1, 1, 0, 0, 0, 1], bool)
    corrected = np.array([0, 0, 1, 0, 1, 0], bool)
    # class 0 is speaker 5's, class 1 speaker 6's, class 2 nobody's known
    truth = np.array([5, 7, 5, 6, 5, -1])
    found = quality.oracle_decisions(given, label, selected, corrected, truth)
    assert found == {"selected_right": 0.5, "corrected_right": 0.5}
    nobody = quality.oracle_decisions(
        given, label, selected & False, corrected & False, truth
    )
    assert set(nobody.values()) == {None}
