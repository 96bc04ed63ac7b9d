"""Speaker labels are used where they are given, and it is said that they are."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.pseudo_labels.labels import read_labels

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RECIPE))
    path = RECIPE / "train_supervised.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(RECIPE))


@pytest.fixture
def run(script, tmp_path):
    """Runs the script on ten noises of five speakers, one of them unknown."""
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / f"audio/{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(16000), 16000)
    rows = [f"{n},voice{n % 5}" for n in range(10) if n % 5]
    path = tmp_path / "speakers.csv"
    path.write_text("\n".join(["ID,speaker", *rows]))

    def call(*flags):
        script.main(
            [
                str(RECIPE / "hparams/train_supervised.yaml"),
                f"--data_folder={tmp_path}/audio",
                f"--speakers={path}",
                f"--output_folder={tmp_path}/out",
                "--number_of_epochs=1",
                "--batch_size=4",
                "--emb_dim=16",
                "--embedding_model={channels: [8, 8, 8, 8, 24]}",
                "--noprogressbar",
                *flags,
            ]
        )
        return tmp_path / "out"

    return call


def labels_of(out):
    return read_labels(out / "labels/pseudo_labels.csv", out.parent / "audio")


def test_the_labels_are_the_speakers(run):
    labels = labels_of(run())
    ids = [int(name.split(".")[0]) for name in labels.utterances.ids()]
    assert sorted(ids) == [1, 2, 3, 4, 6, 7, 8, 9]
    groups = {}
    for name, label in zip(ids, labels.classes):
        groups.setdefault(label, set()).add(name % 5)
    assert sorted(map(list, groups.values())) == [[1], [2], [3], [4]]


def test_the_model_says_which_labels_it_was_trained_on(run):
    out = run("--label_share=0.5")
    card = (out / "model/README.md").read_text()
    assert "of 2 of 4 speakers were trained on (4 of 10 utterances)" in card
    assert "without" not in card.split("## Threshold")[0]
    found = json.loads((out / "labels/report.json").read_text())["speakers"]
    assert (found["known"], found["speakers"]) == (2, 4)
    assert labels_of(out).count == 2


def test_a_run_does_not_go_on_with_other_labels(run):
    out = run("--label_share=0.5")
    before = (out / "labels/pseudo_labels.csv").read_bytes()
    with pytest.raises(ValueError, match="share: was 0.5, is 1.0"):
        run("--label_share=1.0")
    with open(out.parent / "speakers.csv", "a") as file:
        file.write("\n0,voice1")
    with pytest.raises(ValueError, match="content: was .*, is "):
        run("--label_share=0.5")
    path = out / "labels/report.json"
    report = json.loads(path.read_text())
    del report["speakers"]["content"]  # as an earlier version wrote it
    path.write_text(json.dumps(report))
    run("--label_share=0.5")
    assert (out / "labels/pseudo_labels.csv").read_bytes() == before


@pytest.mark.parametrize("share", [0, 1.5, 0.25])
def test_shares_that_leave_no_two_speakers_are_refused(run, share):
    with pytest.raises(ValueError, match="label_share"):
        run(f"--label_share={share}")


def test_fewer_known_speakers_are_part_of_more(script):
    speakers = np.repeat(np.arange(40), 3)
    parts = [
        set(script.known_speakers(speakers, share, seed=7))
        for share in (0.1, 0.25, 0.5, 1.0)
    ]
    assert [len(part) for part in parts] == [4, 10, 20, 40]
    assert parts[0] < parts[1] < parts[2] < parts[3]
    others = set(script.known_speakers(speakers, 0.25, seed=8))
    assert others != parts[1]
