"""Every YAML of the recipes is complete, honest and run by a test."""

import ast
import csv
import difflib
import pathlib
import re

import pytest
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.run_opts import RunOptions

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
HPARAMS = sorted(RECIPES.glob("*/*/hparams/*.yaml"))
SCRIPTS = [
    path
    for path in sorted(RECIPES.glob("*/*/*.py"))
    if not path.stem.endswith("_prepare")
]
TRAINING = [path for path in HPARAMS if path.stem.startswith("train_")]
MODELS = sorted((ROOT / "hparams").glob("*.yaml"))


def rows():
    for table in sorted((ROOT / "tests/recipes").glob("*.csv")):
        with open(table, newline="") as file:
            yield from csv.DictReader(file, skipinitialspace=True)


def keys_of(path):
    """Top-level keys, in order."""
    return re.findall(r"^(\w+):", path.read_text(), flags=re.MULTILINE)


def test_every_yaml_is_run_by_a_row_of_the_tables():
    listed = {row["Hparam_file"] for row in rows()}
    assert listed == {str(path.relative_to(ROOT)) for path in HPARAMS}


def test_files_of_the_tables_exist_and_flags_are_given():
    for row in rows():
        for column in ("Script_file", "Hparam_file", "Readme_file"):
            assert (ROOT / row[column]).is_file(), row[column]
        assert row["test_debug_flags"].strip()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_script_imports_no_other_script_but_a_preparation(path):
    others = {other.stem for other in path.parent.glob("*.py")} - {path.stem}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    scripts = {x for x in others & imported if not x.endswith("_prepare")}
    assert scripts <= {"synthesize_voices"}


@pytest.mark.parametrize("path", HPARAMS + MODELS, ids=lambda p: p.stem)
def test_no_key_is_swallowed_by_the_command_line(path):
    options = set(RunOptions.__dataclass_fields__)
    for key in keys_of(path):
        longer = [o for o in options if o.startswith(key) and o != key]
        assert not longer, f"{path.name}: {key} would be read as {longer}"


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_no_speaker_label_is_asked_for(path):
    if path.stem == "train_supervised":
        pytest.skip("this one says that it is trained on speakers")
    assert not re.search(r"spk_id|label_encoder|speaker_id", path.read_text())


def test_methods_differ_in_few_lines():
    stages = {row["Hparam_file"]: row["Script_file"] for row in rows()}
    scripts = {p: stages[str(p.relative_to(ROOT))] for p in TRAINING}
    # another network is another one in every line: those with a pretrained
    # transformer are compared with one another, as are those with faces and
    # those with voices and faces
    names = ("PretrainedTransformer", "FaceRes", "ClipBranch")
    kinds = {
        p: (
            scripts[p],
            *(n in p.read_text() for n in names),
        )
        for p in TRAINING
    }
    for kind in set(kinds.values()):
        # recipes of VoxCeleb also differ in data, encoder and schedule, as
        # published.yaml says
        limit = 40 if "VoxCeleb" in kind[0] else 25
        small = [p for p in TRAINING if kinds[p] == kind]
        for first in small:
            for second in small:
                changed = [
                    line
                    for line in difflib.ndiff(
                        first.read_text().splitlines(),
                        second.read_text().splitlines(),
                    )
                    if line[0] == "+" and not line.startswith("+ #")
                ]
                assert len(changed) < limit, (first.name, second.name)


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_sections_stand_in_one_order(path):
    names = re.findall(r"^# ([A-Z][a-z]+)", path.read_text(), re.MULTILINE)
    wanted = ["Basics", "Data", "Views", "Encoder", "Head", "Objective"]
    wanted += ["Optimization", "Evaluation", "Logging"]
    assert [name for name in names if name in wanted] == wanted


SHARED = [path for path in MODELS if "recipes/" in path.read_text()]


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_model_hparams_make_the_encoder_of_their_recipes(path, tmp_path):
    """hparams/x.yaml says in its first line which recipe files share it."""
    with open(path) as file:
        first = file.readline()
        file.seek(0)
        model = load_hyperpyyaml(file)["embedding_model"]
    named = re.findall(r"recipes/[\w/]+\.yaml", first)
    assert named
    for name in named:
        with open(ROOT / name) as file:
            text = file.read()
        given = {"data_folder": "x", "output_folder": str(tmp_path)}
        if "\nprepare:" in text:  # of a module of the recipe's folder
            given["prepare"] = None
        recipe = load_hyperpyyaml(text, given)
        shapes = [
            {k: v.shape for k, v in module.state_dict().items()}
            for module in (model, recipe["embedding_model"])
        ]
        assert shapes[0] == shapes[1], name
