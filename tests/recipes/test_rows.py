"""Each row of the recipe tables runs on tiny data, as SpeechBrain runs it."""

import csv
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest

from speechbrain_ssl import stages
from tests.recipes.scripts import run_script, run_stage_here

ROOT = pathlib.Path(__file__).parents[2]
TABLES = sorted(pathlib.Path(__file__).parent.glob("*.csv"))
CHECKOUT = os.environ.get("SPEECHBRAIN_CHECKOUT")


def table_rows():
    for table in TABLES:
        with open(table, newline="") as file:
            yield from csv.DictReader(file, skipinitialspace=True)


def name_of(row):
    return f"{row['Dataset']}-{pathlib.Path(row['Hparam_file']).stem}"


def missing_files(row, output):
    wanted = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])
    names = wanted.group(1).split(",")
    return [name for name in names if not (output / name).is_file()]


def unexplained_statistics(output):
    """Statistics of a training log of which the report says nothing."""
    meanings = json.loads((output / "stats_help.json").read_text())
    lines = (output / "train_log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    logged = {name for record in records for name in record["train"]}
    return logged - {name for name, text in meanings.items() if text}


@pytest.mark.parametrize("row", table_rows(), ids=name_of)
def test_row(row, samples, monkeypatch):
    monkeypatch.chdir(samples)
    monkeypatch.setattr(stages, "run_command", run_stage_here)
    output = samples / "out" / name_of(row)
    run_script(
        ROOT / row["Script_file"],
        ROOT / row["Hparam_file"],
        *shlex.split(row["test_debug_flags"]),
        "--device=cpu",
        f"--output_folder={output}",
    )
    assert not missing_files(row, output)
    if "train_log.jsonl" in row["test_debug_checks"]:
        assert not unexplained_statistics(output)
    is_model = (output / "model/embedding_model.ckpt").is_file()
    if row["Dataset"] == "VoxCeleb" and is_model:
        facts = (output / "model/README.md").read_text()
        assert "| 40 utterances," in facts and "| epochs | 2 |" in facts
        verify_on_voxceleb(output)


def verify_on_voxceleb(output):
    """Verifies the model of a row as the recipe's README does."""
    recipe = ROOT / "recipes/VoxCeleb/SSL"
    run_script(
        recipe / "verify.py",
        recipe / "hparams/verify.yaml",
        f"--model_folder={output}/model",
        "--data_root=tests/tmp/ssl/vox1",
        "--trials=[tests/tmp/ssl/vox1_trials/vox1_O.txt]",
        "--device=cpu",
        "--noprogressbar",
        f"--output_folder={output}/verify",
    )
    found = json.loads((output / "verify/vox1_O/metrics.json").read_text())
    assert found["raw"]["trials"] == 3 and 0 <= found["raw"]["EER"] <= 100
    # of the last list that was verified; written beside the exported model
    assert (output / "model/threshold.json").is_file()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shells_take_the_flags_apart_as_we_do(shell):
    """run_recipe_tests hands them to a shell, which may be either."""
    rows = [row["test_debug_flags"] for row in table_rows()]
    script = "\n".join(f"printf '%s\\n' {flags}; echo" for flags in rows)
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [block.split("\n") for block in done.stdout.split("\n\n")[:-1]]
    assert found == [shlex.split(flags) for flags in rows]


def run_as_speechbrain_does(row, output_folder):
    """SpeechBrain's run_recipe_tests for one row, from its documentation."""
    output = pathlib.Path(output_folder) / name_of(row)
    output.mkdir(parents=True)
    for command in row["test_download"].split(";"):
        eval(command)
    command = (
        f"PYTHONPATH={os.getcwd()}/{os.path.dirname(row['Script_file'])} "
        f"python {row['Script_file']} {row['Hparam_file']} "
        f"{row['test_debug_flags']} --device=cpu --output_folder={output}"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return not missing_files(row, output)


def one_row_of_each_script():
    return {row["Script_file"].split("/")[-1]: row for row in table_rows()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Recipes and tables in the layout of SpeechBrain's repository."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    tables = folder / "tests/recipes"
    shutil.copytree(ROOT / "tests/recipes/setup", tables / "setup")
    for table in TABLES:
        shutil.copy(table, tables)
    # the runner calls `python` and sets PYTHONPATH, which must not hide the
    # package where it is found by that variable alone
    python = folder / "bin/python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}:$PYTHONPATH" '
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("row", one_row_of_each_script().values(), ids=name_of)
def test_speechbrains_runner_accepts_a_row_of_each_script(
    row, checkout, monkeypatch
):
    """The real runner where SPEECHBRAIN_CHECKOUT names a checkout."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", f"{checkout}/bin:{os.environ['PATH']}")
    if not CHECKOUT:
        assert run_as_speechbrain_does(row, "tests/tmp")
        return
    runner = runpy.run_path(f"{CHECKOUT}/tests/utils/recipe_tests.py")
    assert runner["run_recipe_tests"](
        filters_fields=["Hparam_file", "Dataset"],
        filters=[row["Hparam_file"], row["Dataset"]],
    )
