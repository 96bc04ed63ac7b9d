"""Fusion of the scores of several models by logistic regression.

The fused score of a trial is a weighted sum of its scores and an offset,
learned on a labelled calibration list. It is a natural log-likelihood ratio: N.
Brummer et al., "Fusion of Heterogeneous Speaker Recognition Systems in the
STBU Submission for the NIST SRE 2006", IEEE TASLP 15(7), 2007.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from speechbrain_ssl.evaluation.trials import LABEL_FIRST, NO_LABEL, Trials
from speechbrain_ssl.files import read_text


class Scored(NamedTuple):
    """A trial list with the score of each trial."""

    trials: Trials  # without labels ``targets`` is None
    scores: np.ndarray  # float64 [trials]


class Fusion:
    """A logistic regression on the scores of several models.

    Both classes weigh the same, so that the result is a log-likelihood ratio
    and does not depend on the share of target trials. ``weights`` has the
    factor of each model's score [models]; ``offset`` is added to their sum.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> targets = np.repeat([0, 1], 500)
    >>> scores = targets[:, None] + rng.normal(size=(1000, 2))
    >>> fusion = Fusion().fit(scores, targets)
    >>> fusion.weights.round(), bool(fusion([[3.0, 3.0]]) > 0)
    (array([1., 1.]), True)
    """

    def fit(
        self, scores: np.ndarray, targets: np.ndarray | Sequence[int]
    ) -> "Fusion":
        """Learns the weights from scores [trials, models]; returns itself.

        Targets are 1 for target trials and 0 for non-target trials [trials].
        There must be both, and no model whose scores are all equal.
        """
        scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
        if len(np.unique(targets)) != 2:
            raise ValueError(
                f"Fusion needs target and non-target trials, found "
                f"{int(targets.sum())} targets among {len(targets)} trials."
            )
        scale = StandardScaler().fit(scores)
        if (equal := scores.std(0) == 0).any():
            raise ValueError(
                f"The scores of model {int(equal.argmax()) + 1} are all "
                f"equal ({scores[0, equal.argmax()]:g}): fusion cannot use it."
            )
        model = LogisticRegression(class_weight="balanced")
        model.fit(scale.transform(scores), targets)
        self.weights = model.coef_[0] / scale.scale_
        self.offset = float(model.intercept_[0] - self.weights @ scale.mean_)
        return self

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores [trials, models] to natural log-likelihood ratios [trials]."""
        return np.asarray(scores, np.float64) @ self.weights + self.offset


def read_scored(path: str, finite: bool = True) -> Scored:
    """Reads a file of scores that ``verify`` wrote.

    Lines are ``label enrol test score`` with label 0 or 1, or ``enrol test
    score``; fields are separated by tabs or, without tabs, by spaces. ``finite``
    refuses scores that are NaN or infinite.
    """
    rows = []
    lines = read_text(path, "file of scores").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split("\t" if "\t" in line else None)
        width = len(rows[0]) if rows else len(fields)
        is_good = len(fields) == width and width in (3, 4)
        try:
            score = float(fields[-1])
        except ValueError:
            is_good = False
        labels = fields[:1] if width == 4 else ["0"]
        if is_good and finite:
            is_good = bool(np.isfinite(score))
        if not is_good or labels[0] not in ("0", "1"):
            raise ValueError(
                f"{path}, line {number}: expected `label enrol test "
                "score` (label 0 or 1, a finite score) or `enrol test "
                f"score`, the same on all lines; found {line!r}."
            )
        rows.append(fields)
    if not rows:
        raise ValueError(f"{path} has no scores. Run verify.py again.")
    *labels, enrol, test, scores = zip(*rows)
    names, index = np.unique([*enrol, *test], return_inverse=True)
    enrol, test = np.split(index.astype(np.int64), 2)
    trials = Trials(
        names.tolist(),
        enrol,
        test,
        np.array(labels[0], np.uint8) if labels else None,
        LABEL_FIRST if labels else NO_LABEL,
    )
    return Scored(trials, np.array(scores, np.float64))


def read_same(paths: Sequence[str]) -> tuple[Trials, np.ndarray]:
    """Reads the scores of one list by several models, a file each.

    Trials, labels and order must be the same. Gives the trials and float64
    scores [trials, models].
    """
    found = [read_scored(path) for path in paths]
    first = found[0].trials
    for path, (trials, _) in zip(paths[1:], found[1:]):
        labels = [list(_lines(own)) for own in (first, trials)]
        if labels[0] != labels[1]:
            pairs = enumerate(itertools.zip_longest(*labels), 1)
            line = next(number for number, (a, b) in pairs if a != b)
            raise ValueError(
                f"{paths[0]} and {path} are not scores of the same trials in "
                f"the same order: {len(labels[0])} and {len(labels[1])} "
                f"trials, the first difference at trial {line}. Run verify.py "
                "with the same list for each model."
            )
    return first, np.stack([own.scores for own in found], axis=1)


def pairs_of(trials: Trials) -> set[tuple[str, str]]:
    """Names of both sides of each trial, without order or repetition."""
    return {tuple(sorted(sides)) for *sides, _ in _lines(trials)}


def _lines(trials):
    """Names and label of each trial."""
    enrol, test = (
        [trials.files[index] for index in side]
        for side in (trials.enrol.tolist(), trials.test.tolist())
    )
    targets = trials.targets
    return zip(
        enrol, test, [None] * len(test) if targets is None else targets.tolist()
    )
