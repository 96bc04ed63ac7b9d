"""--help lists keys with comments and defaults, and is quick."""

import pathlib
import subprocess
import sys

import pytest
import yaml
from speechbrain.utils.run_opts import HELP_TEXTS

from speechbrain_ssl.help import REFUSED, help_text, one_line

RECIPE = pathlib.Path(__file__).parents[1] / "recipes/AudioFolder/SSL"
YAML = RECIPE / "hparams/train_dlg_lc.yaml"


@pytest.fixture(scope="module")
def text():
    return help_text(
        "Trains a net.", "some/train_pseudo_labels.py", [str(YAML), "--help"]
    )


def keys_of(path):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda *_: None)
    return yaml.load(path.read_text(), Loader)


def test_each_key_is_listed_once_with_default_and_comment(text):
    lines = text.splitlines()
    for key in keys_of(YAML):
        wanted = 0 if key == "__set_seed" else 1
        found = [x for x in lines if x.split()[:1] == [f"--{key}"]]
        assert len(found) == wanted, key
    assert "  --batch_size 64" in lines
    assert "  --data_folder VALUE (required)" in lines
    assert any(
        x.startswith("  --embeddings_folder null # null:") for x in lines
    )
    assert any(x.strip().startswith("global_seconds: 3.0") for x in lines)


def test_options_of_speechbrain_are_listed_but_not_refused_ones(text):
    assert "--device" in text and "Trains a net." in text
    for name in HELP_TEXTS:
        assert (f"--{name}" in text) == (name not in REFUSED), name
    assert "negative value to disable" not in text


def test_without_a_yaml_it_says_how_to_see_the_keys():
    text = help_text("Trains.", str(RECIPE / "train_ssl.py"), ["--help"])
    assert "python train_ssl.py hparams/train_moco.yaml --help" in text
    assert "train_dino.yaml" in text


def test_answer_needs_no_torch():
    code = (
        "import sys; sys.argv = ['x.py', '--help']\n"
        "from speechbrain_ssl.help import answer_help\n"
        "try: answer_help('Trains.')\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0 and not {'torch', 'speechbrain'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python x.py FILE.yaml")


@pytest.mark.parametrize(
    "script, file",
    [
        ("train_ssl", "train_dino"),
        ("train_pseudo_labels", "train_lgl"),
        ("train_supervised", "train_supervised"),
        ("make_pseudo_labels", "pseudo_labels"),
        ("run_rounds", "rounds"),
        ("verify", "verify"),
        ("demo", "train_simclr"),
    ],
)
def test_script_answers_before_torch_is_imported(script, file):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'speechbrain', 'numpy'} & set(sys.modules)"
    )
    path = str(RECIPE / f"{script}.py")
    hparams = str(RECIPE / f"hparams/{file}.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, path, hparams, "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"python {script}.py" in done.stdout
    assert "--output_folder" in done.stdout


def test_ctrl_c_ends_a_command_in_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line("embed"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "embed: SIGINT: ended.\n"
