"""Embeddings of an annotation's utterances, in memory and on disk."""

import errno
import json
import os
import signal
import sys
import zlib

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.augmentation import Augmentation, Gain, stack_draws
from speechbrain_ssl.pseudo_labels.extract import (
    average_augmented,
    embed_utterances,
    encoder_hash,
    extract,
    load,
)
from tests.test_distributed import run as run_in_two


@pytest.fixture
def utterances(tmp_path):
    """Stretches of one file of growing numbers."""
    path = str(tmp_path / "long.wav")
    ramp = np.arange(32000, dtype=np.float32) / 32000
    soundfile.write(path, ramp, 16000, subtype="FLOAT")
    spans = [(0, 8000), (8000, 32000), (100, 16100)]
    rows = [
        (f"u{n}", (stop - start) / 16000, path, start, stop)
        for n, (start, stop) in enumerate(spans)
    ]
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv")


@pytest.fixture
def corpus(tmp_path):
    """Eleven files of different lengths; their level tells their number."""
    rows = []
    for number in range(11):
        frames = 3000 + 700 * (number * 4 % 11)
        samples = np.full(frames, (number + 1) / 16, np.float32)
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        wav = f"$data_root/u{number}.wav"
        rows.append((f"u{number}", frames / 16000, wav, 0, frames))
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv", data_root=str(tmp_path))


def ends(wavs, lengths):
    """First and last valid sample."""
    last = (lengths * wavs.shape[1]).round().long() - 1
    return torch.stack([wavs[:, 0], wavs[range(len(wavs)), last]], 1)


def run(utterances, tmp_path, embed=ends, **settings):
    settings = {"chunk_size": 3, "progress": False, **settings}
    folder = tmp_path / "embeddings"
    return extract(embed, utterances, folder, 16000, **settings)


def numbers(embeddings):
    return (embeddings.matrix[:, 0] * 16 - 1).round().astype(int).tolist()


def test_rows_are_embedded_in_order_from_their_stretch(utterances):
    found = embed_utterances(ends, utterances, 16000) * 32000
    assert found.round().tolist() == [[0, 7999], [8000, 31999], [100, 16099]]


def test_long_utterances_are_cut(utterances):
    found = embed_utterances(ends, utterances, 16000, 0.75) * 32000
    assert found.round().tolist() == [[0, 7999], [8000, 19999], [100, 12099]]


def test_the_disk_holds_what_memory_would(utterances, tmp_path):
    found = run(utterances, tmp_path, max_seconds=0.75)
    assert isinstance(found.matrix, np.memmap)
    assert found.ids == ["u0", "u1", "u2"]
    wanted = embed_utterances(ends, utterances, 16000, 0.75)
    assert np.array_equal(found.matrix, wanted)
    whole = extract(ends, utterances, tmp_path / "b", 16000, progress=False)
    wanted = embed_utterances(ends, utterances, 16000)
    assert np.array_equal(whole.matrix, wanted)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_together_write_the_file_of_one_job(corpus, tmp_path, parts):
    order = [*range(parts)][::-1]
    for part in order[:-1]:
        settings = {"part_idx": part, "num_parts": parts}
        assert run(corpus, tmp_path, **settings) is None
        with pytest.raises(ValueError, match="not complete"):
            load(tmp_path / "embeddings")
    found = run(corpus, tmp_path, part_idx=order[-1], num_parts=parts)
    assert numbers(found) == [*range(11)]
    assert found.ids == [f"u{number}" for number in range(11)]
    assert sorted(os.listdir(tmp_path / "embeddings")) == [
        "embeddings.npy",
        "failed.csv",
        "ids.json",
        "meta.json",
    ]


def _extract_worker(rank, folder, data_root):
    """Rows of the file, its bytes, and the files that this process read."""
    mine = []

    def watched(wavs, lengths):
        mine.extend((wavs[:, 0] * 16 - 1).round().int().tolist())
        return ends(wavs, lengths)

    utterances = read_annotation(f"{data_root}/train.csv", data_root=data_root)
    found = extract(
        watched, utterances, data_root, 16000, chunk_size=3, progress=False
    )
    with open(f"{data_root}/embeddings.npy", "rb") as file:
        return found.ids, [*found.failed], file.read(), mine


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_two_processes_write_the_file_of_one(corpus, tmp_path):
    (tmp_path / "u4.wav").write_text("This is text.")
    alone = run(corpus, tmp_path)
    first, second = run_in_two(_extract_worker, tmp_path, str(tmp_path))
    assert first[:3] == second[:3]
    written = (tmp_path / "embeddings" / "embeddings.npy").read_bytes()
    assert first[:3] == (alone.ids, ["u4"], written)
    # each file was embedded by one of them
    assert {*first[3], *second[3]} == {*range(11)} - {4}
    assert not {*first[3]} & {*second[3]}
    assert not (tmp_path / "chunks").exists()


