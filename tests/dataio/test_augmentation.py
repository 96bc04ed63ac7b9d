"""Augmentation: each row its own draw, at the ratio drawn, the same anywhere."""

import csv
import logging
import pickle
import random

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.codec import CodecAugment
from speechbrain.augment.time_domain import (
    AddNoise,
    AddReverb,
    DoClip,
    DropChunk,
    DropFreq,
    SpeedPerturb,
)
from torch.overrides import TorchFunctionMode

from speechbrain_ssl.dataio import banks as a
from speechbrain_ssl.dataio.augmentation import (
    Augmentation,
    Channel,
    Gain,
    Noise,
    Reverberation,
    SpeechBrainAugment,
    Telephone,
    stack_draws,
)
from tests.dataio.test_banks import Rows

RATE = 16000
NOTHING = {"tilt": 0.0, "peak": 1000.0, "peak_gain": 0.0}


@pytest.fixture(autouse=True)
def few_noises(monkeypatch):
    """Six clips of colored noise instead of sixty."""
    make = a.colored_noise
    monkeypatch.setattr(a, "colored_noise", lambda n, *rest: make(6, *rest))


def prepared(effect, utterances=None):
    effect.prepare(RATE, utterances, np.random.default_rng(0))
    return effect


def everything(chances=None, **effects):
    made = Augmentation(
        {
            "rir": Reverberation(simulated=6),
            "noise": Noise(),
            "channel": Channel(),
            "gain": Gain(),
            **effects,
        },
        chances or [{"rir": 0.2, "noise": 0.3, "rir+noise": 0.4}],
    )
    made.prepare(RATE)
    return made


def draws_of(effect, rows, seed=0):
    return [effect.draw(np.random.default_rng((seed, i))) for i in range(rows)]


def apply(effect, wavs, **parameters):
    return effect.apply(wavs, stack_draws([parameters] * len(wavs)))


def speech(rows=1, frames=RATE):
    return torch.randn(rows, frames) * 0.1


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.0])
def test_noise_has_the_drawn_ratio_to_the_speech(snr):
    wavs = speech()
    noise = apply(prepared(Noise()), wavs, source=0, position=0.3, snr=snr)
    noise -= wavs
    found = 10 * torch.log10(wavs.square().mean() / noise.square().mean())
    assert found.item() == pytest.approx(snr, abs=0.05)


def test_a_quiet_and_a_loud_row_get_the_same_ratio():
    wavs = torch.cat([speech() * 1e-3, speech() * 5])
    noise = apply(prepared(Noise()), wavs, source=0, position=0.3, snr=10.0)
    noise -= wavs
    ratio = wavs.square().mean(1) / noise.square().mean(1)
    assert torch.allclose(ratio, torch.full((2,), 10.0), rtol=0.02)


def test_reverberation_is_a_circular_convolution_with_the_drawn_rir():
    made = prepared(Reverberation(simulated=6))
    click = torch.zeros(1, RATE)
    click[0, -100] = 1.0
    expected = torch.zeros(RATE)
    expected[:8000] = made.rirs[3]
    assert torch.allclose(
        apply(made, click, rir=3)[0], expected.roll(RATE - 100), atol=1e-5
    )


def test_band_limits_take_away_what_is_outside():
    wavs = speech()
    before = torch.fft.rfft(wavs)[0].abs()
    channel = prepared(Channel())
    after = apply(channel, wavs, low_cut=300.0, high_cut=4000.0, **NOTHING)
    gain = torch.fft.rfft(after)[0].abs() / before
    assert gain[1000:2000].mean() == pytest.approx(1.0, abs=0.01)
    assert gain[8000 - 10 :].mean() < 0.2
    assert gain[20:40].mean() < 0.01


