"""Calibration of scores to log-likelihood ratios, learned from pseudo-labels.

Two utterances of one cluster are a target trial, two utterances of different
clusters a non-target trial; no labelled trial is used. Utterances of a cluster
often share a recording, and the same encoder made the clusters, so these trials
are easier than real ones and the ratios too large. verify.py therefore augments
each utterance independently before embedding it. actDCF and Cllr of a labelled
list measure the remaining error.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speechbrain_ssl.evaluation import scoring

MEASURES = ("duration", "magnitude", "cohort_mean")


class Calibrator:
    """A logistic regression on a score and the quality of both recordings.

    Each quality measure counts with the smaller and the larger value of the two
    sides, as in Thienpondt et al., "The IDLab VoxSRC-20 Submission", ICASSP
    2021 (arXiv 2010.11255). Both classes weigh the same, so that what comes out
    is a log-likelihood ratio.

    ``score`` maps embeddings [utterances, emb_dim], rows of the enrol and of
    the test sides [trials] and a cohort (or None) to scores [trials].
    ``measures`` are of "duration" (its logarithm), "magnitude" (logarithm of
    the length of the embedding) and "cohort_mean" (mean of the ``top_n``
    highest cosines with the cohort, None: of all).
    """

    def __init__(
        self, score: Callable, measures: tuple[str, ...] = (), top_n: int = 300
    ):
        unknown = [name for name in measures if name not in MEASURES]
        if unknown:
            raise ValueError(
                f"Expected quality measures of {', '.join(MEASURES)}, found "
                f"{unknown[0]!r}."
            )
        self.score = score
        self.measures = tuple(measures)
        self.top_n = top_n

    def fit(
        self,
        embeddings: np.ndarray | torch.Tensor,
        seconds: np.ndarray,
        classes: np.ndarray,
        cohort: torch.Tensor | None = None,
    ) -> "Calibrator":
        """Learns from trials of pseudo-labels; returns itself.

        Embeddings are [utterances, emb_dim]; ``seconds`` are their durations,
        where they are a measure; ``classes`` are int64 pseudo-labels
        [utterances]. The cohort [cohort utterances, emb_dim], where it is
        needed, should hold no utterance of these classes, as no cohort holds
        the speakers of the trials. It is a ValueError if pairs of one class
        score no higher than others.
        """
        enrol, test, targets = draw_trials(classes)
        features = self._features(embeddings, seconds, enrol, test, cohort)
        # the default penalty is nothing beside thousands of trials, but keeps
        # weights finite where clusters can be told apart without an error
        model = LogisticRegression(class_weight="balanced")
        self.model = make_pipeline(StandardScaler(), model)
        self.model.fit(features, targets)
        if not model.coef_[0, 0] > 0:
            raise ValueError(
                "Utterances of one cluster score no higher than those of "
                "different clusters: these pseudo-labels cannot calibrate "
                "this score. Are they of this model?"
            )
        return self

    def __call__(
        self,
        embeddings: np.ndarray | torch.Tensor,
        seconds: np.ndarray,
        enrol: np.ndarray,
        test: np.ndarray,
        cohort: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Natural log-likelihood ratios of trials [trials].

        ``enrol`` and ``test`` are rows of the embeddings; see ``fit``.
        """
        return self.model.decision_function(
            self._features(embeddings, seconds, enrol, test, cohort)
        )

    def _features(self, embeddings, seconds, enrol, test, cohort):
        """The score, then the measures [trials, 1 + 2 * measures]."""
        columns = [self.score(embeddings, enrol, test, cohort)]
        for name in self.measures:
            if name == "duration":
                values = np.log(np.maximum(seconds, 1e-3))
            elif name == "magnitude":
                rows = torch.as_tensor(embeddings).detach().cpu().float()
                values = torch.linalg.vector_norm(rows, dim=1).log().numpy()
            else:
                values, _ = scoring.cohort_statistics(
                    embeddings, cohort, self.top_n or len(cohort)
                )
            sides = values[enrol], values[test]
            columns += [np.minimum(*sides), np.maximum(*sides)]
        return np.stack(columns, axis=1).astype(np.float64)


def draw_trials(
    classes: np.ndarray, count: int = 20000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws trials from pseudo-labels, each class as likely as the others.

    There are ``count`` target and ``count`` non-target trials. Gives the rows
    of the enrol and of the test utterances, always different ones, and 1 for
    trials of one class, 0 for those of two [2 * count].
    """
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(
        classes[order], return_index=True, return_counts=True
    )
    several = np.flatnonzero(sizes >= 2)
    if len(sizes) < 2 or not len(several):
        raise ValueError(
            "Trials need two clusters at least, one of them with two "
            f"utterances; found {len(sizes)} clusters, {len(several)} of them "
            "with two utterances. Calibration takes half of all clusters."
        )
    rng = np.random.default_rng(seed)
    same = several[rng.integers(len(several), size=count)]
    first, second = _two_of(rng, sizes[same])
    one, other = _two_of(rng, np.full(count, len(sizes)))
    enrol = np.r_[starts[same] + first, starts[one] + rng.integers(sizes[one])]
    test = np.r_[
        starts[same] + second, starts[other] + rng.integers(sizes[other])
    ]
    return order[enrol], order[test], np.repeat([1, 0], count)


def split_classes(
    classes: np.ndarray, most: int = 200_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves of the utterances without a common class.

    A class of -1 is none. A half has at most ``most`` rows; further classes are
    left out, in an order that the seed draws.

    Example
    -------
    >>> first, second = split_classes(np.array([0, 0, 1, 2, 2, 3, -1]))
    >>> sorted([*first.tolist(), *second.tolist()])
    [0, 1, 2, 3, 4, 5]
    """
    rows = np.flatnonzero(classes >= 0)
    names, index = np.unique(classes[rows], return_inverse=True)
    # new numbers in a random order: even ones here, odd ones there
    number = np.random.default_rng(seed).permutation(len(names))[index]
    halves = []
    for half in (0, 1):
        mine = number % 2 == half
        sizes = np.bincount(number[mine], minlength=len(names))
        is_taken = np.cumsum(sizes) <= most
        halves.append(rows[mine & is_taken[number]])
    return tuple(halves)


def _two_of(rng, sizes):
    """Two different whole numbers below each of the sizes."""
    first = rng.integers(sizes)
    second = rng.integers(sizes - 1)
    return first, second + (second >= first)
