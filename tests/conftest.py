"""Every test draws the same random numbers, whatever ran before it."""

import pytest
import torch

from speechbrain_ssl.dataio import audio


@pytest.fixture(autouse=True)
def seeded():
    """Seeds torch; NumPy's generators are made with seeds in the tests."""
    torch.manual_seed(0)


@pytest.fixture
def encoder():
    """What writes m4a files, where torchcodec and FFmpeg are."""
    try:
        audio.import_torchcodec()
    except OSError as error:
        pytest.skip(str(error))
    from torchcodec.encoders import AudioEncoder

    return AudioEncoder
