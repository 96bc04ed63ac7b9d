"""Learning on real speech, and this project's figures against another's.

SPEECHBRAIN_SSL_REAL_SPEECH names a folder with train/, noise/, rir/ and
trials/wild.txt, trials/clean.txt.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

ROOT = pathlib.Path(__file__).parents[1]
REAL = os.environ.get("SPEECHBRAIN_SSL_REAL_SPEECH")

pytestmark = [
    pytest.mark.skipif(
        not REAL, reason="SPEECHBRAIN_SSL_REAL_SPEECH names no folder of speech"
    ),
    pytest.mark.timeout(2400),  # the first one trains
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six epochs of SimCLR, from the command a user types."""
    folder = tmp_path_factory.mktemp("real speech")
    subprocess.run(
        [
            *(sys.executable, "demo.py", "--output_folder", folder),
            *("--data_folder", f"{REAL}/train"),
            *("--noise_folder", f"{REAL}/noise"),
            *("--rir_folder", f"{REAL}/rir"),
            *(
                "--trials",
                f"{REAL}/trials/wild.txt",
                f"{REAL}/trials/clean.txt",
            ),
            *("--number_of_epochs", "6"),
        ],
        check=True,
        cwd=ROOT / "recipes/AudioFolder/SSL",
    )
    return folder


def test_two_minutes_of_training_lower_the_wild_eer(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["wild"]["EER"] > 42
    assert summary["after"]["wild"]["EER"] < 38
    assert summary["after"]["clean"]["EER"] < summary["before"]["clean"]["EER"]
    assert summary["warnings"] == []
    assert (run / "report.html").stat().st_size > 10_000


def test_a_round_of_pseudo_labels_keeps_what_was_learnt(run):
    summary = json.loads((run / "rounds/summary.json").read_text())
    assert summary["finished"]
    start, labels, train, end = summary["stages"]
    assert 100 < labels["clusters"] < 837
    assert 0 < train["selected"] <= 1
    before, after = (row["lists"]["wild"]["EER"] for row in (start, end))
    # the interval of an EER on this list is about two points to each side
    assert after < before + 1.0


def test_scores_on_disk_give_the_same_eer_to_scikit_learn(run):
    folder = run / "verification/after/wild"
    rows = [line.split() for line in open(folder / "scores.txt")]
    labels = np.array([int(row[0]) for row in rows])
    scores = np.array([float(row[-1]) for row in rows])
    false_alarm, hit, _ = sklearn.metrics.roc_curve(
        labels, scores, drop_intermediate=False
    )
    point = np.argmin(np.abs(1 - hit - false_alarm))
    expected = 50 * (1 - hit[point] + false_alarm[point])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["raw"]["EER"] == pytest.approx(expected, abs=0.01)
