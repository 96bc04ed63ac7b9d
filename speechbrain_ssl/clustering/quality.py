"""Quality measures of a clustering.

Only ``oracle`` and ``oracle_decisions`` read true speakers. Training never uses
their results; they are for reports.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from speechbrain_ssl.clustering.device import chosen, knn

# A clustering is degenerate if its largest cluster exceeds both this share of
# the utterances and this multiple of the mean size, or if the share of
# singletons exceeds SINGLETON_SHARE.
GIANT_SHARE, GIANT_TIMES = 0.05, 5
SINGLETON_SHARE = 0.2
# Embeddings that are read at once; for the silhouette, which compares them with
# all clusters.
CHUNK, SILHOUETTE_CHUNK = 65536, 4096


def describe(matrix: np.ndarray, labels: np.ndarray) -> dict:
    """Measures the quality of a clustering without labels.

    Embeddings have any norm and may be memory-mapped [n, emb_dim]; labels are
    from 0 without gaps, -1 for none [n]. There must be a label of 0 or more.
    Undefined values, e.g. the margin of a single cluster, are None. Gives

    * ``utterances``, ``labelled``, ``clusters``: numbers;
    * ``size``: min, median, mean and max of the cluster sizes;
    * ``size_histogram``: number of clusters by size (1, 2, 3-4, 5-8, ...);
    * ``largest``, ``singletons``: share of the labelled utterances in the
      largest cluster, and in clusters of one utterance;
    * ``intra_cluster_cosine``: cosine to the centroid of the cluster, without
      singletons, mean and 10th percentile;
    * ``margin``: this cosine minus that to the nearest other centroid;
    * ``misplaced``: share of utterances with a negative margin;
    * ``silhouette`` and ``warnings``: see ``silhouette`` and ``degenerate``.
    """
    labels = np.asarray(labels)
    if len(labels) != len(matrix):
        raise ValueError(
            f"Expected a label for each of {len(matrix)} embeddings, found "
            f"{len(labels)}."
        )
    kept = labels >= 0
    if not kept.any():
        raise ValueError("No utterance has a label (0 or more).")
    sizes = np.bincount(labels[kept])
    own, other = _cosines(matrix, labels, len(sizes))
    accompanied = kept.copy()
    accompanied[kept] = sizes[labels[kept]] > 1
    margin = (own - other)[accompanied] if len(sizes) > 1 else np.empty(0)
    report = {
        "utterances": len(labels),
        "labelled": int(kept.sum()),
        "clusters": len(sizes),
        "size": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": float(sizes.mean()),
            "max": int(sizes.max()),
        },
        "size_histogram": _histogram(sizes),
        "largest": float(sizes.max() / sizes.sum()),
        "singletons": float((sizes == 1).sum() / sizes.sum()),
        "intra_cluster_cosine": _spread(own[accompanied]),
        "margin": _spread(margin),
        "misplaced": float((margin < 0).mean()) if len(margin) else None,
        "silhouette": silhouette(matrix, labels),
    }
    return {**report, "warnings": degenerate(report)}


def degenerate(report: dict) -> list[str]:
    """Warnings about a clustering that is unsuitable for training.

    The report has ``clusters``, ``largest`` and ``singletons`` of ``describe``.

    Example
    -------
    >>> degenerate({"clusters": 100, "largest": 0.3, "singletons": 0.0})
    ['The largest of 100 clusters has 30 % of the utterances.']
    """
    found = []
    limit = max(GIANT_SHARE, GIANT_TIMES / report["clusters"])
    if report["clusters"] == 1:
        found.append("There is only one cluster.")
    elif report["largest"] > limit:
        found.append(
            f"The largest of {report['clusters']} clusters has "
            f"{100 * report['largest']:.0f} % of the utterances."
        )
    if report["singletons"] > SINGLETON_SHARE:
        found.append(
            f"{100 * report['singletons']:.0f} % of the utterances are "
            "singletons: no other utterance is in their cluster."
        )
    return found


def agreement(labels: np.ndarray, other: np.ndarray) -> dict:
    """Measures the agreement of two clusterings of the same utterances.

    A cluster of -1 is none. ``ARI`` is the adjusted Rand index (1: equal, 0:
    chance, None: no utterance has both labels), ``utterances`` the number of
    utterances with both.

    Example
    -------
    >>> agreement(np.array([0, 0, 1, -1]), np.array([5, 5, 3, 3]))
    {'ARI': 1.0, 'utterances': 3}
    """
    labels, other = np.asarray(labels), np.asarray(other)
    both = (labels >= 0) & (other >= 0)
    score = None
    if both.any():
        score = float(adjusted_rand_score(labels[both], other[both]))
    return {"ARI": score, "utterances": int(both.sum())}


def stability(
    clusterer: Any, matrix: np.ndarray, labels: np.ndarray
) -> dict | None:
    """Agreement with a clustering by a copy that uses another seed.

    None if the clusterer has no ``random_state``. See ``agreement``.
    """
    seed = getattr(clusterer, "random_state", None)
    if not isinstance(seed, (int, np.integer)):
        return None
    again = copy.deepcopy(clusterer)
    again.random_state = seed + 1
    return agreement(labels, again.fit_predict(matrix))


def silhouette(matrix: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean silhouette with cosine distances.

    The silhouette of an utterance is (b - a) / max(a, b), where a is its mean
    distance to the other utterances of the cluster, and b the smallest mean
    distance to another cluster; it is 0 for singletons (P. J. Rousseeuw, 1987).
    Mean cosines are computed from mean vectors, so the time is linear in the
    number of utterances. The result is from -1 to 1; 0 for a single cluster.

    Example
    -------
    >>> points = np.repeat(np.eye(3), 2, axis=0)
    >>> round(silhouette(points, np.array([0, 0, 1, 1, 2, 2])), 3)
    1.0
    """
    names, found = np.unique(labels, return_inverse=True)
    labels = found - int(names[0] < 0)  # without gaps
    sizes = np.bincount(labels[labels >= 0])
    if len(sizes) < 2:
        return 0.0
    centers, cohesion = centroids(matrix, labels)
    means = centers * cohesion[:, None].astype(np.float32)
    total = 0.0
    for rows, unit in unit_chunks(matrix, labels, SILHOUETTE_CHUNK):
        mine, place = labels[rows], np.arange(len(rows))
        others = sizes[mine] - 1
        similar = unit @ means.T
        own = similar[place, mine] * sizes[mine] - 1  # without itself
        similar[place, mine] = -np.inf
        a, b = 1 - own / np.maximum(others, 1), 1 - similar.max(1)
        score = (b - a) / np.maximum(np.maximum(a, b), 1e-12)
        total += score[others > 0].sum()
    return float(total / sizes.sum())


