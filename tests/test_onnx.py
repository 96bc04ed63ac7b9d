"""An ONNX file is the encoder, features included."""

import os
import sys

import pytest
import torch
from speechbrain.processing.features import STFT

from speechbrain_ssl import onnx as module
from speechbrain_ssl.inference import load_encoder
from speechbrain_ssl.onnx import ConvolvedSTFT, Encoder, export_onnx, main
from tests.models import export_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported folder."""
    return export_model(tmp_path_factory.mktemp("onnx") / "model")


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
    copy = Encoder(encoder.mods).eval()
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
    assert (given.name, made.name) == ("waveforms", "embeddings")
    encoder = load_encoder(model)
    for batch, length in ((1, 1600), (1, 16000), (4, 12345), (2, 48001)):
        # loudness that falls by 80 dB, as in recordings
        wavs = torch.randn(batch, length) * torch.logspace(-5, -1, length)
        (found,) = session.run(None, {"waveforms": wavs.numpy()})
        expected = encoder.encode_batch(wavs)[:, 0]
        assert found.shape == (batch, 6)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_a_file_that_is_not_the_model_is_not_kept(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def write(encoder, rate, path):
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