def test_a_killed_job_goes_on_with_the_chunks_that_are_missing(
    corpus, tmp_path
):
    calls = []

    def killed(wavs, lengths):
        calls.append(len(wavs))
        if len(calls) == 8:  # files, each of its own length: the third chunk
            os.kill(os.getpid(), signal.SIGKILL)
        return ends(wavs, lengths)

    child = os.fork()
    if child == 0:
        run(corpus, tmp_path, killed)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    left = []

    def watched(wavs, lengths):
        left.extend(wavs[:, 0].tolist())
        return ends(wavs, lengths)

    found = run(corpus, tmp_path, watched)
    assert len(left) == 11 - 6
    assert numbers(found) == [*range(11)]


def test_a_kill_while_joining_is_repaired(corpus, tmp_path, monkeypatch):
    from speechbrain_ssl.pseudo_labels import extract as module

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_lists", fail)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path)
    with pytest.raises(ValueError, match="not complete"):
        load(tmp_path / "embeddings")
    assert numbers(run(corpus, tmp_path, fail)) == [*range(11)]


def test_what_is_complete_is_not_made_again(corpus, tmp_path):
    first = run(corpus, tmp_path)
    again = run(corpus, tmp_path, lambda *_: None)
    assert again.meta == first.meta
    assert np.array_equal(first.matrix, again.matrix)


def test_audio_that_fails_is_listed_and_left_out(corpus, tmp_path):
    (tmp_path / "u4.wav").unlink()
    (tmp_path / "u7.wav").write_text("This is text.")
    nan = np.full(corpus.stop[9], np.nan, np.float32)
    soundfile.write(tmp_path / "u9.wav", nan, 16000, subtype="FLOAT")

    def picky(wavs, lengths):
        found = ends(wavs, lengths)
        found[(found[:, 0] * 16).round() == 3] = torch.inf
        return found

    found = run(corpus, tmp_path, picky)
    assert sorted(found.failed) == ["u2", "u4", "u7", "u9"]
    assert "NaN" in found.failed["u9"]
    assert "u4.wav" in found.failed["u4"]
    assert "encoder" in found.failed["u2"]
    assert numbers(found) == [0, 1, 3, 5, 6, 8, 10]
    assert found.ids == [f"u{number}" for number in numbers(found)]
    assert found.meta["made"]["failed"] == 4


def test_errors_of_the_encoder_itself_are_fatal(corpus, tmp_path):
    def out_of_memory(wavs, lengths):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"u\d.wav.*out of memory"):
        run(corpus, tmp_path, out_of_memory)


def test_errors_of_the_encoder_on_one_file_are_listed(corpus, tmp_path):
    def limited(wavs, lengths):
        if wavs.shape[1] == 9300:
            raise RuntimeError("out of memory")
        return ends(wavs, lengths)

    found = run(corpus, tmp_path, limited, chunk_size=1)
    (name,) = found.failed
    assert f"{name}.wav" in found.failed[name]
    assert "out of memory" in found.failed[name] and len(found.ids) == 10


def test_one_damaged_file_gets_zeros_in_memory(corpus, tmp_path, caplog):
    wanted = embed_utterances(ends, corpus, 16000)
    (tmp_path / "u4.wav").write_text("This is text.")
    found = embed_utterances(ends, corpus, 16000)
    wanted[4] = 0
    assert torch.equal(found, wanted)
    assert "1 of 11 utterances" in caplog.text and "u4.wav" in caplog.text
    (tmp_path / "u5.wav").unlink()
    (tmp_path / "u6.wav").unlink()
    with pytest.raises(ValueError, match="3 of 11 utterances.*u4.wav"):
        embed_utterances(ends, corpus, 16000)


def test_a_wrong_data_folder_stops_at_once(corpus, tmp_path):
    elsewhere = read_annotation(tmp_path / "train.csv", str(tmp_path / "no"))
    with pytest.raises(ValueError, match="None of 11 utterances"):
        run(elsewhere, tmp_path, chunk_size=11)
    with pytest.raises(ValueError, match="None of 11 utterances"):
        extract(ends, elsewhere, tmp_path / "b", 16000, chunk_size=3)


def test_other_settings_are_refused_with_both_values(corpus, tmp_path):
    run(corpus, tmp_path, encoder="aaa")
    with pytest.raises(ValueError, match='encoder: was "aaa", is "bbb"'):
        run(corpus, tmp_path, encoder="bbb")
    with pytest.raises(ValueError, match="max_seconds: was null, is 3.0"):
        run(corpus, tmp_path, encoder="aaa", max_seconds=3.0)
    rows = [corpus.row(index) for index in range(10)]
    write_annotation(tmp_path / "less.csv", rows)
    with pytest.raises(ValueError, match='utterances: was "'):
        run(read_annotation(tmp_path / "less.csv"), tmp_path, encoder="aaa")


def test_full_disk_is_an_error_and_the_next_run_completes(
    corpus, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "embeddings"
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="No space left"):
            run(corpus, tmp_path, chunk_size=4)
    left = {path.name for path in folder.iterdir()}
    assert left == {"meta.json", "chunks"}
    found = run(corpus, tmp_path, chunk_size=4)
    whole = extract(ends, corpus, tmp_path / "other", 16000)
    assert np.array_equal(found.matrix, whole.matrix)


