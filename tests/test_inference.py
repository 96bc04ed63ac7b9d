"""All functions of exported models, by one import."""

import runpy
import sys

import pytest
import torch

from speechbrain_ssl import inference
from tests.models import RUN, branch_of


def test_all_names_are_there_and_have_a_docstring():
    for name in inference.__all__:
        assert getattr(inference, name).__doc__, name


def test_an_encoder_is_exported_loaded_and_started_from(tmp_path):
    branch, other = branch_of(), branch_of()
    folder = inference.export(branch, RUN, str(tmp_path / "model"))
    wavs = torch.randn(1, 8000) * 0.1
    found = inference.load_encoder(folder).encode_batch(wavs)
    inference.start_from(other, folder)
    expected = other.eval().embed(wavs)
    assert torch.allclose(found.squeeze(1), expected, atol=1e-5)
    assert inference.read_threshold(folder) is None


def test_the_module_exports_a_run_and_names_a_missing_one(monkeypatch):
    words = ["speechbrain_ssl.inference", "no/such/run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="no/such/run"):
        runpy.run_module(words[0], run_name="__main__")