def oracle(labels: np.ndarray, truth: np.ndarray) -> dict:
    """Compares clusters with true speakers, for reports only.

    Clusters and speakers are -1 where there is none [n]. ``NMI`` is normalized
    by the arithmetic mean of the entropies; ``purity`` is the share of
    utterances whose speaker is the most frequent one in their cluster,
    ``inverse_purity`` that of utterances whose cluster is the most frequent one
    of their speaker; ``ARI`` is the adjusted Rand index; ``utterances``,
    ``clusters`` and ``speakers`` are the compared numbers.

    Example
    -------
    >>> found = oracle(np.array([0, 0, 0, 1]), np.array([4, 4, 5, 5]))
    >>> found["purity"], found["speakers"]
    (0.75, 2)
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    known = (labels >= 0) & (truth >= 0)
    if not known.any():
        raise ValueError(
            "No labelled utterance has a known speaker. Give the speakers of "
            "this training set."
        )
    # of pairs that occur: a table of all pairs may not fit into memory
    table = contingency_matrix(truth[known], labels[known], sparse=True)
    count = int(known.sum())
    return {
        "NMI": float(normalized_mutual_info_score(truth[known], labels[known])),
        "purity": int(table.max(axis=0).sum()) / count,
        "inverse_purity": int(table.max(axis=1).sum()) / count,
        "ARI": float(adjusted_rand_score(truth[known], labels[known])),
        "utterances": count,
        "clusters": table.shape[1],
        "speakers": table.shape[0],
    }


def oracle_decisions(
    given: np.ndarray,
    label: np.ndarray,
    selected: np.ndarray,
    corrected: np.ndarray,
    truth: np.ndarray,
) -> dict[str, float]:
    """Computes the accuracy of a gate's decisions, for reports only.

    ``given`` and ``label`` are the classes of each utterance in the label file
    and in training; ``selected`` and ``corrected`` say what training did with
    the label, and ``truth`` is the speaker, -1 if unknown [n]. The speaker of a
    class is the most frequent speaker in it.

    Gives ``selected_right`` and ``corrected_right``: share of the selected, and
    of the corrected, utterances whose class belongs to their speaker; None if
    there are none.

    Example
    -------
    >>> given, label = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    >>> corrected, truth = given != label, np.array([7, 7, 8, 8])
    >>> oracle_decisions(given, label, ~corrected, corrected, truth)
    {'selected_right': 1.0, 'corrected_right': 1.0}
    """
    kept = truth >= 0
    pairs, counts = np.unique(
        np.stack([given[kept], truth[kept]]), axis=1, return_counts=True
    )
    owner = np.full(max(given.max(), label.max()) + 1, -1)
    order = counts.argsort(kind="stable")  # the most frequent speaker is last
    owner[pairs[0][order]] = pairs[1][order]
    right = owner[label] == truth

    def share(chosen):
        chosen = chosen & kept
        return float(right[chosen].mean()) if chosen.any() else None

    return {
        "selected_right": share(selected),
        "corrected_right": share(corrected),
    }


def centroids(
    matrix: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of clusters of unit embeddings, and their cohesion.

    Embeddings [n, emb_dim] have any norm and may be memory-mapped; labels are
    from 0 without gaps, -1 for none [n]. Centroids are unit vectors, float32
    [clusters, emb_dim]; the cohesion is the mean cosine of the utterances of a
    cluster to its centroid [clusters].

    Example
    -------
    >>> _, cohesion = centroids(np.eye(3), np.array([0, 0, 1]))
    >>> cohesion.round(3).tolist()
    [0.707, 1.0]
    """
    labels = np.asarray(labels)
    sizes = np.bincount(labels[labels >= 0])
    total = torch.zeros(len(sizes), matrix.shape[1], dtype=torch.float64)
    for rows, unit in unit_chunks(matrix, labels):
        mine = torch.from_numpy(labels[rows].astype(np.int64))
        total.index_add_(0, mine, torch.from_numpy(unit).double())
    total = total.numpy()
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    centers = (total / np.maximum(norms, 1e-12)).astype(np.float32)
    # the norm of the mean of unit vectors is their mean cosine to the mean
    return centers, norms[:, 0] / sizes


