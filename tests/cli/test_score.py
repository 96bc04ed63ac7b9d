"""Two files in, a score and a decision out."""

import csv
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch.nn.functional as F

from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.cli.score import main, score_pairs, verify
from speechbrain_ssl.dataio.audio import load
from speechbrain_ssl.loading import load_encoder
from tests.models import export_model, write_noise
from tests.nnet.test_onnx_encoder import write as write_onnx


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model and two recordings."""
    folder = tmp_path_factory.mktemp("verify")
    return (
        export_model(folder / "model"),
        write_noise(folder / "a.wav", 0.7),
        write_noise(folder / "b.flac", 0.5, rate=8000, seed=1, channels=2),
    )


def test_the_score_is_the_cosine_of_the_embeddings(pair):
    model, *paths = pair
    encoder = load_encoder(model)
    rows = [encoder.encode_batch(load(p, 16000)[None]) for p in paths]
    expected = F.cosine_similarity(*rows, dim=-1).item()
    found = verify(*pair)
    assert found.score == pytest.approx(expected, abs=1e-5)
    assert found.threshold is None and found.same is None
    same = verify(model, paths[0], paths[0], threshold=0.999)
    assert same.score == pytest.approx(1.0) and same.same is True


def test_without_a_threshold_there_is_a_score_only(pair, tmp_path, capsys):
    main(list(pair))
    out = capsys.readouterr().out
    assert "score" in out and "no decision" in out
    assert "speaker " not in out
    model = shutil.copytree(pair[0], tmp_path / "a model")
    main([str(model), *pair[1:]])
    assert f"--model_folder '{model}' " in capsys.readouterr().out


def test_an_onnx_file_is_opened_once_and_its_threshold_decides(
    pair, tmp_path, monkeypatch
):
    onnxruntime, opened = pytest.importorskip("onnxruntime"), []
    path = write_onnx(tmp_path / "mean.onnx", threshold=-0.5)
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *a, **b: opened.append(a[0]) or session(*a, **b),
    )
    assert verify(path, *pair[1:]).threshold == -0.5
    assert opened == [path]


def test_the_models_own_threshold_decides_and_a_given_one_before_it(
    pair, tmp_path, capsys
):
    _, *paths = pair
    model = export_model(tmp_path / "model")
    score = verify(*pair).score
    for threshold, verdict in (
        (score - 0.01, "same speaker"),
        (score + 0.01, "different speakers"),
    ):
        summary = {"threshold": threshold, "EER": 1.0}
        suggest_threshold(model, summary, "list.txt")
        main([model, *paths])
        assert verdict in capsys.readouterr().out
    main([model, *paths, "--threshold=-1"])
    assert "same speaker (threshold -1.0000)" in capsys.readouterr().out


def test_two_silent_files_are_no_speaker(pair, tmp_path):
    paths = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    for path in paths:
        soundfile.write(path, np.zeros(16000), 16000)
    with pytest.raises(SystemExit, match="a.wav is digital silence"):
        main([pair[0], *paths])


def test_digital_silence_does_not_change_the_score(pair, tmp_path):
    model, first, second = pair
    samples, rate = soundfile.read(first)
    padded = str(tmp_path / "padded.wav")
    soundfile.write(padded, np.r_[samples, np.zeros(5 * rate)], rate)
    found = verify(model, padded, second)
    assert found.score == verify(*pair).score
    (note,) = found.notes
    assert note == "Removed 5.0 s of digital silence from 1 files."


def test_a_member_of_a_tar_file_is_compared(pair, tmp_path):
    model, *paths = pair
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(paths[0], "a.wav")
    member = f"{tmp_path}/shard.tar::a.wav"
    assert verify(model, member, paths[1]).score == verify(*pair).score


def test_bad_input_is_named_without_a_traceback(pair, tmp_path):
    model, good, _ = pair
    broken, empty = tmp_path / "broken.wav", tmp_path / "empty.wav"
    broken.write_bytes(b"no audio")
    write_noise(empty, 0.0)
    for arguments, message in (
        ((model, good, str(tmp_path / "none.wav")), "no file .*none.wav"),
        ((model, good, str(broken)), "broken.wav"),
        ((model, str(empty), good), "empty.wav has no audio"),
        ((str(tmp_path), good, good), "not an exported model"),
        ((model, good, good, "--threshold=7"), "between -1 and 1"),
    ):
        with pytest.raises(SystemExit, match=f"score: .*{message}"):
            main(list(arguments))


@pytest.fixture
def listed(pair, tmp_path):
    """Pairs of four files, one of them broken, and a model of two files."""
    files = {
        "a.wav": write_noise(tmp_path / "a.wav", 0.7),
        "b c.wav": write_noise(tmp_path / "b c.wav", 0.5, seed=1),
        "d.wav": write_noise(tmp_path / "d.wav", 0.6, seed=2),
    }
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = ["a.wav\tb c.wav", "both\td.wav", "broken.wav\ta.wav"]
    (tmp_path / "pairs.txt").write_text("\n".join(rows))
    (tmp_path / "map.txt").write_text("both\ta.wav\tb c.wav\n")
    return pair[0], files, tmp_path


def test_pairs_get_the_scores_of_single_commands(listed):
    model, files, folder = listed
    first, both, broken = score_pairs(
        model,
        f"{folder}/pairs.txt",
        enrolment=f"{folder}/map.txt",
        threshold=0.1,
        progress=False,
    )
    expected = verify(model, files["a.wav"], files["b c.wav"]).score
    assert first[:2] == ("a.wav", "b c.wav") and first.reason == ""
    assert first.score == pytest.approx(expected, abs=1e-5)
    assert first.same == (first.score >= 0.1)
    encoder = load_encoder(model)
    a, b, d = (
        F.normalize(encoder.encode_batch(load(p, 16000)[None]).flatten(), dim=0)
        for p in files.values()
    )
    slow = F.cosine_similarity(a + b, d, dim=0).item()
    assert both.score == pytest.approx(slow, abs=1e-5)
    assert broken.score is None and broken.same is None
    assert "broken.wav" in broken.reason


def test_pairs_may_be_targets_only(listed):
    model, _, folder = listed
    (folder / "pairs.txt").write_text("1\ta.wav\tb c.wav\n1\ta.wav\td.wav\n")
    found = score_pairs(model, f"{folder}/pairs.txt", progress=False)
    assert [pair.reason for pair in found] == ["", ""]


def test_pairs_are_written_or_printed_as_csv(listed, capsys):
    model, _, folder = listed
    flags = [model, f"--pairs={folder}/pairs.txt", "--enrolment"]
    flags += [f"{folder}/map.txt", "--threshold=-1"]
    main(flags)
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert [row["same"] for row in rows] == ["1", "1", ""]
    assert "1 pairs have no score" in printed.err
    main([*flags, f"--output={folder}/scores.csv"])
    assert "3 pairs in" in capsys.readouterr().out
    with open(folder / "scores.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows


def test_files_and_a_list_together_are_refused(pair, capsys):
    model, *paths = pair
    for arguments in ([model], [model, paths[0]], [*pair, "--pairs=x"]):
        with pytest.raises(SystemExit):
            main(list(arguments))
        assert "give two files, or --pairs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*pair, "--output=x"])
    assert "need --pairs" in capsys.readouterr().err
