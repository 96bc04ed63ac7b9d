"""Embeddings of files: batches, rates, stretches, refusals."""

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization

from speechbrain_ssl.dataio import audio, embedding
from speechbrain_ssl.dataio.embedding import (
    EncoderError,
    remove_silence,
    try_files,
)
from speechbrain_ssl.loading import load_encoder
from tests.dataio.test_audio import note_opened
from tests.evaluation.test_verification import (
    statistics,
    write_list,
    write_wav,
)
from tests.models import export_model


class Ecapa(torch.nn.Module):
    """A small ECAPA-TDNN with random weights, as the recipes wire it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = Fbank(n_mels=24)
        self.norm = InputNormalization(norm_type="sentence", std_norm=False)
        self.net = ECAPA_TDNN(24, channels=[16] * 4 + [48], lin_neurons=12)
        self.shapes = []

    def forward(self, wavs, wav_lens):
        self.shapes.append(tuple(wavs.shape))
        return self.net(self.norm(self.features(wavs), wav_lens), wav_lens)


def embed_files(embed, paths, **settings):
    return try_files(embed, paths, strict=True, **settings).rows


def plan(lengths, budget, hop):
    """Batches of files with these lengths, as their numbers."""
    segments = [
        embedding._Segment(number, "", 0, None, length)
        for number, length in enumerate(lengths)
    ]
    batches = embedding._batches(segments, budget, hop)
    return [[segment.file for segment in batch] for batch in batches]


@pytest.mark.parametrize("hop", [1, 160])
def test_batches_hold_equal_numbers_of_frames_and_fit_the_budget(hop):
    lengths = np.random.default_rng(0).integers(16000, 24000, 500)
    batches = plan(lengths, 96000, hop)
    assert sorted(sum(batches, [])) == list(range(500))
    for batch in batches:
        assert lengths[batch].max() * len(batch) <= 96000
        assert len(set(lengths[batch] // hop)) == 1
    assert (len(batches) < 200) == (hop == 160)
    assert lengths[batches[0]].max() == lengths.max()


def test_a_file_longer_than_the_budget_is_a_batch_of_its_own():
    assert plan([10, 900, 10], 25, 1) == [[1], [0, 2]]


def test_embeddings_do_not_depend_on_the_other_files(tmp_path):
    frames = [16000, 8000, 15990, 480, 16159, 11200, 8001, 16160]
    paths = [
        write_wav(tmp_path / f"{n}.wav", length / 16000, seed=n)
        for n, length in enumerate(frames)
    ]
    ecapa = Ecapa().eval()
    together = embed_files(ecapa, paths, progress=False)
    # files of one number of frames share a batch: 16000 and 16159 samples
    sizes = {frames: size for size, frames in ecapa.shapes}
    assert sizes == {16160: 1, 16159: 2, 15990: 1, 11200: 1, 8001: 2, 1600: 1}
    alone = torch.cat(
        [embed_files(ecapa, [path], progress=False) for path in paths]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.shape == (8, 12) and not together.requires_grad
    # the smallest difference between two files is 1000 times as large
    assert torch.pdist(alone).min() > 0.01


def test_encoders_without_stft_get_no_padding(tmp_path):
    paths = [
        write_wav(tmp_path / f"{n}.wav", frames / 16000, seed=n)
        for n, frames in enumerate([16000, 15999, 16000])
    ]
    seen = []

    def embed(wavs, wav_lens):
        seen.append((list(wavs.shape), wav_lens.tolist()))
        return wavs[:, :4]

    embed_files(embed, paths, progress=False)
    assert seen == [([2, 16000], [1.0, 1.0]), ([1, 15999], [1.0])]


def test_an_exported_encoder_tells_its_hop(tmp_path):
    encoder = load_encoder(export_model(tmp_path / "model"))
    assert embedding._hop(encoder.encode_batch) == 160
    assert embedding._hop(lambda wavs, lengths: wavs) == 1
    encoder.mods.compute_features.compute_STFT.center = False
    assert embedding._hop(encoder.encode_batch) == 1


def voice(seconds, seed=0):
    """Noise, as loud as speech."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def write(path, *parts, **settings):
    """A file of these parts."""
    samples = np.concatenate(parts)
    settings = {"subtype": "FLOAT", **settings}
    soundfile.write(path, samples, 16000, **settings)
    return str(path)


SILENCES = {
    "zeros": (np.zeros(8000, np.float32), "FLOAT"),
    "dither": (voice(0.5, 1).clip(-1, 1) * 9e-5, "FLOAT"),
    "the code for silence of A-law": (np.zeros(8000, np.float32), "ALAW"),
    "an offset": (np.full(8000, 9e-4, np.float32), "FLOAT"),
}


