"""A run folder is read as far as it can be, and the rest becomes a note."""

import json

import numpy as np
import pytest

from speechbrain_ssl.report import run


def test_log_keeps_the_later_record_of_an_epoch_and_whole_lines(tmp_path):
    path = tmp_path / "train_log.jsonl"
    path.write_text(
        '{"epoch": 2, "loss": 4.0}\n{"epoch": 1, "loss": 5.0}\n\n'
        '{"epoch": 2, "loss": 0.5}\n{"epoch": 3, "lo'
    )
    records, broken = run.read_log(path)
    assert [r["loss"] for r in records] == [5.0, 0.5]
    assert len(broken) == 1 and "line 5" in broken[0]


def test_tags_are_in_order_of_time(tmp_path):
    for tag in ("after", "epoch_10", "epoch_9", "before"):
        place = tmp_path / "verification" / tag / "test"
        place.mkdir(parents=True)
        (place / "metrics.json").write_text("{}")
    found = run.read_run(tmp_path).lists
    order = ["before", "epoch_9", "epoch_10", "after"]
    assert list(found["test"]) == order


def test_a_folder_of_verify_is_read_with_its_kinds_of_scores(tmp_path):
    both = {"raw": {"EER": 2.0}, "as_norm": {"EER": 1.0}}
    for name, found in {"a": both, "b": {"EER": 3.0}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(found))
    found = run.read_run(tmp_path)
    assert found.lists["a"]["verified"].metrics == both
    assert found.lists["b"]["verified"].metrics == {"raw": {"EER": 3.0}}
    assert found.notes == []


def test_the_size_of_the_data_is_that_of_the_training_csv(tmp_path):
    (tmp_path / "save").mkdir()
    rows = ["ID,duration,wav", "a,1800.0,x", "b,900.0,y"]
    (tmp_path / "save/train.csv").write_text("\n".join(rows))
    (tmp_path / "save/unreadable.csv").write_text("ID,reason\na,empty\n")
    found = run.read_run(tmp_path).data
    assert found == {"utterances": 2, "hours": 0.75, "unreadable": 1}
    (tmp_path / "save/train.csv").write_text("ID,duration\na,?\n")
    found = run.read_run(tmp_path)
    assert "duration" in " ".join(found.notes) and "line 2" in found.notes[-1]


def test_settings_are_read_and_nothing_of_them_is_run():
    text = "a: 1\nb: !apply:os.system [exit 1]\nc: [!ref <a>, &x 2]\nd: *x\n"
    found = run.read_settings(text)
    assert found == {"a": 1, "b": "!apply:os.system", "c": ["!ref", 2], "d": 2}
    assert run.read_settings("a: [") == run.read_settings("- 1") == {}


def test_a_missing_gate_is_nothing_to_note(tmp_path):
    found = run.read_run(tmp_path)
    assert found.gate == []
    assert not [note for note in found.notes if "gate.jsonl" in note]


def test_the_gate_is_read_and_its_broken_lines_are_noted(tmp_path):
    lines = [json.dumps({"epoch": epoch}) for epoch in (2, 1)]
    (tmp_path / "gate.jsonl").write_text("\n".join([*lines, '{"epoch"']))
    found = run.read_run(tmp_path)
    assert [record["epoch"] for record in found.gate] == [1, 2]
    assert any("gate.jsonl, line 3" in note for note in found.notes)


def test_long_texts_are_cut(tmp_path):
    path = tmp_path / "hyperparams.yaml"
    path.write_text("x" * 200_001)
    text = run.read_run(tmp_path).settings
    assert text.endswith("x\n... (cut here)")
    assert len(text) < 200_100


def test_embeddings_that_are_empty_are_named(tmp_path):
    np.save(tmp_path / "embeddings.npy", np.eye(2))
    # U+2028 separates lines for splitlines(), not in a file
    names = ["a", "b\u2028c"]
    (tmp_path / "embeddings_ids.txt").write_text("a\nb\u2028c\n")
    matrix, ids = run.read_embeddings(tmp_path)
    assert matrix.tolist() == np.eye(2).tolist() and ids == names
    (tmp_path / "embeddings.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="embeddings.npy: the file is empty"):
        run.read_embeddings(tmp_path)


def test_what_fails_becomes_a_note_and_the_default():
    notes = []

    def fail(text):
        raise ValueError(text)

    assert run.attempt(notes, fail, "why", default=3) == 3
    assert run.attempt(notes, int, "4") == 4
    assert notes == ["why"]
