"""An ONNX file is the encoder, features included."""

import os
import shutil
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.processing.features import STFT

from speechbrain_ssl import onnx as module
from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.cli.score import threshold_of
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import ENCODER_KEYS, load_encoder
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.onnx import ConvolvedSTFT, Encoder, export_onnx, main
from tests.models import export_model
from tests.nnet.test_transformer import written
from tests.test_exported_wavlm import POOLINGS, RUN


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported folder."""
    folder = export_model(tmp_path_factory.mktemp("onnx") / "model", 8000)
    suggest_threshold(folder, {"threshold": 0.25, "EER": 5.0}, "list.txt")
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_fft": 512}, {"win_length": 20, "hop_length": 16, "n_fft": 401}],
)
def test_the_convolution_is_the_stft(settings):
    stft = STFT(sample_rate=16000, **settings)
    wavs = torch.randn(2, 5001)
    expected = stft(wavs)
    found = ConvolvedSTFT(stft)(wavs)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4)


def test_an_stft_with_other_borders_is_refused():
    with pytest.raises(ValueError, match="zeros at the borders"):
        ConvolvedSTFT(STFT(sample_rate=16000, pad_mode="reflect"))


def test_the_module_to_export_gives_the_models_embeddings(model):
    encoder = load_encoder(model)
    stft = encoder.mods.compute_features.compute_STFT
    copy = Encoder(encoder.mods, 1600).eval()
    wavs = torch.randn(3, 9876) * torch.linspace(0, 0.1, 9876)
    with torch.no_grad():
        found = copy(wavs)
    expected = encoder.encode_batch(wavs)[:, 0]
    assert torch.allclose(found, expected, atol=1e-4)
    # the model itself stays as it was
    assert encoder.mods.compute_features.compute_STFT is stft


def test_onnxruntime_gives_the_embeddings_for_any_length_and_batch(
    model, tmp_path, capsys
):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "out" / "encoder.onnx"
    main([model, str(path)])
    assert "differs" in capsys.readouterr().out
    assert os.listdir(path.parent) == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("waveforms", ["batch", "time"])
    assert (made.name, made.shape) == ("embeddings", ["batch", 6])
    assert session.get_modelmeta().custom_metadata_map == {
        "sample_rate": "8000",
        "emb_dim": "6",
        "threshold": "0.25",
    }
    assert threshold_of(str(path), load_encoder(str(path))) == 0.25
    encoder = load_encoder(model)
    for batch, length in ((1, 800), (1, 8000), (4, 12345), (2, 48001)):
        # loudness that falls by 80 dB, as in recordings
        wavs = torch.randn(batch, length) * torch.logspace(-5, -1, length)
        (found,) = session.run(None, {"waveforms": wavs.numpy()})
        expected = encoder.encode_batch(wavs)[:, 0]
        assert found.shape == (batch, 6)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
    # shorter audio is repeated, as by try_files
    for length in (400, 200, 1):
        wavs = torch.randn(1, length)
        (found,) = session.run(None, {"waveforms": wavs.numpy()})
        expected = encoder.encode_batch(wavs.repeat(1, 800)[:, :800])[:, 0]
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["w2v_bert large"])
def test_transformers_are_exported_with_their_features(tmp_path, capfd, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    text = RUN.format(
        source=written(tmp_path, kind), pooling=POOLINGS["mhfa"]
    ).replace("gradient_checkpointing: True", "gradient_checkpointing: False")
    hparams = load_hyperpyyaml(text)
    branch = Branch(*(hparams[key] for key in ENCODER_KEYS))
    folder = export(branch, text, str(tmp_path / "model"))
    path = str(tmp_path / "encoder.onnx")
    capfd.readouterr()
    main([folder, path])
    out, _ = capfd.readouterr()
    assert len(out.splitlines()) == 1
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    wavs = 0.1 * torch.randn(2, 12345)
    (found,) = session.run(None, {"waveforms": wavs.numpy()})
    expected = branch.eval().embed(wavs)
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


class Loud(torch.nn.Identity):
    """Depends on its input in a way that ONNX cannot express."""

    def forward(self, wavs):
        return wavs * (2 if wavs.sum() > 0 else 1)


def test_a_model_that_onnx_cannot_express_gives_one_line(
    model, tmp_path, capfd
):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    yaml = folder / "hyperparams.yaml"
    text = yaml.read_text()
    name = f"{Loud.__module__}.Loud"
    yaml.write_text(
        text.replace(
            "    compute_features: !ref <compute_features>",
            "    compute_features: !new:torch.nn.Sequential\n"
            f"    - !new:{name}\n    - !ref <compute_features>",
        )
    )
    with pytest.raises(SystemExit) as error:
        main([str(folder), str(tmp_path / "x.onnx"), f"--trust={name}"])
    message = str(error.value)
    assert "cannot express this model in ONNX" in message
    assert "\n" not in message and "".join(capfd.readouterr()) == ""
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_that_is_not_the_model_is_not_kept(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def write(*args):
        path = args[-1]
        with open(path, "wb") as file:
            file.write(b"x")

    monkeypatch.setattr(module, "_write", write)
    monkeypatch.setattr(module, "_compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(model, str(tmp_path / "encoder.onnx"))
    assert os.listdir(tmp_path) == []


def test_other_embeddings_are_an_error(model, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, inputs):
            return (torch.zeros(len(inputs["waveforms"]), 6).numpy(),)

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    with pytest.raises(ValueError, match="gives other embeddings"):
        module._compare(load_encoder(model), 16000, "x.onnx")


def test_a_missing_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match=r"speechbrain_ssl\[onnx\]"):
        main([model, str(tmp_path / "encoder.onnx")])


def test_a_folder_that_is_no_model_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(SystemExit, match="not an exported model"):
        main([str(tmp_path), str(tmp_path / "encoder.onnx")])


def test_a_pipe_is_not_replaced_by_the_file(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(module, "_write", lambda *args: open(args[-1], "w"))
    monkeypatch.setattr(module, "_compare", lambda *_: 0.0)
    with pytest.raises(OSError, match="pipe is no regular file"):
        export_onnx(model, str(tmp_path / "pipe"))
    assert not (tmp_path / "pipe").is_file()
