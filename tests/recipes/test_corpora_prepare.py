"""Each corpus on a small tree of its layout: annotation, trials, models."""

import csv
import importlib.util
import pathlib
import shutil
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.evaluation.trials import (
    parts_of,
    read_models,
    read_trials,
    trial_paths,
)

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"


def load_script():
    # as Python does for a script, for the script beside it
    sys.path.insert(0, str(RECIPE))
    path = RECIPE / "corpora_prepare.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(RECIPE))
    return module


prepare = load_script()


def place(folder, *names, seconds=1.5, rate=16000, **settings):
    """Writes noise, another one for each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(map(ord, name)))
        noise = 0.1 * rng.uniform(-1, 1, int(seconds * rate))
        soundfile.write(path, noise, rate, **settings)


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def annotation(out, folder):
    """IDs of train.csv -> path below the corpus."""
    utterances = read_annotation(out / "train.csv", folder)
    rows = [utterances.row(index) for index in range(len(utterances))]
    for row in rows:
        assert pathlib.Path(row["wav"]).is_file()
    return {
        row["ID"]: str(pathlib.Path(row["wav"]).relative_to(folder))
        for row in rows
    }


def speakers(out):
    with open(out / "speakers.csv", newline="") as file:
        return {row["ID"]: row["spk_id"] for row in csv.DictReader(file)}


def check_list(path, folder, models=None):
    """Reads a list as verify.py does; (label, enrol files, test files)."""
    models = None if models is None else read_models(str(models))
    trials = read_trials(str(path))
    trial_paths(trials, str(path), str(folder), models)  # all are there
    parts = parts_of(trials, models)
    labels = [None] * len(trials.enrol)
    if trials.targets is not None:
        labels = trials.targets.tolist()
    return [
        (label, parts[enrol], parts[test])
        for label, enrol, test in zip(labels, trials.enrol, trials.test)
    ]


@pytest.fixture
def cnceleb(tmp_path):
    """Two speakers of dev, two of eval and one of CN-Celeb2."""
    folder = tmp_path / "corpus"
    one, two = "CN-Celeb_flac", "CN-Celeb2_flac"
    for speaker in ("id00000", "id00001", "id00800", "id00801"):
        place(folder, *(f"{one}/data/{speaker}/a-{n}.flac" for n in range(2)))
    place(folder, f"{two}/data/id10000/b.flac")
    write(folder, f"{one}/dev/dev.lst", "id00000\nid00001\n")
    lines = {"trials.lst": "", "enroll.map": "", "enroll.lst": ""}
    for speaker in ("id00800", "id00801"):
        place(folder, f"{one}/eval/enroll/{speaker}-enroll.flac")
        place(folder, f"{one}/eval/test/{speaker}-song.flac")
        lines["enroll.lst"] += f"{speaker}-enroll enroll/{speaker}-enroll.wav\n"
        lines["enroll.map"] += f"{speaker}-enroll {speaker}/a-0.wav "
        lines["enroll.map"] += f"{speaker}/a-1.wav\n"
        for other in ("id00800", "id00801"):
            same = int(speaker == other)
            lines["trials.lst"] += (
                f"{speaker}-enroll test/{other}-song.wav {same}\n"
            )
    for name, text in lines.items():
        write(folder, f"{one}/eval/lists/{name}", text)
    return folder


def test_cnceleb_has_models_of_several_files_and_no_test_speaker(
    cnceleb, tmp_path, monkeypatch
):
    monkeypatch.setattr(prepare, "CNCELEB_TRIALS", (4, 2))
    out = tmp_path / "out"
    prepare.main(["cnceleb", str(cnceleb), str(out), "--speakers"])
    rows = annotation(out, cnceleb)
    assert {path.split("/")[2] for path in rows.values()} == {
        *("id00000", "id00001", "id10000"),
    }
    assert len(rows) == 5
    assert set(speakers(out).values()) == {"id00000", "id00001", "id10000"}
    with open(out / "train.csv") as file:
        assert file.readline() == "ID,duration,wav,start,stop\n"
    data = "CN-Celeb_flac/data/id00800"
    found = check_list(out / "cnceleb.txt", cnceleb, out / "cnceleb.map")
    test = ("CN-Celeb_flac/eval/test/id00800-song.flac",)
    assert found[0] == (1, (f"{data}/a-0.flac", f"{data}/a-1.flac"), test)
    concat = out / "cnceleb_concat.map"
    found = check_list(out / "cnceleb.txt", cnceleb, concat)
    assert [label for label, *_ in found] == [1, 0, 0, 1]
    assert found[0][1] == ("CN-Celeb_flac/eval/enroll/id00800-enroll.flac",)


def test_a_wrong_count_is_an_error_unless_allowed(cnceleb, tmp_path, caplog):
    arguments = ["cnceleb", str(cnceleb), str(tmp_path / "out")]
    message = "prepare: 4 trials of trials.lst, but officially .* 3484292"
    with pytest.raises(SystemExit, match=message):
        prepare.main(arguments)
    assert not (tmp_path / "out/cnceleb.txt").exists()
    prepare.main([*arguments, "--any_count"])
    assert (tmp_path / "out/cnceleb.txt").exists()


def test_missing_audio_of_a_list_is_counted(cnceleb, tmp_path):
    (cnceleb / "CN-Celeb_flac/eval/test/id00801-song.flac").unlink()
    arguments = ["cnceleb", str(cnceleb), str(tmp_path / "out"), "--any_count"]
    with pytest.raises(SystemExit, match="1 audio files .*id00801-song.wav"):
        prepare.main(arguments)


def test_sitw_models_are_those_of_their_split(tmp_path):
    folder, out = tmp_path / "sitw", tmp_path / "out"
    for split, name in (("dev", "abcd"), ("eval", "efgh")):
        # the same file names in both splits
        place(folder, *(f"{split}/audio/{x}.flac" for x in "xyz"))
        enrolled = f"{name}1 audio/x.flac\n{name}2 audio/y.flac\n"
        write(folder, f"{split}/lists/enroll-core.lst", enrolled)
        trials = f"{name}1 audio/z.flac tgt\n{name}2 audio/z.flac imp\n"
        for condition in ("core-core", "core-multi"):
            write(folder, f"{split}/keys/{condition}.lst", trials)
    prepare.main(["sitw", str(folder), str(out)])
    assert len(list(out.glob("sitw_*_core-*.txt"))) == 4
    found = check_list(
        out / "sitw_eval_core-core.txt", folder, out / "sitw_eval.map"
    )
    assert found == [
        (1, ("eval/audio/x.flac",), ("eval/audio/z.flac",)),
        (0, ("eval/audio/y.flac",), ("eval/audio/z.flac",)),
    ]
    shutil.rmtree(folder / "dev")
    shutil.rmtree(folder / "eval")
    place(folder, "a.wav")
    with pytest.raises(SystemExit, match="neither a folder dev nor eval"):
        prepare.main(["sitw", str(folder), str(out)])


def test_voices_pairs_keys_and_models_of_a_split(tmp_path):
    folder, out = tmp_path / "voices", tmp_path / "out"
    audio = "Development_Data/Speaker_Recognition"
    files = [f"sid_dev/sp{n}/Lab41-sp{n}.wav" for n in range(3)]
    place(folder, *(f"{audio}/{file}" for file in files))
    lists = f"{audio}/sid_dev_lists_and_keys"
    enrolled = "".join(f"Lab41-sp{n} {files[n]}\n" for n in range(2))
    write(folder, f"{lists}/dev-enroll.lst", enrolled)
    write(
        folder,
        f"{lists}/dev-trial-keys.lst",
        f"Lab41-sp0 {files[2]} imp\nLab41-sp1 {files[2]} tgt\n",
    )
    prepare.main(["voices", str(folder), str(out)])
    found = check_list(out / "voices_dev.txt", folder, out / "voices_dev.map")
    assert found[1] == (1, (f"{audio}/{files[1]}",), (f"{audio}/{files[2]}",))
    (folder / lists / "dev-enroll.lst").unlink()
    with pytest.raises(SystemExit, match=r"no \*enroll\*.lst"):
        prepare.main(["voices", str(folder), str(out)])


def test_voxsrc_finds_files_by_the_ends_of_their_paths(tmp_path):
    folder, out = tmp_path / "vox", tmp_path / "out"
    place(folder, *(f"vox1/wav/id1000{n}/vid/00001.wav" for n in range(2)))
    # the same video and number with another speaker
    place(folder, "2020/voxceleb1_cd/id10545/000912.wav")
    place(folder, "2022/VoxSRC2022_dev/dev_00000.wav")
    write(
        folder,
        "2020.txt",
        "0 voxceleb1/id10000/vid/00001.wav voxceleb1_cd/id10545/000912.wav\n"
        "1 voxceleb1/id10000/vid/00001.wav voxceleb1/id10001/vid/00001.wav\n",
    )
    write(
        folder,
        "2022_test.txt",
        "id10001/vid/00001.wav VoxSRC2022_dev/dev_00000.wav\n",
    )
    lists = [str(folder / "2020.txt"), str(folder / "2022_test.txt")]
    prepare.main(["voxsrc", str(folder), str(out), "--list", *lists])
    with pytest.raises(SystemExit, match="different file names"):
        twice = [lists[0], f"{folder}/2022/2020.txt"]
        prepare.main(["voxsrc", str(folder), str(out), "--list", *twice])
    found = check_list(out / "2020.txt", folder)
    one = "vox1/wav/id10000/vid/00001.wav"
    assert found == [
        (0, (one,), ("2020/voxceleb1_cd/id10545/000912.wav",)),
        (1, (one,), ("vox1/wav/id10001/vid/00001.wav",)),
    ]
    ((label, enrol, test),) = check_list(out / "2022_test.txt", folder)
    assert label is None and test == ("2022/VoxSRC2022_dev/dev_00000.wav",)


def test_several_files_of_one_name_are_not_guessed(tmp_path):
    folder = tmp_path / "vox"
    place(folder, "a/x.wav", "b/x.wav")
    write(folder, "list.txt", "c/x.wav a/x.wav\n")
    lists = ["--list", str(folder / "list.txt")]
    with pytest.raises(SystemExit, match="several files have these names: c/x"):
        prepare.main(["voxsrc", str(folder), str(tmp_path / "out"), *lists])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_sre_converts_each_side_of_a_call(tmp_path):
    folder, out = tmp_path / "sre", tmp_path / "out"
    rng = np.random.default_rng(0)
    calls = {}
    for name in ("one", "two", "three"):
        path = folder / f"data/eval/{name}_sre18.sph"
        path.parent.mkdir(parents=True, exist_ok=True)
        calls[name] = 0.1 * rng.uniform(-1, 1, (8000, 2))
        soundfile.write(
            path, calls[name], 8000, format="NIST", subtype="PCM_16"
        )
    docs = folder / "docs"
    write(
        docs,
        "sre18_eval_enrollment.tsv",
        "modelid\tsegmentid\tside\n1001\tone_sre18.sph\ta\n"
        "1001\ttwo_sre18.sph\tb\n",
    )
    write(
        docs,
        "sre18_eval_trial_key.tsv",
        "modelid\tsegmentid\tside\ttargettype\n"
        "1001\tthree_sre18.sph\ta\ttarget\n"
        "1001\tthree_sre18.sph\tb\tnontarget\n",
    )
    arguments = ["sre", str(folder), str(out)]
    arguments += ["--enrolment", f"{docs}/sre18_eval_enrollment.tsv"]
    key = ["--trials", f"{docs}/sre18_eval_trial_key.tsv"]
    prepare.main([*arguments, *key])
    found = check_list(out / "sre.txt", out, out / "sre.map")
    enrol = "wav/one_sre18_a.wav", "wav/two_sre18_b.wav"
    assert found == [
        (1, enrol, ("wav/three_sre18_a.wav",)),
        (0, enrol, ("wav/three_sre18_b.wav",)),
    ]
    wav, rate = soundfile.read(out / "wav/two_sre18_b.wav")
    assert rate == 8000
    np.testing.assert_allclose(wav, calls["two"][:, 1], atol=1e-4)
    write(docs, "trials.tsv", "modelid\tsegmentid\n1001\tthree_sre18.sph\n")
    prepare.main([*arguments, "--trials", f"{docs}/trials.tsv"])
    assert check_list(out / "sre.txt", out, out / "sre.map")[0][0] is None
    write(docs, "trials.tsv", "modelid\tsegmentid\n1002\tthree_sre18.sph\n")
    with pytest.raises(SystemExit, match="1 models of .*1002"):
        prepare.main([*arguments, "--trials", f"{docs}/trials.tsv"])
    write(docs, "trials.tsv", "model\tsegment\n1001\tfour.sph\n")
    with pytest.raises(SystemExit, match="1 audio files .*four.sph"):
        prepare.main([*arguments, "--trials", f"{docs}/trials.tsv"])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_a_channel_that_is_not_there_is_an_error(tmp_path):
    place(tmp_path, "one.wav")
    jobs = {"wav/one_b.wav": (str(tmp_path / "one.wav"), 1)}
    with pytest.raises(ValueError, match="one.wav has no channel 2"):
        prepare.convert(jobs, str(tmp_path))


def test_3dspeaker_lists_name_utterances_of_wav_scp(tmp_path, monkeypatch):
    folder, out = tmp_path / "3dspeaker", tmp_path / "out"
    names = [f"test/s{n}/u{n}.wav" for n in range(2)]
    place(folder, *names, "train/s8/u8.wav", "train/s9/u9.wav")
    scp = "".join(f"u{n} {name}\n" for n, name in enumerate(names))
    write(folder, "files/test_wav.scp", scp)
    write(
        folder,
        "files/train_wav.scp",
        "u8 train/s8/u8.wav\nu9 train/s9/u9.wav\n",
    )
    write(folder, "files/train_utt2spk", "u8 s8\nu9 s9\n")
    counts = dict.fromkeys(prepare.THREE_D_SPEAKER_TRIALS, (2, None))
    monkeypatch.setattr(prepare, "THREE_D_SPEAKER_TRIALS", counts)
    for name in counts:
        write(folder, f"files/{name}", "u0 u1 nontarget\nu1 u1 target\n")
    prepare.main(["3dspeaker", str(folder), str(out), "--speakers"])
    assert annotation(out, folder) == {
        "u8": "train/s8/u8.wav",
        "u9": "train/s9/u9.wav",
    }
    assert speakers(out) == {"u8": "s8", "u9": "s9"}
    for name in ("cross_device", "cross_distance", "cross_dialect"):
        found = check_list(out / f"3dspeaker_{name}.txt", folder)
        assert found[0] == (0, (names[0],), (names[1],))
    write(folder, "files/trials_cross_device", "u0 u7 target\nu1 u1 imp\n")
    with pytest.raises(SystemExit, match="not in test_wav.scp: u7"):
        prepare.main(["3dspeaker", str(folder), str(out)])


def test_commonvoice_takes_the_clips_of_a_table(tmp_path):
    folder, out = tmp_path / "cv/de", tmp_path / "out"
    place(folder, *(f"clips/{n}.mp3" for n in range(3)))
    rows = "".join(f'c{n}\t{n}.mp3\ta "quoted\t2\n' for n in range(2))
    write(folder, "validated.tsv", f"client_id\tpath\tsentence\tup\n{rows}")
    prepare.main(["commonvoice", str(folder), str(out), "--speakers"])
    assert annotation(out, folder) == {
        "0.mp3": "clips/0.mp3",
        "1.mp3": "clips/1.mp3",
    }
    assert speakers(out) == {"0.mp3": "c0", "1.mp3": "c1"}
    write(folder, "validated.tsv", "client\tpath\nc\t0.mp3\n")
    with pytest.raises(SystemExit, match="expected also client_id"):
        prepare.main(["commonvoice", str(folder), str(out)])


def test_librispeech_takes_subsets_and_counts_them(tmp_path):
    folder, out = tmp_path / "LibriSpeech", tmp_path / "out"
    names = [f"dev-clean/{n}/1/{n}-1-0000.flac" for n in (19, 26)]
    place(folder, *names, "test-clean/61/1/61-1-0000.flac")
    arguments = ["librispeech", str(folder), str(out), "--subsets", "dev-clean"]
    with pytest.raises(SystemExit, match="2 utterances of dev-clean.* 2703"):
        prepare.main(arguments)
    prepare.main([*arguments, "--any_count", "--speakers"])
    assert list(annotation(out, folder).values()) == names
    assert list(speakers(out).values()) == ["19", "26"]


@pytest.fixture
def kaldi(tmp_path):
    """Two recordings at 8 kHz, with paths relative to a root."""
    place(tmp_path / "root", "x/1.wav", "y/2.wav", seconds=3, rate=8000)
    # an editor's byte order mark belongs to no name
    write(tmp_path, "data/wav.scp", "\ufeffrec1 x/1.wav\nrec2 y/2.wav\n")
    return tmp_path


def test_kaldi_data_without_segments(kaldi):
    root, out = kaldi / "root", kaldi / "out"
    write(kaldi, "data/utt2spk", "rec1 s1\nrec2 s2\n")
    arguments = ["kaldi", f"{kaldi}/data", str(out), f"--data_root={root}"]
    prepare.main([*arguments, "--speakers"])
    assert annotation(out, root) == {"rec1": "x/1.wav", "rec2": "y/2.wav"}
    assert speakers(out) == {"rec1": "s1", "rec2": "s2"}
    write(kaldi, "data/wav.scp", "rec1 sph2pipe x/1.sph |\n")
    with pytest.raises(SystemExit, match="line 1: commands are not run"):
        prepare.main(arguments)


def test_kaldi_segments_become_rows(kaldi):
    root, out = kaldi / "root", kaldi / "out"
    lines = "a rec1 0.5 2\nb rec1 1.25 -1\nc rec2 0 0.5\nd rec3 0 2\n"
    write(kaldi, "data/segments", lines)
    write(kaldi, "data/utt2spk", "a s1\nb s2\nc s3\n")
    arguments = ["kaldi", f"{kaldi}/data", str(out), f"--data_root={root}"]
    prepare.main([*arguments, "--speakers"])
    utterances = read_annotation(out / "train.csv", root)
    rows = [utterances.row(n) for n in range(len(utterances))]
    spans = {row["ID"]: (row["start"], row["stop"]) for row in rows}
    assert spans == {"a": (4000, 16000), "b": (10000, 24000)}
    assert speakers(out) == {"a": "s1", "b": "s2"}
    write(kaldi, "data/segments", "a rec1 0.5 9\n")
    with pytest.raises(SystemExit, match="rec1 has 3.00 s"):
        prepare.main(arguments)
    write(kaldi, "data/segments", "c rec2 0 0.5\nd rec3 0 2\n")
    with pytest.raises(SystemExit, match="None of 2 segments can be used"):
        prepare.main(arguments)


def test_all_corpora_have_help_and_a_row_in_the_documentation(capsys):
    text = (RECIPE.parents[2] / "docs/corpora.md").read_text()
    for name in prepare.CORPORA:
        with pytest.raises(SystemExit):
            prepare.main([name, "--help"])
        assert "DATA" in capsys.readouterr().out
        assert f"speechbrain-ssl prepare {name} " in text