def nearest_other(
    unit: np.ndarray, centers: np.ndarray, mine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest centroid of another cluster, and the cosine to it.

    Embeddings [n, emb_dim] and centroids [clusters, emb_dim] of two or more
    clusters are unit vectors, float32; ``mine`` is the cluster of each
    embedding [n].
    """
    cosines, found = knn(unit, centers, 2, True, chosen("auto"))
    place = (found[:, 0] == mine).astype(int)[:, None]
    other, cosine = (
        np.take_along_axis(values, place, axis=1)[:, 0]
        for values in (found, cosines)
    )
    return other, cosine


def unit_chunks(
    matrix: np.ndarray, labels: np.ndarray, chunk_size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows and unit embeddings of labelled utterances in chunks.

    Of labels [n], negative ones are none. The embeddings are float32 [rows,
    emb_dim]; ``chunk_size`` counts rows with and without labels.
    """
    chunk_size = chunk_size or CHUNK
    for first in range(0, len(labels), chunk_size):
        kept = labels[first : first + chunk_size] >= 0
        if kept.any():
            chunk = matrix[first : first + chunk_size][kept]
            unit = np.asarray(chunk, np.float32)
            norms = np.linalg.norm(unit, axis=1, keepdims=True)
            yield (
                first + np.flatnonzero(kept),
                unit / np.maximum(norms, 1e-12),
            )


def _cosines(matrix, labels, clusters):
    """Cosines to the centroids of the own and the nearest other cluster [n]."""
    centers, _ = centroids(matrix, labels)
    own = np.full(len(labels), np.nan)
    other = np.full(len(labels), np.nan)
    for rows, unit in unit_chunks(matrix, labels):
        mine = labels[rows]
        own[rows] = np.einsum("ne,ne->n", unit, centers[mine])
        if clusters > 1:
            _, other[rows] = nearest_other(unit, centers, mine)
    return own, other


def _spread(values):
    """Mean and 10th percentile."""
    if not len(values):
        return {"mean": None, "p10": None}
    return {
        "mean": float(values.mean()),
        "p10": float(np.percentile(values, 10)),
    }


def _histogram(sizes):
    """Counts clusters by size, in powers of two."""
    found = {}
    powers = np.ceil(np.log2(sizes)).astype(int)
    for power, count in enumerate(np.bincount(powers).tolist()):
        first, last = 2**power // 2 + 1, 2**power
        found[str(last) if first == last else f"{first}-{last}"] = count
    return found
