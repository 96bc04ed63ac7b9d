"""Tests of the preparation of VoxCeleb, on small trees of its layout."""

import csv
import functools
import http.server
import importlib.util
import os
import pathlib
import runpy
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.evaluation.faces import read_faces
from speechbrain_ssl.evaluation.verification import read_trials, trial_paths

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/VoxCeleb/SSL"
SCRIPT = RECIPE / "voxceleb_ssl_prepare.py"
VIDEOS = ("21Uxsk56VDQ", "-0G_eYdu2rU", "_z_BR0ERa9g")


def load_script():
    # as Python does for a script, for the script beside it
    sys.path.insert(0, str(RECIPE))
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(RECIPE))
    return module


prepare = load_script()


def place(folder, *names, seconds=1.5):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = int(seconds * 16000)
        soundfile.write(path, 0.1 * rng.uniform(-1, 1, frames), 16000)


@pytest.fixture
def vox2(tmp_path):
    """Two speakers of the training split and one of the test split."""
    folder = tmp_path / "vox2"
    for speaker in ("dev/wav/id00012", "dev/wav/id09272", "test/wav/id00017"):
        place(folder, *(f"{speaker}/{video}/00001.wav" for video in VIDEOS))
    return folder


@pytest.fixture
def run(tmp_path):
    """Prepares a folder; IDs to wav of the annotation, and reasons by name."""

    def run(folder, **kwargs):
        out = tmp_path / "out" / "train.csv"
        prepare.prepare_voxceleb_ssl(folder, out, **kwargs)
        utterances = read_annotation(out, folder)
        rows = [utterances.row(index) for index in range(len(utterances))]
        with open(tmp_path / "out/skipped.csv", newline="") as file:
            problems = {
                row["wav"].removeprefix("$data_root/"): row["reason"]
                for row in csv.DictReader(file)
            }
        return {
            row["ID"]: os.path.relpath(row["wav"], folder) for row in rows
        }, problems

    return run


def test_only_the_training_split_is_listed(vox2, run):
    rows, problems = run(vox2)
    assert set(rows) == {
        f"{speaker}/{video}/00001"
        for speaker in ("id00012", "id09272")
        for video in VIDEOS
    }
    assert all(wav == f"dev/wav/{name}.wav" for name, wav in rows.items())
    assert problems == {
        f"test/wav/id00017/{video}/00001.wav": "test split: not used for training"
        for video in VIDEOS
    }


def test_the_test_split_is_known_by_the_names_of_the_archives(tmp_path, run):
    place(
        tmp_path,
        f"vox1_dev_wav/wav/id10001/{VIDEOS[0]}/00001.wav",
        f"vox1_test_wav/wav/id10270/{VIDEOS[0]}/00001.wav",
        f"latest/wav/id10002/{VIDEOS[0]}/00001.wav",
    )
    rows, _ = run(tmp_path)
    assert [name.split("/")[0] for name in rows] == ["id10001", "id10002"]


def test_no_column_holds_the_speaker(vox2, run, tmp_path):
    run(vox2)
    with open(tmp_path / "out/train.csv") as file:
        assert file.readline() == "ID,duration,wav,start,stop\n"


def test_a_folder_of_speakers_will_do(vox2, run):
    rows, problems = run(vox2 / "dev/wav")
    assert f"id00012/{VIDEOS[0]}/00001" in rows and len(rows) == 6
    assert problems == {}


def test_ids_and_their_order_stay_when_files_are_converted(vox2, run):
    """From dev/aac/*.m4a to dev/wav/*.wav, as the README does, half-way."""
    before, _ = run(vox2)
    name = f"id00012/{VIDEOS[1]}/00001"
    moved = vox2 / f"dev/flac/{name}.flac"
    moved.parent.mkdir(parents=True)
    old = vox2 / f"dev/wav/{name}.wav"
    soundfile.write(moved, *soundfile.read(old))
    old.unlink()
    after, _ = run(vox2)
    assert list(after) == list(before)
    assert after[name] == f"dev/flac/{name}.flac"


