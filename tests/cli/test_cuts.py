"""Cuts of a Lhotse manifest become rows, and nothing of their supervisions."""

import gzip
import json
import os

import pytest

from speechbrain_ssl.cli.cuts import main, write_cuts
from speechbrain_ssl.dataio.annotations import read_annotation


def cut(name, start, duration, source="/audio/a/x.flac", **changes):
    """As ``lhotse.CutSet.to_file`` writes it."""
    return {
        "id": name,
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [
            {"id": name, "recording_id": "r", "speaker": "anna", "text": "Hi"}
        ],
        "recording": {
            "id": "r",
            "sources": [{"type": "file", "channels": [0], "source": source}],
            "sampling_rate": 16000,
            "num_samples": 160_000,
            "duration": 10.0,
            "channel_ids": [0],
        },
        "type": "MonoCut",
        **changes,
    }


def written(tmp_path, *cuts):
    path = tmp_path / "cuts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return str(path)


def test_cuts_become_rows_without_speakers(tmp_path, capsys):
    path = written(
        tmp_path,
        cut("one", 0.5, 2.25),
        # rounding must not go beyond the end of the recording
        cut("two", 7.9999999, 2.0001, "s3://bucket/y.wav"),
    )
    main([path, f"{tmp_path}/train.csv", "--data_root=/audio"])
    assert "2 utterances" in capsys.readouterr().out
    text = (tmp_path / "train.csv").read_text()
    assert (
        "anna" not in text and "one,2.25,$data_root/a/x.flac,8000,44000" in text
    )
    rows = read_annotation(tmp_path / "train.csv", "/elsewhere")
    assert rows.row(0)["wav"] == "/elsewhere/a/x.flac"
    assert rows.row(1)["wav"] == "s3://bucket/y.wav"
    assert (rows.row(1)["start"], rows.row(1)["stop"]) == (128_000, 160_000)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (cut("x", 0, 1, type="MixedCut"), "line 2: the cut x is a MixedCut"),
        ({"id": "x", "type": "MonoCut"}, "line 2: expected a cut .*recording"),
        ("x", "line 2: expected a cut"),
    ],
)
def test_a_cut_that_cannot_be_a_row_is_named(tmp_path, wrong, said):
    path = written(tmp_path, cut("one", 0, 1), wrong)
    with pytest.raises(ValueError, match=said):
        write_cuts(path, f"{tmp_path}/train.csv")
    assert not (tmp_path / "train.csv").exists()


@pytest.mark.parametrize("key", ["transforms", "channels"])
def test_a_cut_that_is_not_the_audio_of_its_file_is_refused(tmp_path, key):
    other = cut("x", 0, 1)
    if key == "transforms":  # frames are those of 8 kHz, the file has 16 kHz
        other["recording"][key] = [{"name": "Resample", "kwargs": {}}]
    else:  # one side of a call; the mean of both would be read
        other["recording"]["sources"][0][key] = [0, 1]
    with pytest.raises(ValueError, match="line 1: the cut x is not the audio"):
        write_cuts(written(tmp_path, other), f"{tmp_path}/train.csv")


def test_a_source_in_memory_is_refused(tmp_path):
    other = cut("x", 0, 1)
    other["recording"]["sources"][0]["type"] = "memory"
    with pytest.raises(ValueError, match="expected one of type file or url"):
        write_cuts(written(tmp_path, other), f"{tmp_path}/train.csv")


def test_a_manifest_that_is_cut_off_is_named(tmp_path):
    path = written(tmp_path, cut("one", 0, 1), cut("two", 0, 1))
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 20)
    with pytest.raises(SystemExit, match="cuts.jsonl.gz is cut off or damaged"):
        main([path, f"{tmp_path}/train.csv"])
