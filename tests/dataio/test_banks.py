"""Recordings and RIRs in memory: read, generated, damaged ones left out."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio import banks

RATE = 16000


class Rows:
    """Utterances of given files, one second each."""

    def __init__(self, *paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def row(self, index):
        return {"wav": str(self.paths[index]), "start": 0, "stop": RATE}


def test_of_too_many_measured_rirs_some_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        rir = np.r_[1.0, np.zeros(99), 0.1 * (i + 1), np.zeros(50)]
        soundfile.write(tmp_path / f"{i}.wav", rir, RATE, subtype="FLOAT")
    settings = {"sample_rate": RATE, "seconds": 0.01, "rng": rng}
    everyone = banks.read_rirs(tmp_path, max_hours=1.0, **settings)
    assert [len(rir) for rir in everyone] == 6 * [160]
    some = banks.read_rirs(
        tmp_path, max_hours=3 * 160 / RATE / 3600, **settings
    )
    echoes = [(rir[100] / rir[0]).item() for rir in some]
    assert len(echoes) == 3
    # different ones of those there are
    places = [round(10 * echo) for echo in echoes]
    assert places == sorted(set(places)) and set(places) <= set(range(1, 7))


def test_a_segment_never_leaves_its_clip():
    clips = [torch.full((6,), 7), torch.tensor([1, 4, 1, 4])]
    bank = banks.AudioBank.of_clips([clip.to(torch.int16) for clip in clips])
    read = 32768 * bank.read(torch.tensor([0, 5, 7, 9]), 3)
    assert read.tolist() == [[7, 7, 7], [7, 7, 7], [4, 1, 4], [4, 1, 4]]


def test_simulated_rirs_decay_and_have_unit_energy():
    rirs = banks.simulate_rirs(20, RATE, np.random.default_rng(0))
    assert torch.allclose(rirs.norm(dim=1), torch.ones(20), atol=1e-5)
    early, late = rirs[:, :2000].norm(dim=1), rirs[:, 6000:].norm(dim=1)
    assert (early > 2 * late).all()


def test_babble_is_a_sum_of_voices_of_equal_power(tmp_path):
    time = np.arange(RATE) / RATE
    paths = [tmp_path / "0.flac", tmp_path / "1.flac"]
    for path, hertz, level in zip(paths, (200, 400), (0.9, 0.01)):
        soundfile.write(path, level * np.sin(2 * np.pi * hertz * time), RATE)
    clips = banks.clips_of_babble(
        Rows(*paths), RATE, (9, 30), np.random.default_rng(0)
    )
    assert [len(clip) for clip in clips] == 4 * [10 * RATE]
    heard = torch.fft.rfft(clips[-1].float()).abs()
    loudest = heard[10 * 200 - 40 : 10 * 200 + 40].max()
    assert heard[10 * 400 - 40 : 10 * 400 + 40].max() > 0.2 * loudest


def damage(folder, kind):
    """Writes a file that cannot serve, and says what a message must name."""
    path = folder / f"damaged_{kind}.wav"
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 2 * RATE)
    if kind == "nan":
        samples[RATE // 2] = np.nan
    elif kind == "inf":
        samples[RATE // 2] = -np.inf
    elif kind == "huge":
        samples[RATE // 2] = 1e30
    elif kind == "silent":
        samples[:] = 0
    elif kind == "empty":
        samples = samples[:0]
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    if kind == "header":
        path.write_bytes(b"RIFF" + path.read_bytes()[4:30])
    elif kind == "text":
        path.write_text("no audio")
    return path


DAMAGES = ["nan", "inf", "huge", "silent", "empty", "header", "text"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("use", ["folder", "babble", "rir"])
def test_a_damaged_file_is_left_out_and_named(tmp_path, caplog, kind, use):
    good = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE)
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    for path in paths:
        soundfile.write(path, good, RATE)

    def made():
        rng = np.random.default_rng(0)
        if use == "rir":
            return torch.stack(banks.read_rirs(tmp_path, RATE, 0.5, 1.0, rng))
        if use == "babble":
            rows = Rows(*sorted(tmp_path.iterdir()))
            return torch.stack(banks.clips_of_babble(rows, RATE, (3, 8), rng))
        return torch.stack(banks.clips_of_folder(tmp_path, RATE, 1.0, rng))

    wanted = made()
    assert not caplog.records
    bad = damage(tmp_path, kind)
    with caplog.at_level(logging.WARNING):
        found = made()
    (record,) = caplog.records
    assert str(bad) in record.message and str(paths[0]) not in record.message
    assert found.shape == wanted.shape
    level = found.double().square().mean(-1).sqrt()
    assert torch.allclose(
        level, wanted.double().square().mean(-1).sqrt(), rtol=0.2
    )
    for path in paths:
        path.unlink()
    with pytest.raises(ValueError, match=f"none of the .*{bad.name}"):
        made()


def test_a_long_file_is_read_up_to_what_is_kept(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30 * RATE)
    soundfile.write(tmp_path / "long.wav", noise, RATE)
    rng = np.random.default_rng(0)
    (clip,) = banks.clips_of_folder(tmp_path, RATE, 20 / 3600, rng)
    assert len(clip) == 20 * RATE


def test_short_clips_are_repeated_to_ten_seconds_at_full_scale(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 3 * RATE)
    soundfile.write(tmp_path / "short.wav", noise, RATE)
    rng = np.random.default_rng(0)
    (clip,) = banks.clips_of_folder(tmp_path, RATE, 1.0, rng)
    assert len(clip) == 12 * RATE and clip.abs().max() == 32767
    assert torch.equal(clip[: 3 * RATE], clip[3 * RATE : 6 * RATE])


def test_colored_noise_has_slopes_from_white_to_brown():
    clips = banks.colored_noise(40, RATE, np.random.default_rng(0))
    spectra = torch.fft.rfft(torch.stack(clips).float()).abs().square()
    octaves = [spectra[:, 10 * f : 20 * f].mean(1) for f in (500, 2000)]
    slopes = torch.log2(octaves[0] / octaves[1]) / 2
    assert slopes.min() < 0.3 and slopes.max() > 1.7
    assert slopes.min() > -0.2 and slopes.max() < 2.2


def test_a_measured_rir_begins_with_its_direct_sound(tmp_path):
    rir = np.r_[np.zeros(30), 0.8, np.zeros(9), 0.4]
    soundfile.write(tmp_path / "rir.wav", rir, RATE, subtype="FLOAT")
    rng = np.random.default_rng(0)
    (found,) = banks.read_rirs(tmp_path, RATE, 0.01, 1.0, rng)
    assert found.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert found.argmax() == 0 and len(found) == 160
    assert (found[10] / found[0]).item() == pytest.approx(0.5, rel=1e-4)
