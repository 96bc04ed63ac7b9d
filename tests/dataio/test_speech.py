"""Speech in long recordings: where it is, and how it is cut."""

import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.dataio import speech

RATE = 16000


def recording(*parts, noise=-60):
    """Bursts of noise: (seconds, dB) each, over a background."""
    rng = np.random.default_rng(0)
    levels = np.concatenate(
        [np.full(round(seconds * RATE), db) for seconds, db in parts]
    )
    levels = np.maximum(levels, noise)
    return (10 ** (levels / 20) * rng.standard_normal(len(levels))).astype(
        np.float32
    )


def found_in(tmp_path, samples, **kwargs):
    path = tmp_path / "long.wav"
    soundfile.write(path, samples, RATE, "FLOAT")
    return speech.find_speech(str(path), speech.energy, **kwargs)[0]


def test_energy_finds_bursts_over_a_background(tmp_path):
    bursts = recording((2, -90), (3, -20), (1, -90), (2, -35), (2, -90))
    spans = found_in(tmp_path, bursts)
    wanted = [(1.9, 5.1), (5.9, 8.1)]
    assert np.allclose(spans, wanted, atol=0.03)
    # the same at another level and over a louder background
    spans = found_in(tmp_path, 0.1 * bursts + recording((10, -90), noise=-65))
    assert np.allclose(spans, wanted, atol=0.03)


def test_short_pauses_belong_to_speech_and_clicks_do_not(tmp_path):
    samples = recording(
        *((1, -90), (1, -20), (0.4, -90), (1, -20), (1, -90)),
        *((0.1, -20), (2, -90)),
    )
    spans = found_in(tmp_path, samples)
    assert np.allclose(spans, [(0.9, 3.5)], atol=0.03)


def test_constant_sound_is_taken_whole_and_silence_not_at_all(tmp_path):
    assert found_in(tmp_path, recording((3, -30))) == [(0.0, 3.0)]
    assert found_in(tmp_path, recording((3, -90), noise=-90)) == []
    # a recorder's constant offset is no sound
    assert found_in(tmp_path, 0.1 + recording((3, -90), noise=-90)) == []


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    samples = recording(*[(1, -90), (1.5, -20)] * 8)
    whole = found_in(tmp_path, samples)
    assert len(whole) == 8
    monkeypatch.setattr(speech, "BLOCK_SECONDS", 5.0)
    assert np.allclose(found_in(tmp_path, samples), whole, atol=0.03)
    # from the middle, in seconds from there
    part = found_in(tmp_path, samples, start=5 * RATE, stop=10 * RATE)
    assert np.allclose(part, [(0.9, 2.6), (3.4, 5.0)], atol=0.03)


def test_long_speech_is_cut_into_equal_parts():
    parts = speech.cut([(0, 1.9), (10, 31), (40, 50)], 2.0, 10.0)
    assert parts == [(10, 17), (17, 24), (24, 31), (40, 50)]


def test_silero_finds_no_speech_in_noise_and_says_what_it_needs(monkeypatch):
    pytest.importorskip("silero_vad")
    assert speech.silero(recording((2, -90), (2, -20))) == []
    speech._silero.cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ImportError, match=r"speechbrain_ssl\[vad\]"):
        speech.silero(recording((1, -20)))
