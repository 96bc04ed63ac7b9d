"""Two files in, a score and a decision out."""

import tarfile

import numpy as np
import pytest
import soundfile
import torch.nn.functional as F

from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.cli.score import main, verify
from speechbrain_ssl.dataio.audio import load
from speechbrain_ssl.loading import load_encoder
from tests.models import export_model, write_noise


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


def test_without_a_threshold_there_is_a_score_only(pair, capsys):
    main(list(pair))
    out = capsys.readouterr().out
    assert "score" in out and "no decision" in out
    assert "speaker " not in out


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
