"""Telephone speech: 8 kHz from the features to the exported interface."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.features import Fbank

from speechbrain_ssl.cli.embed import embed
from speechbrain_ssl.cli.score import verify
from speechbrain_ssl.evaluation.metrics import eer
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import (
    check_sample_rate,
    load_encoder,
    start_from,
)
from speechbrain_ssl.nnet.branch import Branch
from tests.models import ENCODER, branch_of, export_model

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes/AudioFolder/SSL"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported encoder for 8 kHz."""
    return export_model(tmp_path_factory.mktemp("telephone") / "model", 8000)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Five voices of two tones, two files of each, and all pairs of files."""
    folder = tmp_path_factory.mktemp("calls")
    lines, files = [], []
    for voice in range(5):
        tones = np.random.default_rng(voice).uniform(100, 3900, 2)
        for take in range(2):
            noise = np.random.default_rng([voice, take]).normal(size=9000)
            time = np.arange(9000 - 600 * take) / 8000
            wav = np.sin(2 * np.pi * np.outer(tones, time)).sum(0)
            wav += 2 * noise[: len(time)]
            soundfile.write(folder / f"{voice}{take}.wav", 0.05 * wav, 8000)
            files.append(f"{voice}{take}.wav")
    for number, first in enumerate(files):
        for second in files[number + 1 :]:
            lines.append(f"{int(first[0] == second[0])} {first} {second}")
    (folder / "calls.txt").write_text("\n".join(lines))
    return folder / "calls.txt"


def script(name):
    path = RECIPES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"rate_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_eer_of_an_8_khz_export_is_that_of_stock_speechbrain(
    model, trials, tmp_path
):
    script("verify").main(
        [
            str(RECIPES / "hparams/verify.yaml"),
            f"--model_folder={model}",
            f"--trials={trials}",
            f"--output_folder={tmp_path}",
            "--device=cpu",
        ]
    )
    ours = json.loads((tmp_path / "calls/metrics.json").read_text())
    stock = EncoderClassifier.from_hparams(source=model, savedir=None)
    embeddings = {
        path.name: stock.encode_batch(stock.load_audio(str(path))).flatten()
        for path in trials.parent.glob("*.wav")
    }
    lines = [line.split() for line in trials.read_text().split("\n")]
    scores = [
        float(torch.cosine_similarity(embeddings[a], embeddings[b], 0))
        for _, a, b in lines
    ]
    found = np.loadtxt(tmp_path / "calls/scores.txt", usecols=3)
    np.testing.assert_allclose(found, scores, atol=1e-5)
    labels = np.array([int(label) for label, *_ in lines])
    rate, _ = eer(np.array(scores), labels)
    assert 0 < rate < 1 and ours["raw"]["EER"] == pytest.approx(100 * rate)


def test_verify_and_embed_read_audio_at_the_rate_of_the_model(
    model, trials, tmp_path
):
    first, second = (
        str(trials.parent / f"{name}.wav") for name in ("00", "01")
    )
    encoder = load_encoder(model)
    assert encoder.audio_normalizer.sample_rate == 8000
    embeddings = [
        encoder.encode_batch(torch.from_numpy(soundfile.read(path)[0]).float())
        for path in (first, second)
    ]
    expected = torch.cosine_similarity(*(e.flatten() for e in embeddings), 0)
    found = verify(model, first, second, device="cpu")
    assert found.score == pytest.approx(float(expected), abs=1e-5)
    table = embed(model, str(trials.parent), str(tmp_path), device="cpu")
    row = torch.tensor(table.matrix[table.ids.index("00.wav")])
    similarity = torch.cosine_similarity(row, embeddings[0].flatten(), 0)
    assert similarity > 0.99999


def test_the_card_names_the_rate(model):
    card = pathlib.Path(model, "README.md").read_text()
    assert "8000 Hz" in card and "16000" not in card


def test_windows_and_filters_follow_the_rate(model):
    features = load_encoder(model).mods.compute_features
    stft, filters = features.compute_STFT, features.compute_fbanks
    assert (stft.win_length, stft.hop_length) == (200, 80)  # 25 and 10 ms
    assert (filters.sample_rate, filters.f_max) == (8000, 4000)


def test_features_of_another_rate_are_refused(tmp_path):
    text = ENCODER.replace("<sample_rate>", "<rate>")
    text = f"rate: 16000\nsample_rate: 8000\n{text}"
    hparams = load_hyperpyyaml(text)
    parts = ("compute_features", "mean_var_norm", "embedding_model")
    branch = Branch(*(hparams[part] for part in parts))
    with pytest.raises(ValueError, match="8000, but STFT is built for 16000"):
        export(branch, text, str(tmp_path / "model"))
    assert not list(tmp_path.iterdir())


def test_training_starts_from_a_model_of_the_same_rate_only(model):
    for rate in (8000, 16000):
        branch = branch_of(f"sample_rate: {rate}\n{ENCODER}")
        if rate == 8000:
            start_from(branch, model)
            continue
        with pytest.raises(ValueError, match="model .* is for audio at 8000"):
            start_from(branch, model)


def test_a_window_that_is_longer_than_the_fft_is_named():
    with pytest.raises(ValueError, match="n_fft .* to 1200 or more"):
        check_sample_rate([Fbank(sample_rate=48000)], 48000)
    check_sample_rate([Fbank(sample_rate=48000, n_fft=1200)], 48000)


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(ROOT.glob("recipes/*/*/hparams/train_*"))
        if not path.stem.endswith("_face")
    ],
    ids=lambda p: p.stem,
)
def test_every_training_yaml_hands_its_rate_to_the_encoder(path):
    tree = YAML().load(path.read_text())
    first = tree["compute_features"]
    for name in ("wavlm", "transformer"):
        first = tree.get(name, first)
    assert first["sample_rate"].value == "<sample_rate>"
