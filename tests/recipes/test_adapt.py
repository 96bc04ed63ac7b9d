"""Adaptation from end to end, on a few noises and tiny encoders."""

import json
import multiprocessing
import os
import pathlib
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import lfilter

from speechbrain_ssl import stages
from speechbrain_ssl.card import read_card, read_threshold
from speechbrain_ssl.loading import load_encoder
from tests import hub_layouts
from tests.models import export_model
from tests.nnet import tiny_transformer
from tests.nnet.test_onnx_encoder import write as write_onnx
from tests.recipes.scripts import run_script, run_stage_here

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "recipes/AudioFolder/Adapt"
SMALL = [
    "--selfcheck_share=0.4",
    "--selfcheck_count=20",
    "--selfcheck_seconds=0.5",
    "--labels={changes: {clusterer: {n_clusters: 6}, listen: 0}}",
    "--train={changes: {number_of_epochs: 2, batch_size: 8, "
    "augmentation: {effects: {rir: {simulated: 2}}}}}",
    "--device=cpu",
    "--noprogressbar",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Noises of six 'voices', a trial list and a source."""
    folder = tmp_path_factory.mktemp("adapt")
    rng = np.random.default_rng(0)
    lines = []
    for voice in range(6):
        poles = np.poly(
            0.8 * np.exp(1j * (0.3 + 0.4 * voice) * np.array([1, -1]))
        )
        (folder / f"audio/v{voice}").mkdir(parents=True)
        for take in range(10):
            noise = lfilter([0.05], poles.real, rng.standard_normal(19200))
            path = folder / f"audio/v{voice}/{take}.wav"
            soundfile.write(path, noise, 16000)
        mine, other = f"audio/v{voice}", f"audio/v{(voice + 1) % 6}"
        lines += [
            f"1 {mine}/0.wav {mine}/1.wav",
            f"0 {mine}/2.wav {other}/3.wav",
        ]
    for name in ("own", "far"):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    hub_layouts.write(folder / "speechbrain/tiny")
    return folder


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    monkeypatch.setattr(stages, "run_command", run_stage_here)


def adapt(place, out, *flags, source="speechbrain/tiny"):
    """Runs the recipe; returns its output folder and summary."""
    folder = place / out
    given = [f"--source={place / source}", f"--data_folder={place}/audio"]
    given += [f"--output_folder={folder}", *SMALL, *flags]
    # of a flag that is given twice the last one counts
    last = {flag.partition("=")[0]: flag for flag in given}
    run_script(
        RECIPE / "adapt.py", RECIPE / "hparams/adapt.yaml", *last.values()
    )
    return folder, json.loads((folder / "summary.json").read_text())


def weights(folder):
    return torch.load(folder / "embedding_model.ckpt")


def equal(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def adapted(place):
    """One round that is always taken for better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run_command", run_stage_here)
        patch.setattr("speechbrain_ssl.adaptation.LEAST_RANK", 0.0)
        patch.setattr(
            "speechbrain_ssl.evaluation.selfcheck.cross_entropy", falling()
        )
        return adapt(
            place,
            "adapted",
            "--rounds=1",
            f"--trials={place}/own.txt",
            f"--other_trials=[{place}/far.txt]",
        )


def falling(*values):
    """A cross-entropy that falls from call to call."""
    calls = []

    def cross_entropy(scores, targets):
        calls.append(1)
        return 1 / len(calls)

    return cross_entropy


def test_the_model_of_the_best_round_is_exported_with_its_origin(
    place, adapted
):
    folder, summary = adapted
    assert summary["adapted"] and summary["round"] == 1
    trained = weights(folder / "rounds/round1/train/model")
    start = weights(folder / "start/encoder/model")
    for name, weight in weights(folder / "model").items():
        if weight.is_floating_point():
            mean = (trained[name] + start[name]) / 2
            torch.testing.assert_close(weight, mean)
    text = read_card(folder / "model").text
    assert "| share of the source in the weights | 0.5 |" in text
    assert not equal(
        weights(folder / "model"), weights(place / "speechbrain/tiny")
    )
    card = read_card(folder / "model")
    assert card.data.license == "apache-2.0"
    for text in ("| source | tiny |", "adapted to unlabelled", "hours"):
        assert text in card.text
    found = read_threshold(folder / "model")
    assert found["label_free"] and -1 <= found["threshold"] <= 1
    for lists in (summary["before"], summary["after"]):
        assert set(lists) == {"own", "far"}
    for name, found in summary["differences"].items():
        rates = [summary[key][name]["EER"] for key in ("before", "after")]
        assert found["difference"] == pytest.approx(rates[1] - rates[0])
        assert found["low"] <= found["high"]
    assert set(summary["differences"]) == {"own", "far"}
    assert (folder / "rounds/rounds.html").is_file()


def test_the_start_has_the_embeddings_of_the_source(place, adapted):
    wavs = 0.1 * torch.randn(2, 9000)
    wanted = load_encoder(str(place / "speechbrain/tiny")).encode_batch(wavs)
    found = load_encoder(str(adapted[0] / "start/encoder/model"))
    torch.testing.assert_close(
        found.encode_batch(wavs), wanted, rtol=0, atol=1e-5
    )


def test_audio_of_the_self_check_is_not_trained_on(adapted):
    folder, _ = adapted
    train, held = (
        set((folder / f"data/{name}.csv").read_text().splitlines()[1:])
        for name in ("train", "held_out")
    )
    assert len(train) + len(held) == 60 and not train & held
    labels = (folder / "rounds/round1/labels/pseudo_labels.csv").read_text()
    names = {line.split(",")[0] for line in labels.splitlines()[1:]}
    assert names <= {line.split(",")[0] for line in train}


def test_the_same_command_does_nothing_again(place, adapted, monkeypatch):
    folder, before = adapted
    marks = {p: p.read_bytes() for p in sorted(folder.rglob("stage.json"))}
    monkeypatch.setattr("speechbrain_ssl.adaptation.LEAST_RANK", 0.0)
    _, after = adapt(
        place,
        "adapted",
        "--rounds=1",
        f"--trials=[{place}/own.txt]",
        f"--other_trials=[{place}/far.txt]",
    )
    assert after == before
    assert {p: p.read_bytes() for p in marks} == marks


def test_more_rounds_go_on_after_the_last(place, adapted):
    lists = [f"--trials=[{place}/own.txt]", f"--other_trials=[{place}/far.txt]"]
    folder, summary = adapt(place, "adapted", "--rounds=2", *lists)
    assert len(summary["selfcheck"]) == 3
    stage = json.loads((folder / "rounds/round1/train/stage.json").read_text())
    assert stage["attempts"] == 1


def test_another_source_in_the_same_folder_is_refused(place, adapted):
    export_model(place / "other")
    with pytest.raises(RuntimeError, match="ended with 1"):
        adapt(place, "adapted", "--rounds=1", source="other")


def test_a_source_that_does_not_improve_is_kept(place, capfd):
    folder, summary = adapt(place, "kept", "--min_gain=1.0", "--rounds=3")
    assert not summary["adapted"] and len(summary["selfcheck"]) == 2
    assert "the source is kept" in capfd.readouterr().out
    assert equal(weights(folder / "model"), weights(place / "speechbrain/tiny"))
    text = read_card(folder / "model").text
    assert "did not improve" in text and "source is kept" in text
    assert summary["before"] == summary["differences"] == {}


def run_and_die(place, out):
    stages.run_command = run_stage_here
    adapt(place, out, "--rounds=2", "--min_gain=0.0")


@pytest.mark.parametrize(
    "moment",
    [
        "rounds/round1/train/train_log.jsonl",
        "model/hyperparams.yaml",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "data/train.csv",
                "start/train.yaml",
                "rounds/round1/labels/embeddings/meta.json",
                "checks/round1/stage.json",
            )
        ),
    ],
)
def test_after_a_kill_the_result_is_that_of_a_run_without(
    place, straight, moment
):
    out = "killed " + moment.replace("/", "_")
    process = multiprocessing.get_context("fork").Process(
        target=run_and_die, args=(place, out)
    )
    process.start()
    end = time.monotonic() + 600
    while not (place / out / moment).exists() and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    process.join()
    folder, summary = adapt(place, out, "--rounds=2", "--min_gain=0.0")
    wanted_folder, wanted = straight
    assert equal(weights(folder / "model"), weights(wanted_folder / "model"))
    assert read_threshold(folder / "model") == read_threshold(
        wanted_folder / "model"
    )
    assert summary["selfcheck"] == wanted["selfcheck"]
    assert summary["outcome"] == wanted["outcome"]


