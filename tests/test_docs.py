"""What the documentation shows exists and runs."""

import pathlib
import re
import shlex
import sys

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.cli import main, recipes
from speechbrain_ssl.options import run_option_types

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted(
    (ROOT / "docs/methods").glob("*.md")
)
READMES = [ROOT / "README.md", *sorted(ROOT.glob("recipes/*/*/README.md"))]
SCRIPT_KEYS = {
    "labels": "pseudo_labels.yaml",
    "rounds": "rounds.yaml",
    "verify": "verify.yaml",
}


def blocks(path, language):
    """Code blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```",
        path.read_text(),
        re.DOTALL | re.MULTILINE,
    )


def lines():
    """Lines of shell blocks, with their page."""
    for path in [*PAGES, *READMES]:
        for block in blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield path, line.partition(" #")[0]


def commands():
    """Lines that begin with speechbrain-ssl."""
    for _, line in lines():
        if line.startswith("speechbrain-ssl "):
            yield pytest.param(shlex.split(line)[1:], id=line[16:60])


def scripts():
    """Folder, script, YAML and further words of lines that run a script."""
    for path, line in lines():
        folder = path.parent
        if "recipes" not in path.relative_to(ROOT).parts:
            place = re.search(r"cd (recipes/\S+)", line)
            folder = ROOT / (place[1] if place else "recipes/AudioFolder/SSL")
        found = re.search(r"\b(\w+\.py) (\S*hparams/\S+\.yaml)(.*)", line)
        if found and "$" not in found[2] and "benchmarks" not in line:
            yield pytest.param(folder, *found.groups(), id=line[:60])


def keys_of(path):
    """Top-level keys of a YAML."""
    return set(re.findall(r"^(\w+):", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("words", commands())
def test_commands_name_what_exists(words):
    command, *rest = words
    assert command in ("train", "adapt", *main.SCRIPTS, *main.MODULES)
    keys = None
    if command == "train":
        keys = keys_of(recipes.names()[rest[0]]) | {"encoder_file"}
    elif command == "adapt":
        hparams = recipes.folder() / "AudioFolder/Adapt/hparams"
        keys = keys_of(hparams / "adapt.yaml")
    elif command in SCRIPT_KEYS:
        hparams = recipes.folder() / "AudioFolder/SSL/hparams"
        keys = keys_of(hparams / SCRIPT_KEYS[command])
    if keys is not None:
        keys |= set(run_option_types())
        assert {word[2:] for word in rest if word.startswith("--")} <= keys


@pytest.mark.parametrize("folder, script, hparams, rest", scripts())
def test_scripts_have_the_keys_that_are_given(folder, script, hparams, rest):
    assert (folder / script).is_file()
    known = keys_of(folder / hparams) | set(run_option_types())
    assert set(re.findall(r" \[?--(\w+)", rest)) <= known


def test_the_objective_of_the_guide_keeps_the_contract(monkeypatch):
    first, second, *_ = blocks(ROOT / "docs/adding.md", "python")
    scope = {}
    exec(first, scope)
    exec(second, scope)
    assert scope["BYOL"]


def test_the_augmentation_of_the_guide_clips():
    import numpy as np
    import torch

    scope = {}
    exec(blocks(ROOT / "docs/adding.md", "python")[2], scope)
    clip = scope["Clip"]()
    drawn = clip.draw(np.random.default_rng(0))
    wavs = torch.randn(3, 100)
    level = torch.full((3,), drawn["level"])
    out = clip.apply(wavs, {"level": level})
    assert torch.allclose(out.abs().amax(1), level * wavs.abs().amax(1))


def test_yaml_blocks_load():
    text = "emb_dim: 8\nn_mels: 8\nproj_dim: 8\n"
    for block in blocks(ROOT / "docs/adding.md", "yaml"):
        if "mypackage" not in block:
            assert load_hyperpyyaml(text + block)


def test_every_training_yaml_has_a_page_that_shows_its_settings():
    pages = {path.stem: path.read_text() for path in PAGES}
    for name in recipes.names():
        name = name.rsplit("/", 1)[-1]
        if name not in ("ungated", "supervised"):
            assert f"train_{name}.yaml" in "".join(pages.values())


def test_the_key_reference_has_every_key(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import keys
    finally:
        sys.path.pop(0)
    keys.write(ROOT / "recipes", tmp_path)
    text = "".join(path.read_text() for path in tmp_path.glob("*.md"))
    for path in (ROOT / "recipes/AudioFolder/SSL/hparams").glob("*.yaml"):
        assert path.name in text
        for key in keys_of(path) - {"__set_seed"}:
            assert f"| `{key}` |" in text, f"{path.name}: {key}"
