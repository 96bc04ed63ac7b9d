"""One command for everything, and what it hands on."""

import subprocess
import sys

import pytest

import speechbrain_ssl
from speechbrain_ssl.cli import main as cli


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("train", *cli.SCRIPTS, *cli.MODULES):
        assert f"\n  {command} " in text


def test_version_is_that_of_the_package(capsys):
    cli.main(["--version"])
    assert speechbrain_ssl.__version__ in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert cli.main(["trian"]) == 2
    text = capsys.readouterr().err
    assert "'trian'" in text and "rounds" in text


def test_home_is_filled_in_where_shells_leave_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = []
    monkeypatch.setattr("speechbrain_ssl.cli.doctor.main", given.extend)
    assert cli.main(["doctor", "--output_folder=~/a", "~/b", "--c=x~/d"]) == 0
    assert given == ["--output_folder=/home/me/a", "~/b", "--c=x~/d"]


def test_help_does_not_import_torch():
    code = (
        "import sys; from speechbrain_ssl.cli.main import main; "
        "main(['--help']); main(['recipe', 'list']); main(['train']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", cli.MODULES)
def test_modules_have_a_main_with_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("command", cli.SCRIPTS)
def test_scripts_get_their_yaml(command, monkeypatch):
    script, hparams, _ = cli.SCRIPTS[command]
    called = []
    monkeypatch.setattr(cli.recipes, "run", lambda *args: called.append(args))
    cli.main([command, "--seed", "3"])
    ((path, name, rest),) = called
    assert path.is_file() and path.name == script
    assert name == hparams and rest == ["--seed", "3"]
