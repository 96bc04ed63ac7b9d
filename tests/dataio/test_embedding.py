"""Embeddings of files: batches, rates, stretches, refusals."""

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization

from speechbrain_ssl.dataio import audio, embedding
from speechbrain_ssl.dataio.embedding import embed_files
from tests.dataio.test_audio import note_opened
from tests.evaluation.test_verification import (
    statistics,
    write_list,
    write_wav,
)


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


def test_batches_hold_nearly_equal_lengths_and_fit_the_budget():
    lengths = np.random.default_rng(0).integers(16000, 64000, 500)
    batches = list(embedding._batches(lengths, budget=320000))
    assert sorted(sum(batches, [])) == list(range(500))
    for batch in batches:
        longest = lengths[batch].max()
        assert longest * len(batch) <= 320000
        assert lengths[batch].min() >= 0.99 * longest
    assert len(batches) < 250
    assert lengths[batches[0]].max() == lengths.max()


def test_a_file_longer_than_the_budget_is_a_batch_of_its_own():
    lengths = np.array([10, 900, 10])
    assert list(embedding._batches(lengths, 25)) == [[1], [0, 2]]


def test_batched_embeddings_equal_those_of_single_files(tmp_path):
    seconds = [1.0, 0.5, 0.998, 0.03, 1.0, 0.7, 0.5]
    paths = [
        write_wav(tmp_path / f"{n}.wav", length, seed=n)
        for n, length in enumerate(seconds)
    ]
    ecapa = Ecapa().eval()
    together = embed_files(ecapa, paths, progress=False)
    assert sorted(size for size, _ in ecapa.shapes) == [1, 1, 2, 3]
    alone = torch.cat(
        [embed_files(ecapa, [path], progress=False) for path in paths]
    )
    assert together.shape == (7, 12) and not together.requires_grad
    assert torch.cosine_similarity(together, alone).min() > 0.999
    # and no other file comes as near
    nearest = torch.cdist(together, alone).argmin(1)
    assert nearest.tolist() == list(range(7))
    assert ecapa.shapes[-4][1] == 1600


def test_encoder_hears_how_much_of_each_file_is_padding(tmp_path):
    paths = [
        write_wav(tmp_path / f"{n}.wav", length, seed=n)
        for n, length in enumerate([0.995, 1.0])
    ]
    seen = []

    def embed(wavs, wav_lens):
        seen.append((wavs, wav_lens))
        return wavs[:, :4]

    embed_files(embed, paths, progress=False)
    ((wavs, wav_lens),) = seen
    assert wav_lens.tolist() == pytest.approx([1.0, 0.995])
    assert wavs[1, 15920:].abs().max() == 0 < wavs[1, 15919].abs()


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
    with pytest.raises(ValueError, match="bad.wav holds NaN"):
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
    with pytest.raises(ValueError, match="empty.wav holds no audio"):
        embed_files(statistics, [empty], progress=False)
    with pytest.raises(OSError, match="text.wav"):
        embed_files(statistics, [text], progress=False)
    with pytest.raises(ValueError, match="found none"):
        embed_files(statistics, [], progress=False)


def test_an_encoder_that_loses_a_row_is_refused(tmp_path):
    paths = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(3)]
    with pytest.raises(ValueError, match="of 3 files, found shape"):
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
