"""Every test draws the same random numbers, whatever ran before it."""

import functools
import multiprocessing

import pytest
import torch
from speechbrain.utils import logger

from speechbrain_ssl.dataio import audio

IMPORTED = [
    "speechbrain_ssl.brains.pseudo_label",
    "speechbrain_ssl.brains.ssl",
    "speechbrain_ssl.clustering.clusterers",
    "speechbrain_ssl.pseudo_labels.gating",
    "sklearn.mixture",
]


@pytest.fixture(autouse=True)
def seeded():
    """Seeds torch; NumPy's generators are made with seeds in the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def environment_described_once():
    """Each training writes what ``pip freeze`` says, which takes a second."""
    describe = functools.cache(logger.get_environment_description)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "get_environment_description", describe)
        yield


@pytest.fixture(autouse=True, scope="session")
def processes_start_at_once():
    """The server that forks new processes has imported what takes seconds."""
    context = multiprocessing.context.ForkServerContext
    preload = context.set_forkserver_preload
    multiprocessing.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            context,
            "set_forkserver_preload",
            lambda self, names: preload(self, [*IMPORTED, *names]),
        )
        yield


@pytest.fixture
def encoder():
    """What writes m4a files, where torchcodec and FFmpeg are."""
    try:
        audio.import_torchcodec()
    except OSError as error:
        pytest.skip(str(error))
    from torchcodec.encoders import AudioEncoder

    return AudioEncoder
