"""Sources of an adaptation, their YAML, and the choice of a model."""

import pathlib

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl import adaptation
from speechbrain_ssl.card import read_card
from speechbrain_ssl.dataio.annotations import write_annotation
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import load_encoder, start_from
from tests import hub_layouts
from tests.models import export_model
from tests.nnet import tiny_transformer

ROOT = pathlib.Path(__file__).parents[1]
TEMPLATE = ROOT / "recipes/AudioFolder/Adapt/hparams/train_adapt.yaml"
WAVS = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([1.0, 0.6])


def stock(folder):
    """SpeechBrain's own loading, with the files of the folder."""
    return EncoderClassifier.from_hparams(
        folder, savedir=None, overrides={"pretrained_path": str(folder)}
    )


def embed(encoder):
    """Embeddings [2, emb_dim]."""
    # SpeechBrain's x-vector adds noise of 1e-5 to its means, also when it
    # only evaluates
    torch.manual_seed(0)
    return encoder.encode_batch(WAVS, LENGTHS).flatten(1)


@pytest.mark.parametrize("name", hub_layouts.NETWORKS)
def test_embeddings_of_a_source_are_those_of_speechbrain(tmp_path, name):
    folder = hub_layouts.write(tmp_path / "user/name", name)
    wanted = embed(stock(folder))
    loaded = embed(load_encoder(folder))
    torch.testing.assert_close(loaded, wanted, rtol=0, atol=1e-5)

    source = adaptation.find_source(folder)
    assert source.kind == adaptation.ENCODER
    assert (source.name, source.license) == ("name", "apache-2.0")
    start = str(tmp_path / "start")
    adaptation.write_start(source, start)
    found = embed(EncoderClassifier.from_hparams(start, savedir=None))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", hub_layouts.NETWORKS)
