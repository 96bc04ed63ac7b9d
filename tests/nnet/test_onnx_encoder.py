"""ONNX files as encoders: ours, and those of other toolkits."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torchaudio.compliance import kaldi

from speechbrain_ssl.loading import load_encoder, start_from
from speechbrain_ssl.onnx import export_onnx
from speechbrain_ssl.pseudo_labels.extract import encoder_hash
from tests.models import branch_of, export_model

WAVS = 0.1 * torch.randn(3, 12000, generator=torch.Generator().manual_seed(0))


def write(path, input_name="feats", shape=("B", "T", 80), **about):
    """An ONNX file that gives mean features, as if they were embeddings."""
    entry = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("embs", TensorProto.FLOAT, None)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    # squares, as the features themselves have zero mean
    nodes = [
        helper.make_node("Mul", [input_name, input_name], ["squares"]),
        helper.make_node(
            "ReduceMean", ["squares", "axes"], ["embs"], keepdims=0
        ),
    ]
    graph = helper.make_graph(nodes, "mean", [entry], [out], [axes])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    helper.set_model_props(model, {k: str(v) for k, v in about.items()})
    onnx.save(model, str(path))
    return str(path)


def test_our_own_file_gives_the_embeddings_of_its_model(tmp_path):
    folder = export_model(tmp_path / "model")
    path = str(tmp_path / "encoder.onnx")
    export_onnx(folder, path)
    lengths = torch.tensor([1.0, 0.5, 1.0])
    wanted = torch.cat(
        [
            load_encoder(folder).encode_batch(wav[None, : int(12000 * n)])
            for wav, n in zip(WAVS, lengths)
        ]
    )
    found = load_encoder(path)
    assert found.audio_normalizer.sample_rate == 16000
    torch.testing.assert_close(
        found.encode_batch(WAVS, lengths), wanted, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    "name, about, window",
    [
        ("feats", {}, "hamming"),
        ("feature", {}, "povey"),
        ("x", {"framework": "wespeaker"}, "hamming"),
        ("x", {"framework": "3d-speaker"}, "povey"),
    ],
)
def test_features_are_those_of_the_toolkit(tmp_path, name, about, window):
    encoder = load_encoder(write(tmp_path / "a.onnx", name, **about))
    features = kaldi.fbank(
        WAVS[:1] * 2**15, num_mel_bins=80, window_type=window, dither=0.0
    )
    wanted = features.var(0, correction=0)
    found = encoder.encode_batch(WAVS)
    assert found.shape == (3, 1, 80)
    torch.testing.assert_close(found[0, 0], wanted, rtol=1e-4, atol=1e-4)


def test_the_sample_rate_of_the_file_counts(tmp_path):
    path = write(tmp_path / "a.onnx", sample_rate=8000)
    assert load_encoder(path).audio_normalizer.sample_rate == 8000


@pytest.mark.parametrize("shape", [("B", 40, "T", 1), ("B", "T", 40)])
def test_other_inputs_are_refused(tmp_path, shape):
    path = write(tmp_path / "a.onnx", shape=shape)
    with pytest.raises(ValueError, match="expected one input.*found"):
        load_encoder(path)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_text("no")
    with pytest.raises(ValueError, match="is no ONNX file"):
        load_encoder(str(tmp_path / "a.onnx"))
    with pytest.raises(FileNotFoundError, match="no ONNX file"):
        load_encoder(str(tmp_path / "b.onnx"))


def test_an_onnx_file_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="cannot be trained.*teacher"):
        start_from(branch_of(), write(tmp_path / "a.onnx"))


def test_another_file_has_another_hash(tmp_path):
    first = write(tmp_path / "a.onnx")
    second = write(tmp_path / "b.onnx", "feature")
    assert encoder_hash(first) != encoder_hash(second)
    assert encoder_hash(first) == encoder_hash(first)
