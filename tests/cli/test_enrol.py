"""A folder of enrolled speakers, and who is found in it."""

import json
import shutil

import numpy as np
import pytest

from speechbrain_ssl.cli import enrol, identify


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


def test_names_are_files_whatever_their_letters(corpus, database):
    name = "Константин Константинович Константинопольский 100%/2"
    arguments = [database, name, f"{corpus}/2.wav"]
    enrol.main(arguments)
    (path,) = [p for p in enrol.os.listdir(database) if p.startswith("Конс")]
    assert name in enrol.speakers_of(database)
    # a file of an earlier version is added to
    enrol.os.rename(f"{database}/{path}", f"{database}/%D0%AE.npz")
    assert enrol.enrol(database, "Ю", [f"{corpus}/3.wav"]) == 2
    assert "Ю" in enrol.speakers_of(database)


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
        ([new, "a", "memory://no.wav", model], "no file memory://no.wav"),
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
