"""Two enrolled speakers, for the tests of ``enrol`` and ``identify``."""

import pytest

from speechbrain_ssl.cli import enrol
from tests.models import export_model, write_noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A model and five recordings."""
    folder = tmp_path_factory.mktemp("enrol")
    export_model(folder / "model")
    for number in range(5):
        write_noise(folder / f"{number}.wav", 0.5, seed=number)
    return folder


@pytest.fixture
def database(corpus, tmp_path):
    """Two speakers: one with two recordings, one with one."""
    folder = str(tmp_path / "speakers")
    files = [f"{corpus}/{n}.wav" for n in range(3)]
    assert enrol.enrol(folder, "alice", files[:2], f"{corpus}/model") == 2
    assert enrol.enrol(folder, "bob/ü", files[2:]) == 1
    return folder