def test_an_utterance_in_two_formats_is_used_once(vox2, run):
    name = f"id00012/{VIDEOS[0]}/00001"
    copy = vox2 / f"dev/aac/{name}.m4a"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"never opened")
    rows, problems = run(vox2 / "dev")
    assert rows[name] == f"wav/{name}.wav" and len(rows) == 6
    reason = f"duplicate: wav/{name}.wav is used"
    assert problems == {f"aac/{name}.m4a": reason}


def test_what_cannot_be_used_is_listed_with_its_reason(vox2, run):
    place(vox2, "dev/wav/id00012/short000000/00001.wav", seconds=0.2)
    place(vox2, "musan/noise/free-sound/noise-0000.wav")
    (vox2 / f"dev/wav/id00012/{VIDEOS[0]}/00002.wav").write_text("text")
    rows, problems = run(vox2)
    assert len(rows) == 6
    reasons = {
        name: reason.partition(":")[0]
        for name, reason in problems.items()
        if not name.startswith("test/")
    }
    assert reasons == {
        "dev/wav/id00012/short000000/00001.wav": "too short",
        "musan/noise/free-sound/noise-0000.wav": "not VoxCeleb",
        f"dev/wav/id00012/{VIDEOS[0]}/00002.wav": "unreadable",
    }


def test_another_tree_is_refused(tmp_path, run):
    place(tmp_path, "LibriSpeech/19/198/19-198-0000.wav")
    with pytest.raises(ValueError, match="1 audio files, but no .*dev/aac"):
        run(tmp_path)


def test_m4a_without_torchcodec_is_one_clear_error(tmp_path, run, monkeypatch):
    path = tmp_path / f"dev/aac/id00012/{VIDEOS[0]}/00001.m4a"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"never opened")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(OSError, match="1 of 1 utterances are m4a.*torchcodec"):
        run(tmp_path)


def test_m4a_is_measured_where_torchcodec_is(tmp_path, run, encoder):
    path = tmp_path / f"dev/aac/id00012/{VIDEOS[0]}/00001.m4a"
    path.parent.mkdir(parents=True)
    encoder(0.1 * torch.randn(1, 32000), sample_rate=16000).to_file(path)
    rows, _ = run(tmp_path)
    assert list(rows) == [f"id00012/{VIDEOS[0]}/00001"]


def test_speakers_of_the_test_are_not_trained_on(vox2, run):
    place(vox2, f"dev/wav/id10309/{VIDEOS[0]}/00001.wav")
    with pytest.raises(ValueError, match="1 test speakers.*id10309"):
        run(vox2)
    rows, _ = run(vox2, allow_test_speakers=True)
    assert len(rows) == 7


def test_speakers_of_given_lists_are_not_trained_on(vox2, run, tmp_path):
    trials = tmp_path / "list.txt"
    trials.write_text(
        "1 id00012/a/00001.wav id00012/b/00001.wav\n"
        "0 id00012/a/00001.wav wav/id00019/b/00001.wav\n"
    )
    with pytest.raises(ValueError, match="1 test speakers.*id00012"):
        run(vox2, held_out=[str(trials)])
    # what is given replaces the speakers that are held out by themselves
    place(vox2, f"dev/wav/id10270/{VIDEOS[0]}/00001.wav")
    trials.write_text(trials.read_text().replace("id00012", "id00013"))
    assert len(run(vox2, held_out=str(trials))[0]) == 7


def test_lists_without_speakers_cannot_be_held_out(vox2, run, tmp_path):
    trials = tmp_path / "list.txt"
    trials.write_text("1 a.wav b.wav\n0 a.wav c.wav\n")
    with pytest.raises(ValueError, match="list.txt has a.wav.*idNNNNN"):
        run(vox2, held_out=[trials])


def test_training_on_voxceleb1_warns_of_the_larger_lists(tmp_path, run, caplog):
    place(tmp_path, f"wav/id11251/{VIDEOS[0]}/00001.wav")
    assert len(run(tmp_path)[0]) == 1
    assert "only list O has unseen speakers" in caplog.text


