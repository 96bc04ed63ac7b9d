"""Groups of utterances that were recorded alike."""

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import adjusted_rand_score

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.channels import (
    QuietSpectrum,
    channel_groups,
)


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
    path = str(tmp_path / "groups.npy")
    found = channel_groups(utterances, path, 16000, groups=3, seed=1)
    assert adjusted_rand_score([n % 3 for n in range(30)], found) == 1
    np.save(path, found[::-1])  # a resumed run reads what is there
    again = channel_groups(utterances, path, 16000, groups=3, seed=2)
    assert (again == found[::-1]).all()
    np.save(path, found[1:])
    with pytest.raises(ValueError, match="groups of 29 utterances.* has 30"):
        channel_groups(utterances, path, 16000, groups=3)


def test_more_groups_than_utterances_are_refused(utterances, tmp_path):
    with pytest.raises(ValueError, match="channel_groups is 31.* 30 utter"):
        channel_groups(utterances, str(tmp_path / "x.npy"), 16000, groups=31)
