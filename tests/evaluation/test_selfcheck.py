"""Quality without labels: which trials, what is measured, what is promised."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.evaluation.selfcheck import (
    FEWEST_SOURCES,
    NEAREST,
    SelfCheck,
    cross_entropy,
    hard_pairs,
    held_out,
    in_order,
    sources_of,
    threshold,
)

RATE = 16000


def listed(folder, names, seconds=1.0):
    """An annotation of files, which need not exist."""
    frames = round(seconds * RATE)
    rows = [(name, seconds, f"$data_root/{name}", 0, frames) for name in names]
    path = folder / "train.csv"
    write_annotation(path, rows)
    return read_annotation(path, folder)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Forty files, each with four tones of its own and a little noise."""
    folder = tmp_path_factory.mktemp("voices")
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    names = [f"{number:02d}.wav" for number in range(40)]
    for name in names:
        tones = rng.uniform(300, 3000, 4)
        wav = np.sin(2 * np.pi * tones[:, None] * time).sum(0)
        wav = 0.05 * wav + 0.005 * rng.standard_normal(RATE)
        soundfile.write(folder / name, wav, RATE)
    return folder, names


@pytest.fixture(scope="module")
def check(voices):
    return SelfCheck(listed(*voices), RATE, seconds=0.4)


def peaks(wavs, lengths):
    """Energy of the loudest tones of 10 Hz bands, without their tilt."""
    power = torch.fft.rfft(wavs, RATE)[:, 200:3200].abs().square()
    power = power.unflatten(1, (-1, 10)).sum(2)
    local = power.unflatten(1, (-1, 30))
    return (local / local.sum(2, keepdim=True)).flatten(1)


def test_an_encoder_of_the_voice_is_better_than_one_of_the_level(check):
    good = check(peaks)
    bad = check(lambda wavs, lengths: torch.stack([wavs.std(1), wavs[:, 9]], 1))
    assert good["cross_entropy"] < 0.7 < 0.95 < bad["cross_entropy"]
    assert good["EER"] < 25 < 40 < bad["EER"]
    assert good["EER_low"] <= good["EER"] <= good["EER_high"]
    assert good["agreement"] > bad["agreement"]
    assert good["effective_rank"] > 10 > 2 >= bad["effective_rank"]


def test_figures_are_the_same_again(check, voices):
    again = SelfCheck(listed(*voices), RATE, seconds=0.4)
    assert check(peaks) == check(peaks) == again(peaks)


def test_another_seed_makes_other_trials(check, voices):
    other = SelfCheck(listed(*voices), RATE, seconds=0.4, seed=1)
    assert check(peaks) != other(peaks)


def test_parts_do_not_overlap(tmp_path):
    ramp = np.linspace(0, 0.9, RATE)
    for number in range(20):
        soundfile.write(tmp_path / f"{number}.wav", ramp, RATE)
    names = [f"{number}.wav" for number in range(20)]
    parts = SelfCheck(listed(tmp_path, names), RATE, seconds=0.3).parts
    low, high = parts.amin(2), parts.amax(2)
    assert ((high[0] < low[1]) | (high[1] < low[0])).all()


def test_length_of_parts_follows_short_audio(voices):
    assert SelfCheck(listed(*voices), RATE, seconds=5.0).seconds == 0.5


def test_what_cannot_be_used_is_left_out_and_named(voices, tmp_path, caplog):
    folder, names = voices
    for name in names[:22]:
        (tmp_path / name).symlink_to(folder / name)
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    listing = listed(tmp_path, [*names[:22], "silence.wav", "broken.wav"])
    with caplog.at_level(logging.WARNING):
        check = SelfCheck(listing, RATE, seconds=0.4)
    assert sorted(check.ids) == names[:22]
    assert "leaves out 2 utterances" in caplog.text


def test_too_little_audio_is_refused(voices):
    folder, names = voices
    with pytest.raises(ValueError, match="20 utterances or more, found 19"):
        SelfCheck(listed(folder, names[:19]), RATE, seconds=0.4)


def test_non_targets_are_similar_but_not_the_most_similar_nor_of_one_source():
    rng = np.random.default_rng(0)
    count = 200
    statistics = rng.standard_normal((count, 5))
    sources = np.repeat(np.arange(count // 4), 4)
    hard = hard_pairs(statistics, sources)
    assert not hard[sources[:, None] == sources].any()
    scaled = (statistics - statistics.mean(0)) / statistics.std(0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    for row in range(count):
        others = np.flatnonzero(sources != sources[row])
        order = others[np.argsort(-(scaled[others] @ scaled[row]))]
        first = int(np.ceil(NEAREST * len(order)))
        used = np.flatnonzero(hard[row])
        assert set(used) == set(order[first : first + len(used)])


def test_cross_entropy_does_not_depend_on_scale_or_offset():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 500)
    scores = rng.standard_normal(500) + targets
    value = cross_entropy(scores, targets)
    assert cross_entropy(3 + 0.01 * scores, targets) == pytest.approx(value)
    assert cross_entropy(targets * 1.0, targets) < 0.01
    assert cross_entropy(rng.standard_normal(500), targets) > 0.97


def test_threshold_accepts_the_promised_share():
    scores = np.random.default_rng(0).standard_normal(10000)
    found = threshold(scores, 0.02, same_speaker=0.005)
    assert (scores >= found["threshold"]).mean() == pytest.approx(0.02)
    assert found["false_acceptance_low"] == pytest.approx(0.015 / 0.995)


def test_true_rate_of_false_acceptances_lies_within_the_error_model():
    rng = np.random.default_rng(0)
    strangers = rng.standard_normal(20000)
    same = 2 + rng.standard_normal(100)
    share = 100 / 20100
    found = threshold(np.r_[strangers, same], 0.02, same_speaker=share)
    rate = (strangers >= found["threshold"]).mean()
    assert found["false_acceptance_low"] <= rate <= found["false_acceptance"]


def test_sources_are_folders_where_there_are_many(tmp_path):
    names = [f"{n // 2}/{n}.wav" for n in range(2 * FEWEST_SOURCES)]
    assert sources_of(listed(tmp_path, names)).max() + 1 == FEWEST_SOURCES
    few = [f"{n % 3}/{n}.wav" for n in range(2 * FEWEST_SOURCES)]
    assert sources_of(listed(tmp_path, few)).max() + 1 == len(few)


def test_whole_sources_are_held_out_whatever_the_order(tmp_path):
    names = [f"{n // 5}/{n}.wav" for n in range(500)]
    utterances = listed(tmp_path, names)
    mask = held_out(utterances, 0.1)
    sources = sources_of(utterances)
    assert mask.sum() == 50
    assert not set(sources[mask]) & set(sources[~mask])
    again = held_out(listed(tmp_path, names[::-1]), 0.1)
    assert (again[::-1] == mask).all()
    assert not held_out(utterances, 0.0).any()


def test_each_source_comes_once_before_any_comes_twice():
    sources = np.array([0, 0, 0, 1, 1, 2])
    order = in_order([f"utterance {n}" for n in range(6)], sources, seed=0)
    assert sorted(order) == list(range(6))
    assert sorted(sources[order[:3]]) == [0, 1, 2]