ENROL = f"id10270/{VIDEOS[0]}/00001.wav"
SAME = f"id10270/{VIDEOS[1]}/00003.wav"
OTHER = f"id10001/{VIDEOS[2]}/00002.wav"
LIST = f"1 {ENROL} {SAME}\n0 {ENROL} {OTHER}\n"


@pytest.fixture
def official(tmp_path):
    """Lists such as the official ones, and the folder's address."""
    folder = tmp_path / "meta"
    folder.mkdir()
    for name, _ in prepare.LISTS.values():
        (folder / name).write_text(LIST)
    return folder.as_uri()


def test_official_lists_have_their_names_and_sizes():
    assert prepare.BASE_URL.startswith("https://www.robots.ox.ac.uk/~vgg/")
    assert prepare.LISTS == {
        "O": ("veri_test2.txt", 37611),
        "E": ("list_test_all2.txt", 579818),
        "H": ("list_test_hard2.txt", 550894),
    }


@pytest.mark.parametrize(
    "dev, test",
    [
        ("wav", "wav"),
        (".", "."),
        ("dev/wav", "test/wav"),
        ("vox1_dev_wav/wav", "vox1_test_wav/wav"),
    ],
)
def test_trials_are_found_in_every_layout(
    dev, test, official, tmp_path, caplog
):
    vox1, out = tmp_path / "vox1", tmp_path / "trials"
    place(vox1, f"{test}/{ENROL}", f"{test}/{SAME}", f"{dev}/{OTHER}")
    written = prepare.prepare_trials(vox1, out, base_url=official)
    assert written == [str(out / f"vox1_{name}.txt") for name in "OEH"]
    for path in written:
        trials = read_trials(path)
        assert trials.targets.tolist() == [1, 0]
        paths = trial_paths(trials, path, vox1)
        enrol = [paths[index] for index in trials.enrol]
        tests = [paths[index] for index in trials.test]
        here = os.path.normpath(vox1 / test / ENROL)
        assert list(map(os.path.normpath, enrol)) == [here, here]
        assert list(map(os.path.normpath, tests)) == [
            os.path.normpath(vox1 / test / SAME),
            os.path.normpath(vox1 / dev / OTHER),
        ]
    assert "has 2 trials, but the official list has 37611" in caplog.text


def test_lists_that_are_there_are_not_downloaded(official, tmp_path):
    place(tmp_path / "vox1/wav", ENROL, SAME, OTHER)
    (tmp_path / "trials").mkdir()
    swapped = f"0 {OTHER} {SAME}\n1 {SAME} {ENROL}\n"
    (tmp_path / "trials/veri_test2.txt").write_text(swapped)
    (written,) = prepare.prepare_trials(
        tmp_path / "vox1", tmp_path / "trials", "O", base_url="file:///nowhere"
    )
    expected = swapped.replace("id", "wav/id")
    assert pathlib.Path(written).read_text() == expected


