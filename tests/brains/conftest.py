"""What the tests of both loops share."""

import pytest

from tests.brains import tiny


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Folder of the tiny corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder)
    return str(folder)
