"""``python -m speechbrain_ssl`` runs the command line."""

import runpy
import sys

import pytest

import speechbrain_ssl


@pytest.mark.parametrize("words, status", [(["--version"], 0), (["trian"], 2)])
def test_the_package_runs_a_command_and_exits_with_its_status(
    words, status, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["speechbrain_ssl", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("speechbrain_ssl", run_name="__main__")
    assert end.value.code == status
    text = "".join(capsys.readouterr())
    assert speechbrain_ssl.__version__ in text or "'trian'" in text