@pytest.fixture(scope="module")
def straight(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run_command", run_stage_here)
        return adapt(place, "straight", "--rounds=2", "--min_gain=0.0")


def test_an_onnx_file_is_a_teacher_and_no_source(place):
    path = write_onnx(place / "teacher.onnx")
    with pytest.raises(RuntimeError, match="ended with 1"):
        adapt(place, "nothing", source="teacher.onnx")
    text = (place / "speechbrain/tiny/hyperparams.yaml").read_text()
    (place / "random.yaml").write_text(text)
    folder, summary = adapt(
        place, "taught", f"--teacher={path}", "--rounds=1", source="random.yaml"
    )
    stage = json.loads((folder / "rounds/round1/train/stage.json").read_text())
    assert "--init_from" not in stage["inputs"]
    assert stage["inputs"]["changes"]["init_from"].endswith("encoder/model")
    assert summary["source"]["kind"] == "random weights"
    assert (folder / "start/teacher/embeddings/embeddings.npy").is_file()


def test_a_transformer_gets_a_head_and_adapters(place):
    tiny_transformer.write(place / "wavlm")
    pooling = "pooling: {heads: 4, compression: 8}, emb_dim: 12"
    folder, summary = adapt(
        place,
        "wavlm out",
        f"--head={{changes: {{number_of_epochs: 1, batch_size: 8, {pooling}}}}}",
        "--lora={rank: 2, alpha: 1.0}",
        "--rounds=1",
        source="wavlm",
    )
    assert summary["source"]["kind"] == "transformer"
    before = weights(folder / "start/encoder/model")
    after = weights(folder / "rounds/round1/train/model")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert any("adapter_" in name for name in changed)
    assert all("adapter_" in name or "pooling" in name for name in changed)
    assert load_encoder(str(folder / "model"))


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--trials=[/no/list.txt]", "list.txt"),
        ("--trials=PLACE/lost.txt", "lost.wav"),
        ("--train={changes: {epochs: 3}}", "no key 'epochs'"),
        ("--labels={changes: {cluster: 3}}", "no key 'cluster'"),
        ("--verify={changes: {lists: 3}}", "no key 'lists'"),
        ("--selfcheck_share=1.0", "selfcheck_share"),
        ("--rounds=0", "rounds"),
        ("--data_folder=/no/audio", "/no/audio"),
        ("--revision=main", "revision"),
        ("--lora={rank: 2}", "has no transformer"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    place, tmp_path, flag, said, capfd
):
    (place / "lost.txt").write_text("1 lost.wav lost.wav\n0 a.wav b.wav\n")
    with pytest.raises(RuntimeError, match="ended with 1"):
        adapt(place, tmp_path / "out", flag.replace("PLACE", str(place)))
    assert said in capfd.readouterr().err
    for stage in ("rounds", "verification"):
        assert not (tmp_path / "out" / stage).exists()


def test_the_command_line_takes_source_and_audio(monkeypatch):
    from speechbrain_ssl.cli import main, recipes

    found = []
    monkeypatch.setattr(recipes, "run", lambda *args: found.append(args))
    main.main(["adapt", "a/b", "/audio", "--output_folder", "out"])
    script, hparams, arguments = found[0]
    assert script == RECIPE / "adapt.py" and hparams == "adapt.yaml"
    assert arguments == [
        "--source=a/b",
        "--data_folder=/audio",
        "--output_folder",
        "out",
    ]
    with pytest.raises(SystemExit, match="usage"):
        main.main(["adapt", "a/b"])
    assert os.path.isfile(script)


def test_a_source_that_is_a_yaml_is_not_the_yaml_of_the_recipe(monkeypatch):
    from speechbrain_ssl.cli import main, recipes

    found = []
    monkeypatch.setattr(
        recipes.runpy, "run_path", lambda *a, **b: found.extend(sys.argv[1:3])
    )
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main.main(["adapt", "my/encoder.yaml", "/audio"])
    assert found == [
        str(RECIPE / "hparams/adapt.yaml"),
        "--source=my/encoder.yaml",
    ]
