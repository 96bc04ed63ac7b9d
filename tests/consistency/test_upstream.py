"""The recipes in a checkout of SpeechBrain, by the checks that it publishes.

SPEECHBRAIN_CHECKOUT names such a checkout. Without one, its rule for the keys
of a YAML file is tested as it is stated here: it looks for the text of each key
in the script. Scripts therefore read every key and pass it on.
"""

import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from speechbrain.utils.run_opts import RunOptions

from tests.consistency.test_recipes import HPARAMS, keys_of, rows

ROOT = pathlib.Path(__file__).parents[2]
CHECKOUT = os.environ.get("SPEECHBRAIN_CHECKOUT")
CHECKS = ["test_recipe.py", "test_yaml.py"]


def place(folder):
    """Puts our recipes into a folder as `cp -rL` does, without their links."""
    for dataset in ("VoxCeleb", "AudioFolder"):
        shutil.copytree(
            ROOT / "recipes" / dataset,
            folder / "recipes" / dataset,
            ignore=shutil.ignore_patterns("__pycache__", "results"),
        )
        (folder / "tests/recipes").mkdir(parents=True, exist_ok=True)
        shutil.copy(
            ROOT / f"tests/recipes/{dataset}.csv", folder / "tests/recipes"
        )


def test_a_copied_recipe_is_whole(tmp_path):
    """No file of it is a link, and each file that its table names is there."""
    place(tmp_path)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    for table in (tmp_path / "tests/recipes").iterdir():
        with open(table, newline="") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                names = [row[f"{kind}_file"] for kind in ("Script", "Hparam")]
                names += row["Data_prep_file"].split() + [row["Readme_file"]]
                for name in names:
                    assert (tmp_path / name).is_file(), name


@pytest.mark.parametrize("path", HPARAMS, ids=lambda p: p.stem)
def test_every_variable_is_used(path):
    """By the script, or by a later !ref, or as a run option."""
    text = path.read_text()
    mine = str(path.relative_to(ROOT))
    (script,) = {  # of links, the file
        (ROOT / row["Script_file"]).resolve()
        for row in rows()
        if row["Hparam_file"] == mine
    }
    code = script.read_text()
    options = set(RunOptions.__dataclass_fields__)
    for key in keys_of(path):
        line, *_ = after = text.split(f"\n{key}:", 1)[-1].split("\n")
        used = (
            f'["{key}"]' in code
            or f"hparams.{key}" in code
            or f'hparams.get("{key}' in code
            or any(re.search(rf"!ref.*<{key}[>\[]", x) for x in after)
            or key in options
            or "!apply" in line  # is run, used or not
        )
        assert used, f"{path.name}: {key} is not used by {script}"


@pytest.mark.skipif(not CHECKOUT, reason="SPEECHBRAIN_CHECKOUT names no folder")
def test_speechbrains_own_checks_accept_the_recipes(tmp_path):
    checks = pathlib.Path(CHECKOUT) / "tests"
    for part in ("consistency", "utils"):
        shutil.copytree(checks / part, tmp_path / "tests" / part)
    shutil.copy(checks / "__init__.py", tmp_path / "tests")
    place(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"tests/consistency/{name}" for name in CHECKS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
