"""What doctor says of an environment."""

import pathlib
import re
import sys

import pytest
import torch

from speechbrain_ssl.cli import doctor
from speechbrain_ssl.extras import EXTRAS


def test_a_healthy_environment_is_described():
    lines, healthy = doctor.describe()
    assert healthy
    assert f"torch {torch.__version__}".split("+")[0] in "\n".join(lines)
    assert any("GiB free" in line for line in lines)


def test_all_packages_that_are_always_needed_are_looked_at():
    path = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    text = path.read_text().partition("\ndependencies = [")[2]
    text = text.partition("\n]")[0]
    needed = re.findall(r'^    "([\w-]+)', text, re.M)
    assert set(doctor.REQUIRED) == set(needed)


def test_a_package_of_each_extra_is_looked_at():
    path = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    text = path.read_text().partition("[project.optional-dependencies]\n")[2]
    extras = re.findall(r"^(\w+) = \[", text.partition("\n\n[")[0], re.M)
    found = {name for _, name, _ in EXTRAS.values()}
    assert found == {*extras} - {"dev", "docs"}


def test_a_missing_package_is_named_and_the_status_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    assert end.value.code == 1
    text = capsys.readouterr().out
    assert "faiss-cpu cannot be imported" in text
    assert "speechbrain_ssl[graph]" in text
