"""From a folder or a list of audio to embeddings on disk."""

import csv
import json
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.cli import embed as module
from speechbrain_ssl.cli.embed import embed, main
from speechbrain_ssl.dataio import embedding
from speechbrain_ssl.dataio.annotations import write_annotation
from speechbrain_ssl.dataio.audio import load as load_audio
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.pseudo_labels.extract import extract
from tests.models import export_model, write_noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A model, and audio of several formats, one of them broken."""
    folder = tmp_path_factory.mktemp("embed é")
    export_model(folder / "model")
    write_noise(folder / "audio/a b/one.wav", 0.6)
    write_noise(folder / "audio/two.flac", 0.4, rate=8000, seed=1, channels=2)
    write_noise(folder / "audio/three.ogg", 0.5, seed=2)
    (folder / "audio/broken.wav").write_bytes(b"RIFF")
    return folder


def test_a_folder_becomes_a_matrix_with_names(corpus, tmp_path):
    out = tmp_path / "out"
    main([f"{corpus}/model", f"{corpus}/audio", f"--output_folder={out}"])
    matrix = np.load(out / "embeddings.npy", mmap_mode="r")
    ids = json.loads((out / "ids.json").read_text())
    assert ids == ["a b/one.wav", "three.ogg", "two.flac"]
    assert matrix.shape == (3, 6) and isinstance(matrix, np.memmap)
    assert "broken.wav" in (out / "failed.csv").read_text()
    encoder = load_encoder(f"{corpus}/model")
    for name, row in zip(ids, matrix):
        wav = load_audio(f"{corpus}/audio/{name}", 16000)
        expected = encoder.encode_batch(wav[None]).flatten()
        assert torch.allclose(torch.tensor(row), expected, atol=1e-4)


def test_a_second_run_embeds_nothing_again(corpus, tmp_path, monkeypatch):
    arguments = f"{corpus}/model", f"{corpus}/audio", str(tmp_path)
    first = embed(*arguments, progress=False)
    encoder = load_encoder(f"{corpus}/model")
    monkeypatch.setattr(encoder, "encode_batch", None)
    monkeypatch.setattr(module, "load_encoder", lambda *_: encoder)
    again = embed(*arguments, progress=False)
    assert again.ids == first.ids and list(again.failed) == ["broken.wav"]


def test_a_list_and_an_annotation_give_the_same_rows(corpus, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{corpus}/audio/two.flac\n\n ../audio/three.ogg \n")
    (tmp_path / "audio").symlink_to(corpus / "audio")
    (tmp_path / "lists").mkdir()
    listed = listed.rename(tmp_path / "lists/list.txt")
    model = f"{corpus}/model"
    found = embed(model, str(listed), str(tmp_path / "a"), progress=False)
    assert found.ids == [f"{corpus}/audio/two.flac", "../audio/three.ogg"]
    rows = [
        ("2", 0.4, "$data_root/two.flac", 0, 3200),
        ("3", 0.5, "$data_root/three.ogg", 0, 8000),
    ]
    write_annotation(tmp_path / "train.csv", rows)
    annotated = embed(
        model,
        str(tmp_path / "train.csv"),
        str(tmp_path / "b"),
        data_root=f"{corpus}/audio",
        progress=False,
    )
    assert annotated.ids == ["2", "3"]
    np.testing.assert_allclose(annotated.matrix, found.matrix, atol=1e-5)


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "nowhere"),
        ("audio/none.flac", "none.flac"),
        ("empty.txt", "names no audio"),
        ("bytes.txt", "no list of paths"),
        ("silent", "no audio files"),
    ],
)
def test_bad_input_is_named_without_a_traceback(
    corpus, tmp_path, source, message
):
    (corpus / "empty.txt").write_text("\n")
    (corpus / "bytes.txt").write_bytes(b"\xff\xfe")
    (corpus / "silent").mkdir(exist_ok=True)
    with pytest.raises(SystemExit, match=f"embed: .*{message}"):
        main(
            [
                f"{corpus}/model",
                f"{corpus}/{source}",
                f"--output_folder={tmp_path}",
            ]
        )


def test_long_files_and_silence_are_in_the_output_and_in_meta(
    corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(embedding, "WINDOW_SECONDS", 1.0)
    write_noise(tmp_path / "audio/long.wav", 2.5)
    write_noise(tmp_path / "audio/short.wav", 0.5, seed=1)
    silent = np.zeros(16000)
    soundfile.write(tmp_path / "audio/silent.wav", silent, 16000)
    noise, _ = soundfile.read(tmp_path / "audio/short.wav")
    padded = np.concatenate([noise, silent])
    soundfile.write(tmp_path / "audio/padded.wav", padded, 16000)
    out = tmp_path / "out"
    main([f"{corpus}/model", f"{tmp_path}/audio", f"--output_folder={out}"])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"3 embeddings of 6 dimensions in {out}",
        "Split 2 files longer than 1 s into windows.",
        "Removed 2.0 s of digital silence from 2 files.",
        "1 files without an embedding: see failed.csv there",
    ]
    meta = json.loads((out / "meta.json").read_text())
    assert meta["settings"]["window_seconds"] == 1.0
    assert meta["settings"]["silence_dbfs"] == -80
    assert meta["settings"]["silence_seconds"] == 0.2
    assert meta["made"]["windowed"] == 2
    assert meta["made"]["with_silence"] == 2
    assert meta["made"]["silence_seconds"] == 2.0
    failed = (out / "failed.csv").read_text()
    assert "silent.wav is digital silence" in failed
    matrix = np.load(out / "embeddings.npy")
    cosine = torch.cosine_similarity(*torch.from_numpy(matrix[1:]), dim=0)
    assert cosine > 0.9999


def test_a_folder_that_is_no_model_is_named(corpus):
    with pytest.raises(SystemExit, match="not an exported model"):
        main([f"{corpus}/audio", f"{corpus}/audio"])


def test_other_audio_does_not_mix_with_what_is_there(corpus, tmp_path):
    embed(f"{corpus}/model", f"{corpus}/audio", str(tmp_path), progress=False)
    with pytest.raises(ValueError, match="other settings"):
        embed(
            f"{corpus}/model",
            f"{corpus}/audio/a b",
            str(tmp_path),
            progress=False,
        )


def test_windows_are_the_segments_whose_times_are_written(corpus, tmp_path):
    out = tmp_path / "out"
    source = f"{corpus}/audio/two.flac"  # 0.4 s at 8 kHz, two channels
    flags = [f"--output_folder={out}", "--windows", "0.2", "0.15"]
    main([f"{corpus}/model", source, *flags])
    with open(out / "times.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2"]
    assert {row["ID"] for row in rows} == {"two.flac"}
    times = [(float(row["start"]), float(row["stop"])) for row in rows]
    assert times == [(0.0, 0.2), (0.15, 0.35), (0.2, 0.4)]
    matrix = np.load(out / "embeddings.npy")
    encoder = load_encoder(f"{corpus}/model")
    for (start, stop), row in zip(times, matrix):
        span = round(start * 8000), round(stop * 8000)
        wav = load_audio(source, 16000, *span)
        expected = encoder.encode_batch(wav[None]).flatten()
        assert torch.allclose(torch.tensor(row), expected, atol=1e-4)


def test_windows_of_annotations_count_from_the_start_of_the_file(
    corpus, tmp_path
):
    rows = [
        ("late", 0.3, "$data_root/a b/one.wav", 4000, 8800),
        ("short", 0.1, "$data_root/a b/one.wav", 8000, 9600),
    ]
    write_annotation(tmp_path / "train.csv", rows)
    found = embed(
        f"{corpus}/model",
        f"{tmp_path}/train.csv",
        f"{tmp_path}/out",
        data_root=f"{corpus}/audio",
        windows=(0.2, 0.1),
        progress=False,
    )
    assert found.ids == [
        *("late@0.250-0.450", "late@0.350-0.550", "short@0.500-0.600"),
    ]


def test_silent_windows_have_no_row_however_many_they_are(
    corpus, tmp_path, monkeypatch
):
    noise, _ = soundfile.read(corpus / "audio/a b/one.wav")
    path = tmp_path / "meeting.wav"
    soundfile.write(path, np.r_[np.zeros(40000), noise[:1600]], 16000)
    arguments = f"{corpus}/model", str(path), f"{tmp_path}/out"
    monkeypatch.setattr(module, "extract", partial(extract, chunk_size=10))
    found = embed(*arguments, windows=(0.1, 0.1), progress=False)
    assert found.ids == ["meeting.wav@2.500-2.600"]
    assert len(found.failed) == 25
    assert (tmp_path / "out/times.csv").read_text() == (
        "row,ID,start,stop\n0,meeting.wav,2.500,2.600\n"
    )


@pytest.mark.parametrize(
    "windows", [(0.05, 0.05), (1.0, 1.1), (1.0, 0.0), (float("inf"), 1.0)]
)
def test_windows_that_are_too_short_or_leave_gaps_are_refused(corpus, windows):
    with pytest.raises(ValueError, match="Windows need a length"):
        embed(f"{corpus}/model", f"{corpus}/audio", windows=windows)


def test_kaldi_and_npz_hold_the_same_rows(corpus, tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("two.flac", "three.ogg"):
        shutil.copy(corpus / "audio" / name, tmp_path / "audio")
    out = tmp_path / "out"
    flags = [f"--output_folder={out}", "--also", "kaldi", "npz"]
    main([f"{corpus}/model", f"{tmp_path}/audio", *flags])
    matrix = np.load(out / "embeddings.npy")
    with np.load(out / "embeddings.npz") as found:
        np.testing.assert_array_equal(found["embeddings"], matrix)
        assert found["ids"].tolist() == ["three.ogg", "two.flac"]
    for line, row in zip(open(out / "xvector.scp"), matrix):
        key, place = line.split()
        path, offset = place.rsplit(":", 1)
        data = open(path, "rb").read()
        start = int(offset)
        assert data[:start].endswith(f"{key} ".encode())
        # binary mark, token of a float vector, size of an int, the int
        assert data[start : start + 6] == b"\0BFV \4"
        (dim,) = np.frombuffer(data, "<i4", 1, start + 6)
        read = np.frombuffer(data, "<f4", dim, start + 10)
        np.testing.assert_array_equal(read, row)


def test_kaldi_needs_ids_without_spaces(corpus, tmp_path):
    arguments = f"{corpus}/model", f"{corpus}/audio", f"{tmp_path}/out"
    with pytest.raises(ValueError, match="no spaces, found 'a b/one.wav'"):
        embed(*arguments, also=["kaldi"], progress=False)
    with pytest.raises(ValueError, match="kaldi, npz, found 'csv'"):
        embed(*arguments, also=["csv"], progress=False)
