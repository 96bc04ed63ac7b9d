"""Recipes by name: which script, which YAML, and a complete copy."""

import sys

import pytest

from speechbrain_ssl.cli import recipes


@pytest.fixture
def ran(monkeypatch):
    """Command lines that would have been run."""
    lines = []

    def run_path(path, run_name):
        assert run_name == "__main__"
        lines.append((path, *sys.argv[1:]))

    monkeypatch.setattr(recipes.runpy, "run_path", run_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["speechbrain-ssl"])
    return lines


@pytest.mark.parametrize(
    "name, script",
    [
        ("moco", "AudioFolder/SSL/train_ssl.py"),
        ("dlg_lc", "AudioFolder/SSL/train_pseudo_labels.py"),
        ("supervised", "AudioFolder/SSL/train_supervised.py"),
        ("voxceleb/sdpn", "VoxCeleb/SSL/train_ssl.py"),
        ("voxceleb/wavlm_mhfa", "VoxCeleb/SSL/train_pseudo_labels.py"),
    ],
)
def test_names_run_the_yaml_with_its_script(ran, name, script):
    recipes.train([name, "--data_folder", "audio"])
    ((path, hparams, *rest),) = ran
    assert path.endswith(script)
    assert hparams.endswith(f"train_{name.rsplit('/', 1)[-1]}.yaml")
    assert rest == ["--data_folder", "audio"]


def test_every_training_yaml_has_a_name_and_a_script(ran):
    for name in recipes.names():
        recipes.train([name])
    assert len(ran) == len(recipes.names()) > 30


def test_a_yaml_elsewhere_runs_with_the_script_of_its_keys(ran, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\nobjective: 3\n")
    recipes.train([str(tmp_path / "mine.yaml"), "--seed", "2"])
    assert ran[0][0].endswith("train_ssl.py")
    assert ran[0][1:] == (str(tmp_path / "mine.yaml"), "--seed", "2")


def test_unknown_names_and_yamls_are_refused(ran, tmp_path):
    with pytest.raises(SystemExit, match="Did you mean simclr"):
        recipes.train(["simclrr"])
    (tmp_path / "odd.yaml").write_text("seed: 1\n")
    with pytest.raises(SystemExit, match="none of the keys"):
        recipes.train([str(tmp_path / "odd.yaml")])
    assert not ran


def test_another_yaml_takes_the_place_of_the_default(ran, tmp_path):
    script = recipes.folder() / "AudioFolder/SSL/verify.py"
    recipes.run(script, "verify.yaml", ["--trials", "x"])
    recipes.run(script, "verify.yaml", ["own.yaml", "--trials", "x"])
    assert ran[0][1] == str(script.parent / "hparams/verify.yaml")
    assert ran[1][1:] == ("own.yaml", "--trials", "x")


def test_the_recipe_of_adaptation_is_copied_by_its_name(tmp_path):
    target = recipes.copy("audiofolder/adapt", str(tmp_path / "own"))
    assert (target / "adapt.py").is_file()
    assert not (target / "audio_folder_prepare.py").is_symlink()


def test_a_copy_has_files_where_the_recipe_has_links(tmp_path):
    target = recipes.copy("voxceleb", str(tmp_path / "own"))
    assert (target / "train_ssl.py").is_file()
    assert (target / "hparams/train_moco.yaml").is_file()
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    with pytest.raises(FileExistsError, match="own"):
        recipes.copy("voxceleb", str(target))
    with pytest.raises(ValueError, match="audiofolder, audiofolder/adapt, vox"):
        recipes.copy("librispeech", str(tmp_path / "other"))
