"""A folder of enrolled speakers, and who is found in it."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.cli import enrol, identify
from speechbrain_ssl.dataio.audio import load
from speechbrain_ssl.loading import load_encoder
from tests.models import export_model, write_noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A model and five recordings."""
    folder = tmp_path_factory.mktemp("enrol")
    export_model(folder / "model")
    for number in range(5):
        write_noise(folder / f"{number}.wav", 0.5, seed=number)
    return folder


@pytest.fixture
def database(corpus, tmp_path):
    """Two speakers: one with two recordings, one with one."""
    folder = str(tmp_path / "speakers")
    files = [f"{corpus}/{n}.wav" for n in range(3)]
    assert enrol.enrol(folder, "alice", files[:2], f"{corpus}/model") == 2
    assert enrol.enrol(folder, "bob/ü", files[2:]) == 1
    return folder


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


def test_files_are_added_or_replaced(corpus, database, capsys):
    arguments = [database, "alice", f"{corpus}/3.wav"]
    enrol.main(arguments)
    assert "alice: 3 recordings" in capsys.readouterr().out
    with np.load(f"{database}/alice.npz") as found:
        assert found["embeddings"].shape == (3, 6)
        assert found["files"][2] == f"{corpus}/3.wav"
        one = found["embeddings"][2]
    with pytest.raises(SystemExit, match="enrol: .*3.wav again.*--replace"):
        enrol.main(arguments)
    enrol.main([*arguments, "--replace"])
    with np.load(f"{database}/alice.npz") as found:
        np.testing.assert_array_equal(found["embeddings"], one[None])


def test_a_speaker_file_that_is_deleted_is_forgotten(corpus, database):
    (path,) = [p for p in enrol.os.listdir(database) if p.startswith("bob")]
    enrol.os.remove(f"{database}/{path}")
    (found,) = identify.identify(database, [f"{corpus}/2.wav"])
    assert list(found.scores) == ["alice"]


def test_another_model_is_refused(corpus, database, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus / "model", other)
    (other / "hyperparams.yaml").open("a").write("# changed\n")
    with pytest.raises(SystemExit, match="identify: .*not enrolled with"):
        identify.main([database, f"{corpus}/2.wav", f"--model={other}"])
    with pytest.raises(ValueError, match="not enrolled with"):
        enrol.enrol(database, "carl", [f"{corpus}/4.wav"], str(other))


def test_bad_input_is_named_without_a_traceback(corpus, database, tmp_path):
    model, wav = f"--model={corpus}/model", f"{corpus}/4.wav"
    new = str(tmp_path / "new")
    for arguments, message in (
        ([new, "a", wav], "name the model"),
        ([new, ".a", wav, model], "begin with a dot"),
        ([new, "a", f"{tmp_path}/no.wav", model], "no file .*no.wav"),
        ([new, "a", wav, wav, model], "4.wav again"),
        ([new, "a", wav, f"--model={tmp_path}"], "not an exported model"),
    ):
        with pytest.raises(SystemExit, match=f"enrol: .*{message}"):
            enrol.main(arguments)
        assert not enrol.os.path.exists(new)
    with pytest.raises(SystemExit, match="identify: .*name the model"):
        identify.main([new, wav])
    with open(f"{database}/alice.npz", "w") as file:
        file.write("text")
    with pytest.raises(SystemExit, match="alice.npz is not a file of an"):
        identify.main([database, wav])
    with open(f"{database}/database.json") as file:
        assert set(json.load(file)) == {"model", "hash"}
