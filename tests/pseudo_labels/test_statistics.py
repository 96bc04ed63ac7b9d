"""Embeddings without an encoder: what moves them, and what does not."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.statistics import (
    NAME,
    MFCCStatistics,
    extract_statistics,
)

RATE = 16000


def voice(slope, seed, seconds=2.0):
    """Noise of a color, whose level varies."""
    rng = np.random.default_rng(seed)
    frames = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(frames))
    hertz = np.arange(len(spectrum)) + 50.0
    noise = np.fft.irfft(spectrum * hertz**slope, frames)
    noise *= 1 + 0.5 * np.sin(np.arange(frames) / RATE * 20)
    return (0.3 * noise / np.abs(noise).max()).astype(np.float32)


def statistics(*wavs, lengths=None):
    wavs = torch.from_numpy(np.stack(wavs))
    lengths = torch.ones(len(wavs)) if lengths is None else lengths
    return MFCCStatistics(RATE)(wavs, lengths)


def test_the_level_changes_nothing():
    wav = voice(-1.0, 0)
    first, second = statistics(wav, wav / 10)
    assert torch.allclose(first, second, atol=0.05)


def test_silence_and_padding_change_little():
    wav = voice(-1.0, 0)
    padded = np.concatenate([wav, np.zeros(RATE, np.float32)])
    (alone,) = statistics(wav)
    (inside,) = statistics(padded)
    (outside,) = statistics(padded, lengths=torch.tensor([2 / 3]))
    (other,) = statistics(voice(0.0, 0))
    scale = (other - alone).norm()
    assert (inside - alone).norm() < 0.2 * scale
    assert (outside - alone).norm() < 0.2 * scale


@pytest.fixture
def utterances(tmp_path):
    """Five utterances of each of four colors."""
    rows = []
    for number in range(20):
        wav = voice((0.0, -0.5, -1.0, -1.5)[number % 4], number)
        soundfile.write(tmp_path / f"{number}.wav", wav, RATE)
        path = f"$data_root/{number}.wav"
        rows.append((f"u{number}", 2.0, path, 0, 2 * RATE))
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv", data_root=str(tmp_path))


def test_rows_are_white_and_show_what_differs(utterances, tmp_path):
    found = extract_statistics(utterances, tmp_path / "mfcc", dim=8)
    rows = np.asarray(found.matrix, np.float64)
    assert found.ids == list(utterances.ids())
    assert np.allclose(np.cov(rows.T), np.eye(8), atol=1e-4)
    # what differs most in this audio is its color
    color = np.arange(20) % 4
    assert abs(np.corrcoef(rows[:, 0], color)[0, 1]) > 0.9


def test_a_folder_that_is_complete_is_read_again(utterances, tmp_path):
    first = extract_statistics(utterances, tmp_path / "mfcc", dim=8)
    again = extract_statistics(utterances, tmp_path / "mfcc", dim=8)
    assert again.meta == first.meta
    assert first.meta["settings"]["encoder"] == NAME
    assert np.array_equal(first.matrix, again.matrix)
