"""The README's plugin: an objective of another package, found by !new: only."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import soundfile

from speechbrain_ssl.testing import check_objective

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = ROOT / "recipes/AudioFolder/SSL"


def readme_blocks(language):
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_readmes_objective_keeps_the_contract_and_trains(
    tmp_path, monkeypatch
):
    (code,) = [b for b in readme_blocks("python") if "class BYOL" in b]
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "byol.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from mypackage.byol import BYOL

    check_objective(BYOL(dim=8), dim=8)

    (yaml,) = readme_blocks("yaml")
    recipe = (RECIPE / "hparams/train_moco.yaml").read_text()
    recipe = re.sub(
        r"objective: !new:.*?(?=modules:)", yaml, recipe, flags=re.DOTALL
    )
    (tmp_path / "train_byol.yaml").write_text(recipe)
    (tmp_path / "audio").mkdir()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (8, 16000))
    for number, samples in enumerate(noise):
        soundfile.write(tmp_path / f"audio/{number}.wav", samples, 16000)
    subprocess.run(
        [
            sys.executable,
            "train_ssl.py",
            tmp_path / "train_byol.yaml",
            f"--data_folder={tmp_path}/audio",
            f"--output_folder={tmp_path}/out",
            "--min_seconds=0.5",
            "--batch_size=4",
            "--number_of_epochs=1",
            "--embedding_model={channels: [8, 8, 8, 8, 24]}",
        ],
        check=True,
        cwd=RECIPE,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert (tmp_path / "out/model/embedding_model.ckpt").is_file()
