"""WavLM, from labels to large margins to stock SpeechBrain, as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.dataio.annotations import COLUMNS, write_annotation
from tests.nnet import tiny_transformer
from tests.recipes.scripts import run_script
from tests.test_exported_wavlm import PROGRAM

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/VoxCeleb/SSL"
SMALL = [
    "--batch_size=4",
    "--num_workers=0",
    "--emb_dim=16",
    "--pooling={layers: 3, width: 32, heads: 4, compression: 8}",
    "--view_sampler={global_seconds: 0.5}",
    "--average_last=1",
    "--noprogressbar",
]


def call(script, hparams, **settings):
    flags = [f"--{key}={value}" for key, value in settings.items()]
    flags += SMALL if script == "train_pseudo_labels.py" else []
    run_script(RECIPE / script, RECIPE / f"hparams/{hparams}.yaml", *flags)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Twelve voices of noise; labels, DLG-LC, new labels, large margins."""
    folder = tmp_path_factory.mktemp("chain")
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir()
    for number in range(12):
        noise = 0.1 * rng.standard_normal(16000)
        noise = np.convolve(noise, np.ones(1 + number % 4), "same")
        soundfile.write(folder / f"audio/{number}.wav", noise, 16000)
    wavlm = tiny_transformer.write(folder / "wavlm")
    data = {"data_folder": folder / "audio"}
    train = {**data, "wavlm_source": wavlm, "number_of_epochs": 2}
    # any labels do to make the first encoder
    labels = folder / "first"
    labels.mkdir()
    rows = [
        (f"{n}.wav", 1.0, f"$data_root/{n}.wav", 0, 16000) for n in range(12)
    ]
    write_annotation(folder / "train.csv", rows)
    rows = [
        {**dict(zip(COLUMNS, row)), "spk_id": n % 4}
        for n, row in enumerate(rows)
    ]
    write_annotation(labels / "pseudo_labels.csv", rows, extra=("spk_id",))
    for name, hparams, given in (
        ("start", "train_wavlm_mhfa", {}),
        (
            "dlg_lc",
            "train_wavlm_mhfa",
            {"loss": "{gate_from: 1, correct_from: 1}"},
        ),
        ("lmft", "train_lmft", {"continue_from": folder / "dlg_lc"}),
    ):
        call(
            "train_pseudo_labels.py",
            hparams,
            pseudo_labels=labels / "pseudo_labels.csv",
            output_folder=folder / name,
            **train,
            **given,
        )
        if name == "start":
            labels = folder / "labels"
            call(
                "make_pseudo_labels.py",
                "pseudo_labels",
                model_folder=folder / "start/model",
                output_folder=labels,
                train_annotation=folder / "train.csv",
                clusterer="{n_clusters: 4, fine_clusters: 8}",
                min_size=1,
                **data,
            )
    return folder


def test_large_margins_go_on_from_the_run_before(chain):
    first, second = (
        json.loads((chain / name / "trained_on.json").read_text())
        for name in ("dlg_lc", "lmft")
    )
    assert first["hash"] == second["hash"]
    settings = (chain / "lmft/hyperparams.yaml").read_text()
    assert load_hyperpyyaml(settings)["loss"].aam.margin == 0.5
    before, after = (
        torch.load(chain / name / "model/embedding_model.ckpt")
        for name in ("dlg_lc", "lmft")
    )
    names = {n for n in before if not torch.equal(before[n], after[n])}
    assert names and not any("feature_extractor" in name for name in names)


def test_stock_speechbrain_gives_the_embeddings_of_the_last_run(chain):
    settings = (chain / "lmft/hyperparams.yaml").read_text()
    hparams = load_hyperpyyaml(settings)
    hparams["checkpointer"].recover_if_possible()
    wavs, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([0.7, 1.0])
    with torch.no_grad():
        wanted = hparams["encoder"].eval().embed(wavs, lengths)
    torch.save((wavs, lengths), chain / "wavs.pt")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "wavs.pt", chain / "lmft/model"],
        check=True,
        cwd=chain,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
    )
    (found,) = torch.load(chain / "wavs.pt")
    assert torch.allclose(found.flatten(1), wanted, atol=1e-5)
