"""The package's own small interface."""

import subprocess
import sys

import pytest

import speechbrain_ssl


@pytest.mark.parametrize(
    "name", sorted(set(speechbrain_ssl.__all__) - {"__version__"})
)
def test_every_name_is_a_documented_function(name):
    function = speechbrain_ssl.__getattr__(name)
    assert callable(function) and function.__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        speechbrain_ssl.__getattr__("lod")


def test_importing_the_package_imports_no_torch():
    code = "import speechbrain_ssl, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
