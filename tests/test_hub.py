"""Models named as on the Hugging Face hub, from a hub on the loopback."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from speechbrain_ssl import hub
from tests import hub_layouts
from tests.fake_hub import serve

NAME = "speechbrain/spkrec-tiny"
OLD, NEW = "a" * 40, "b" * 40
ASK = """\
import json, sys
from speechbrain_ssl import hub
try:
    print(json.dumps(hub.fetch(*json.loads(sys.argv[1]))))
except (OSError, ValueError) as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""
USE = """\
import json, sys
import torch
from speechbrain_ssl import adaptation
from speechbrain_ssl.loading import load_encoder, start_from
name, local, start = sys.argv[1:]
torch.manual_seed(0)
wavs = torch.randn(2, 8000)
wanted = load_encoder(local).encode_batch(wavs)
source = adaptation.find_source(name)
adaptation.write_start(source, start)
for path in (name, start):
    assert torch.equal(load_encoder(path).encode_batch(wavs), wanted)
branch = adaptation.branch_of(load_encoder(name))
start_from(branch, name)
print(json.dumps(source))
"""
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path):
    """Two commits of a model; the newer one has another YAML."""
    for commit in (OLD, NEW):
        folder = tmp_path / "hub" / NAME / commit
        folder.mkdir(parents=True)
        (folder / "hyperparams.yaml").write_text(f"commit: {commit}\n")
        for name in ("embedding_model.ckpt", "classifier.ckpt", "train.py"):
            (folder / name).write_text("x")
    folder = tmp_path / "hub/user/wavlm" / OLD
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("x")
    with serve(tmp_path / "hub") as server:
        server.branches[NAME] = {"main": NEW, "v1": OLD}
        server.branches["user/wavlm"] = {"main": OLD}
        yield tmp_path, server


def ask(place, *arguments, **variables):
    """What ``fetch`` gives in a process with these environment variables."""
    return run(place, ASK, json.dumps(arguments), **variables)


def run(place, program, *arguments, **variables):
    """The last line that a program prints, in a process of its own."""
    folder, server = place
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_of_the_hub_is_loaded_and_trained_from_by_its_name(place):
    folder, server = place
    name = "speechbrain/spkrec-ecapa-voxceleb"
    local = hub_layouts.write(folder / "hub" / name / OLD)
    server.branches[name] = {"main": OLD}
    kind, _, found, commit, license = run(
        place, USE, name, local, str(folder / "start")
    )
    assert (kind, found, commit) == ("encoder", name, OLD)
    assert license == "apache-2.0"


def test_only_files_of_encoders_are_downloaded(place):
    folder, name, commit = ask(place, NAME, HF_TOKEN="hf_secret")
    assert (name, commit) == (NAME, NEW)
    assert sorted(os.listdir(folder)) == [
        "embedding_model.ckpt",
        "hyperparams.yaml",
    ]
    assert "Bearer hf_secret" in place[1].tokens
    assert not any("train.py" in line for line in place[1].asked)


def test_a_revision_may_be_a_branch_a_tag_or_a_commit(place):
    for arguments in ((f"{NAME}@v1",), (NAME, "v1"), (f"{NAME}@{OLD}",)):
        folder, _, commit = ask(place, *arguments)
        assert commit == OLD
        text = pathlib.Path(folder, "hyperparams.yaml").read_text()
        assert text == f"commit: {OLD}\n"


def test_weights_of_a_transformer_without_safetensors_are_found(place):
    folder, _, _ = ask(place, "user/wavlm")
    assert sorted(os.listdir(folder)) == ["config.json", "pytorch_model.bin"]


def test_offline_uses_the_cache_and_asks_nobody(place):
    error = ask(place, NAME, None, True)
    assert error.startswith("FileNotFoundError: There is no folder")
    assert "offline" in error and not place[1].asked
    found = ask(place, NAME)
    place[1].asked.clear()
    assert ask(place, NAME, None, True) == found
    assert ask(place, NAME, HF_HUB_OFFLINE="1") == found
    assert not place[1].asked


def test_a_name_that_nobody_has_is_told_with_the_place(place):
    error = ask(place, "nobody/nothing")
    assert "no folder nobody/nothing here" in error
    assert place[1].address in error


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "user/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("user/model") == ("user/model", None, None)
    with pytest.raises(ValueError, match="revision is v1"):
        hub.fetch("user/model", "v1")


def test_two_revisions_are_refused():
    with pytest.raises(ValueError, match="names another one"):
        hub.fetch("user/model@v1", "v2")


@pytest.mark.parametrize(
    "source", ["/a/b", "results/moco/1/model", "model", "a/b.onnx", "../a"]
)
def test_paths_are_no_names(source):
    assert not hub.is_name(source)
