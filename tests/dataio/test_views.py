"""Views: where they are cut, and what their randomness depends on."""

import math
import types

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.augment.time_domain import DropFreq

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.augmentation import (
    Augmentation,
    Channel,
    Gain,
    Noise,
    Reverberation,
    SpeechBrainAugment,
)
from speechbrain_ssl.dataio.views import POSITIONS, ViewSampler, positions
from tests.dataio.test_audio import note_opened, read_slowly

RATE = 16000


@pytest.fixture
def ramp(tmp_path):
    """A file whose samples tell where they are: 3 s, from 0 to 0.48."""
    path = tmp_path / "ramp.wav"
    samples = np.arange(3 * RATE) / 1e5
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return str(path)


@pytest.fixture(scope="module")
def augmentation():
    made = Augmentation(
        {
            "rir": Reverberation(simulated=5),
            "noise": Noise(),
            "channel": Channel(),
            "gain": Gain(),
        },
        [{"rir": 0.2, "noise": 0.3, "rir+noise": 0.4}, {"channel": 0.8}],
    )
    made.prepare(RATE)
    return made


def cut(sampler, path, key=(0, 0), start=0, stop=3 * RATE):
    views, draws = sampler(key, path, start, stop)
    return sampler.split(views[None]), draws


def test_views_are_stretches_of_the_utterance(ramp):
    sampler = ViewSampler(RATE, 2, 1.0, 3, 0.5)
    (globals_, locals_), _ = cut(sampler, ramp, start=RATE, stop=3 * RATE)
    assert [v.shape for v in globals_] == 2 * [(1, RATE)]
    assert [v.shape for v in locals_] == 3 * [(1, RATE // 2)]
    for view in [*globals_, *locals_]:
        assert torch.allclose(view.diff(), torch.tensor(1e-5), atol=1e-6)
        assert view.min() >= 0.16 - 1e-6


def test_views_differ_between_views_epochs_rows_and_seeds(ramp):
    def first(key=(0, 0), seed=0):
        (views, _), _ = cut(ViewSampler(RATE, 2, 1.0, seed=seed), ramp, key)
        return [round(v[0, 0].item() * 1e5) for v in views]

    starts = [first(), first((1, 0)), first((0, 1)), first(seed=1)]
    assert len({tuple(s) for s in starts}) == 4
    assert starts[0][0] != starts[0][1]
    assert first() == starts[0]


def test_augmentation_is_drawn_for_each_view(ramp, augmentation):
    sampler = ViewSampler(RATE, 2, 1.0, 2, 0.5, augmentation)
    _, draws = cut(sampler, ramp)
    assert len({tuple(d.tolist()) for d in draws}) == 4
    _, again = cut(sampler, ramp)
    assert torch.equal(draws, again)


def test_workers_and_device_augment_alike(ramp, augmentation):
    keys = [(0, 0), (0, 1), (3, 0)]
    settings = (RATE, 2, 1.0, 3, 0.5, augmentation)
    worker = ViewSampler(*settings, augment_on="workers")
    device = ViewSampler(*settings, augment_on="device")
    done = [worker(key, ramp, 0, 3 * RATE) for key in keys]
    todo = [device(key, ramp, 0, 3 * RATE) for key in keys]
    clean = torch.stack([views for views, _ in todo])
    batch = device.augment(clean, torch.stack([d for _, d in todo]))
    expected = torch.stack([views for views, _ in done])
    assert not torch.allclose(clean, expected, atol=1e-3)
    assert torch.allclose(batch, expected, atol=1e-5)


def test_clean_global_leaves_only_global_views_clean(ramp, augmentation):
    (clean_globals, clean_locals), _ = cut(
        ViewSampler(RATE, 1, 1.0, 2, 0.5), ramp
    )
    sampler = ViewSampler(RATE, 1, 1.0, 2, 0.5, augmentation, clean_global=True)
    (globals_, locals_), _ = cut(sampler, ramp)
    assert torch.equal(globals_[0], clean_globals[0])
    assert not torch.allclose(locals_[0], clean_locals[0], atol=1e-3)


def test_a_short_utterance_is_repeated(ramp):
    (views, _), _ = cut(ViewSampler(RATE, 1, 2.0), ramp, stop=RATE // 2)
    parts = views[0][0].view(4, -1)
    assert torch.equal(parts[0], parts[3])
    assert parts[0, 0] == 0


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_files_of_other_rates_are_resampled(tmp_path, rate):
    path = str(tmp_path / "tone.wav")
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(path, 0.5 * tone, rate)
    (views, _), _ = cut(ViewSampler(RATE, 1, 1.0), path, stop=2 * rate)
    spectrum = torch.fft.rfft(views[0][0]).abs()
    assert views[0].shape == (1, RATE)
    assert spectrum.argmax() == 440


def test_speed_is_one_for_all_views_of_an_utterance(tmp_path):
    path = str(tmp_path / "tone.wav")
    tone = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
    soundfile.write(path, 0.5 * tone, RATE)
    sampler = ViewSampler(RATE, 2, 1.0, speeds=(0.8, 1.25))
    pitches = set()
    for epoch in range(12):
        (views, _), _ = cut(sampler, path, (epoch, 0), stop=4 * RATE)
        found = {torch.fft.rfft(v[0]).abs().argmax().item() for v in views}
        assert len(found) == 1
        pitches |= found
    assert pitches == {800, 1250}


@pytest.mark.parametrize("gap", [0, 10])
def test_a_gap_keeps_segments_apart(gap):
    rng = np.random.default_rng(0)
    for _ in range(100):
        starts = np.sort(positions(200, 40, 3, gap, rng))
        assert (np.diff(starts) >= 40 + gap).all()
        assert starts[0] >= 0 and starts[-1] + 40 <= 200


def test_an_utterance_too_short_for_the_gap_is_used_from_end_to_end():
    starts = positions(100, 60, 2, 30, np.random.default_rng(0))
    assert sorted(starts.tolist()) == [0, 40]


def test_without_a_gap_every_start_is_possible():
    rng = np.random.default_rng(0)
    starts = np.concatenate([positions(6, 4, 2, None, rng) for _ in range(99)])
    assert set(starts.tolist()) == {0, 1, 2}


def test_samples_that_are_no_numbers_are_refused_by_name(tmp_path):
    path = str(tmp_path / "bad.wav")
    samples = np.full(RATE, np.nan, dtype=np.float32)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(audio.AudioError, match="bad.wav"):
        ViewSampler(RATE, 1, 1.0)((0, 0), path, 0, RATE)


@pytest.mark.parametrize(
    "name, value",
    [
        ("global_seconds", 0),
        ("global_seconds", 1e-5),
        ("local_crops", -1),
        ("min_gap", -1.0),
        ("speeds", [0]),
        ("speeds", []),
        ("speeds", 1.0),
        ("max_unreadable", 1.5),
        ("seed", 0.5),
        ("sample_rate", 16),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    settings = {"sample_rate": RATE, "global_crops": 2, "global_seconds": 1.0}
    with pytest.raises(ValueError, match=name):
        ViewSampler(**{**settings, name: value})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="crop"):
        ViewSampler(RATE, 0, 1.0)
    with pytest.raises(ValueError, match="augment_on"):
        ViewSampler(RATE, 1, 1.0, augment_on="gpu")


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_clean_views_are_the_same_segments_without_augmentation(
    ramp, augmentation, augment_on
):
    settings = (RATE, 2, 1.0, 1, 0.5)
    sampler = ViewSampler(
        *settings, augmentation, clean_views=True, augment_on=augment_on
    )
    made = [sampler((0, row), ramp, 0, 3 * RATE) for row in range(3)]
    batch, draws = (torch.stack(parts) for parts in zip(*made))
    batch = sampler.augment(batch, draws)
    globals_, locals_ = sampler.split(batch)
    assert len(globals_) == 4 and len(locals_) == 1
    plain = ViewSampler(*settings)
    made = [plain((0, row), ramp, 0, 3 * RATE)[0] for row in range(3)]
    wanted, local = plain.split(torch.stack(made))
    for view, clean in zip(globals_[2:], wanted):
        assert torch.equal(view, clean)
    assert not torch.equal(globals_[0], wanted[0])
    assert not torch.equal(locals_[0], local[0])


def test_the_speed_of_an_utterance_is_told(ramp):
    sampler = ViewSampler(RATE, 1, 0.5, speeds=[0.5, 1.0, 2.0])
    found = set()
    for row in range(12):
        (views, _), _ = cut(sampler, ramp, (0, row))
        middle = views[0][0, 2000:6000]  # the ends ring
        slope = (middle[-1] - middle[0]).item() * 1e5 / 3999
        place = sampler.speed_of((0, row))
        assert slope == pytest.approx([0.5, 1.0, 2.0][place], rel=0.05)
        found.add(place)
    assert found == {0, 1, 2}


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate", [RATE, 48000])
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 5.0])
def test_views_equal_crops_read_one_by_one(tmp_path, extension, rate, seconds):
    path = str(tmp_path / f"a.{extension}")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * rate, 2))
    soundfile.write(path, noise, rate)
    (views, more), _ = cut(
        ViewSampler(RATE, 2, seconds, 3, 0.5), path, (2, 5), 100, 3 * rate
    )
    rng = np.random.default_rng((0, 2, 5, POSITIONS))
    rng.random()  # the speed
    for crops, length in ((views, seconds), (more, 0.5)):
        needed = round(length * rate)
        starts = positions(3 * rate - 100, needed, len(crops), None, rng)
        spans = [(100 + s, min(100 + s + needed, 3 * rate)) for s in starts]
        wanted = [np.resize(read_slowly(path, *s), needed) for s in spans]
        wanted = torch.from_numpy(np.stack(wanted))
        wanted = audio.resample(wanted, rate, RATE)
        assert torch.equal(torch.cat(crops), wanted)


