"""The demo's bookkeeping, and one run of it on a few noises."""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl import stages
from speechbrain_ssl.exporting import main
from tests.recipes.scripts import run_stage_here

ROOT = pathlib.Path(__file__).parents[2]
RECIPE, ENCODERS = ROOT / "recipes/AudioFolder/SSL", ROOT / "hparams"


@pytest.fixture(scope="module")
def demo():
    sys.path.insert(0, str(RECIPE))
    spec = importlib.util.spec_from_file_location("demo", RECIPE / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Four 'speakers' of three noises each, and a trial list."""
    folder = tmp_path_factory.mktemp("own audio")
    rng = np.random.default_rng(0)
    lines = []
    for speaker in range(4):
        (folder / f"s{speaker}").mkdir()
        for take in range(3):
            noise = 0.1 * rng.standard_normal(24000)
            soundfile.write(folder / f"s{speaker}/{take}.wav", noise, 16000)
        lines += [f"1 s{speaker}/0.wav s{speaker}/1.wav"]
        lines += [f"0 s{speaker}/0.wav s{(speaker + 1) % 4}/2.wav"]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder


SMALL = [
    *("--batch_size", "4", "--emb_dim", "16"),
    *("--embedding_model", "{channels: [8, 8, 8, 8, 24]}"),
]


def test_it_times_steps_trains_verifies_and_reports(
    demo, speech, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(stages, "run_command", run_stage_here)
    arguments = [
        *("--data_folder", f"{speech}/"),
        *("--trials", str(speech / "list.txt")),
        *("--output_folder", str(tmp_path)),
        *("--minutes", "0.05"),
    ]
    demo.main(arguments + SMALL)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["title"] == f"simclr on {speech.name}"
    assert summary["after"]["list"]["trials"] == 8
    assert summary["epochs"] >= 1
    assert summary["steps"] == 3 * summary["epochs"]
    assert "EER" in capsys.readouterr().out
    readme = (tmp_path / "model" / "README.md").read_text()
    assert "same = float(score) >= " in readme
    assert (tmp_path / "report.html").is_file()
    rounds = json.loads((tmp_path / "rounds/summary.json").read_text())
    assert [row["stage"] for row in rounds["stages"]] == [
        *("verify", "labels", "train", "verify"),
    ]
    assert rounds["finished"]
    changes = rounds["settings"]["train"]["changes"]
    assert changes == {"number_of_epochs": min(summary["epochs"], 30)}
    assert (tmp_path / "rounds/rounds.html").is_file()

    main(["--folder", str(tmp_path / "again"), str(tmp_path)])
    first, again = (
        torch.load(tmp_path / name / "embedding_model.ckpt")
        for name in ("model", "again")
    )
    assert all(torch.equal(first[key], again[key]) for key in first)

    before = json.loads((tmp_path / "demo.json").read_text())
    demo.main(arguments + SMALL)
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["steps"] == summary["steps"]
    assert json.loads((tmp_path / "demo.json").read_text()) == before


def test_rounds_of_long_trainings_are_shorter(demo):
    given = (1, 20, 60, 145)
    assert [demo.round_epochs(n) for n in given] == [1, 20, 30, 37]


def test_rounds_get_an_encoder_file_as_a_whole(demo, speech, tmp_path):
    folder = ["--data_folder", str(speech), "--output_folder", str(tmp_path)]
    args, further = demo.parse_arguments(
        [*folder, "--encoder_file", "ecapa_c256", "--batch_size=4"]
    )
    given = demo.rounds_arguments(args, further, "model", 3)
    found = dict(text[2:].split("=", 1) for text in given[1:])
    assert json.loads(found["train"])["changes"] == {
        "number_of_epochs": 3,
        "encoder_file": "ecapa_c256",
    }
    shared = json.loads(found["shared"])
    assert shared["batch_size"] == "4"
    assert "embedding_model" not in shared and "emb_dim" not in shared


def test_an_encoder_file_may_have_lists_in_lines(demo, speech, tmp_path):
    text = (ENCODERS / "ecapa_c256.yaml").read_text()
    lines = "".join(f"\n    - {n}" for n in (8, 8, 8, 8, 24))
    (tmp_path / "encoder.yaml").write_text(
        text.replace("channels: [256, 256, 256, 256, 512]", f"channels:{lines}")
    )
    args, further = demo.parse_arguments(
        [
            *("--data_folder", str(speech), "--output_folder", str(tmp_path)),
            *("--encoder_file", str(tmp_path / "encoder.yaml"), "--seed=2"),
        ]
    )
    given = demo.rounds_arguments(args, further, "model", 3)
    assert "- 24" in (tmp_path / "encoder.yaml").read_text()
    assert any("encoder.yaml" in text for text in given)


def test_another_run_in_the_same_folder_is_refused(demo, tmp_path):
    def settings(seed, *more):
        args, further = demo.parse_arguments(
            ["--output_folder", str(tmp_path), "--seed", str(seed), *more]
        )
        return demo.settings_of_run(args, further)

    settings(1)
    (tmp_path / "save").mkdir()
    settings(1)
    assert (tmp_path / "save").is_dir()
    # the training compares these
    assert settings(1, "--a=0")["further"] == ["--a=0"]
    with pytest.raises(ValueError, match="seed: was 1, is 2"):
        settings(2)
    (tmp_path / "demo.json").unlink()
    with pytest.raises(ValueError, match="of another script"):
        settings(1)
    assert (tmp_path / "save").is_dir()


def test_missing_folders_and_lists_are_named(demo, tmp_path):
    for flags in (
        ["--data_folder", str(tmp_path / "none")],
        ["--data_folder", str(tmp_path), "--trials", str(tmp_path / "none")],
    ):
        with pytest.raises(FileNotFoundError, match="none"):
            demo.main(["--output_folder", str(tmp_path / "out"), *flags])


def test_times_may_be_a_file_in_the_current_folder(
    demo, speech, tmp_path, monkeypatch
):
    timed = types.SimpleNamespace(steps_per_epoch=3), 2.0
    monkeypatch.setattr(demo.experiment, "time_steps", lambda *_: timed)
    monkeypatch.chdir(tmp_path)
    demo.main(["--data_folder", str(speech), "--times", "times.json", *SMALL])
    found = json.loads((tmp_path / "times.json").read_text())
    assert found == {"step": 2.0, "epoch": 6.0}
    with pytest.raises(ValueError, match="needs a --data_folder"):
        demo.main(["--times", "times.json"])


def test_cores_of_a_cpu_share_the_batch(demo, monkeypatch):
    def processes(batch_size, *flags, device="cpu"):
        args, _ = demo.parse_arguments([*flags])
        return demo.processes_for(args, batch_size, device)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, batch_size, expected in (
        *((1, 64, 1), (2, 64, 2), (3, 64, 2), (16, 64, 4)),
        *((16, 32, 2), (16, 31, 1), (16, 66, 2)),
    ):
        monkeypatch.setattr(demo, "processors", lambda cores=cores: cores)
        assert processes(batch_size) == expected
    assert processes(64, device="cuda:0") == 1
    assert processes(64, "--processes", "8") == 8
    with pytest.raises(ValueError, match="batch of 64 .* among 3 processes"):
        processes(64, "--processes", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert processes(64) == 1


def test_processes_train_with_their_part_of_the_batch(
    demo, speech, tmp_path, monkeypatch
):
    commands = []
    monkeypatch.setattr(
        demo, "run_command", lambda *given: commands.append(given[0]) or 3
    )
    arguments = ["--data_folder", str(speech), "--output_folder", str(tmp_path)]
    arguments += ["--number_of_epochs", "2", "--processes", "2"]
    with pytest.raises(ChildProcessError, match=r"train_ssl.py .* code 3"):
        demo.main(arguments + SMALL)
    assert "--nproc_per_node=2" in commands[0]
    assert commands[0][commands[0].index("--batch_size") + 1] == "2"


@pytest.mark.slow
def test_two_processes_time_steps_and_train(demo, speech, tmp_path):
    arguments = ["--data_folder", str(speech), "--output_folder", str(tmp_path)]
    arguments += ["--minutes", "0.01", "--processes", "2", "--rounds", "0"]
    demo.main(arguments + SMALL)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["steps"] == 3 * summary["epochs"]