def test_training_has_the_encoder_of_its_source(tmp_path, name):
    folder = hub_layouts.write(tmp_path / "model", name, classifier=False)
    start = str(tmp_path / "start")
    adaptation.write_start(adaptation.find_source(folder), start)
    text = adaptation.training_yaml(TEMPLATE.read_text(), start)
    given = {
        "data_folder": "x",
        "pseudo_labels": "x",
        "output_folder": str(tmp_path / "out"),
    }
    hparams = load_hyperpyyaml(text, given)
    branch = hparams["encoder"]
    start_from(branch, start)
    wanted = embed(load_encoder(folder))
    torch.manual_seed(0)
    with torch.no_grad():
        found = branch.eval().embed(WAVS, LENGTHS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert hparams["emb_dim"] == 12
    # all else is the template's
    changed = adaptation.training_yaml(text, start)
    assert changed == text
    resolved = resolve_references(text, given).getvalue()
    export(branch, resolved, str(tmp_path / "exported"))


def test_a_source_for_another_rate_is_trained_at_that_rate(tmp_path):
    source = adaptation.find_source(export_model(tmp_path / "a", 8000))
    adaptation.write_start(source, str(tmp_path / "b"))
    text = adaptation.training_yaml(TEMPLATE.read_text(), str(tmp_path / "b"))
    assert "\nsample_rate: 8000\n" in text


def with_head(tmp_path):
    """An exported model with a transformer whose parts are all frozen."""
    wavlm = tiny_transformer.write(tmp_path / "wavlm")
    text = (TEMPLATE.parent / "train_head.yaml").read_text()
    sizes = adaptation.transformer_sizes(wavlm)
    given = {
        "data_folder": "x",
        "output_folder": str(tmp_path / "out"),
        "transformer_source": wavlm,
        "pooling": {**sizes, "heads": 4, "compression": 8},
        "emb_dim": 12,
    }
    hparams = load_hyperpyyaml(text, given)
    resolved = resolve_references(text, given).getvalue()
    return wavlm, export(hparams["student"], resolved, str(tmp_path / "model"))


def test_adapters_change_no_embedding_before_they_are_trained(tmp_path):
    wavlm, folder = with_head(tmp_path)
    assert adaptation.find_source(wavlm).kind == adaptation.TRANSFORMER
    source, start = adaptation.find_source(folder), str(tmp_path / "start")
    lora = {"rank": 2, "alpha": 1.0}
    adaptation.write_start(source, start, lora=lora)
    wanted = load_encoder(folder).encode_batch(WAVS)
    found = load_encoder(start).encode_batch(WAVS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    text = adaptation.training_yaml(TEMPLATE.read_text(), start)
    given = {
        "data_folder": "x",
        "pseudo_labels": "x",
        "output_folder": str(tmp_path / "out"),
    }
    hparams = load_hyperpyyaml(text, given)
    network = hparams["embedding_model"]
    learning = [n for n, p in network.named_parameters() if p.requires_grad]
    assert any("adapter_" in name for name in learning)
    assert all("adapter_" in n or "pooling" in n for n in learning)
    # the same weights again after a kill
    adaptation.write_start(source, str(tmp_path / "again"), lora=lora)
    first, again = (
        torch.load(tmp_path / name / "embedding_model.ckpt")
        for name in ("start", "again")
    )
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_layers_that_were_frozen_for_the_head_are_trained_later(tmp_path):
    _, folder = with_head(tmp_path)
    start = str(tmp_path / "start")
    source = adaptation.find_source(folder)
    adaptation.write_start(source, start, trained=["encoder.layers.1"])
    text = adaptation.training_yaml(TEMPLATE.read_text(), start)
    given = {"data_folder": "x", "pseudo_labels": "x"}
    given["output_folder"] = str(tmp_path / "out")
    network = load_hyperpyyaml(text, given)["embedding_model"]
    learning = [n for n, p in network.named_parameters() if p.requires_grad]
    assert any("encoder.layers.1." in name for name in learning)
    assert not any("encoder.layers.0." in name for name in learning)


def test_lora_needs_a_transformer(tmp_path):
    source = adaptation.find_source(export_model(tmp_path / "model"))
    with pytest.raises(ValueError, match="has no transformer"):
        adaptation.write_start(source, str(tmp_path / "a"), lora={"rank": 2})


def test_random_weights_depend_on_the_seed_alone(tmp_path):
    source = adaptation.find_source(str(ROOT / "hparams/ecapa_c256.yaml"))
    assert source.kind == adaptation.RANDOM
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        adaptation.write_start(source, str(tmp_path / name), seed=seed)
    a, b, c = (torch.load(tmp_path / n / "embedding_model.ckpt") for n in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_what_is_no_model_is_refused_with_what_was_found(tmp_path):
    with pytest.raises(ValueError, match="cannot be trained.*--teacher"):
        adaptation.find_source("teacher.onnx")
    with pytest.raises(FileNotFoundError, match="There is no model"):
        adaptation.find_source(str(tmp_path / "nothing"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="found notes.txt"):
        adaptation.find_source(str(tmp_path))
    export_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="Did you mean .*model"):
        adaptation.find_source(str(tmp_path))


def test_code_in_the_yaml_of_a_source_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path(hub_layouts.write(tmp_path / "model"))
    path = folder / "hyperparams.yaml"
    path.write_text(path.read_text() + "x: !apply:os.system [touch pwned]\n")
    source = adaptation.find_source(str(folder))
    with pytest.raises(ValueError, match="not allowed"):
        adaptation.write_start(source, str(tmp_path / "start"))
    assert not (tmp_path / "pwned").exists()


def check(bits, rank=50.0):
    return {"cross_entropy": bits, "EER": 10.0, "effective_rank": rank}


@pytest.mark.parametrize(
    "checks, best, stop",
    [
        ([check(0.5), check(0.4)], 1, False),
        ([check(0.5), check(0.4), check(0.3)], 2, False),
        ([check(0.5), check(0.4), check(0.45)], 1, True),
        ([check(0.5), check(0.495)], 0, True),  # less than min_gain
        ([check(0.5), check(0.6)], 0, True),
        ([check(0.5), check(0.2, rank=20.0)], 0, True),  # collapse
        ([check(0.5), check(float("nan"))], 0, True),
    ],
)
def test_a_model_is_kept_only_if_it_is_better(checks, best, stop):
    found = adaptation.choose(checks, min_gain=0.01)
    assert (found.best, found.stop) == (best, stop)
    assert ("source is kept" in found.reason) == (best == 0)


def test_the_result_has_the_embeddings_and_the_facts(tmp_path):
    folder = export_model(tmp_path / "model")
    target = str(tmp_path / "result")
    adaptation.write_result(folder, target, "Adapted.", {"source": "x/y"})
    for path in (folder, target):
        found = load_encoder(path).encode_batch(WAVS)
        wanted = load_encoder(folder).encode_batch(WAVS)
        assert torch.equal(found, wanted)
    text = read_card(target).text
    assert "Adapted." in text and "| source | x/y |" in text


def test_rows_of_a_csv_with_a_byte_order_mark_are_split(tmp_path):
    rows = [(name, 1.0, "a.wav", 0, 16000) for name in "ab"]
    path = tmp_path / "all.csv"
    write_annotation(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    train, held_out = adaptation.split_rows(str(path), [False, True])
    assert [train[0]["ID"], held_out[0]["ID"]] == ["a", "b"]