def test_missing_audio_is_named(official, tmp_path):
    place(tmp_path / "vox1/wav", ENROL)
    (tmp_path / "vox1/wav/id10001").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        prepare.prepare_trials(tmp_path / "vox1", tmp_path, base_url=official)
    assert "2 of 3 audio files" in str(error.value)
    assert SAME in str(error.value) and OTHER in str(error.value)
    assert ENROL not in str(error.value)
    assert not (tmp_path / "vox1_O.txt").exists()


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_speakers_is_refused(folder, official, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folders of speakers"):
        prepare.prepare_trials(tmp_path / folder, tmp_path, base_url=official)


def test_an_unknown_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no list X; choose from O, E, H"):
        prepare.prepare_trials(tmp_path, tmp_path, "OX")


def test_offline_it_is_said_where_to_put_the_list(tmp_path):
    place(tmp_path / "vox1/wav", ENROL)
    # nobody listens at port 1
    with pytest.raises(OSError) as error:
        prepare.prepare_trials(
            tmp_path / "vox1", tmp_path / "out", "O", "http://127.0.0.1:1"
        )
    assert str(tmp_path / "out/veri_test2.txt") in str(error.value)
    assert "http://127.0.0.1:1/veri_test2.txt" in str(error.value)


@pytest.mark.parametrize(
    "body, length", [(LIST, 999), ("<html>moved</html>", None), ("", None)]
)
def test_a_list_comes_whole_or_not_at_all(body, length, tmp_path):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        log_message = functools.partialmethod(lambda self, *args: None)

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/veri_test2.txt"
        with pytest.raises(OSError, match="Cannot download"):
            prepare.download_list(url, tmp_path / "lists" / "veri_test2.txt")
    assert not (tmp_path / "lists").exists()


def test_script_is_two_commands(vox2, official, tmp_path, monkeypatch):
    place(tmp_path / "vox1/wav", ENROL, SAME, OTHER)
    commands = [
        ["train", vox2, tmp_path / "train.csv", "--min_seconds", "0.5"],
        ["trials", tmp_path / "vox1", tmp_path, "--base_url", official],
    ]
    monkeypatch.syspath_prepend(str(RECIPE))
    for words in commands:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(read_annotation(tmp_path / "train.csv", vox2)) == 6
    assert (tmp_path / "vox1_H.txt").is_file()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "train", "nowhere", "x.csv"])
    with pytest.raises(SystemExit, match="prepare.py: .*nowhere"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_shared_scripts_are_links_that_stay_within_the_recipes():
    for name in ("train_ssl.py", "verify.py", "audio_folder_prepare.py"):
        target = os.readlink(RECIPE / name)
        assert target == f"../../AudioFolder/SSL/{name}"


def images(folder, *names):
    image = pytest.importorskip("PIL.Image")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (9, 9)).save(path)


def test_faces_are_found_by_speaker_video_and_clip(vox2, tmp_path):
    """Crops of each utterance; the other speaker's are never taken."""
    images(
        tmp_path / "faces",
        f"dev/crops/id00012/{VIDEOS[0]}/00001/07.jpg",
        f"dev/crops/id09272/{VIDEOS[1]}/00001.jpg",
        f"dev/crops/id00099/{VIDEOS[2]}/00001.jpg",
    )
    out = tmp_path / "out" / "train.csv"
    prepare.prepare_voxceleb_ssl(
        str(vox2), out, faces_folder=str(tmp_path / "faces")
    )
    utterances = read_annotation(out, vox2, extra=("face",))
    rows = [utterances.row(n) for n in range(len(utterances))]
    found = {row["ID"]: row["face"] for row in rows if row["face"]}
    place = f"{tmp_path}/faces/dev/crops"
    assert found == {
        f"id00012/{VIDEOS[0]}/00001": f"{place}/id00012/{VIDEOS[0]}/00001",
        f"id09272/{VIDEOS[1]}/00001": f"{place}/id09272/{VIDEOS[1]}/00001.jpg",
    }
    assert len(rows) == 6


def test_crops_of_voxceleb1_are_found_by_the_names_of_its_table(tmp_path):
    place(tmp_path, f"vox1/wav/id10001/{VIDEOS[0]}/00001.wav")
    crops = tmp_path / "unzippedFaces" / "A.J._Buckley" / "1.6" / VIDEOS[0]
    images(crops, "0000375.jpg")
    (tmp_path / "vox1_meta.csv").write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\nid10001\tA.J._Buckley\tm\n"
    )
    path = str(tmp_path / f"vox1/wav/id10001/{VIDEOS[0]}/00001.wav")
    found = prepare.faces_of([path], str(tmp_path / "unzippedFaces"))
    assert found == {path: str(crops)}
    trials, listed = tmp_path / "trials.txt", tmp_path / "faces.csv"
    name, other = (f"wav/id1000{n}/{VIDEOS[0]}/00001.wav" for n in (1, 2))
    trials.write_text(f"{name} {other}\n")
    folder = str(tmp_path / "unzippedFaces")
    prepare.list_faces(folder, listed, [str(trials)])
    assert read_faces(listed) == {name: str(crops)}
    trials.write_text(f"{name} a.wav\n")
    with pytest.raises(ValueError, match="a.wav of the trial lists"):
        prepare.list_faces(folder, listed, [str(trials)])
    with pytest.raises(FileNotFoundError, match="no face"):
        prepare.faces_of([path], str(tmp_path / "vox1"))
