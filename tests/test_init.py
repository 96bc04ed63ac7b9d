"""The package's own small interface."""

import getpass
import importlib
import os
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


def test_a_user_without_a_name_gets_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")

    def getpwuid(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    # torch asks for it when it makes an optimizer
    importlib.reload(speechbrain_ssl)
    assert getpass.getuser() == f"uid{os.getuid()}"


def test_importing_the_package_imports_no_torch():
    code = "import speechbrain_ssl, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
