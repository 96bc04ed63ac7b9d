"""Scores of several models become one log-likelihood ratio."""

import json

import numpy as np
import pytest

from speechbrain_ssl.cli import fuse as module
from speechbrain_ssl.cli.fuse import fuse, main
from speechbrain_ssl.evaluation.fusion import read_scored


def write_scores(path, names, targets, scores):
    """A file of scores as verify.py writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = (
        [""] * len(names) if targets is None else [f"{t}\t" for t in targets]
    )
    path.write_text(
        "".join(
            f"{label}{name} x/1.wav\ttest {name}.wav\t{score:.9g}\n"
            for label, name, score in zip(labels, names, scores)
        )
    )
    return str(path)


@pytest.fixture
def lists(tmp_path):
    """Two models on a calibration list and a list of other speakers."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, size in (("dev", 600), ("test", 400)):
        targets = rng.integers(0, 2, size)
        # with independent errors, so that both together are better
        scores = targets[:, None] * [1.0, 0.5] + rng.normal(size=(size, 2)) * [
            0.7,
            0.4,
        ]
        names = [f"{name}{n}" for n in range(size)]
        for model in (0, 1):
            place = tmp_path / f"{'AB'[model]}/{name}/scores.txt"
            write_scores(place, names, targets, scores[:, model])
            paths.setdefault(name, []).append(str(place))
    return paths


def test_the_fused_list_is_better_than_each_model(lists, tmp_path, capsys):
    out = tmp_path / "fused"
    flags = ["--calibration", *lists["dev"], "--scores", *lists["test"]]
    main([*flags, f"--output_folder={out}"])
    found = json.loads((out / "metrics.json").read_text())
    alone = [model["EER"] for model in found["models"]]
    assert found["fused"]["EER"] < min(alone)
    assert found["fused"]["Cllr"] < 1.1 * found["fused"]["minCllr"]
    assert found["shared_trials"] == 0
    assert "600 trials" in found["label_use"]
    printed = capsys.readouterr().out
    assert "weight" in printed and "labels of the calibration" in printed
    weights = [model["weight"] for model in found["models"]]
    columns = [read_scored(path).scores for path in lists["test"]]
    fused = read_scored(out / "scores.txt")
    assert fused.trials.files[0] == "test test0.wav"
    np.testing.assert_allclose(
        fused.scores,
        np.stack(columns, 1) @ weights + found["offset"],
        rtol=1e-6,
    )


def test_a_byte_order_mark_is_no_label(lists):
    before = read_scored(lists["dev"][0])
    text = open(lists["dev"][0]).read()
    with open(lists["dev"][0], "w", encoding="utf-8-sig") as file:
        file.write(text)
    assert read_scored(lists["dev"][0]).trials.files == before.trials.files


def test_a_list_without_labels_gets_scores(lists, tmp_path):
    for path in lists["test"]:
        lines = open(path).read().splitlines()
        with open(path, "w") as file:
            file.writelines(line.split("\t", 1)[1] + "\n" for line in lines)
    found = fuse(lists["dev"], lists["test"], str(tmp_path / "out"))
    assert found["fused"] == {"EER": None, "trials": 400, "files": 800}
    assert read_scored(tmp_path / "out/scores.txt").trials.targets is None


def test_trials_of_the_calibration_list_are_counted_or_refused(
    lists, tmp_path, caplog
):
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="those of training data"):
        fuse(lists["dev"], lists["dev"], out)
    for dev, test in zip(lists["dev"], lists["test"]):
        label, enrol, other, score = open(dev).readline().split("\t")
        with open(test, "a") as file:  # a pair has no order
            file.write("\t".join([label, other, enrol, score]))
    found = fuse(lists["dev"], lists["test"], out)
    assert found["shared_trials"] == 1
    assert "1 of 401 trials are in the calibration" in caplog.text


def test_files_that_do_not_fit_are_named(lists, tmp_path):
    a, b = lists["dev"]
    lines = open(b).read().splitlines(keepends=True)
    swapped = tmp_path / "swapped.txt"
    swapped.write_text("".join([*lines[:5], lines[6], lines[5], *lines[7:]]))
    short = tmp_path / "short.txt"
    short.write_text("".join(lines[:9]))
    broken = tmp_path / "broken.txt"
    broken.write_text("1\ta\tb\t0.5\n1\ta\tc\tnan\n")
    flat = write_scores(tmp_path / "flat.txt", ["a", "b"], [0, 1], [2, 2])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "wide.txt").write_text("1 a b 0.5\n", encoding="utf-16")
    for calibration, message in (
        ([a, str(swapped)], "first difference at trial 6"),
        ([a, str(short)], "600 and 9 trials, the first difference at trial 10"),
        ([a, str(broken)], "broken.txt, line 2: expected .* a finite score"),
        ([a, str(tmp_path / "empty.txt")], "empty.txt has no scores"),
        ([a, str(tmp_path / "wide.txt")], "wide.txt is no file of scores"),
        ([flat, flat], r"model 1 are all equal \(2\)"),
        ([a], "two models or more"),
        ([a, f"{tmp_path}/no.txt"], "no.txt"),
    ):
        with pytest.raises(SystemExit, match=f"fuse: .*{message}"):
            flags = ["--calibration", *calibration, "--scores", *lists["test"]]
            main([*flags, f"--output_folder={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


def test_the_calibration_list_needs_labels(tmp_path):
    path = write_scores(tmp_path / "a.txt", ["a", "b"], None, [0.1, 0.2])
    with pytest.raises(ValueError, match="a.txt has no labels"):
        module.fuse([path, path], [path, path], str(tmp_path))
