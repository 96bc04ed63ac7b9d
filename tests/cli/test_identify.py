"""The enrolled speaker of a recording is found, or none."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.cli import identify
from speechbrain_ssl.dataio.audio import load
from speechbrain_ssl.loading import load_encoder


def unit_rows(corpus, numbers):
    """Unit embeddings of some recordings."""
    encoder = load_encoder(f"{corpus}/model")
    rows = [
        encoder.encode_batch(load(f"{corpus}/{n}.wav", 16000)[None]).flatten()
        for n in numbers
    ]
    return F.normalize(torch.stack(rows).detach(), dim=1)


def test_a_score_is_the_cosine_with_the_mean_of_the_unit_embeddings(
    corpus, database
):
    a, b, c, test = unit_rows(corpus, [0, 1, 2, 3])
    expected = {
        "alice": float(F.cosine_similarity(a + b, test, dim=0)),
        "bob/ü": float(c @ test),
    }
    (found,) = identify.identify(database, f"{corpus}/3.wav")
    assert found.scores == pytest.approx(expected, abs=1e-5)
    assert list(found.scores) == sorted(expected, key=expected.get)[::-1]
    assert found.speaker is None and found.threshold is None


def test_an_enrolled_recording_is_found_and_a_low_score_is_unknown(
    corpus, database, capsys
):
    files = [f"{corpus}/2.wav", f"{corpus}/4.wav"]
    identify.main([database, *files, "--threshold=0.999999", "--top=1"])
    first, second = capsys.readouterr().out.splitlines()
    assert "2.wav: bob/ü (threshold 1.0000); bob/ü 1.0000" in first
    assert "4.wav: unknown" in second
    identify.main([database, files[1], "--threshold=-1"])
    assert ": unknown" not in capsys.readouterr().out


def test_the_threshold_of_the_model_decides(corpus, database, capsys):
    identify.main([database, f"{corpus}/2.wav"])
    assert "no decision" in capsys.readouterr().out
    model = shutil.copytree(corpus / "model", f"{database}/../model")
    suggest_threshold(model, {"threshold": 0.9, "EER": 1.0}, "list.txt")
    (found,) = identify.identify(database, f"{corpus}/2.wav", model=model)
    assert found.speaker == "bob/ü" and found.threshold == 0.9
