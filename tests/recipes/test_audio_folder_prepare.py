"""Tests of the preparation of a folder of audio."""

import csv
import importlib.util
import os
import pathlib
import runpy
import signal
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.dataio import parallel
from speechbrain_ssl.dataio.annotations import read_annotation

SCRIPT = (
    pathlib.Path(__file__).parents[2]
    / "recipes/AudioFolder/SSL/audio_folder_prepare.py"
)


def load_script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script()


def noise(seconds, rate=16000, channels=1, level=0.1):
    shape = (int(seconds * rate), channels)
    return level * np.random.default_rng(0).uniform(-1, 1, shape)


def write(folder, name, samples=None, rate=16000, **kwargs):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = noise(1.5, rate) if samples is None else samples
    soundfile.write(path, samples, rate, **kwargs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audio").mkdir()
    return tmp_path / "audio"


@pytest.fixture
def run(folder, tmp_path):
    """Prepares the folder; IDs of the annotation, and reasons by name."""

    def run(**kwargs):
        out = tmp_path / "out" / "train.csv"
        prepare.prepare_audio_folder(folder, out, **kwargs)
        utterances = read_annotation(out, folder)
        rows = [utterances.row(index) for index in range(len(utterances))]
        for row in rows:
            assert row["wav"] == f"{folder}/{row['ID']}"
        return {row["ID"]: row for row in rows}, skipped(tmp_path)

    return run


def skipped(tmp_path):
    with open(tmp_path / "out/skipped.csv", newline="", encoding="utf-8") as f:
        return {
            row["wav"].removeprefix("$data_root/"): row["reason"]
            for row in csv.DictReader(f)
        }


def test_any_rate_and_number_of_channels_is_measured(folder, run):
    write(folder, "narrow.wav", rate=8000)
    write(folder, "cd.flac", noise(2, 44100, channels=2), 44100)
    rows, problems = run()
    assert problems == {}
    assert list(rows) == ["cd.flac", "narrow.wav"]
    assert rows["narrow.wav"]["duration"] == 1.5
    assert (rows["narrow.wav"]["start"], rows["narrow.wav"]["stop"]) == (
        0,
        12000,
    )
    assert rows["cd.flac"]["duration"] == 2.0
    assert rows["cd.flac"]["stop"] == 88200


def test_every_extension_counts_in_either_case(folder, run):
    write(folder, "a.WAV")
    write(folder, "b.Mp3", format="MP3")
    write(folder, "c.ogg")
    write(folder, "d.opus", format="OGG", subtype="OPUS")
    (folder / "notes.txt").write_text("ignored")
    rows, problems = run()
    assert list(rows) == ["a.WAV", "b.Mp3", "c.ogg", "d.opus"]
    assert list(problems) == ["notes.txt"]


def test_unusable_files_are_listed_with_their_reason(folder, run, tmp_path):
    write(folder, "good.wav")
    (folder / "text.wav").write_text("This is text.")
    (folder / "x").mkdir()
    (folder / "x/empty.wav").touch()
    write(folder, "short.wav", noise(0.1))
    write(folder, "no_frames.wav", noise(0))
    write(folder, "zeros.wav", np.zeros(32000))
    write(folder, "hum.wav", noise(2, level=0.0005), subtype="FLOAT")
    write(folder, "offset.wav", np.full(32000, 0.5))
    broken = noise(2)
    broken[16000:16100] = np.nan
    write(folder, "nan.wav", broken, subtype="FLOAT")
    os.mkfifo(folder / "pipe.wav")
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    rows, problems = run()
    assert list(rows) == ["good.wav"]
    assert {
        name: reason.partition(":")[0] for name, reason in problems.items()
    } == {
        "text.wav": "unreadable",
        "x/empty.wav": "empty",
        "short.wav": "too short",
        "no_frames.wav": "too short",
        "zeros.wav": "silent",
        "hum.wav": "silent",
        "offset.wav": "silent",
        "nan.wav": "unreadable",
        "pipe.wav": "not a regular file",
        "dangling.wav": "broken link",
    }
    counts = prepare.prepare_audio_folder(folder, tmp_path / "out/train.csv")
    assert counts["usable"] == 1
    assert counts["silent"] == 3 and counts["unreadable"] == 2


def test_speech_between_silent_probes_is_kept(folder, run):
    samples = np.zeros(6 * 16000)
    samples[32000:33600] = noise(0.1)[:, 0]
    write(folder, "rare.wav", samples)
    assert list(run()[0]) == ["rare.wav"]


@pytest.mark.parametrize("share", [0.33, 0.98])
@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_truncated_file_is_unreadable(folder, run, extension, share):
    good, cut = f"good.{extension}", f"cut.{extension}"
    for name in (good, cut):
        write(folder, name, noise(8))
    data = (folder / cut).read_bytes()
    (folder / cut).write_bytes(data[: int(len(data) * share)])
    rows, problems = run()
    assert list(rows) == [good]
    assert problems[cut].startswith("unreadable")


@pytest.mark.parametrize("rate", [0, 1, 900_000])
def test_a_file_with_an_impossible_rate_is_listed(folder, run, rate):
    write(folder, "good.wav")
    write(folder, "odd.wav")
    data = bytearray((folder / "odd.wav").read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    (folder / "odd.wav").write_bytes(data)
    rows, problems = run()
    assert list(rows) == ["good.wav"] and list(problems) == ["odd.wav"]
    assert problems["odd.wav"].startswith("unreadable")


def test_names_are_kept_as_they_are(folder, run):
    names = [
        " leading space.wav",
        "a/same.wav",
        "b/same.wav",
        "b/same.flac",
        "comma, \"quotes\" and 'more'.wav",
        "dots.in.name.v1.0.wav",
        "日本語/ÄÖÜ é.wav",
        "$money/Ke$ha.wav",
    ]
    for name in names:
        write(folder, name)
    rows, problems = run()
    assert list(rows) == sorted(names)
    assert problems == {}


def test_undecodable_name_is_listed(folder, run):
    write(folder, "good.wav")
    os.rename(
        folder / "good.wav", os.path.join(os.fsencode(folder), b"b\xff.wav")
    )
    write(folder, "good.wav")
    rows, problems = run()
    assert list(rows) == ["good.wav"]
    assert problems["b\\udcff.wav"].startswith("name not UTF-8")


def test_links_are_followed_once_and_hidden_folders_are_not(
    folder, run, tmp_path
):
    write(tmp_path / "elsewhere", "c.wav")
    write(folder, ".hidden/a.wav")
    write(folder, "d/b.wav")
    (folder / "link.wav").symlink_to(folder / "d/b.wav")
    (folder / "e").symlink_to(tmp_path / "elsewhere")
    (folder / "d/loop").symlink_to(folder)
    rows, problems = run()
    assert list(rows) == ["d/b.wav", "e/c.wav"]
    assert {
        name: reason.partition(":")[0] for name, reason in problems.items()
    } == {
        ".hidden": "hidden",
        "d/loop": "duplicate",
        "link.wav": "duplicate",
    }


def test_thresholds_are_applied_even_after_an_earlier_run(folder, run):
    write(folder, "low.wav", noise(2, level=0.01))
    write(folder, "loud.wav", noise(1.2))
    assert list(run()[0]) == ["loud.wav", "low.wav"]
    assert list(run(min_seconds=1.5)[0]) == ["low.wav"]
    assert list(run(silence_db=-30)[0]) == ["loud.wav"]
    assert list(run()[0]) == ["loud.wav", "low.wav"]


def outputs(tmp_path):
    return {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    }


def test_outputs_do_not_depend_on_the_number_of_workers(
    folder, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(parallel, "CHUNK", 7)
    for number in range(40):
        write(folder, f"{number % 7}/{number}.wav", noise(0.9 + number / 100))
    run(num_workers=1)
    one = outputs(tmp_path)
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    run(num_workers=5)
    assert outputs(tmp_path) == one
    assert sorted(one) == ["skipped.csv", "train.csv", "train.csv.cache.jsonl"]


def test_second_run_looks_only_at_new_and_changed_files(
    folder, run, tmp_path, monkeypatch
):
    for name in ("a.wav", "b.wav", "gone.wav"):
        write(folder, name)
    run()
    first, looked = outputs(tmp_path), []
    opened = prepare.audio.open

    def note(path):
        looked.append(os.path.basename(path))
        return opened(path)

    monkeypatch.setattr(prepare.audio, "open", note)
    run()
    assert looked == [] and outputs(tmp_path) == first
    write(folder, "b.wav", noise(3))
    write(folder, "new.wav")
    (folder / "gone.wav").unlink()
    rows, _ = run()
    assert sorted(looked) == ["b.wav", "new.wav"]
    assert list(rows) == ["a.wav", "b.wav", "new.wav"]
    assert rows["b.wav"]["duration"] == 3.0


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_cache_is_ignored(folder, run, tmp_path, content):
    write(folder, "a.wav")
    run()
    first = outputs(tmp_path)
    (tmp_path / "out/train.csv.cache.jsonl").write_text(content)
    run()
    assert outputs(tmp_path) == first


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_is_continued(folder, run, tmp_path, monkeypatch):
    for number in range(20):
        write(folder, f"{number:02d}.wav")
    monkeypatch.setattr(parallel, "CHUNK", 4)
    opened, looked = prepare.audio.open, []

    def note(path):
        looked.append(os.path.basename(path))
        if len(looked) > 9 and os.getpid() == child:
            die()
        return opened(path)

    monkeypatch.setattr(prepare.audio, "open", note)
    child = os.fork()
    if child == 0:  # dies in the third chunk
        child = os.getpid()
        run(num_workers=1)
        os._exit(1)
    os.waitpid(child, 0)
    path = tmp_path / "out/train.csv.cache.jsonl"
    assert len(path.read_text().splitlines()) == 1 + 8
    with open(path, "a") as file:
        file.write('["08.wav", 48044')
    looked.clear()
    assert len(run(num_workers=1)[0]) == 20
    assert sorted(looked) == [f"{number:02d}.wav" for number in range(8, 20)]
    looked.clear()
    assert len(run()[0]) == 20 and looked == []


def test_a_process_that_is_killed_ends_the_preparation(
    folder, run, monkeypatch
):
    for number in range(20):
        write(folder, f"{number:02d}.wav")
    monkeypatch.setattr(parallel, "CHUNK", 4)
    monkeypatch.setattr(prepare.audio, "open", die)
    with pytest.raises(OSError, match="was killed.*goes on with the rest"):
        run(num_workers=2)


def test_killed_run_leaves_the_old_annotation(folder, run, tmp_path):
    write(folder, "a.wav")
    run()
    before = outputs(tmp_path)
    write(folder, "b.wav")
    # a child that dies, as by kill -9, halfway through the annotation
    child = os.fork()
    if child == 0:
        prepare.annotation_row = lambda path, file: (
            os.kill(os.getpid(), signal.SIGKILL)
            if path == "b.wav"
            else (path, 1.5, path, 0, file.frames)
        )
        run(num_workers=1)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    after = outputs(tmp_path)
    for name in ("train.csv", "skipped.csv"):
        assert after[name] == before[name]
    assert list(run()[0]) == ["a.wav", "b.wav"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        prepare.prepare_audio_folder(tmp_path / "nowhere", tmp_path / "o.csv")


def test_folder_without_audio_says_what_it_has(folder, run):
    (folder / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match="1 unsupported .txt"):
        run()


def test_folder_without_usable_audio_says_why(folder, run, tmp_path):
    write(folder, "short.wav", noise(0.1))
    (folder / "empty.wav").touch()
    with pytest.raises(ValueError, match="2 audio files.*1 empty, 1 too short"):
        run()
    assert len(skipped(tmp_path)) == 2
    assert not (tmp_path / "out/train.csv").exists()


def test_script_is_a_command(folder, tmp_path, monkeypatch):
    write(folder, "a.wav")
    words = [SCRIPT, folder, tmp_path / "train.csv", "--min_seconds", "0.5"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(read_annotation(tmp_path / "train.csv", folder)) == 1
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "nowhere", "train.csv"])
    with pytest.raises(SystemExit, match="prepare.py: The folder .*nowhere"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_faces_beside_audio_become_a_column(folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("a.wav", "b.wav", "c.wav"):
        write(folder, name)
    image.new("RGB", (9, 9)).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"damaged")
    out = tmp_path / "train.csv"
    prepare.prepare_audio_folder(
        folder, out, find_faces=prepare.faces.find_faces
    )
    rows = out.read_text().splitlines()
    assert [row.split(",")[-1] for row in rows] == [
        *("face", "$data_root/a.jpg", "", "")
    ]
    with open(tmp_path / "skipped.csv", newline="") as file:
        reasons = {row["wav"]: row["reason"] for row in csv.DictReader(file)}
    assert "damaged face: Cannot read" in reasons["$data_root/b.jpg"]


def test_video_beside_its_sound_is_no_second_utterance():
    paths = ["/x/a.flac", "/x/a.mp4", "/x/b.mp4"]
    kept, left_out = prepare.without_videos(paths)
    assert kept == ["/x/a.flac", "/x/b.mp4"] and list(left_out) == ["/x/a.mp4"]
