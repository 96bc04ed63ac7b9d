"""Corruption: each row its own draw, at the ratio drawn, the same anywhere."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio import corruption as c
from speechbrain_ssl.dataio.corruption import Corruption

RATE = 16000


def prepared(**settings):
    made = Corruption(RATE, **{"simulated_rooms": 6, **settings})
    made.prepare()
    return made


def draws_of(corruption, rows, seed=0):
    draws = [
        corruption.draw(np.random.default_rng((seed, row)))
        for row in range(rows)
    ]
    return torch.from_numpy(np.stack(draws))


def nothing():
    """A draw that leaves a view as it is."""
    draw = torch.zeros(1, c.DRAW_SIZE, dtype=torch.float64)
    draw[:, [c.SOURCE, c.ROOM]] = -1
    return draw


def speech(rows=1, frames=RATE):
    return torch.randn(rows, frames) * 0.1


def test_the_empty_draw_changes_nothing():
    wavs = speech(2)
    out = prepared()(wavs, nothing().expand(2, -1))
    assert torch.allclose(out, wavs, atol=1e-6)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.0])
def test_noise_has_the_drawn_ratio_to_the_speech(snr):
    wavs, draw = speech(), nothing()
    draw[:, c.SOURCE], draw[:, c.SNR] = 0, snr
    noise = prepared()(wavs, draw) - wavs
    found = 10 * torch.log10(wavs.square().mean() / noise.square().mean())
    assert found.item() == pytest.approx(snr, abs=0.05)


def test_a_quiet_and_a_loud_row_get_the_same_ratio():
    wavs = torch.cat([speech() * 1e-3, speech() * 5])
    draw = nothing().repeat(2, 1)
    draw[:, c.SOURCE], draw[:, c.SNR] = 0, 10.0
    noise = prepared()(wavs, draw) - wavs
    ratio = wavs.square().mean(1) / noise.square().mean(1)
    assert torch.allclose(ratio, torch.full((2,), 10.0), rtol=0.02)


def test_a_room_convolves_in_a_circle():
    made = prepared()
    click = torch.zeros(1, RATE)
    click[0, -100] = 1.0
    draw = nothing()
    draw[:, c.ROOM] = 3
    expected = torch.zeros(RATE)
    expected[:8000] = made.rooms[3]
    assert torch.allclose(
        made(click, draw)[0], expected.roll(RATE - 100), atol=1e-5
    )


def test_band_limits_take_away_what_is_outside():
    draw = nothing()
    draw[:, c.LOW_CUT], draw[:, c.HIGH_CUT] = 300.0, 4000.0
    draw[:, c.PEAK] = 1000.0
    wavs = speech()
    before = torch.fft.rfft(wavs)[0].abs()
    gain = torch.fft.rfft(prepared()(wavs, draw))[0].abs() / before
    assert gain[1000:2000].mean() == pytest.approx(1.0, abs=0.01)
    assert gain[8000 - 10 :].mean() < 0.2
    assert gain[20:40].mean() < 0.01


def test_gain_is_in_decibels():
    draw, wavs = nothing(), speech()
    draw[:, c.GAIN] = 20.0
    assert torch.allclose(prepared()(wavs, draw), wavs * 10, atol=1e-5)


def test_rows_do_not_depend_on_their_batch():
    made = prepared(chances=[0.1, 0.2, 0.3, 0.4])
    wavs, draws = speech(12), draws_of(made, 12)
    together = made(wavs, draws)
    alone = [made(wavs[i : i + 1], draws[i : i + 1]) for i in range(12)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_input_is_left_alone():
    made, wavs = prepared(), speech(4)
    before = wavs.clone()
    made(wavs, draws_of(made, 4))
    assert torch.equal(wavs, before)


def test_chances_are_kept():
    made = prepared(chances=[0.1, 0.2, 0.3, 0.4])
    draws = draws_of(made, 4000)
    room, noise = draws[:, c.ROOM] >= 0, draws[:, c.SOURCE] >= 0
    shares = [
        (~room & ~noise).double().mean(),
        (room & ~noise).double().mean(),
        (~room & noise).double().mean(),
        (room & noise).double().mean(),
    ]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_folders_give_noise_music_rooms_and_babble(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("noise/deep", "music", "rooms"):
        (tmp_path / folder).mkdir(parents=True)
        sound = rng.uniform(-0.5, 0.5, RATE)
        soundfile.write(tmp_path / folder / "a b.flac", sound, RATE)

    class Rows:
        def __len__(self):
            return 1

        def row(self, index):
            wav = str(tmp_path / "music" / "a b.flac")
            return {"wav": wav, "start": 100, "stop": 8100}

    made = Corruption(
        RATE,
        noise_folder=str(tmp_path / "noise"),
        music_folder=str(tmp_path / "music"),
        room_folder=str(tmp_path / "rooms"),
        simulated_rooms=2,
    )
    made.prepare(Rows())
    assert list(made.banks) == ["noise", "music", "babble"]
    assert made.banks["babble"].lengths.tolist() == 4 * [160000]
    assert made.banks["music"].lengths.tolist() == [160000]
    assert made.rooms.shape == (3, 8000)
    sources = {int(s) for s in draws_of(made, 200)[:, c.SOURCE]}
    assert sources == {-1, 0, 1, 2}


def test_of_too_many_measured_rooms_some_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        room = np.r_[1.0, np.zeros(99), 0.1 * (i + 1), np.zeros(50)]
        soundfile.write(tmp_path / f"{i}.wav", room, RATE, subtype="FLOAT")
    settings = {"sample_rate": RATE, "frames": 160, "rng": rng}
    everything = c.read_rooms(tmp_path, max_hours=1.0, **settings)
    assert everything.shape == (6, 160)
    some = c.read_rooms(tmp_path, max_hours=3 * 160 / RATE / 3600, **settings)
    echoes = (some[:, 100] / some[:, 0]).tolist()
    assert len(echoes) == 3
    # different ones of those there are
    places = [round(10 * echo) for echo in echoes]
    assert places == sorted(set(places)) and set(places) <= set(range(1, 7))


def test_a_stretch_never_leaves_its_clip():
    bank = c.bank_of_clips([torch.ones(6), torch.tensor([0.25, 1.0])], 4)
    assert bank.lengths.tolist() == [6, 4]
    starts = torch.tensor([0.0, 0.5, 0.75, 0.99])
    expected = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.25, 1.0]]
    read = bank.read(starts, 3)
    assert torch.allclose(read[:3], torch.tensor(expected), atol=1e-4)
    assert torch.allclose(read[3], read[2], atol=1e-4)


def test_simulated_rooms_decay_and_have_unit_energy():
    rooms = c.simulate_rooms(20, RATE, np.random.default_rng(0))
    assert torch.allclose(rooms.norm(dim=1), torch.ones(20), atol=1e-5)
    early, late = rooms[:, :2000].norm(dim=1), rooms[:, 6000:].norm(dim=1)
    assert (early > 2 * late).all()


def test_babble_is_a_sum_of_voices_of_equal_power(tmp_path):
    class Tones:
        def __len__(self):
            return 2

        def row(self, index):
            wav = str(tmp_path / f"{index}.flac")
            return {"wav": wav, "start": 0, "stop": 10 * RATE}

    time = np.arange(10 * RATE) / RATE
    for index, (hertz, level) in enumerate([(200, 0.9), (400, 0.01)]):
        tone = level * np.sin(2 * np.pi * hertz * time)
        soundfile.write(tmp_path / f"{index}.flac", tone, RATE)
    bank = c.bank_of_babble(Tones(), RATE, (9, 30), np.random.default_rng(0))
    assert bank.lengths.tolist() == 4 * [20 * RATE]
    heard = torch.fft.rfft(bank.samples[-20 * RATE :].float()).abs()
    loudest = heard[20 * 200 - 40 : 20 * 200 + 40].max()
    assert heard[20 * 400 - 40 : 20 * 400 + 40].max() > 0.2 * loudest


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"chances": [0.5, 0.5, 0.5, 0.5]}, "sum to 1"),
        ({"chances": [0.5, 0.5]}, "sum to 1"),
        ({"babble_voices": [9, 2]}, "babble_voices"),
    ],
)
def test_wrong_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Corruption(RATE, **settings)


def test_missing_and_empty_folders_are_named(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            Corruption(RATE, noise_folder=str(folder)).prepare()
