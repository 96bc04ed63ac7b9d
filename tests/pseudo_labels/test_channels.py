"""Groups of utterances that were recorded alike."""

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.checks import check
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.channels import (
    COUNT,
    QuietSpectrum,
    channel_groups,
    classes_of_channels,
    read_groups,
    subtract_channels,
)
from speechbrain_ssl.pseudo_labels.statistics import MFCCStatistics


def colored(color, generator):
    """Two seconds of noise of a color, with a louder tone in its middle."""
    white = torch.randn(32000, generator=generator)
    spectrum = torch.fft.rfft(white)
    hertz = torch.linspace(1e-3, 1, len(spectrum))
    noise = torch.fft.irfft(spectrum * hertz**color)
    noise = 0.01 * noise / noise.std()
    pitch = 100 + 200 * torch.rand(1, generator=generator)
    time = torch.arange(16000) / 16000
    noise[8000:24000] += 0.3 * torch.sin(2 * torch.pi * pitch * time)
    return noise


@pytest.fixture
def utterances(tmp_path):
    """Thirty utterances of three colors of background noise."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(30):
        path = str(tmp_path / f"{n:02}.wav")
        soundfile.write(path, colored(n % 3 - 1, generator).numpy(), 16000)
        rows.append((f"{n:02}", 2.0, path, 0, 32000))
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv")


def test_level_and_padding_do_not_change_a_quiet_spectrum():
    wav = colored(0, torch.Generator().manual_seed(1))
    embed = QuietSpectrum().eval()
    alone = embed(wav[None], torch.ones(1))
    padded = torch.stack(
        [torch.cat([wav, torch.zeros(8000)]), torch.ones(40000)]
    )
    found = embed(3 * padded, torch.tensor([0.8, 1.0]))
    assert torch.allclose(found[0], alone[0], atol=0.3)
    assert abs(alone.mean()) < 1e-4


def test_groups_follow_the_background_and_are_kept(utterances, tmp_path):
    path = str(tmp_path / "groups.npz")
    found = channel_groups(utterances, path, 16000, groups=3, seed=1)
    assert adjusted_rand_score([n % 3 for n in range(30)], found) == 1
    with np.load(path) as file:
        parts = dict(file)
    np.savez(path, **{**parts, "groups": found[::-1]})
    again = channel_groups(utterances, path, 16000, groups=3, seed=1)
    assert (again == found[::-1]).all()  # a resumed run reads what is there
    ids = list(utterances.ids())[::2]
    assert (read_groups(path, ids[::-1]) == again[::2][::-1]).all()


@pytest.mark.parametrize("change", ["groups", "seed", "utterances"])
def test_groups_of_something_else_are_made_again(utterances, tmp_path, change):
    path = str(tmp_path / "groups.npz")
    channel_groups(utterances, path, 16000, groups=3, seed=1)
    settings = {"groups": 3, "seed": 1}
    if change == "utterances":
        utterances = utterances.take(np.arange(30) < 29)
    else:
        settings[change] += 1
    again = channel_groups(utterances, path, 16000, **settings)
    assert len(again) == len(utterances)
    fresh = str(tmp_path / "fresh.npz")
    assert (again == channel_groups(utterances, fresh, 16000, **settings)).all()


def test_groups_may_be_a_share_of_the_utterances(utterances, tmp_path):
    path = tmp_path / "groups.npz"
    found = channel_groups(utterances, str(path), 16000, groups=0.1)
    assert sorted(set(found)) == [0, 1, 2]
    path.unlink()  # one group needs no spectra
    assert set(channel_groups(utterances, str(path), 16000, 0.01)) == {0}
    assert not path.exists()


def test_missing_audio_is_told_with_the_setting_that_needs_it(tmp_path):
    rows = [(str(n), 2.0, f"{tmp_path}/{n}.wav", 0, 32000) for n in range(4)]
    write_annotation(tmp_path / "train.csv", rows)
    missing = read_annotation(tmp_path / "train.csv")
    with pytest.raises(ValueError, match="channel_groups needs .* 4 of 4"):
        channel_groups(missing, str(tmp_path / "x.npz"), 16000, groups=2)


@pytest.mark.parametrize("groups", [-1, 1.5, np.inf, np.nan, True, "2"])
def test_a_part_of_a_group_is_refused(groups):
    check("channel_groups", 3.0, COUNT)
    with pytest.raises(ValueError, match="channel_groups must be a whole"):
        check("channel_groups", groups, COUNT)


@pytest.mark.parametrize("kind", [QuietSpectrum, MFCCStatistics])
def test_audio_of_high_rates_has_features_too(kind):
    found = kind(48000).eval()(torch.randn(1, 48000), torch.ones(1))
    assert found.isfinite().all()


def test_more_groups_than_utterances_are_refused(utterances, tmp_path):
    with pytest.raises(ValueError, match="channel_groups is 31.* 30 utter"):
        channel_groups(utterances, str(tmp_path / "x.npy"), 16000, groups=31)


def test_embeddings_without_channels_cluster_by_speakers():
    rng = np.random.default_rng(0)
    speakers, places = np.repeat(np.arange(20), 40), np.tile(np.arange(8), 100)
    voices, rooms = rng.standard_normal((20, 32)), rng.standard_normal((8, 32))
    points = voices[speakers] + 0.7 * rooms[places]
    points += 1.3 * rng.standard_normal(points.shape)
    found, share = subtract_channels(points, places)
    assert 0.05 < share < 0.25
    agreement = []
    for rows in (points, found):
        labels = KMeans(20, n_init=3, random_state=0).fit_predict(rows)
        agreement.append(adjusted_rand_score(speakers, labels))
    assert agreement[1] > agreement[0] + 0.02
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_mean_of_a_channel_is_subtracted_as_the_slow_formula_says():
    rng = np.random.default_rng(1)
    points, groups = rng.standard_normal((50, 4)), rng.integers(0, 6, 50)
    unit = points / np.linalg.norm(points, axis=1)[:, None]
    unit -= unit.mean(0)
    expected = unit.copy()
    for row, group in enumerate(groups):
        members = unit[groups == group]
        expected[row] -= members.sum(0) / (len(members) + 5)
    expected /= np.linalg.norm(expected, axis=1)[:, None]
    found, _ = subtract_channels(points, groups)
    assert np.allclose(found, expected, atol=1e-5)


def test_groups_that_are_speakers_are_not_subtracted():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(10), 20)
    points = rng.standard_normal((10, 16))[groups]
    points += 0.5 * rng.standard_normal(points.shape)
    found, share = subtract_channels(points, groups)
    assert share > 0.5
    unit = points / np.linalg.norm(points, axis=1)[:, None]
    assert np.allclose(found, unit, atol=1e-6)


def test_a_group_has_the_classes_of_its_utterances():
    groups, classes = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    found = classes_of_channels(groups, classes, 4)
    expected = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert (found.numpy() == np.array(expected, dtype=bool)).all()
