"""Tiny data, and less of what recipes make at the start of each run."""

import os
import pathlib
import runpy
import shutil

import pytest

from speechbrain_ssl.dataio import banks

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def few_clips_and_rirs():
    """Makes 2 clips of noise and 5 RIRs in place of 60 and hundreds."""
    noise, rirs = banks.colored_noise, banks.simulate_rirs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            banks, "colored_noise", lambda count, *rest: noise(2, *rest)
        )
        patch.setattr(
            banks, "simulate_rirs", lambda count, *rest: rirs(5, *rest)
        )
        yield


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """A folder in which the paths of the rows lead to their data."""
    folder = tmp_path_factory.mktemp("recipe rows é")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(ROOT / "tests/recipes/setup", "tests/recipes/setup")
        os.symlink(ROOT / "recipes", "recipes")
        script = "tests/recipes/setup/ssl_samples.py"
        runpy.run_path(script, None, "__main__")
    return folder


@pytest.fixture(scope="session")
def sandbox(samples):
    """The data itself."""
    return samples / "tests/tmp/ssl"
