"""The demo's synthetic voices: sound, unlabeled, repeatable, whole."""

import itertools
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import soundfile

RECIPE = pathlib.Path(__file__).parents[2] / "recipes" / "AudioFolder" / "SSL"
sys.path.insert(0, str(RECIPE))

import synthesize_voices as voices  # noqa: E402

pytest.importorskip("espeakng_loader")

SMALL = {
    "train_voices": 3,
    "test_voices": 3,
    "train_utterances": 2,
    "test_utterances": 2,
}


# espeak-ng adds random breath to these
BREATHY = ["Alicia", "Reed", "Storm", "f2", "f3", "f5", "sandro", "victor"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small corpus, made once."""
    return make_small(tmp_path_factory.mktemp("voices") / "corpus")


@pytest.fixture(scope="module")
def espeak():
    """espeak-ng in this process."""
    return voices._espeak()


@pytest.fixture
def rng():
    """The same choices in every test."""
    return np.random.default_rng(0)


def make_small(folder):
    """The small corpus in the given folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voices, "variants", lambda: BREATHY)
        return pathlib.Path(voices.synthesize_voices(str(folder), **SMALL))


def content(folder):
    """Bytes of all files by their path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def say(espeak, voice, pitch=50):
    """One sentence as float, at 22,050 Hz taken for 16,000."""
    line = voices.Line("The old farmer opened eleven windows.", pitch, 170, 50)
    return espeak.say(voice, line) / 32768


def mean_spectrum(samples):
    """Mean log power in 32 bands of the loud frames, without the level."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(512)))[:, 1:] ** 2
    loud = power[power.sum(1) > np.median(power.sum(1))]
    bands = np.log(loud.reshape(len(loud), 32, 8).sum(2) + 1e-6).mean(0)
    return bands - bands.mean()


def test_every_file_is_16_khz_mono_speech_of_three_to_six_seconds(corpus):
    files = list(corpus.rglob("*.flac"))
    assert len(files) == 3 * 2 + 3 * 2
    for path in files:
        header = soundfile.info(path)
        assert (header.samplerate, header.channels) == (16000, 1)
        assert (header.format, header.subtype) == ("FLAC", "PCM_16")
        assert 3 <= header.duration <= 6
        samples, _ = soundfile.read(path)
        assert 0.05 < np.abs(samples).max() < 0.95
        tenths = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
        assert np.mean(tenths.std(axis=1) > 1e-3) > 0.6


def test_training_files_are_numbered_in_one_flat_folder(corpus):
    names = sorted(os.listdir(corpus / "train"))
    assert names == [f"utt_{i:06d}.flac" for i in range(6)]


def test_numbers_of_training_files_do_not_follow_the_voices(tmp_path):
    settings = {"train_voices": 10, "train_utterances": 5, "seed": 0}
    # the voice of a file can be told from its length
    spoken = [[np.full(100 + v, 0.1)] * 5 for v in range(10)]
    voices._write_train(str(tmp_path), iter(spoken), settings)
    files = sorted((tmp_path / "train").iterdir())
    said_by = [soundfile.info(path).frames for path in files]
    assert sorted(said_by) == sorted(list(range(100, 110)) * 5)
    same = sum(a == b for a, b in itertools.pairwise(said_by))
    assert same < 15  # 40 in the order of the voices


def test_trials_name_existing_files_and_label_them_by_voice(corpus):
    lines = (corpus / "trials" / "wild.txt").read_text().splitlines()
    trials = [line.split(" ") for line in lines]
    assert {label for label, _, _ in trials} == {"0", "1"}
    for label, enrol, test in trials:
        assert (corpus / enrol).is_file() and (corpus / test).is_file()
        assert enrol != test
        same = enrol.split("/")[1] == test.split("/")[1]
        assert same == (label == "1")


def test_all_target_pairs_and_eight_times_as_many_others(rng):
    files = {f"v{v}": [f"v{v}/{n}" for n in range(8)] for v in range(20)}
    pitches = {name: 100.0 + 5 * i for i, name in enumerate(files)}
    trials = voices.make_trials(files, pitches, rng)
    assert len(set(trials)) == len(trials)
    labels = [label for label, _, _ in trials]
    assert labels.count(1) == 20 * 28
    assert labels.count(0) == 8 * 20 * 28


def test_half_of_the_non_targets_are_alike_in_pitch(rng):
    files = {f"v{v}": [f"v{v}/{n}" for n in range(8)] for v in range(20)}
    pitches = {name: 100 * 1.05**i for i, name in enumerate(files)}
    steps = [
        abs(int(a[1:].split("/")[0]) - int(b[1:].split("/")[0]))
        for label, a, b in voices.make_trials(files, pitches, rng)
        if label == 0
    ]
    # a random pair is at most two steps apart with a chance of 0.19
    assert 0.4 < np.mean(np.array(steps) <= 2) < 0.7


def test_same_seed_makes_the_same_bytes(corpus, tmp_path):
    assert content(make_small(tmp_path / "again")) == content(corpus)


def test_another_seed_draws_other_voices():
    first, second = (
        voices.draw_voices(5, 5, np.random.default_rng([seed, 0]))
        for seed in (0, 1)
    )
    assert first != second


