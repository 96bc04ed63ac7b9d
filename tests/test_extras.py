"""Packages of the extras, and the error where one is missing."""

import json

import pytest

from speechbrain_ssl import extras


def test_an_installed_package_is_imported(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "json", ("json", "dev", "a test"))
    assert extras.extra("json") is json


def test_a_missing_package_is_named_with_its_use_and_extra(monkeypatch):
    entry = "no_such_module", "dev", "a test"
    monkeypatch.setitem(extras.EXTRAS, "no-such-package", entry)
    with pytest.raises(ImportError) as error:
        extras.extra("no-such-package")
    text = str(error.value)
    assert text.startswith("no-such-package cannot be imported")
    assert "needed for a test" in text
    assert "pip install 'speechbrain_ssl[dev]'" in text