def test_an_unreadable_partner_is_replaced_by_the_anchor(ramp, tmp_path):
    good = {"wav": ramp, "start": 0, "stop": 3 * RATE}
    bad = {**good, "wav": str(tmp_path / "gone.wav")}

    class Partners:
        utterances = types.SimpleNamespace(row=[good, bad].__getitem__)

        def __call__(self, key, counts):
            return [0, 1]

    alone, partnered = ViewSampler(RATE, 2, 1.0), ViewSampler(RATE, 2, 1.0)
    partnered.partners = Partners()
    wanted, _ = alone((0, 0), ramp, 0, 3 * RATE)
    found, _ = partnered((0, 0), ramp, 0, 3 * RATE)
    assert torch.equal(found, wanted)
    with pytest.raises(audio.AudioError, match="gone.wav"):
        partnered((0, 1), bad["wav"], 0, 3 * RATE)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_each_file_of_a_sample_is_opened_once(tmp_path, monkeypatch, extension):
    paths = [str(tmp_path / f"{n}.{extension}") for n in range(3)]
    for path in paths:
        soundfile.write(path, np.zeros(3 * RATE), RATE)
    # rows 3 to 5 are later stretches of the same files
    rows = [
        {"wav": paths[n % 3], "start": n // 3 * RATE, "stop": 3 * RATE}
        for n in range(6)
    ]

    class Partners:
        utterances = types.SimpleNamespace(row=rows.__getitem__)

        def __call__(self, key, counts):
            return [0, 1, 3, 4, 1]

    opened = note_opened(monkeypatch)
    ViewSampler(RATE, 2, 1.0, 3, 0.5)((0, 0), paths[2], 0, 3 * RATE)
    assert opened == [paths[2]]
    sampler = ViewSampler(RATE, 2, 1.0, 3, 0.5, partners=Partners())
    sampler((0, 0), paths[0], 0, 3 * RATE)
    assert opened[1:] == paths[:2]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("speed", [0.9, 0.95, 1.1])
def test_a_speed_is_rounded_to_rates_that_are_cheap_to_resample(
    tmp_path, monkeypatch, rate, speed
):
    path = str(tmp_path / "tone.wav")
    tone = np.sin(2 * np.pi * 1000 * np.arange(3 * rate) / rate)
    soundfile.write(path, 0.5 * tone, rate)
    resample, played = audio.resample, []

    def note(samples, old, new):
        played.append(old)
        return resample(samples, old, new)

    monkeypatch.setattr(audio, "resample", note)
    sampler = ViewSampler(RATE, 2, 1.0, speeds=[speed])
    (views, _), _ = cut(sampler, path, stop=3 * rate)
    assert math.gcd(played[0], RATE) >= 100
    assert abs(played[0] - rate * speed) <= 50
    assert [view.shape for view in views] == 2 * [(1, RATE)]
    # to the last sample: no silence where frames would be missing
    assert views[0][0, -50:].abs().max() > 0.3
    pitch = torch.fft.rfft(views[0][0]).abs().argmax().item()
    assert pitch == pytest.approx(1000 * speed, abs=5)


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_an_augmentation_without_effects_is_none(ramp, augment_on):
    augmentation = Augmentation({})
    augmentation.prepare(RATE)
    settings = (RATE, 2, 1.0)
    sampler = ViewSampler(
        *settings, augmentation=augmentation, augment_on=augment_on
    )
    views, draws = sampler((0, 0), ramp, 0, 3 * RATE)
    plain, _ = ViewSampler(*settings)((0, 0), ramp, 0, 3 * RATE)
    assert torch.equal(sampler.augment(views[None], draws[None])[0], plain)
    assert draws.shape == (2, 1)  # SpeechBrain cannot batch an empty axis


def test_views_do_not_depend_on_the_number_of_workers(ramp):
    augmentation = Augmentation(
        {
            "rir": Reverberation(simulated=3),
            "drop": SpeechBrainAugment(DropFreq()),
            "gain": Gain(),
        },
        [{"rir": 0.5}, {"drop": 0.5}],
    )
    sampler = ViewSampler(RATE, 2, 0.5, augmentation=augmentation)
    sampler.prepare(None)
    keys = [(1, row) for row in range(8)]
    loaded = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        loader = torch.utils.data.DataLoader(
            keys,
            batch_size=None,
            num_workers=workers,
            collate_fn=lambda key: sampler(key, ramp, 0, 3 * RATE)[0],
        )
        loaded.append(torch.stack(list(loader)))
    assert torch.equal(*loaded)


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_the_last_crop_comes_again_with_the_augmentation_of_the_first(
    ramp, augmentation, augment_on
):
    """Each view is its segment with its draws; only the pairing is new."""
    sampler = ViewSampler(
        RATE,
        2,
        0.5,
        augmentation=augmentation,
        min_gap=0.0,
        same_augmentation=True,
        augment_on=augment_on,
    )
    views, draws = sampler((0, 0), ramp, 0, 3 * RATE)
    assert draws.shape[0] == 3
    assert torch.equal(draws[2], draws[0])
    assert not torch.equal(draws[2], draws[1])
    plain = ViewSampler(RATE, 2, 0.5, min_gap=0.0)
    (first, second), _ = plain.split(plain((0, 0), ramp, 0, 3 * RATE)[0][None])
    clean = torch.cat([first, second, second])
    columns = dict(zip(augmentation.names, draws.unbind(1)))
    wanted = augmentation.apply(clean, columns)
    found = sampler.augment(views[None], draws[None])
    (globals_, _) = sampler.split(found)
    assert torch.allclose(torch.cat(globals_), wanted, atol=1e-6)


def test_one_crop_cannot_have_the_augmentation_of_another():
    with pytest.raises(ValueError, match="two global crops"):
        ViewSampler(RATE, 1, 0.5, same_augmentation=True)


def test_views_come_from_within_some_seconds(tmp_path):
    # the samples say where in the file they are
    ramp = np.arange(60 * 100, dtype=np.float32) / 6000
    soundfile.write(tmp_path / "ramp.wav", ramp, 1000, "FLOAT")
    row = str(tmp_path / "ramp.wav"), 500, 5500
    settings = dict(global_seconds=0.3, local_crops=3, local_seconds=0.1)
    sampler = ViewSampler(1000, 2, within_seconds=0.5, seed=1, **settings)
    firsts = []
    for index in range(40):
        views, _ = sampler((0, index), *row)
        places = (views * 6000).round()
        assert places.min() >= 500 and places.max() < 5500
        assert places.max() - places.min() < 500
        firsts.append(places.min().item())
    assert min(firsts) < 1200 and max(firsts) > 4300
    # without the option the views are what they were before there was one
    free, _ = ViewSampler(1000, 2, seed=1, **settings)((0, 0), *row)
    assert (free * 6000).max() - (free * 6000).min() > 500
    # a stretch as long as the utterance changes nothing else
    short = row[0], 0, 400
    views, _ = sampler((0, 0), *short)
    assert (views * 6000).max() < 400
    with pytest.raises(ValueError, match="needs 0.36 s at the highest"):
        ViewSampler(1000, 2, within_seconds=0.31, speeds=[0.9, 1.2], **settings)