def test_finished_corpus_is_reused(corpus, monkeypatch):
    def build(folder, settings):
        raise AssertionError("built again")

    monkeypatch.setattr(voices, "_build", build)
    assert voices.synthesize_voices(str(corpus), **SMALL) == str(corpus)


def test_other_settings_go_to_a_folder_beside(corpus, monkeypatch):
    def build(folder, settings):
        pathlib.Path(folder, "settings.json").write_text(json.dumps(settings))

    before = content(corpus)
    monkeypatch.setattr(voices, "_build", build)
    beside = voices.synthesize_voices(str(corpus), **SMALL, seed=5)
    assert beside != str(corpus)
    assert os.path.dirname(beside) == str(corpus.parent)
    settings = json.loads(pathlib.Path(beside, "settings.json").read_text())
    assert settings["seed"] == 5
    assert content(corpus) == before


def test_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no settings.json"):
        voices.synthesize_voices(str(tmp_path), **SMALL)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, settings):
        pathlib.Path(folder, "half.flac").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(voices, "_build", fail)
    with pytest.raises(OSError, match="disk full"):
        voices.synthesize_voices(str(tmp_path / "corpus"), **SMALL)
    assert os.listdir(tmp_path) == []


def test_missing_espeak_is_said_with_the_command_to_install_it(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"speechbrain_ssl\[demo\]"):
        voices.synthesize_voices(str(tmp_path / "corpus"), **SMALL)
    assert os.listdir(tmp_path) == []


def test_one_test_voice_is_too_few_for_trials(tmp_path):
    with pytest.raises(ValueError, match="test_voices must be at least 2"):
        voices.synthesize_voices(str(tmp_path / "corpus"), test_voices=1)


def test_no_timbre_serves_training_and_trials(rng):
    train, test = voices.draw_voices(60, 20, rng)
    assert len(set(train)) == 60 and len(set(test)) == 20
    assert not {v.variant for v in train} & {v.variant for v in test}


def test_voices_of_one_timbre_have_different_accents(rng, monkeypatch):
    timbres = [f"t{i}" for i in range(24)]
    monkeypatch.setattr(voices, "variants", lambda: timbres)
    train, _ = voices.draw_voices(60, 8, rng)
    assert len({v.variant for v in train}) == 16
    assert len({(v.accent, v.variant) for v in train}) == 60


def test_lines_differ_and_stay_within_the_scales_of_espeak(rng):
    train, _ = voices.draw_voices(30, 2, rng)
    lines = [voices.draw_line(voice, rng) for voice in train]
    assert len({line.text for line in lines}) == 30
    for line in lines:
        assert "{" not in line.text and line.text.endswith(".")
        assert 0 <= line.pitch <= 99 and 0 <= line.liveliness <= 99
        assert 80 <= line.rate <= 450


def test_espeak_knows_every_accent_with_every_kind_of_variant(espeak):
    for accent in voices.ACCENTS:
        for variant in ("f3", "klatt3", "Mr serious"):
            assert len(say(espeak, f"{accent}+{variant}")) > 22050


def test_unknown_voice_is_named(espeak):
    with pytest.raises(RuntimeError, match=r"no voice 'tlh-x\+f3'"):
        say(espeak, "tlh-x+f3")


def test_variants_differ_more_than_repetitions_of_one(espeak):
    names = [f"en-us+{v}" for v in ("m1", "f3", "klatt3", "Annie", "max")]
    first, second = (
        [mean_spectrum(say(espeak, name, pitch)) for name in names]
        for pitch in (45, 55)
    )
    distances = np.array(
        [[np.abs(a - b).mean() for b in second] for a in first]
    )
    assert distances.diagonal().max() < (distances + 9 * np.eye(5)).min()


def test_too_short_a_line_is_said_twice(espeak):
    line = voices.Line("The old farmer slept under a tree.", 50, 170, 50)
    once = voices._trim(espeak.say("en+m1", line), espeak.sample_rate)
    twice = voices._utter("en+m1", line)
    assert len(once) < 3 * espeak.sample_rate
    assert len(twice) > 1.9 * len(once)


def test_pitch_setting_moves_the_pitch(espeak):
    low, high = (
        voices.median_pitch(say(espeak, "en-us+f2", pitch))
        for pitch in (30, 70)
    )
    assert 1.4 < high / low < 2.2


def test_median_pitch_of_a_pulse_train():
    pulses = np.zeros(16000)
    pulses[::128] = 1.0
    assert voices.median_pitch(pulses) == pytest.approx(125.0)


def test_channel_keeps_the_length_and_does_not_clip(rng):
    speech = np.sin(np.arange(48000) * 0.1) * 0.5
    for seed in range(10):
        heard = voices.random_channel(speech, np.random.default_rng(seed))
        assert heard.shape == speech.shape and heard.dtype == np.float32
        assert np.isfinite(heard).all()
        assert 0.05 < np.abs(heard).max() <= 0.9


def test_channels_repeat_with_the_seed_and_differ_without():
    speech = np.sin(np.arange(48000) * 0.1) * 0.5
    one, same, other = (
        voices.random_channel(speech, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.95
