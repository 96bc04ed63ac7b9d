"""Exported models, ranked without labels, and the threshold they get."""

import json

import pytest
import torch

from speechbrain_ssl.card import read_threshold, suggest_threshold
from speechbrain_ssl.cli.score import verify
from speechbrain_ssl.cli.selfcheck import main
from tests.models import export_model, write_noise

SMALL = ["--count=20", "--seconds=0.3", "--copies=1", "--device=cpu"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty noises and two models; the second one has damaged weights."""
    folder = tmp_path_factory.mktemp("selfcheck é")
    for number in range(20):
        write_noise(folder / f"audio/{number}.wav", 0.6, seed=number)
    for name in ("good", "constant"):
        export_model(folder / name)
    path = folder / "constant/embedding_model.ckpt"
    weights = torch.load(path)
    for name, value in weights.items():
        if name.startswith("fc."):  # a bias alone: one embedding for all
            weights[name] = torch.ones_like(value) * name.endswith("bias")
    torch.save(weights, path)
    return folder


def test_the_best_model_comes_first(corpus, tmp_path, capsys):
    out = tmp_path / "found.json"
    models = [f"{corpus}/constant", f"{corpus}/good"]
    main([*models, f"{corpus}/audio", f"--output={out}", *SMALL])
    found = json.loads(out.read_text())
    assert list(found) == models[::-1]
    costs = [figures["cross_entropy"] for figures in found.values()]
    assert costs[0] < costs[1] == pytest.approx(1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["cross", "entropy"]
    assert lines[1].endswith("good") and lines[2].endswith("constant")
    assert read_threshold(models[1]) is None


def test_threshold_and_its_promise_go_to_the_model(corpus, tmp_path):
    model = export_model(tmp_path / "model")
    main([model, f"{corpus}/audio", "--set_threshold", *SMALL])
    found = read_threshold(model)
    assert found["label_free"] and found["false_acceptance"] == 0.01
    text = (tmp_path / "model/README.md").read_text()
    assert "It was found without labels" in text and "1 % of the pairs" in text
    assert text.count("## Threshold") == 1
    files = f"{corpus}/audio/0.wav", f"{corpus}/audio/1.wav"
    assert verify(model, *files).threshold == found["threshold"]


def test_a_folder_that_cannot_be_written_is_refused_first(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("speechbrain_ssl.cli.selfcheck.selfcheck", None)
    with pytest.raises(SystemExit, match=f"{corpus}/good is read-only"):
        main([f"{corpus}/good", f"{corpus}/audio", "--set_threshold"])


def test_threshold_of_a_labelled_list_is_kept_and_replaces_the_other(
    corpus, tmp_path
):
    model = export_model(tmp_path / "model")
    arguments = [model, f"{corpus}/audio", "--set_threshold", *SMALL]
    main(arguments)
    suggest_threshold(model, {"threshold": 0.5, "EER": 9.0}, "list")
    main(arguments)
    assert read_threshold(model)["threshold"] == 0.5
    text = (tmp_path / "model/README.md").read_text()
    assert "without labels" not in text.partition("## Threshold")[2]


@pytest.mark.parametrize("model", ["user/name", "model.onnx"])
def test_a_threshold_needs_a_folder_to_write_it_to(model):
    # before anything is loaded or downloaded
    with pytest.raises(SystemExit, match=f"{model} is no local folder"):
        main([model, "audio", "--set_threshold"])


def test_what_is_missing_is_said(corpus, capsys):
    with pytest.raises(SystemExit, match="selfcheck: No such model folder"):
        main([f"{corpus}/none", f"{corpus}/audio", *SMALL])
    with pytest.raises(SystemExit, match="seconds must be a number above 0"):
        main([f"{corpus}/good", f"{corpus}/audio", *SMALL[1:], "--seconds=0"])
