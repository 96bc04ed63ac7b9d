"""The demo's synthetic voices: speech, unlabeled, whole."""

import pathlib
import sys

import numpy as np
import pytest
import soundfile

RECIPE = pathlib.Path(__file__).parents[2] / "recipes" / "AudioFolder" / "SSL"
sys.path.insert(0, str(RECIPE))

import synthesize_voices as voices  # noqa: E402

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices") / "corpus"
    return pathlib.Path(voices.synthesize_voices(str(folder), 2, 3, 2, 2))


def test_every_file_is_16_khz_mono_speech_of_some_seconds(corpus):
    files = list(corpus.rglob("*.flac"))
    assert len(files) == 2 * 2 + 3 * 2
    for path in files:
        samples, rate = soundfile.read(path)
        assert rate == 16000 and samples.ndim == 1
        assert 2 < len(samples) / rate < 10
        assert 0.05 < np.abs(samples).max() < 0.95
        tenths = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
        assert np.mean(tenths.std(axis=1) > 1e-3) > 0.5


def test_names_of_training_files_say_nothing_of_the_voice(corpus):
    names = sorted(path.name for path in (corpus / "train").iterdir())
    assert names == [f"{i:06d}.flac" for i in range(4)]


def test_trials_name_existing_files_and_label_them_by_voice(corpus):
    lines = (corpus / "trials" / "wild.txt").read_text().splitlines()
    trials = [line.split(" ") for line in lines]
    assert len({tuple(trial) for trial in trials}) == len(trials) == 3 + 12
    for label, enrol, test in trials:
        assert (corpus / enrol).is_file() and (corpus / test).is_file()
        same = enrol.split("/")[1] == test.split("/")[1]
        assert same == (label == "1")


def test_a_finished_corpus_is_not_made_again(corpus, monkeypatch):
    monkeypatch.setattr(voices, "_espeak", None)
    assert voices.synthesize_voices(str(corpus)) == str(corpus)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(files, rng):
        raise OSError("disk full")

    monkeypatch.setattr(voices, "make_trials", fail)
    with pytest.raises(OSError, match="disk full"):
        voices.synthesize_voices(str(tmp_path / "corpus"), 1, 2, 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_missing_espeak_is_named_with_the_command_to_install_it(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"speechbrain_ssl\[demo\]"):
        voices.synthesize_voices(str(tmp_path / "corpus"))
    assert list(tmp_path.iterdir()) == []


def test_no_timbre_speaks_in_training_and_trials(tmp_path, monkeypatch):
    used = []

    def speak(say, timbres, *args):
        used.append(set(timbres))
        return iter(())

    monkeypatch.setattr(voices, "_speak", speak)
    monkeypatch.setattr(voices, "make_trials", lambda files, rng: [])
    voices.synthesize_voices(str(tmp_path / "corpus"))
    assert used[0] and used[1] and not used[0] & used[1]


def test_unknown_voices_are_named():
    with pytest.raises(ValueError, match=r"no voice 'tlh-x\+f3'"):
        voices._espeak()("word", "tlh-x+f3", 50, 170)


def test_voices_differ_more_than_repetitions_of_one():
    say = voices._espeak()

    def spectrum(name, pitch):
        speech = say("The old farmer opened eleven windows.", name, pitch, 170)
        frames = np.lib.stride_tricks.sliding_window_view(speech, 512)[::256]
        power = np.abs(np.fft.rfft(frames * np.hanning(512)))[:, 1:] ** 2
        loud = power[power.sum(1) > np.median(power.sum(1))]
        bands = np.log(loud.reshape(len(loud), 32, 8).sum(2) + 1e-6).mean(0)
        return bands - bands.mean()

    names = [f"en-us+{v}" for v in ("m1", "f3", "klatt3", "Annie", "max")]
    first, second = ([spectrum(n, pitch) for n in names] for pitch in (45, 55))
    distances = np.array(
        [[np.abs(a - b).mean() for b in second] for a in first]
    )
    assert distances.diagonal().max() < (distances + 9 * np.eye(5)).min()


def test_channels_keep_the_length_and_do_not_clip():
    speech = np.sin(np.arange(48000) * 0.1) * 0.5
    heard = [
        voices.random_channel(speech, np.random.default_rng(seed))
        for seed in (1, 1, 2, 3, 4)
    ]
    assert np.array_equal(heard[0], heard[1])
    assert abs(np.corrcoef(heard[1], heard[2])[0, 1]) < 0.95
    for samples in heard:
        assert samples.shape == speech.shape and samples.dtype == np.float32
        assert 0.05 < np.abs(samples).max() <= 0.9