@pytest.mark.parametrize("kind", SILENCES)
@pytest.mark.parametrize("place", ["start", "inside", "end"])
def test_digital_silence_does_not_change_an_embedding(tmp_path, kind, place):
    silence, subtype = SILENCES[kind]
    # whole blocks of 10 ms of sound, so that nothing else is left out
    first, second = voice(0.7), voice(0.3, 2)
    parts = {
        "start": [silence, first, second],
        "inside": [first, silence, second],
        "end": [first, second, silence],
    }
    plain = write(tmp_path / "a.wav", first, second, subtype=subtype)
    padded = write(tmp_path / "b.wav", *parts[place], subtype=subtype)
    ecapa = Ecapa().eval()
    found = try_files(ecapa, [plain, padded], progress=False)
    assert torch.equal(found.rows[0], found.rows[1])
    assert found.silence == {1: 0.5}


def test_a_file_with_silence_leaves_the_batch_that_was_planned(tmp_path):
    silence = np.zeros(8000, np.float32)
    padded = write(tmp_path / "a.wav", voice(0.5), silence)
    whole = write(tmp_path / "b.wav", voice(1.0, 1))
    ecapa = Ecapa().eval()
    together = embed_files(ecapa, [padded, whole], progress=False)
    assert sorted(ecapa.shapes) == [(1, 8000), (1, 16000)]
    alone = embed_files(ecapa, [padded], progress=False)
    torch.testing.assert_close(together[:1], alone)


def test_audio_without_digital_silence_is_not_copied():
    short = np.zeros(3100, np.float32)  # below 0.2 s
    quiet = np.sin(np.arange(8000)).astype(np.float32) * 2e-4
    for parts in ([voice(1)], [voice(1), short, voice(1)], [quiet]):
        wav = torch.from_numpy(np.concatenate(parts))
        assert remove_silence(wav, 16000) is wav


@pytest.mark.parametrize("frames", [1, 100, 16000])
def test_files_of_silence_only_are_refused_by_name(tmp_path, frames):
    path = write(tmp_path / "silent.wav", np.zeros(frames, np.float32))
    with pytest.raises(ValueError, match="silent.wav is digital silence"):
        embed_files(statistics, [path], progress=False)


@pytest.fixture
def short_windows(monkeypatch):
    """Windows of a second."""
    monkeypatch.setattr(embedding, "WINDOW_SECONDS", 1.0)


def test_long_files_are_the_mean_of_their_windows(tmp_path, short_windows):
    long = write(tmp_path / "long.wav", voice(2.5))
    short = write(tmp_path / "short.wav", voice(1.0, 3))
    seen = []

    def embed(wavs, wav_lens):
        seen.append(tuple(wavs.shape))
        return wavs[:, :800]

    found = try_files(embed, [short, long], progress=False)
    assert seen == [(1, 16000), (2, 13334), (1, 13332)]
    wav = torch.from_numpy(voice(2.5))
    windows = [wav[start:][:800] for start in (0, 13334, 26668)]
    weights = torch.tensor([13334, 13334, 13332])[:, None] / 40000
    expected = (torch.stack(windows) * weights).sum(0)
    torch.testing.assert_close(found.rows[1], expected)
    assert torch.equal(found.rows[0], torch.from_numpy(voice(1.0, 3))[:800])
    assert found.windowed == [1] and not found.failed


def test_silent_windows_of_a_long_file_do_not_count(tmp_path, short_windows):
    silence = np.zeros(32000, np.float32)
    path = write(tmp_path / "long.wav", voice(1), silence)
    found = try_files(Ecapa().eval(), [path], progress=False)
    alone = write(tmp_path / "alone.wav", voice(1))
    expected = embed_files(Ecapa().eval(), [alone], progress=False)
    torch.testing.assert_close(found.rows, expected)
    assert found.silence == {0: 2.0}


def test_memory_does_not_grow_with_the_length_of_a_file(
    tmp_path, short_windows
):
    path = write(tmp_path / "long.wav", voice(40))
    most = []

    def embed(wavs, wav_lens):
        most.append(wavs.numel())
        return wavs[:, :4]

    embed_files(embed, [path], batch_seconds=3.0, progress=False)
    assert max(most) == 3 * 16000


def test_one_file_that_the_encoder_fails_on_does_not_stop_others(tmp_path):
    paths = [write(tmp_path / f"{n}.wav", voice(1, n)) for n in range(3)]
    paths.append(write(tmp_path / "long.wav", voice(2)))
    bad = torch.from_numpy(voice(1, 1))[0]

    def embed(wavs, wav_lens):
        if wavs.shape[1] > 20000 or (wavs[:, 0] == bad).any():
            raise RuntimeError("not enough memory: tried to allocate 9 GB")
        return wavs[:, :4]

    found = try_files(embed, paths, progress=False)
    assert sorted(found.failed) == [1, 3]
    for file, name in (1, "1.wav"), (3, "long.wav"):
        assert isinstance(found.failed[file], EncoderError)
        assert name in str(found.failed[file])
        assert "not enough memory" in str(found.failed[file])
        assert found.rows[file].isnan().all()
    for file in 0, 2:
        first = torch.from_numpy(voice(1, file))[:4]
        assert torch.equal(found.rows[file], first)
    with pytest.raises(EncoderError, match="long.wav"):
        embed_files(embed, paths, progress=False)


