"""Steps from the YAML, costs from what was measured, and nothing guessed."""

import json

import pytest

from speechbrain_ssl.cli import plan
from tests.recipes.published import RECIPE

CORPUS = {"utterances": 1000, "hours": 2.0, "gpus": 2, "accumulation": 1}
RATE = {
    "hparams": "train_moco",
    "device": "GPU",
    "utterances_per_second": 10.0,
    "kept_bytes_per_utterance": 1e6,
    "state_bytes": 5e8,
    "checkpoint_bytes": 1e8,
    "embedded_seconds_per_second": 100.0,
    "emb_dim": 192,
}


def rows_of(name, rates=None, changes="", **corpus):
    path = RECIPE / f"hparams/{name}.yaml"
    return plan.plan(path, {**CORPUS, **corpus}, rates or {}, changes)


def test_steps_follow_from_batch_processes_and_epochs():
    (row,) = rows_of("train_moco", changes="batch_size: 100")
    assert row["steps"] == 5 * 150 and row["utterances_in_a_step"] == 200
    (row,) = rows_of("train_moco", changes="batch_size: 100", accumulation=2)
    assert row["steps"] == 3 * 150 and row["utterances_in_a_step"] == 400
    assert row["learning_rate"] == pytest.approx(0.1 * 400 / 64)


def test_costs_are_those_of_the_measured_rate():
    changes = "{batch_size: 100, number_of_epochs: 3}"
    (row,) = rows_of("train_moco", {"train_moco": RATE}, changes)
    # 1000 utterances, 3 epochs, 10 a second on each of 2 processes
    assert row["hours"] == pytest.approx(3000 / 20 / 3600)
    assert row["files_per_second"] == 20
    assert row["memory_gb"] == pytest.approx(0.5 + 0.1)
    assert row["disk_gb"] == pytest.approx(11 * 0.1)


def test_what_was_not_measured_is_not_guessed():
    (row,) = rows_of("train_dino", {"train_moco": RATE})
    costs = ("hours", "memory_gb", "disk_gb", "files_per_second")
    assert {row[name] for name in costs} == {None}
    assert row["steps"] > 0


def test_rounds_have_all_their_stages():
    rates = {"train_dino": RATE, "train_dlg_lc": RATE}
    rows = rows_of("rounds", rates, "rounds: 2")
    assert [row["stage"] for row in rows] == [
        "start: train_dino",
        *[
            f"round {number}: {stage}"
            for number in (1, 2)
            for stage in ("pseudo_labels", "train_dlg_lc")
        ],
    ]
    labels = rows[1]
    # two hours of audio, 100 seconds a second on each of two processes
    assert labels["hours"] == pytest.approx(2 / 200)
    assert labels["disk_gb"] == pytest.approx(1000 * 192 * 4 / 1e9)
    assert "| all " in plan.table(rows)


def test_rounds_from_a_model_or_from_embeddings_train_no_start():
    for changes in ("model_folder: x", "embeddings: mfcc"):
        rows = rows_of("rounds", {}, f"{{rounds: 1, {changes}}}")
        assert [row["stage"] for row in rows] == [
            "round 1: pseudo_labels",
            "round 1: train_dlg_lc",
        ]


def test_rates_are_not_those_of_another_encoder():
    rates = {"train_dino": RATE, "train_dlg_lc": RATE}
    changes = "{changes: {encoder_file: campplus, batch_size: 100}}"
    rows = rows_of("rounds", rates, f"{{rounds: 1, train: {changes}}}")
    assert rows[-1]["stage"] == "round 1: train_dlg_lc with campplus"
    assert rows[-1]["hours"] is None and rows[0]["hours"] > 0
    assert rows[-1]["utterances_in_a_step"] == 200
    with pytest.raises(ValueError, match="train: .*no key 'batchsize'"):
        rows_of("rounds", rates, "train: {changes: {batchsize: 100}}")


def test_rounds_with_faces_train_an_encoder_of_faces_first():
    path = RECIPE.parents[1] / "AudioFolder/SSL/hparams/rounds_av.yaml"
    rows = plan.plan(path, CORPUS, {}, "rounds: 1")
    assert [row["stage"] for row in rows[:2]] == [
        "start: train_moco",
        "start: train_dino_face",
    ]
    given = plan.plan(path, CORPUS, {}, "{rounds: 1, face_model_folder: x}")
    assert len(given) == len(rows) - 1


@pytest.mark.parametrize(
    "path", sorted((RECIPE / "hparams").glob("train_*")), ids=lambda p: p.stem
)
def test_every_training_can_be_planned(path):
    (row,) = plan.plan(path, {**CORPUS, "utterances": 10**6}, {})
    assert row["steps"] > 0 and row["learning_rate"] > 0


def test_a_step_that_cannot_be_filled_is_refused():
    with pytest.raises(ValueError, match="do not fill one step"):
        rows_of("train_moco", utterances=100)


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps([RATE]))
    yaml = str(RECIPE / "hparams/train_moco.yaml")
    plan.main([yaml, "--hours", "100", f"--rates={rates}", "--batch_size=32"])
    out = capsys.readouterr().out
    assert "train_moco" in out and "12 GB as 16-bit wav" in out
    assert "not measured" not in out
    plan.main([yaml, "--hours", "100", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["hours"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["moco", "batch"], "does not understand"),
        (["moco", "--batchsize=3"], "no key 'batchsize'"),
        (["moco", "--gpus=0"], "gpus must be"),
        (["moco", "--utterances=-600"], "utterances must be"),
        (["moco", "--batch_size=0"], "batch_size must be"),
        (["moco", "--rates=nowhere.json"], "nowhere.json"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=f"plan: .*{message}"):
        plan.main([*arguments, "--hours=1"])


def test_rates_of_two_devices_need_a_name(tmp_path):
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps([RATE, {**RATE, "device": "CPU"}]))
    with pytest.raises(ValueError, match="CPU, GPU"):
        plan.read_rates(rates, None)
    rates.write_text('["train_moco"]')
    with pytest.raises(ValueError, match="rates.json is no file of"):
        plan.read_rates(rates, None)
    rates.write_text(json.dumps([{**RATE, "device": "CPU"}]))
    assert plan.read_rates(rates, "CPU")["train_moco"]["device"] == "CPU"
