"""The model card: what a reader and huggingface.co need, and code that runs."""

import json
import pathlib
import re

import pytest
from huggingface_hub import ModelCard

from speechbrain_ssl.card import (
    publish_card,
    read_threshold,
    suggest_threshold,
)
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import load_encoder
from tests.models import RUN, branch_of, write_noise

SUMMARY = {
    "threshold": 0.25,
    "EER": 12.345,
    "EER_low": 10.1,
    "EER_high": 14.2,
    "minDCF_0.01": 0.81,
    "trials": 300,
    "targets": 100,
}


@pytest.fixture
def exported(tmp_path):
    """An encoder, and the folder that it was exported to."""
    branch = branch_of()
    return branch, export(branch, RUN, str(tmp_path / "a model"))


def card_of(folder):
    return (pathlib.Path(folder) / "README.md").read_text()


def test_the_code_of_the_card_runs(exported, tmp_path, monkeypatch):
    _, folder = exported
    suggest_threshold(folder, SUMMARY, "wild.txt")
    write_noise(tmp_path / "a.wav", 0.7)
    write_noise(tmp_path / "b.wav", 0.5, seed=1, rate=8000)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card_of(folder), re.S)
    assert len(blocks) == 2
    names = {}
    exec("".join(blocks), names)
    assert names["embedding"].shape == (1, 1, 6)
    wav = names["encoder"].load_audio("b.wav")
    other = names["encoder"].encode_batch(wav)
    score = names["encoder"].similarity(names["embedding"], other).item()
    assert float(names["score"]) == pytest.approx(score, abs=1e-5)
    assert names["same"] == (score >= 0.25)


def test_the_hub_gets_the_metadata_that_it_asks_for(exported):
    folder = exported[1]
    data = ModelCard(card_of(folder)).data
    assert (data.license, data.language) == ("unknown", "und")
    assert data.library_name == "speechbrain"
    assert data.pipeline_tag == "feature-extraction"
    assert {"speaker-verification", "speechbrain"} <= set(data.tags)
    assert data.eval_results is None
    suggest_threshold(folder, SUMMARY, "clean.txt")
    suggest_threshold(folder, {**SUMMARY, "EER": 20.0}, "wild.txt")
    suggest_threshold(folder, {**SUMMARY, "EER": 5.5}, "clean.txt")
    results = ModelCard(card_of(folder)).data.eval_results
    found = {(r.dataset_name, r.metric_type): r for r in results}
    assert len(results) == 4
    eer = found["clean.txt", "eer"]
    assert eer.metric_value == 5.5
    assert eer.metric_args == {"95 % interval": [10.1, 14.2]}
    assert found["wild.txt", "eer"].metric_value == 20.0
    assert found["wild.txt", "min_dcf"].metric_value == 0.81


def test_a_suggested_threshold_replaces_the_one_before(exported):
    folder = exported[1]
    for threshold in (0.5, 0.25):
        suggest_threshold(
            folder, {**SUMMARY, "threshold": threshold}, "w|d.txt"
        )
    text = card_of(folder)
    assert text.count("## Threshold") == 1 and text.count("## Limits") == 1
    section = text.split("## Threshold")[1].split("## Limits")[0]
    assert "0.2500" in section and "0.5000" not in section
    assert "12.3" in section and r"w\|d.txt" in section
    assert "300 trials, 33.3 % of them target trials" in section
    assert "interval 10.10 to 14.20 %" in section


def test_files_that_were_known_before_are_counted(exported):
    folder = exported[1]
    known = {"training set": 7, "cohort": 0}
    suggest_threshold(folder, {"raw": SUMMARY, "as_norm": {}}, "w.txt", known)
    assert read_threshold(folder)["known_files"] == {"training set": 7}
    section = card_of(folder).split("## Threshold")[1].split("## Limits")[0]
    assert "7 files of the list are in the training set" in section
    assert "cohort" not in section


def test_programs_find_the_threshold_in_a_file_of_its_own(exported):
    branch, folder = exported
    assert read_threshold(folder) is None
    suggest_threshold(folder, SUMMARY, "wild.txt")
    assert read_threshold(folder) == {
        "threshold": 0.25,
        "EER": 12.345,
        "EER_low": 10.1,
        "EER_high": 14.2,
        "trial_count": 300,
        "target_prior": 0.333333,
        "trials": "wild.txt",
    }
    load_encoder(folder)
    # another model has another threshold
    export(branch, RUN, folder)
    assert read_threshold(folder) is None


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[1]", '{"threshold": "high"}', "no"),
        *('{"threshold": NaN}', '{"threshold": 2}'),
    ],
)
def test_a_spoiled_threshold_is_named(tmp_path, text):
    (tmp_path / "threshold.json").write_text(text)
    with pytest.raises(ValueError, match="threshold.json should hold"):
        read_threshold(str(tmp_path))


def test_a_folder_without_a_card_gets_the_threshold_only(tmp_path):
    suggest_threshold(str(tmp_path), {"threshold": 0.5, "EER": 1.0}, "w.txt")
    assert json.loads((tmp_path / "threshold.json").read_text()) == {
        "threshold": 0.5,
        "EER": 1.0,
        "trials": "w.txt",
    }
    with pytest.raises(ValueError, match="between -1 and 1"):
        suggest_threshold(str(tmp_path), {"threshold": 2, "EER": 1.0}, "w.txt")


def test_the_card_tells_how_the_encoder_was_trained(tmp_path):
    text = RUN + "objective: !new:speechbrain_ssl.objectives.moco.MoCo\n"
    text += "loss: null\n"
    folder = export(
        branch_of(),
        text,
        str(tmp_path / 'my "model"'),
        notes="For {braces}.",
        facts={"data": "3 utterances,\n1.0 hours", "labels": "a|b"},
    )
    card = card_of(folder)
    assert "| data | 3 utterances, 1.0 hours |\n| labels | a\\|b |\n" in card
    assert "For {braces}." in card and r'source="my \"model\""' in card
    assert "| objective | MoCo |" in card
    assert re.search(
        r"\| encoder \| ECAPA_TDNN: [\d,]+ parameters, .* 6 d", card
    )
    assert re.search(r"speechbrain_ssl [\d.]+, speechbrain 1.*, torch 2", card)
    assert "transformers" not in card
    assert "16000 Hz" in card and "runs whatever code" in card


def test_a_published_card_loads_the_published_model(exported):
    folder = exported[1]
    suggest_threshold(folder, SUMMARY, "wild.txt")
    before = card_of(folder)
    text = publish_card(folder, "someone/encoder", "mit", ["en", "fr"])
    data = ModelCard(text).data
    assert 'source="someone/encoder"' in text and "a model" not in text
    assert (data.license, data.language) == ("mit", ["en", "fr"])
    assert data.model_name == "encoder"
    assert card_of(folder) == before