def test_a_failed_window_fails_the_file(tmp_path, short_windows):
    long = write(tmp_path / "long.wav", voice(2.4))
    last = torch.from_numpy(voice(2.4))[25600]

    def embed(wavs, wav_lens):
        if (wavs[:, 0] == last).any():
            raise RuntimeError("out of memory")
        return wavs[:, :4]

    found = try_files(embed, [long], progress=False)
    assert "long.wav" in str(found.failed[0]) and found.rows.isnan().all()


def test_errors_in_the_code_of_an_encoder_are_not_hidden(tmp_path):
    path = write(tmp_path / "a.wav", voice(1))

    def embed(wavs, wav_lens):
        return wavs.nothing

    with pytest.raises(AttributeError, match="nothing"):
        try_files(embed, [path], progress=False)


def test_short_files_are_repeated_up_to_a_tenth_of_a_second(tmp_path):
    path = write_wav(tmp_path / "short.wav", 0.03)
    seen = []

    def embed(wavs, wav_lens):
        seen.append(wavs)
        return wavs[:, :4]

    embed_files(embed, [path], progress=False)
    (wav,) = seen[0]
    assert wav.shape == (1600,)
    assert torch.equal(wav, wav[:480].repeat(4)[:1600])


def test_rates_and_channels_are_converted(tmp_path):
    times = np.arange(8000) / 8000
    tone = 0.3 * np.sin(2 * np.pi * 440 * times)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone, 0 * tone], 1), 8000)
    seen = []

    def embed(wavs, wav_lens):
        seen.append((wavs.shape, wavs.abs().max().item(), wav_lens.tolist()))
        return wavs[:, :4] + 1

    embed_files(embed, [str(path)], progress=False)
    (shape, peak, wav_lens), *_ = seen
    assert shape == (1, 16000) and wav_lens == [1.0]
    assert peak == pytest.approx(0.15, abs=0.02)


def test_nan_in_audio_is_refused_by_name(tmp_path):
    samples = np.zeros(8000, np.float32)
    samples[4000] = np.nan
    good = write_wav(tmp_path / "good.wav")
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    paths = [good, str(tmp_path / "bad.wav")]
    with pytest.raises(OSError, match="bad.wav.* NaN"):
        embed_files(statistics, paths, progress=False)


def test_nan_in_an_embedding_is_refused_by_name(tmp_path):
    paths = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(3)]

    def embed(wavs, wav_lens):
        rows = wavs[:, :5].clone()
        rows[1, 2] = float("nan")
        return rows

    with pytest.raises(ValueError, match="embedding of .*1.wav is NaN"):
        embed_files(embed, paths, progress=False)


def test_files_without_samples_and_other_files_are_refused(tmp_path):
    empty = write_wav(tmp_path / "empty.wav", seconds=0)
    text = write_list(tmp_path, "no audio", "text.wav")
    with pytest.raises(ValueError, match="empty.wav has no audio"):
        embed_files(statistics, [empty], progress=False)
    with pytest.raises(OSError, match="text.wav"):
        embed_files(statistics, [text], progress=False)
    with pytest.raises(ValueError, match="found none"):
        embed_files(statistics, [], progress=False)


def test_an_encoder_that_loses_a_row_is_refused(tmp_path):
    paths = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(3)]
    with pytest.raises(ValueError, match="for 3 files; expected"):
        embed_files(lambda wavs, _: wavs[1:, :5], paths, progress=False)


def test_spans_embed_stretches_of_files(tmp_path):
    path = write_wav(tmp_path / "long.wav", 1.0)
    samples, _ = soundfile.read(path, dtype="float32")
    seen = []

    def embed(wavs, wav_lens):
        seen.extend(wavs)
        return wavs[:, :4]

    spans = [(4000, 8000), (0, None)]
    embed_files(embed, [path, path], progress=False, spans=spans)
    assert [len(wav) for wav in seen] == [16000, 4000]
    assert np.array_equal(seen[1].numpy(), samples[4000:8000])


def test_a_stretch_of_a_known_rate_takes_one_open_and_a_whole_file_two(
    tmp_path, monkeypatch
):
    paths = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(2)]
    audio.sample_rate(paths[0])
    opened = note_opened(monkeypatch)
    spans = [(1000, 8000), (0, None)]
    embed_files(statistics, paths, progress=False, spans=spans)
    assert sorted(opened) == [paths[0], paths[1], paths[1]]
