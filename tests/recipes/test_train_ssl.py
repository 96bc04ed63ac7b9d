"""Settings that do not fit are found before the first batch."""

import pathlib
import subprocess
import sys

import pytest

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"


def run(*flags):
    return subprocess.run(
        [sys.executable, "train_ssl.py", "hparams/train_simclr.yaml", *flags],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--extract_from=teacher"], "modules has one"),
        (["--select_by=EER"], "dev_trials"),
        (["--temprature=0.1"], "temprature"),
        (["--view_sampler={global_second: 3.0}"], "global_second"),
        (["--average_last=9"], "checkpoints_to_keep"),
        (["--select_by=eer", "--dev_trials=x"], "EER or minDCF_0.01"),
        (
            ["--select_by=EER", "--dev_trials=x", "--dev_every=99"],
            "number_of_epochs",
        ),
        (["--dev_trials=no list.txt"], "no list.txt"),
        (["--cluster_tables=[]"], "never be filled"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_prepared(
    flags, message, tmp_path
):
    out = tmp_path / "out"
    done = run("--data_folder=x", f"--output_folder={out}", *flags)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert not (out / "save" / "train.csv").exists()


def test_a_missing_folder_is_named(tmp_path):
    missing = tmp_path / "no such folder"
    done = run(f"--data_folder={missing}", f"--output_folder={tmp_path}/out")
    assert done.returncode != 0
    assert str(missing) in done.stderr.splitlines()[-1]


def test_a_missing_value_is_asked_for():
    done = run()
    assert done.returncode != 0
    assert "data_folder" in done.stderr.splitlines()[-1]
