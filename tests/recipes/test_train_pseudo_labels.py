"""Labels and settings that do not fit are refused before the first batch."""

import importlib.util
import pathlib
import shutil
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain
from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.labels import write_labels

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"
SMALL = [
    "--number_of_epochs=1",
    "--batch_size=4",
    "--emb_dim=16",
    "--embedding_model={channels: [8, 8, 8, 8, 24]}",
    "--noprogressbar",
]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RECIPE))
    path = RECIPE / "train_pseudo_labels.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(RECIPE))


@pytest.fixture
def run(script, tmp_path):
    """Runs the script on eight noises in two clusters."""
    rng = np.random.default_rng(0)
    rows = [(f"{n}", 1.0, f"$data_root/{n}.wav", 0, 16000) for n in range(8)]
    for name, *_ in rows:
        noise = 0.1 * rng.standard_normal(16000)
        soundfile.write(tmp_path / f"{name}.wav", noise, 16000)
    write_annotation(tmp_path / "train.csv", rows)
    utterances = read_annotation(tmp_path / "train.csv", str(tmp_path))
    ids = list(utterances.ids())
    for name, labels in (("a", [0, 1] * 4), ("b", [0, 0, 1, 1] * 2)):
        folder = str(tmp_path / name)
        write_labels(folder, utterances, ids, labels, "of a")

    def call(*flags, method="dlg_lc", labels="a"):
        script.main(
            [
                str(RECIPE / f"hparams/train_{method}.yaml"),
                f"--data_folder={tmp_path}",
                f"--pseudo_labels={tmp_path}/{labels}/pseudo_labels.csv",
                f"--output_folder={tmp_path}/out",
                *SMALL,
                *flags,
            ]
        )
        return tmp_path / "out"

    return call


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--view_sampler={clean_views: False}", "clean_views"),
        ("--view_sampler={local_crops: 2}", "one global crop"),
        ("--gate=0.5", "gate must be"),
        ("--centroid_start=maybe", "centroid_start"),
        ("--select_by=EER", "dev_trials"),
        ("--init_from=nowhere", "nowhere"),
        ("--train_annotation={}/less.csv", "not in the training set"),
    ],
)
def test_what_does_not_fit_is_named(run, tmp_path, flag, message):
    rows = [("0", 1.0, "$data_root/0.wav", 0, 16000)]
    write_annotation(tmp_path / "less.csv", rows)
    with pytest.raises((ValueError, OSError), match=message):
        run(flag.replace("{}", str(tmp_path)))


def test_a_run_does_not_go_on_with_other_labels(run):
    out = run()
    assert (out / "model/embedding_model.ckpt").is_file()
    assert (out / "gate.jsonl").is_file()
    with pytest.raises(ValueError, match="other labels"):
        run(labels="b")


def test_centers_start_at_means_where_the_encoder_has_a_start(
    run, monkeypatch, tmp_path
):
    calls = []
    monkeypatch.setattr(
        PseudoLabelBrain, "_start_from_centroids", lambda *_: calls.append(1)
    )
    out = run()
    assert not calls
    shutil.move(out / "model", tmp_path / "start")
    shutil.rmtree(out)
    run(f"--init_from={tmp_path}/start")
    assert len(calls) == 1


def test_held_out_utterances_have_no_class(run, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    for number in range(8, 30):
        noise = 0.1 * rng.standard_normal(16000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
    rows = [(f"{n}", 1.0, f"$data_root/{n}.wav", 0, 16000) for n in range(30)]
    write_annotation(tmp_path / "train.csv", rows)
    utterances = read_annotation(tmp_path / "train.csv", str(tmp_path))
    folder, ids = str(tmp_path / "c"), list(utterances.ids())
    classes = [n % 15 for n in range(30)]
    write_labels(folder, utterances, ids, classes, "of c")
    brains = []
    monkeypatch.setattr(
        PseudoLabelBrain, "fit", lambda brain, *_, **__: brains.append(brain)
    )
    run("--selfcheck_share=0.7", method="ungated", labels="c")
    labels, check = brains[0].labels, brains[0].hparams.selfcheck
    kept = list(labels.utterances.ids())
    assert len(kept) == 9
    assert not set(kept) & set(check.ids)
    expected = np.unique([int(name) % 15 for name in kept])
    assert labels.names.tolist() == expected.tolist()
    assert labels.count == len(expected)
    names = labels.names[labels.classes].tolist()
    assert names == [int(name) % 15 for name in kept]
