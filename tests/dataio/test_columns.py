"""Columns of a large annotation, in one file that all processes map."""

import concurrent.futures
import os
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from speechbrain_ssl.dataio import annotations, columns
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from tests.dataio.test_annotations import GOOD, HEADER, ROWS, written


@pytest.fixture
def path(tmp_path):
    write_annotation(tmp_path / "train.csv", ROWS)
    return str(tmp_path / "train.csv")


@pytest.fixture
def mapped(monkeypatch):
    """All annotations are large; counts how often one is parsed."""
    parse, calls = annotations._read_columns, []

    def counted(*arguments):
        calls.append(arguments)
        return parse(*arguments)

    monkeypatch.setattr(annotations, "_read_columns", counted)
    monkeypatch.setattr(annotations, "MAPPED_BYTES", 0)
    return calls


def all_of(utterances):
    return [utterances.row(index) for index in range(len(utterances))]


def test_mapped_columns_equal_those_in_memory(path, mapped, monkeypatch):
    found = [read_annotation(path, "/audio") for _ in range(3)]
    assert len(mapped) == 1 and found[2].mapped is not None
    assert os.path.exists(f"{path}.columns")
    assert not [
        name for name in os.listdir(os.path.dirname(path)) if "part" in name
    ]
    monkeypatch.setattr(annotations, "MAPPED_BYTES", 10**9)
    expected = read_annotation(path, "/audio")
    assert expected.mapped is None
    for utterances in found:
        assert all_of(utterances) == all_of(expected)
        assert utterances.hash() == expected.hash()
        assert torch.equal(utterances.durations, expected.durations)


def test_columns_are_made_again_if_the_csv_or_they_change(path, mapped):
    before = read_annotation(path, "/audio")
    write_annotation(path, ROWS[:2])
    assert all_of(read_annotation(path, "/audio")) == all_of(before)[:2]
    assert len(mapped) == 2
    with open(f"{path}.columns", "r+b") as file:
        file.truncate(5000)
    assert len(read_annotation(path, "/audio")) == 2 and len(mapped) == 3
    with open(f"{path}.columns", "wb") as file:
        file.write(b"{")
    assert len(read_annotation(path, "/audio")) == 2 and len(mapped) == 4
    # rows that are mapped already stay what they were
    assert before.row(2)["wav"] == "/abs/Ke$ha.wav"


def test_mapped_columns_need_the_data_root_too(path, mapped):
    read_annotation(path, "/audio")
    with pytest.raises(ValueError, match="line 2.*data_root was not given"):
        read_annotation(path)
    write_annotation(path, [("a", 1.0, "/a.wav", 0, 9)])
    assert read_annotation(path).row(0)["wav"] == "/a.wav"


def test_extra_columns_have_a_file_of_their_own(path, mapped):
    rows = [dict(ID="a", duration=1, wav="a", start=0, stop=9, spk_id="s1")]
    write_annotation(path, rows, extra=("spk_id",))
    for _ in range(2):
        assert "spk_id" not in read_annotation(path).row(0)
        labelled = read_annotation(path, extra=("spk_id",))
        assert labelled.row(0)["spk_id"] == "s1"
    assert len(mapped) == 2


def test_a_folder_without_write_access_costs_memory_only(
    path, mapped, monkeypatch, caplog
):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(annotations.tempfile, "TemporaryFile", refuse)
    utterances = read_annotation(path, "/audio")
    assert utterances.mapped is None and len(utterances) == 3
    assert "columns cannot be written (Permission denied)" in caplog.text


def test_processes_that_start_together_parse_once(tmp_path, mapped):
    write_annotation(
        tmp_path / "train.csv",
        ((f"u{i}", 1, f"{i}.wav", i, 2 * i + 9) for i in range(20_000)),
    )
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = [tmp_path / "train.csv"] * 4
        found = list(pool.map(read_annotation, paths))
    assert len(mapped) == 1
    assert {utterances.hash() for utterances in found} == {found[0].hash()}
    assert found[3].row(-1)["ID"] == "u19999"


def test_a_spawned_worker_maps_the_same_file(path, mapped):
    utterances = read_annotation(path, "/audio")
    sent = ForkingPickler.dumps(utterances)
    assert len(sent) < 1000
    again = ForkingPickler.loads(sent)
    assert all_of(again) == all_of(utterances) and len(mapped) == 1
    write_annotation(path, ROWS[:1])
    read_annotation(path, "/audio")
    with pytest.raises(ValueError, match="has changed while"):
        ForkingPickler.loads(sent)


def test_a_wrong_row_leaves_no_columns(tmp_path, mapped):
    path = written(tmp_path, f"{HEADER}{GOOD}b,one,b.wav,0,9\n")
    with pytest.raises(ValueError, match="line 4: duration"):
        read_annotation(path)
    assert os.listdir(tmp_path) == ["bad.csv"]


def test_a_file_without_locks_is_still_written(path, mapped, monkeypatch):
    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(columns.fcntl, "flock", refuse)
    assert read_annotation(path, "/audio").mapped is not None


def test_the_hash_in_the_file_is_that_of_the_columns(path, mapped):
    found = read_annotation(path, "/audio").mapped
    assert found.header["hash"] == columns.hash_columns(found.columns)
