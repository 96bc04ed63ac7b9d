"""Weights of the fusion, and the files of scores that it reads."""

import numpy as np
import pytest
from scipy.optimize import minimize

from speechbrain_ssl.evaluation.fusion import (
    Fusion,
    pairs_of,
    read_same,
    read_scored,
)


def test_weights_minimize_the_balanced_logistic_loss():
    rng = np.random.default_rng(1)
    targets = np.r_[np.ones(900), np.zeros(2100)].astype(int)
    scores = targets[:, None] * [2.0, 30.0] + rng.normal(size=(3000, 2)) * [
        1.0,
        20.0,
    ]
    fusion = Fusion().fit(scores, targets)

    def loss(parameters):
        llr = scores @ parameters[:2] + parameters[2]
        return (
            np.logaddexp(0, -llr[targets == 1]).mean()
            + np.logaddexp(0, llr[targets == 0]).mean()
        )

    found = minimize(loss, np.zeros(3), method="Nelder-Mead", tol=1e-9)
    # scikit-learn's penalty is small beside 3000 trials
    np.testing.assert_allclose(
        [*fusion.weights, fusion.offset], found.x, rtol=0.02
    )


def test_one_label_alone_cannot_teach_weights():
    with pytest.raises(ValueError, match="found 3 targets among 3 trials"):
        Fusion().fit(np.eye(3), [1, 1, 1])


def test_scores_are_read_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("1\tb c\ta\t0.5\n\n0\ta\td\t-1e-3\n")
    trials, scores = read_scored(path)
    assert trials.files == ["a", "b c", "d"]
    assert trials.enrol.tolist() == [1, 0] and trials.test.tolist() == [0, 2]
    assert trials.targets.tolist() == [1, 0] and scores.tolist() == [0.5, -1e-3]
    assert pairs_of(trials) == {("a", "b c"), ("a", "d")}


def test_scores_that_are_not_finite_are_read_if_wanted(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("1 a b 0.5\n0 a c nan\n")
    assert np.isnan(read_scored(path, finite=False).scores).tolist() == [0, 1]


@pytest.mark.parametrize(
    "line", ["2 a b 0.5", "a b 0.5", "1 a b", "1 a b inf", "1 a b c 0.5"]
)
def test_a_line_of_another_kind_is_named(tmp_path, line):
    path = tmp_path / "scores.txt"
    path.write_text(f"1 a b 0.5\n{line}\n")
    with pytest.raises(ValueError, match="scores.txt, line 2: expected"):
        read_scored(path)


def test_other_labels_are_other_trials(tmp_path):
    for name, label in (("a", 1), ("b", 0)):
        (tmp_path / name).write_text(f"1 x y 0.5\n{label} x z 0.1\n")
    with pytest.raises(ValueError, match="first difference at trial 2"):
        read_same([tmp_path / "a", tmp_path / "b"])
    _, scores = read_same([tmp_path / "a"] * 2)
    assert scores.tolist() == [[0.5, 0.5], [0.1, 0.1]]