def test_temporary_matrix_of_a_killed_run_is_removed(corpus, tmp_path):
    folder = tmp_path / "embeddings"
    folder.mkdir()
    (folder / ".embeddings.npy.part").write_bytes(bytes(1000))
    run(corpus, tmp_path)
    assert not [name for name in os.listdir(folder) if name[0] == "."]


def test_damaged_meta_file_is_named(corpus, tmp_path):
    run(corpus, tmp_path)
    meta = tmp_path / "embeddings" / "meta.json"
    meta.write_text("")
    for again in (lambda: run(corpus, tmp_path), lambda: load(meta.parent)):
        with pytest.raises(ValueError, match=r"meta\.json is damaged.*Delete"):
            again()


def test_chunks_of_unknown_settings_are_refused(corpus, tmp_path):
    folder = tmp_path / "embeddings"
    (folder / "chunks").mkdir(parents=True)
    with pytest.raises(ValueError, match="no meta.json.*Delete"):
        run(corpus, tmp_path)


def test_the_audio_may_lie_elsewhere(corpus, tmp_path):
    run(corpus, tmp_path)
    moved = read_annotation(tmp_path / "train.csv", data_root="/elsewhere")
    assert run(moved, tmp_path).ids == [f"u{number}" for number in range(11)]


def test_half_precision_refuses_what_it_cannot_hold(corpus, tmp_path):
    def large(wavs, lengths):
        return ends(wavs, lengths) * 1e5  # u10 is the only one above 65504

    found = run(corpus, tmp_path, large, dtype="float16")
    assert found.matrix.dtype == np.float16
    assert list(found.failed) == ["u10"]
    assert "float16" in found.failed["u10"]
    assert found.matrix[0] == pytest.approx(6250.0)


def test_an_encoder_in_training_mode_is_refused(corpus, tmp_path):
    module = torch.nn.Identity()
    for embed in module, module.forward:
        with pytest.raises(ValueError, match="training mode"):
            run(corpus, tmp_path, embed)


@pytest.mark.parametrize(
    "settings", [{"part_idx": 2, "num_parts": 2}, {"dtype": "int8"}]
)
def test_bad_settings_are_refused(corpus, tmp_path, settings):
    with pytest.raises(ValueError, match=str([*settings.values()][0])):
        run(corpus, tmp_path, **settings)


def test_a_file_that_does_not_fit_is_refused(corpus, tmp_path):
    run(corpus, tmp_path)
    path = tmp_path / "embeddings" / "ids.json"
    path.write_text(json.dumps(["u0"]))
    with pytest.raises(ValueError, match="11 embeddings and 1 IDs"):
        load(tmp_path / "embeddings")


def test_the_hash_of_an_encoder_follows_weights_and_settings(tmp_path):
    for name in "embedding_model.ckpt", "hyperparams.yaml":
        (tmp_path / name).write_text("a")
    first = encoder_hash(tmp_path)
    assert encoder_hash(tmp_path) == first
    (tmp_path / "hyperparams.yaml").write_text("b")
    assert encoder_hash(tmp_path) != first


def louder_and_shifted(wavs, wav_lens):
    """Something that the gain of an augmentation changes."""
    return wavs[:, :3] + torch.tensor([0.1, 0.2, 0.3])


def random_gain():
    augmentation = Augmentation({"gain": Gain(db=(-20.0, 20.0))}, [], seed=0)
    augmentation.prepare(16000)
    return augmentation


def test_an_average_is_the_mean_of_unit_embeddings_of_augmented_copies():
    wav = torch.rand(1, 400)
    augmentation = random_gain()
    averaged = average_augmented(louder_and_shifted, augmentation, 3, seed=5)
    found = averaged(wav, torch.ones(1))
    key = zlib.crc32(wav[0].numpy().tobytes())
    copies = []
    for copy in range(3):
        draw = augmentation.draw(np.random.default_rng([5, copy, key]))
        copied = augmentation.apply(wav, stack_draws([draw]))
        one = louder_and_shifted(copied, None)[0]
        copies.append(one / one.norm())
    assert len({round(float(c[0]), 4) for c in copies}) == 3
    assert torch.allclose(found[0], sum(copies) / 3, atol=1e-6)


def test_an_average_does_not_depend_on_batch_order_or_padding():
    wavs = torch.rand(4, 400)
    averaged = average_augmented(louder_and_shifted, random_gain(), 2)
    together = averaged(wavs, torch.ones(4))
    padded = torch.nn.functional.pad(wavs[[2]], (0, 100))
    alone = averaged(padded, torch.tensor([400 / 500]))
    assert torch.allclose(alone, together[[2]], atol=1e-6)
    assert torch.allclose(
        averaged(wavs.flip(0), torch.ones(4)).flip(0), together
    )


def test_averages_of_other_copies_are_refused(corpus, tmp_path):
    folder = str(tmp_path / "embeddings")
    given = {"sample_rate": 16000, "progress": False}
    extract(
        ends, corpus, folder, **given, more_settings={"augmented_copies": 8}
    )
    with pytest.raises(ValueError, match="augmented_copies: was 8, is 4"):
        extract(
            ends, corpus, folder, **given, more_settings={"augmented_copies": 4}
        )
