"""Runs each row of the recipe tables on tiny data, as a user would."""

import csv
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization

from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.inference import export
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.pseudo_labels.labels import note_labels, write_labels
from tests.nnet import tiny_transformer

ROOT = pathlib.Path(__file__).parents[2]
TABLES = sorted(pathlib.Path(__file__).parent.glob("*.csv"))

ENCODER = """\
compute_features: !new:speechbrain.lobes.features.Fbank
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 40
    channels: [8, 8, 8, 8, 24]
    lin_neurons: 6
"""


def table_rows():
    for table in TABLES:
        with open(table, newline="") as file:
            yield from csv.DictReader(file, skipinitialspace=True)


def place_labels(folder):
    """Adds pseudo-labels of the audio, and its speakers."""
    rows = [
        (f"s{s}/{n}.flac", 1.5, f"$data_root/s{s}/{n}.flac", 0, 24000)
        for s in range(4)
        for n in range(3)
    ]
    write_annotation(folder / "train.csv", rows)
    utterances = read_annotation(folder / "train.csv", folder / "audio")
    ids = list(utterances.ids())
    labels = [row % 4 for row in range(len(ids))]
    write_labels(folder / "labels", utterances, ids, labels, "none")
    speakers = [f"{name},{name.split('/')[0]}" for name in ids]
    (folder / "speakers.csv").write_text("\n".join(["ID,spk_id", *speakers]))


# what train_lmft.yaml says it goes on from, and the sizes of those encoders in
# place_runs; its rows have them too
RUNS = {
    "AudioFolder": (
        "train_dlg_lc.yaml",
        {
            "emb_dim": 16,
            "embedding_model": {"channels": [8, 8, 8, 8, 24]},
        },
    ),
    "VoxCeleb": (
        "train_wavlm_mhfa.yaml",
        {
            "emb_dim": 16,
            "pooling": {"layers": 3, "width": 32, "heads": 4, "compression": 8},
        },
    ),
}


def place_runs(folder):
    """Adds runs on the pseudo-labels, for train_lmft.yaml to go on from."""
    labels = str(folder / "labels" / "pseudo_labels.csv")
    for dataset, (before, sizes) in RUNS.items():
        run = folder / f"run_{dataset}"
        given = {
            **sizes,
            "data_folder": "x",
            "pseudo_labels": labels,
            "output_folder": str(run),
        }
        if dataset == "VoxCeleb":
            given["wavlm_source"] = tiny_transformer.write(folder / "wavlm")
        with open(ROOT / f"recipes/{dataset}/SSL/hparams" / before) as file:
            hparams = load_hyperpyyaml(file, given)
        speeds = len(hparams["view_sampler"].speeds)
        classifier = hparams["classifier"](classes=4 * speeds)
        hparams["checkpointer"].add_recoverable("classifier", classifier)
        hparams["checkpointer"].save_checkpoint()
        note_labels(str(run), labels)


def place_voxceleb(folder, rng):
    """Adds trees as VoxCeleb unpacks them, and the lists made of them."""
    trees = {
        "vox2": [f"dev/wav/id0001{n}" for n in (2, 4, 5, 6)],
        "vox1": [f"wav/id1027{n}" for n in (0, 1)],
    }
    for corpus, speakers in trees.items():
        for speaker in speakers:
            for video in ("5r0dWxy17C8", "_z_BR0ERa9g"):
                place = folder / corpus / speaker / video
                place.mkdir(parents=True)
                noise = 0.1 * rng.standard_normal(24000)
                soundfile.write(place / "00001.wav", noise, 16000)
    first, second = (
        [
            f"{speaker}/{video}/00001.wav"
            for video in ("5r0dWxy17C8", "_z_BR0ERa9g")
        ]
        for speaker in trees["vox1"]
    )
    (folder / "vox1_trials").mkdir()
    for name in "OEH":
        (folder / "vox1_trials" / f"vox1_{name}.txt").write_text(
            f"1 {first[0]} {first[1]}\n0 {first[0]} {second[1]}\n"
            f"1 {second[0]} {second[1]}\n"
        )


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """Audio of four 'speakers', a trial list and an untrained model."""
    folder = tmp_path_factory.mktemp("recipe rows é")
    rng = np.random.default_rng(0)
    lines = []
    for speaker in range(4):
        place = folder / "audio" / f"s{speaker}"
        place.mkdir(parents=True)
        for take in range(3):
            noise = 0.1 * rng.standard_normal(24000)
            soundfile.write(place / f"{take}.flac", noise, 16000)
        mine, other = f"audio/s{speaker}", f"audio/s{(speaker + 1) % 4}"
        lines += [f"1 {mine}/0.flac {mine}/1.flac"]
        lines += [f"0 {mine}/0.flac {other}/2.flac"]
    place_voxceleb(folder, rng)
    place_labels(folder)
    place_runs(folder)
    (folder / "trials").mkdir()
    (folder / "trials" / "list.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    encoder = ECAPA_TDNN(40, channels=[8] * 4 + [24], lin_neurons=6)
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    branch = Branch(Fbank(), norm, encoder)
    export(branch, ENCODER, str(folder / "model"))
    return folder


@pytest.mark.parametrize(
    "row",
    table_rows(),
    ids=lambda row: f"{row['Dataset']}-{pathlib.Path(row['Hparam_file']).stem}",
)
def test_row(row, sandbox):
    script = ROOT / row["Script_file"]
    flags = row["test_debug_flags"].replace("{tmp}", str(sandbox))
    flags = ["--" + flag.strip() for flag in re.split(r"(?:^| )--", flags)[1:]]
    command = [sys.executable, script.name, ROOT / row["Hparam_file"], *flags]
    done = subprocess.run(
        command, cwd=script.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (output,) = [f for f in flags if f.startswith("--output_folder=")]
    output = pathlib.Path(output.split("=", 1)[1])
    wanted = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])
    for name in wanted.group(1).split(","):
        assert (output / name).is_file(), name