def test_tilt_and_peak_are_in_decibels():
    wavs = speech()
    before = torch.fft.rfft(wavs)[0].abs()
    band = {"low_cut": 20.0, "high_cut": 8000.0}
    tilted = apply(
        prepared(Channel()), wavs, tilt=3.0, peak=250.0, peak_gain=8.0, **band
    )
    gain = 20 * torch.log10(torch.fft.rfft(tilted)[0].abs() / before)
    assert gain[1990:2010].mean().item() == pytest.approx(3.0, abs=0.1)
    assert gain[3990:4010].mean().item() == pytest.approx(6.0, abs=0.1)
    assert gain[248:253].mean().item() == pytest.approx(2.0, abs=0.2)


def test_gain_is_in_decibels():
    wavs = speech()
    assert torch.allclose(apply(Gain(), wavs, db=20.0), wavs * 10, atol=1e-5)


def test_effects_follow_one_another_as_one_formula_in_the_spectrum():
    """An independent formula: reverberation, noise, channel, gain."""
    made, wavs = everything(), speech(1, 12000)
    (draw,) = draws_of(made, 1, seed=5)
    draw.update({"rir.on": 1.0, "noise.on": 1.0})
    value = {name.split(".", 1)[1]: value for name, value in draw.items()}
    rir = made.effects["rir"].rirs[int(value["rir"])].double()
    bank = made.effects["noise"].bank
    place = int(np.float32(value["position"]) * np.float32(len(bank.samples)))
    clip = int(torch.searchsorted(bank.starts, place, right=True)) - 1
    place = min(place, int(bank.starts[clip] + bank.lengths[clip]) - 12000)
    noise = bank.samples[place : place + 12000].double() / 32768
    wet = torch.zeros(12000).double()
    padded = torch.nn.functional.pad(rir, (0, 12000 - len(rir)))
    speech_spectrum = torch.fft.fft(wavs[0].double()) * torch.fft.fft(padded)
    wet = torch.fft.ifft(speech_spectrum).real
    scale = (wet.square().mean() / noise.square().mean()).sqrt()
    mixed = wet + noise * scale * 10 ** (-value["snr"] / 20)
    hertz = torch.linspace(0, RATE / 2, 6001).double()
    octave = hertz.clamp(min=20).log2()
    db = -18 * (np.log2(value["low_cut"]) - octave).clamp(min=0)
    db -= 18 * (octave - np.log2(value["high_cut"])).clamp(min=0)
    db += value["tilt"] * (octave - np.log2(1000))
    octaves_away = octave - np.log2(value["peak"])
    db += value["peak_gain"] * torch.exp(-2 * octaves_away**2)
    response = 10 ** ((db.clamp(min=-60) + value["db"]) / 20)
    wanted = torch.fft.irfft(torch.fft.rfft(mixed) * response, 12000)
    found = made.apply(wavs, stack_draws([draw]))[0].double()
    # the response is interpolated between 513 points
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_rows_do_not_depend_on_their_batch():
    made, wavs = everything(), speech(12)
    draws = draws_of(made, 12)
    together = made.apply(wavs, stack_draws(draws))
    alone = [
        made.apply(wavs[i : i + 1], stack_draws(draws[i : i + 1]))
        for i in range(12)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_input_is_left_alone_and_rows_without_effects_stay():
    made = everything([{"rir+noise": 0.5}, {"channel": 0.5}, {"gain": 0.5}])
    wavs, draws = speech(40), draws_of(made, 40)
    before = wavs.clone()
    after = made.apply(wavs, stack_draws(draws))
    assert torch.equal(wavs, before)
    untouched = [
        not any(v for name, v in draw.items() if name.endswith(".on"))
        for draw in draws
    ]
    same = (after == before).all(1).tolist()
    assert same == untouched and 0 < sum(same) < 40


def test_chances_are_kept():
    made = everything(
        [{"rir": 0.2, "noise": 0.3, "rir+noise": 0.4}, {"channel": 0.8}]
    )
    drawn = stack_draws(draws_of(made, 4000))
    rir, noise = drawn["rir.on"] > 0, drawn["noise.on"] > 0
    shares = [
        (~rir & ~noise).double().mean(),
        (rir & ~noise).double().mean(),
        (~rir & noise).double().mean(),
        (rir & noise).double().mean(),
        drawn["channel.on"].double().mean(),
        (drawn["channel.on"].bool() & rir).double().mean(),
    ]
    wanted = [0.1, 0.2, 0.3, 0.4, 0.8, 0.48]
    assert shares == pytest.approx(wanted, abs=0.03)
    assert "gain.on" not in drawn


def test_parameters_have_the_order_of_the_chances_in_every_process():
    # the order of a set of strings differs from process to process
    letters = "hfbdacge"
    effects = {letter: Gain() for letter in letters}
    augmentation = Augmentation(effects, [dict.fromkeys(letters, 0.1)])
    augmentation.prepare(16000)
    on = [name for name in augmentation.names if name.endswith(".on")]
    assert on == [f"{letter}.on" for letter in letters]


def test_draws_are_uniform_over_their_ranges(tmp_path):
    """The distribution that published figures of this package were made with."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, RATE), RATE)
    made = Augmentation({"n": Noise(), "c": Channel(), "g": Gain()})
    made.prepare(RATE, Rows(path))
    drawn = stack_draws(draws_of(made, 4000))

    def is_uniform(values, lowest, highest):
        steps = torch.linspace(0, 1, len(values))
        share = (values.sort().values - lowest) / (highest - lowest)
        return (share - steps).abs().max() < 0.035  # Kolmogorov, p < 1e-3

    is_babble = drawn["n.source"] == 1
    assert is_babble.double().mean() == pytest.approx(0.5, abs=0.03)
    assert is_uniform(drawn["n.snr"][~is_babble], 0, 15)
    assert is_uniform(drawn["n.snr"][is_babble], 10, 20)
    assert is_uniform(drawn["n.position"], 0, 1)
    assert is_uniform(((drawn["c.low_cut"] - 20) / 380).sqrt(), 0, 1)
    assert is_uniform(drawn["c.high_cut"], 3200, 8000)
    assert is_uniform(drawn["c.tilt"], -4, 4)
    assert is_uniform(drawn["c.peak"].log2(), np.log2(200), np.log2(200) + 4.5)
    assert is_uniform(drawn["c.peak_gain"], -8, 8)
    assert is_uniform(drawn["g.db"], -10, 10)


def test_an_effect_without_chance_or_left_out_changes_no_other_draw():
    chances = [{"rir": 0.5}, {"noise": 0.5}]
    first = everything(chances)
    second = everything(chances, gain=None)
    for one, other in zip(draws_of(first, 9), draws_of(second, 9)):
        assert "gain.db" in one and one.pop("gain.db")
        assert one == other


def test_an_augmentation_is_an_effect():
    inner = Augmentation({"gain": Gain([6, 6])}, [{"gain": 0.5}])
    outer = Augmentation({"inner": inner}, [{"inner": 0.5}])
    outer.prepare(RATE)
    wavs = torch.ones(400, 8)
    level = outer.apply(wavs, stack_draws(draws_of(outer, 400)))[:, 0]
    wanted = torch.where(level > 1, 10**0.3, 1.0)
    assert torch.allclose(level, wanted)
    assert (level > 1).double().mean() == pytest.approx(0.25, abs=0.07)


def test_folders_give_noise_music_rirs_and_babble(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("noise/deep", "music", "rirs"):
        (tmp_path / folder).mkdir(parents=True)
        sound = rng.uniform(-0.5, 0.5, RATE)
        soundfile.write(tmp_path / folder / "a b.flac", sound, RATE)
    noise = Noise(str(tmp_path / "noise"), str(tmp_path / "music"))
    prepared(noise, Rows(tmp_path / "music" / "a b.flac"))
    assert noise.sources == ["noise", "music", "babble"]
    assert noise.bank.lengths.tolist() == 6 * [160000]
    assert noise.spans.tolist() == [
        [0, 160000, 320000],
        [160000, 160000, 640000],
    ]
    assert {d["source"] for d in draws_of(noise, 200)} == {0, 1, 2}
    rirs = prepared(Reverberation(str(tmp_path / "rirs"), simulated=2)).rirs
    assert rirs.shape == (3, 8000)


def test_each_source_is_read_where_it_lies():
    """Sources are told apart by their numbers of sign changes."""
    noise = prepared(Noise())
    signs = torch.tensor([1, -1, 1, -1], dtype=torch.int16)
    clips = [signs.repeat_interleave(2 << i).repeat(99) for i in range(3)]
    noise.bank = a.AudioBank.of_clips(clips)
    ends = torch.tensor([len(clip) for clip in clips]).cumsum(0).tolist()
    noise.spans = torch.tensor([[0, ends[0]], [ends[0], ends[2] - ends[0]]])
    changes = []
    for source, position in [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]:
        place = {"source": source, "position": position}
        wavs = torch.ones(1, 64)
        mixed = apply(noise, wavs, snr=0.0, **place) - wavs
        changes.append(int((mixed[0].diff() != 0).sum()))
    assert changes == [31, 31, 15, 7]


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: Augmentation({"g": Gain()}, [{"g": 1.1}]), "sum 1 or less"),
        (lambda: Augmentation({"g": Gain()}, [{"g": -0.1}]), "0 or more"),
        (lambda: Augmentation({"g": Gain()}, [{"g": np.nan}]), "sum 1 or less"),
        (lambda: Augmentation({"g": Gain()}, [{"gain": 0.1}]), "are g"),
        (lambda: Augmentation({"g": Gain()}, [{"g": 0.1}] * 2), "two entries"),
        (lambda: Augmentation({"g": Gain()}, [0.1]), "map names"),
        (lambda: Augmentation({"g": 3.0}), "methods draw and apply"),
        (lambda: Noise(babble_voices=[9, 2]), "babble_voices"),
        (lambda: Noise(noise_snr=[15, 0]), "noise_snr"),
        (lambda: Noise(music_snr=5), "music_snr"),
        (lambda: Noise(max_hours=0), "max_hours"),
        (lambda: Reverberation(simulated=0), "rir_folder"),
        (lambda: Channel(high_cut=[1.0, 0.5]), "high_cut"),
        (lambda: Gain(["a", "b"]), "db must be a pair"),
    ],
)
def test_wrong_settings_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


FOLDERS = {
    "noise_folder": Noise,
    "music_folder": Noise,
    "rir_folder": Reverberation,
}


def test_folders_that_are_missing_or_files_are_refused_at_once(tmp_path):
    (tmp_path / "a.wav").touch()
    for folder in ("none", "a.wav"):
        for key, effect in FOLDERS.items():
            message = f"^{key} must be a folder that exists, .*{folder}"
            with pytest.raises(ValueError, match=message):
                effect(**{key: str(tmp_path / folder)})


def test_empty_folders_are_named(tmp_path):
    for key, effect in FOLDERS.items():
        with pytest.raises(FileNotFoundError, match=f"^{key}: .*{tmp_path}"):
            prepared(effect(**{key: str(tmp_path)}))


class Clip:
    """A user's effect: two methods, no base class."""

    def draw(self, rng):
        return {"level": rng.uniform(0.01, 0.05)}

    def apply(self, wavs, parameters):
        level = parameters["level"][:, None]
        return wavs.clamp(-level, level)


def test_a_users_effect_needs_two_methods():
    made = Augmentation({"clip": Clip()}, [{"clip": 0.5}])
    made.prepare(RATE)
    draws = stack_draws(draws_of(made, 30))
    wavs = speech(30)
    peaks = made.apply(wavs, draws).abs().amax(1)
    clipped = draws["clip.on"] > 0
    assert torch.allclose(peaks[clipped], draws["clip.level"][clipped])
    assert (peaks[~clipped] > 0.2).all() and 0 < clipped.sum() < 30


def test_a_wrong_effect_is_named():
    class Shorter(Clip):
        def apply(self, wavs, parameters):
            return wavs[:, 1:]

    class Moody(Clip):
        def draw(self, rng):
            return {f"level{rng.integers(9)}": 1.0}

    made = Augmentation({"mine": Shorter()})
    made.prepare(RATE)
    with pytest.raises(ValueError, match="'mine' .Shorter.* the shape"):
        made.apply(speech(), stack_draws(draws_of(made, 1)))
    made = Augmentation({"mine": Moody()})
    made.prepare(RATE)
    with pytest.raises(ValueError, match="same parameters"):
        draws_of(made, 20)


ALL = {"phone": Telephone()}
HALF = [{"rir": 0.5}, {"noise": 0.5}, {"channel": 0.5}, {"phone": 0.5}]


def test_effects_do_not_wait_for_the_device():
    """Meta tensors have no values: whatever needs one raises."""
    made = everything(HALF, **ALL).to("meta")
    draws = stack_draws(draws_of(made, 4))
    draws = {name: draw.to("meta") for name, draw in draws.items()}
    out = made.apply(torch.empty(4, 12001, device="meta"), draws)
    assert out.shape == (4, 12001) and out.dtype == torch.float32


class OnAccelerator(TorchFunctionMode):
    """Tensors say that they are on an accelerator; all else stays."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda")
        kwargs = dict(kwargs or {})
        kwargs.pop("device", None)
        return func(*args, **kwargs)


def test_an_accelerator_gives_what_a_cpu_gives():
    made = everything(HALF, **ALL)
    wavs, draws = speech(24), stack_draws(draws_of(made, 24))
    expected = made.apply(wavs, draws)
    with OnAccelerator():
        found = made.apply(wavs, draws)
    assert torch.allclose(found, expected, atol=1e-5)


def test_workers_that_only_draw_get_no_recordings():
    made = everything()
    expected = draws_of(made, 3)
    whole = pickle.loads(pickle.dumps(made))
    assert len(whole.effects["noise"].bank.samples) == 960_000
    assert whole.effects["rir"].rirs.shape == (6, 8000)
    drawing = pickle.loads(pickle.dumps(made.to("meta")))
    assert drawing.effects["noise"].bank is None
    assert drawing.effects["rir"].rirs is None
    assert draws_of(drawing, 3) == expected


def test_a_telephone_limits_the_band_and_keeps_the_level():
    wavs = speech(1, 16000)
    line = {"low_cut": 300.0, "high_cut": 3400.0, "level": -1.0}
    out = apply(prepared(Telephone()), wavs, **line)
    before, after = (torch.fft.rfft(w)[0].abs() for w in (wavs, out))
    gain = after / before
    assert gain[600:3000].mean() == pytest.approx(1.0, abs=0.05)
    assert after[4001:].max() < 1e-3 * after.max()
    assert gain[3700:3900].mean() < 0.45 and gain[100:150].mean() < 0.1


@pytest.mark.parametrize("level, ratio", [(-1, 36), (-70, 10), (12, 6)])
def test_a_telephone_codes_soft_speech_coarsely_and_clips_loud(level, ratio):
    time = torch.arange(RATE) / RATE
    tone = 0.3 * torch.sin(2 * np.pi * 1000 * time)[None]
    line = {"low_cut": 50.0, "high_cut": 3800.0, "level": level}
    out = apply(prepared(Telephone()), tone, **line)
    noise = out - tone
    found = 10 * torch.log10(tone.square().mean() / noise.square().mean())
    assert found.item() == pytest.approx(ratio, abs=6)
    assert (out.abs().max() < 0.12) == (level > 0)


def test_telephone_speech_of_8_khz_stays_at_8_khz():
    phone = Telephone()
    phone.prepare(8000, None, None)
    wavs = speech(2, 8001)
    line = {"low_cut": 50.0, "high_cut": 3800.0, "level": -1.0}
    out = apply(phone, wavs, **line)
    assert out.shape == wavs.shape
    gain = torch.fft.rfft(out)[0].abs() / torch.fft.rfft(wavs)[0].abs()
    assert gain[300:3000].mean() == pytest.approx(1.0, abs=0.05)


@pytest.fixture
def noise_csv(tmp_path):
    """Five noises of different level in SpeechBrain's CSV."""
    path = tmp_path / "noise.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "wav_format", "wav_opts"])
        rng = np.random.default_rng(0)
        for i in range(5):
            noise = rng.uniform(-0.5, 0.5, RATE)
            soundfile.write(tmp_path / f"{i}.wav", noise, RATE)
            rows.writerow([i, 1.0, tmp_path / f"{i}.wav", "wav", ""])
    return str(path)


MODULES = {
    "DropFreq": lambda noises: DropFreq(),
    "DropChunk": lambda noises: DropChunk(),
    "DoClip": lambda noises: DoClip(0.05, 0.3),
    "SpeedPerturb": lambda noises: SpeedPerturb(RATE, [70, 130]),
    "CodecAugment": lambda noises: CodecAugment(RATE),
    "AddNoise": lambda noises: AddNoise(noises, snr_low=0, snr_high=15),
    "AddReverb": lambda noises: AddReverb(noises),
    "Augmenter": lambda noises: Augmenter(
        min_augmentations=1,
        max_augmentations=2,
        shuffle_augmentations=True,
        augment_prob=0.9,
        augmentations=[DropFreq(), AddNoise(noises, pad_noise=True), DoClip()],
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_speechbrains_modules_fit_in_and_depend_on_the_draw_only(
    noise_csv, name
):
    def made():
        effect = SpeechBrainAugment(MODULES[name](noise_csv))
        effect = Augmentation({"theirs": effect})
        effect.prepare(RATE)
        return pickle.loads(pickle.dumps(effect))

    wavs = speech(1).repeat(12, 1)
    first, second = made(), made()
    draws = stack_draws(draws_of(first, 12))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    out = first.apply(wavs, draws)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[2] == states[2]
    assert out.shape == wavs.shape
    assert len({row.norm().item() for row in out}) > 1
    # in another process, in another order, after other calls
    second.apply(speech(3), stack_draws(draws_of(first, 3, seed=9)))
    order = torch.randperm(12)
    again = second.apply(wavs[order], {k: v[order] for k, v in draws.items()})
    assert torch.equal(again, out[order])


def test_a_module_of_another_rate_or_shape_is_refused(noise_csv):
    noise = AddNoise(noise_csv, clean_sample_rate=8000)
    for module in (noise, Augmenter(augmentations=[noise])):
        with pytest.raises(ValueError, match="clean_sample_rate=8000"):
            prepared(SpeechBrainAugment(module))
    doubled = Augmenter(concat_original=True, augmentations=[DropFreq()])
    with pytest.raises(ValueError, match="concat_original"):
        prepared(SpeechBrainAugment(doubled))
    with pytest.raises(ValueError, match="SpeechBrain in SpeechBrainAugment"):
        Augmentation({"theirs": DropFreq()})


def test_the_log_says_how_much_memory_recordings_take(caplog, monkeypatch):
    clips = [torch.ones(10 * RATE, dtype=torch.int16)] * 60
    monkeypatch.setattr(a, "colored_noise", lambda *_: clips)
    with caplog.at_level(logging.INFO):
        Noise().prepare(16000, None, np.random.default_rng(0))
        Reverberation(simulated=50).prepare(
            16000, None, np.random.default_rng(0)
        )
    noise, rirs = [record.getMessage() for record in caplog.records]
    # 60 clips of 10 s of 16 bits; 50 RIRs of half a second of float32
    assert "0.167 h of noise in memory: 0.0192 GB" in noise
    assert "50 RIRs in memory: 0.0016 GB" in rirs
