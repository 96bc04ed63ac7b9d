"""The README's plugin: an objective of another package, found by !new: only."""

import pathlib
import re

import numpy as np
import soundfile

from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.testing import check_objective
from tests.recipes.scripts import run_script

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = ROOT / "recipes/AudioFolder/SSL"


def readme_blocks(language, folder=ROOT):
    text = (folder / "README.md").read_text()
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
    run_script(
        RECIPE / "train_ssl.py",
        tmp_path / "train_byol.yaml",
        f"--data_folder={tmp_path}/audio",
        f"--output_folder={tmp_path}/out",
        "--min_seconds=0.5",
        "--batch_size=4",
        "--number_of_epochs=1",
        "--embedding_model={channels: [8, 8, 8, 8, 24]}",
        "--augmentation={effects: {rir: {simulated: 3}}}",
    )
    assert (tmp_path / "out/model/embedding_model.ckpt").is_file()


class Rows(list):
    """Utterances."""

    row = list.__getitem__


def test_the_readmes_effects_are_applied(tmp_path, monkeypatch):
    (code,) = [b for b in readme_blocks("python", RECIPE) if "class Clip" in b]
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (yaml,) = [b for b in readme_blocks("yaml", RECIPE) if "my_module" in b]
    recipe = (RECIPE / "hparams/train_simclr.yaml").read_text()
    recipe = recipe.replace("    chances: #", f"{yaml}    chances: #")
    recipe = recipe.replace("- {channel", "- {clip: 0.2}\n        - {channel")
    (tmp_path / "train.yaml").write_text(recipe)
    few = "{rir: {simulated: 3}, channel: null, gain: null}"
    _, _, hparams, _ = load_experiment(
        [
            f"{tmp_path}/train.yaml",
            "--data_folder=x",
            f"--augmentation={{effects: {few}}}",
            "--view_sampler={augment_on: workers}",
        ]
    )
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 48000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    sampler, augmentation = hparams["view_sampler"], hparams["augmentation"]
    row = {"wav": f"{tmp_path}/a.wav", "start": 0, "stop": 48000}
    sampler.prepare(Rows([row]))
    assert list(augmentation.effects) == [
        *("rir", "noise", "clip", "phone", "drop")
    ]
    drawn = [
        dict(zip(augmentation.names, draw.tolist()))
        for epoch in range(40)
        for draw in sampler((epoch, 0), *row.values())[1]
    ]
    share = sum(draw["clip.on"] for draw in drawn) / len(drawn)
    assert 0.05 < share < 0.4
    assert len({draw["drop.seed"] for draw in drawn}) == len(drawn)
