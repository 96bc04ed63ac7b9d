"""Wrong settings are named before training; a run goes on as it was started."""

import json
import logging
import os
import pathlib
import runpy
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.card import read_threshold
from speechbrain_ssl.cli.pack import pack
from speechbrain_ssl.evaluation.selfcheck import SelfCheck
from speechbrain_ssl.files import occupy, read_jsonl

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"
SIMCLR = RECIPE / "hparams/train_simclr.yaml"
SMALL = [
    "--batch_size=4",
    "--number_of_epochs=1",
    "--emb_dim=16",
    "--embedding_model={channels: [8, 8, 8, 8, 24]}",
    "--noprogressbar",
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Eight noises."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = 0.1 * rng.standard_normal(16000)
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    return folder


@pytest.fixture(scope="module")
def train(audio):
    """Runs the script's main function."""
    sys.path.insert(0, str(RECIPE))
    main = runpy.run_path(str(RECIPE / "train_ssl.py"))["main"]
    root = logging.getLogger()
    before, hook = list(root.handlers), sys.excepthook

    def run(folder, *flags, file=SIMCLR):
        given = {flag.split("=")[0] for flag in flags}
        small = [flag for flag in SMALL if flag.split("=")[0] not in given]
        if "--data_folder" not in given:
            small.append(f"--data_folder={audio}")
        try:
            main(
                [
                    str(file),
                    f"--output_folder={folder}",
                    *small,
                    *flags,
                ]
            )
        finally:
            root.handlers[:], sys.excepthook = before, hook

    yield run
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of that run."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder):
    """Bytes of the files that say what a run is."""
    names = ("hyperparams.yaml", "settings.json", "train_log.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--extract_from=teacher", "modules has one"),
        ("--select_by=EER", "dev_trials"),
        ("--temprature=0.1", "temprature"),
        ("--view_sampler={global_second: 3.0}", "global_second"),
        ("--average_last=9", "checkpoints_to_keep"),
        ("--average_last=0", "average_last must be .* not 0"),
        ("--select_by=eer", "EER or minDCF_0.01 or selfcheck"),
        ("--select_by=selfcheck", "set selfcheck_share, .* selfcheck_folder"),
        ("--selfcheck_share=1", "selfcheck_share must be .* below 1"),
        ("--selfcheck_every=0", "selfcheck_every"),
        ("--dev_trials=no list.txt", "no list.txt"),
        ("--cluster_tables=[]", "never be filled"),
        ("--number_of_epochs=0", "number_of_epochs"),
        ("--number_of_epochs=2.5", "number_of_epochs"),
        ("--batch_size=four", "batch_size must be a whole number"),
        ("--batch_size=0", "batch_size"),
        ("--num_workers=-1", "num_workers"),
        ("--sequential_rows=9", "channel_groups to 0 or sequential_rows to"),
        ("--dev_every=0", "dev_every"),
        ("--lr_schedule=-1", "lr_schedule"),
        ("--seed=1.5", "seed"),
        ("--frozen_epochs=[1]", "frozen_epochs"),
        ("--clip_each_tensor=maybe", "clip_each_tensor"),
        ("--train_loggers=null", "train_loggers"),
        ("--data_folder=no such folder", "no such folder"),
        ("--noise_folder=no such folder", "'augmentation' .* noise_folder"),
        ("--skip_prep=True", "no file .*train.csv.* skip_prep: False"),
        ("--skip_prep=maybe", "skip_prep"),
        ("--min_seconds=-1", "min_seconds"),
        ("--student_sees_global=3", "student_sees_global"),
        ("--max_grad_norm=-1", "max_grad_norm"),
        ("--opt_class={lr: -1}", "opt_class .* learning rate"),
        ("--lr_schedule={stop: -1}", "lr_schedule .* stop: -1"),
        ("--objective={temperature: 0}", "objective.* temperature must be"),
        ("--view_sampler={speeds: [0]}", "view_sampler.* speeds must be"),
        ("--cluster_table={every: 0}", "cluster_table.* every must be"),
        ("--embedding_model={channels: 3}", "embedding_model"),
        ("--n_mels=-1", "refers to .*n_mels"),
    ],
)
def test_wrong_setting_is_named_before_training(train, flag, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        train(tmp_path / "run", flag)
    assert not (tmp_path / "run/save/train.csv").exists()
    assert not (tmp_path / "run/hyperparams.yaml").exists()


def test_files_of_dev_trials_are_opened_first(
    train, audio, tmp_path, caplog, monkeypatch
):
    for name in ("bad.wav", "worse.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    path = tmp_path / "list.txt"
    path.write_text("1 bad.wav bad.wav\n0 bad.wav worse.wav\n")
    with pytest.raises(ValueError, match="dev_trials: no audio file .*bad.wav"):
        train(tmp_path / "run", f"--dev_trials={path}")
    monkeypatch.setattr(SSLBrain, "fit", lambda *_, **__: 1 / 0)
    good = audio / "0.wav"
    path.write_text(f"1 bad.wav {good}\n0 {good} {good}\n")
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", f"--dev_trials={path}")
    assert "1 of 2 audio files of dev_trials cannot be read" in caplog.text


@pytest.mark.parametrize("part", ["student", "epoch_counter"])
def test_checkpointer_that_lacks_a_part_is_refused(train, part, tmp_path):
    before, recoverables, after = SIMCLR.read_text().partition("recoverables:")
    line = f"        {part}: !ref <{part}>\n"
    assert line in after
    file = tmp_path / "train.yaml"
    file.write_text(before + recoverables + after.replace(line, "", 1))
    with pytest.raises(ValueError, match=f"recoverables .* lack '{part}'"):
        train(tmp_path / "run", file=file)


@pytest.mark.parametrize(
    "flags, difference",
    [
        (["--seed=2"], "seed: was 1, is 2"),
        (["--batch_size=2"], "batch_size: was 4, is 2"),
        (
            ["--objective={temperature: 0.5}"],
            "objective.temperature: was 0.07, is 0.5",
        ),
        (
            ["--view_sampler={global_seconds: 0.9}"],
            "view_sampler.global_seconds: was .*, is 0.9",
        ),
        (["--data_folder=elsewhere"], "data_folder: was .*, is .*elsewhere"),
        (["--max_grad_norm=1"], "max_grad_norm: was 5.0, is 1"),
        (
            ["--grad_accumulation_factor=2"],
            "grad_accumulation_factor: was 1, is 2",
        ),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(
    train, run_folder, flags, difference
):
    before = contents(run_folder)
    with pytest.raises(ValueError, match=difference) as refusal:
        train(run_folder, "--number_of_epochs=2", *flags)
    assert len(str(refusal.value).splitlines()) == 3
    assert contents(run_folder) == before


def test_run_goes_on_with_more_epochs_and_other_ways_to_work(
    train, run_folder, capsys
):
    train(
        run_folder,
        "--number_of_epochs=2",
        "--checkpoints_to_keep=1",
        "--ckpt_interval_minutes=0",
        "--opt_class={lr: 0.0001}",
        "--precision=fp32",
    )
    log = (run_folder / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]
    settings = json.loads((run_folder / "settings.json").read_text())
    assert settings["number_of_epochs"] == 2
    said = "Changed setting: number_of_epochs: was 1, is 2"
    assert said in capsys.readouterr().out
    assert (
        "number_of_epochs: 2" in (run_folder / "hyperparams.yaml").read_text()
    )


def test_finished_run_says_so_and_is_exported_again(train, run_folder, capsys):
    shutil.rmtree(run_folder / "model")
    train(run_folder)
    assert "1 of 1 epochs are done." in capsys.readouterr().out
    assert (run_folder / "model/embedding_model.ckpt").is_file()
    assert len((run_folder / "train_log.jsonl").read_text().splitlines()) == 1


def test_second_training_in_a_folder_is_refused(train, run_folder):
    before = contents(run_folder)
    ready, done = os.pipe(), os.pipe()
    if not (first := os.fork()):
        with occupy(run_folder):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(ValueError, match=f"in use by process {first} on host"):
        train(run_folder, "--number_of_epochs=2")
    os.write(done[1], b"x")
    os.waitpid(first, 0)
    assert contents(run_folder) == before


def test_encoder_that_fails_on_audio_is_refused_first(
    train, tmp_path, monkeypatch
):
    monkeypatch.setattr(SSLBrain, "fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="compute_features.* cannot process"):
        train(tmp_path / "run", "--compute_features={hop_length: 0}")
    assert not (tmp_path / "run/hyperparams.yaml").exists()


def test_crops_that_are_too_short_for_the_encoder_are_refused_first(
    train, tmp_path, monkeypatch
):
    monkeypatch.setattr(SSLBrain, "fit", lambda *_, **__: 1 / 0)
    message = "local_seconds of view_sampler is 0.03: crops of 480 samples"
    with pytest.raises(ValueError, match=message):
        train(
            tmp_path / "run",
            "--view_sampler={local_crops: 1, local_seconds: 0.03}",
        )
    assert not (tmp_path / "run/hyperparams.yaml").exists()


class Own(ECAPA_TDNN):
    """An encoder that stock SpeechBrain does not have."""


def test_encoder_that_the_export_cannot_hold_is_refused_first(
    train, tmp_path, monkeypatch
):
    monkeypatch.setattr(SSLBrain, "fit", lambda *_, **__: 1 / 0)
    name = "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN"
    file = tmp_path / "train.yaml"
    file.write_text(SIMCLR.read_text().replace(name, f"{__name__}.Own"))
    with pytest.raises(ValueError, match=f"cannot be exported.*{__name__}.Own"):
        train(tmp_path / "run", file=file)
    assert not (tmp_path / "run/hyperparams.yaml").exists()


def test_training_from_shards_gives_the_weights_of_files(
    train, audio, finished, tmp_path
):
    pack(str(audio), str(tmp_path / "shards"), progress=False)
    trained = (finished / "model/embedding_model.ckpt").read_bytes()
    listed = f"--train_annotation={tmp_path}/shards/train.csv"
    for name, flags in {
        "prepared": [],
        "packed": [listed, "--skip_prep=True"],
    }.items():
        folder = f"--data_folder={tmp_path}/shards"
        train(tmp_path / name, folder, *flags)
        model = tmp_path / name / "model/embedding_model.ckpt"
        assert model.read_bytes() == trained


@pytest.fixture(scope="module")
def more_audio(tmp_path_factory):
    """Twenty-eight noises of different tilt."""
    folder = tmp_path_factory.mktemp("more audio")
    rng = np.random.default_rng(0)
    for number in range(28):
        noise = 0.01 * rng.standard_normal(16000)
        noise = np.convolve(noise, [1, 1.8 * number / 28 - 0.9], "same")
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    return folder


def test_selfcheck_of_held_out_audio_chooses_the_checkpoint(
    train, more_audio, tmp_path, monkeypatch
):
    rows = {}
    fit = SSLBrain.fit

    def noting(brain, counter, train_set, *args, **kwargs):
        rows["trained"] = set(train_set.utterances.ids())
        rows["checked"] = set(brain.hparams.selfcheck.ids)
        return fit(brain, counter, train_set, *args, **kwargs)

    monkeypatch.setattr(SSLBrain, "fit", noting)
    costs = iter([0.8, 0.2, 0.9, 0.3])  # three epochs, and the export
    real = SelfCheck.__call__

    def told(check, embed, device="cpu"):
        found = real(check, embed, device)
        return {**found, "cross_entropy": next(costs)}

    monkeypatch.setattr(SelfCheck, "__call__", told)
    folder = tmp_path / "run"
    train(
        folder,
        f"--data_folder={more_audio}",
        "--number_of_epochs=3",
        "--selfcheck_share=0.714",
        "--selfcheck_every=1",
        "--select_by=selfcheck",
        "--checkpoints_to_keep=3",
    )
    assert len(rows["trained"]) == 8 and len(rows["checked"]) == 20
    assert not rows["trained"] & rows["checked"]
    log = read_jsonl(folder / "train_log.jsonl")
    assert [record["valid"]["selfcheck"] for record in log] == [0.8, 0.2, 0.9]
    assert log[0]["valid"]["selfcheck_EER"] > 0
    saved = {
        yaml.safe_load(path.read_text())["epoch"]: path.parent
        for path in (folder / "save").glob("CKPT*/CKPT.yaml")
    }
    weights = torch.load(saved[2] / "student.ckpt")
    model = torch.load(folder / "model/embedding_model.ckpt")
    for name, value in model.items():
        assert torch.equal(value, weights[f"embedding_model.{name}"])
    card = (folder / "model/README.md").read_text()
    assert "cross-entropy 0.300 bits" in card
    assert "the self-check without labels chose the checkpoint" in card
    assert "It was found without labels" in card
    assert read_threshold(folder / "model")["label_free"]


def test_selfcheck_of_another_folder_holds_out_nothing(
    train, audio, more_audio, tmp_path
):
    folder = tmp_path / "run"
    train(folder, f"--selfcheck_folder={more_audio}", "--selfcheck_every=9")
    record = read_jsonl(folder / "train_log.jsonl")[-1]
    assert record["step"] == 2  # all eight files, in batches of four
    assert 0 < record["valid"]["selfcheck"] <= 1.01
