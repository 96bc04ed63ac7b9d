"""The tables keep apart what is known without labels and what is not."""

import importlib.util
import json

import pytest

from speechbrain_ssl.report import rounds
from tests.report.pages import (
    ORACLE,
    ROWS,
    Outline,
    labels,
    summary,
    train,
    verify,
    write_log,
)


@pytest.fixture
def folder(tmp_path):
    """Writes files of a stage."""

    def place(**files):
        mark = {"seconds": 60.0, "attempts": 2}
        for name, content in {"stage.json": mark, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        return tmp_path

    return place


QUALITY = {
    "clusters": 2,
    "labelled": 4,
    "intra_cluster_cosine": {"mean": 0.8, "p10": 0.5},
    "margin": {"mean": None, "p10": None},
    "misplaced": None,
    "stability": None,
    "previous": {"ARI": 0.9, "utterances": 4},
    "warnings": ["There is only one cluster."],
}


def test_labels_are_described_without_their_oracle(folder):
    report = {"quality": QUALITY, "oracle": {"NMI": 0.1}}
    row = rounds.read_stage(folder(**{"report.json": report}), 2, "labels")
    assert row["agreement"] == 0.9
    assert row["stability"] is None and row["margin"] is None
    assert (row["seconds"], row["attempts"]) == (60.0, 2)
    assert row["warnings"] == ["There is only one cluster."]
    assert "oracle" not in row


def test_true_speakers_are_compared_with_the_labels(folder):
    rows = [f"{n},1.5,$data_root/{n}.wav,0,24000" for n in "abcd"]
    rows = [f"{row},{label}" for row, label in zip(rows, (0, 0, 1, 1))]
    place = folder(
        **{
            "report.json": {"quality": QUALITY},
            "pseudo_labels.csv": "\n".join(
                ["ID,duration,wav,start,stop,spk_id", *rows, ""]
            ),
            "truth.csv": "ID,spk_id\na,x\nb,x\nc,x\nd,y\n",
        }
    )
    truth = str(place / "truth.csv")
    row = rounds.read_stage(place, 1, "labels", truth, "/audio")
    assert row["oracle"]["purity"] == 0.75
    assert row["oracle"]["speakers"] == 2


def test_true_speakers_are_compared_with_what_was_learnt(folder):
    record = {"epoch": 1, "train": {"selected": 0.5}}
    rows = ["a,0,-1.0,1,0,0", "b,0,-1.0,1,0,0", "c,1,2.0,0,1,0"]
    head = "ID,spk_id,loss_log,selected,corrected,label"
    place = folder(
        **{
            "train_log.jsonl": json.dumps(record) + "\n",
            "decisions.csv": "\n".join([head, *rows, ""]),
            "truth.csv": "ID,spk_id\na,x\nb,x\nc,y\n",
        }
    )
    row = rounds.read_stage(place, 1, "train", str(place / "truth.csv"))
    assert row["oracle"] == {"selected_right": 1.0, "corrected_right": 0.0}
    assert "oracle" not in rounds.read_stage(place, 1, "train")
    tables = rounds.tables([row])
    assert tables[1][0] == rounds.SPEAKERS
    assert tables[1][2] == ["stage", "selected right %", "corrected right %"]


def test_the_last_epoch_of_training_counts(folder):
    records = [
        {"epoch": 1, "train": {"selected": 0.2}, "warnings": ["early"]},
        {"epoch": 2, "train": {"selected": 0.5, "corrected": 0.2}},
    ]
    log = "".join(json.dumps(record) + "\n" for record in records)
    row = rounds.read_stage(folder(**{"train_log.jsonl": log}), 1, "train")
    assert row["learned"] == pytest.approx(0.7)
    assert row["epochs"] == 2 and row["warnings"] == []


def test_training_without_a_gate_has_no_share(folder):
    log = json.dumps({"epoch": 1, "train": {"loss": 1.0}}) + "\n"
    row = rounds.read_stage(folder(**{"train_log.jsonl": log}), 1, "train")
    assert row["selected"] is None and row["learned"] is None


def test_lists_are_read_with_and_without_as_norm(folder):
    rates = {"EER": 9.0, "EER_low": 8.0, "EER_high": 10.0, "minDCF_0.01": 0.5}
    both = {"raw": rates, "as_norm": {**rates, "EER": 7.0}}
    place = folder(
        **{"b/metrics.json": both, "a/metrics.json": rates, "log/x": "x"}
    )
    found = rounds.read_stage(place, 0, "verify")["lists"]
    assert {name: r["EER"] for name, r in found.items()} == {
        "a": 9.0,
        "b": 9.0,
        "b, AS-norm": 7.0,
    }


def test_agreement_beyond_the_limit_stops_before_training():
    rows = [labels(1), train(1, 0.5), labels(2, 0.96)]
    reason = rounds.why_stop(rows, 0.95, 0.0)
    for text in ("before training in round 2", "0.960", "0.95"):
        assert text in reason
    assert rounds.why_stop(rows, 0.96, 0.0) is None
    assert rounds.why_stop(rows, None, 0.0) is None


def test_a_share_that_stands_still_stops_after_training():
    rows = [train(1, 0.6), verify(1, 9.0), labels(2, 0.5), train(2, 0.62)]
    rows.append(verify(2, 8.0))
    reason = rounds.why_stop(rows, 0.95, 0.05)
    for text in ("after round 2", "0.600", "0.620", "0.05"):
        assert text in reason
    assert rounds.why_stop(rows, 0.95, 0.01) is None
    assert rounds.why_stop(rows, 0.95, None) is None
    # the same figures were judged before these labels were made
    assert rounds.why_stop([*rows, labels(3, 0.5)], 0.95, 0.05) is None


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [verify(0, 9.0)],
        [labels(1)],
        [train(1, 0.6)],
        [train(1, None), train(2, None)],
    ],
)
def test_what_is_not_known_stops_nothing(rows):
    assert rounds.why_stop(rows, 0.0, 1.0) is None


def test_no_error_rate_and_no_true_speaker_has_a_say():
    rows = [train(1, 0.5), verify(1, 1.0), labels(2, 0.5), train(2, 0.7)]
    plain = rounds.why_stop(rows, 0.95, 0.05)
    rows[2]["oracle"] = ORACLE
    assert rounds.why_stop([*rows, verify(2, 50.0)], 0.95, 0.05) == plain
    assert plain is None


def test_what_needs_labels_stands_under_headings_that_say_so():
    stages, speakers, trials = rounds.tables(ROWS)
    assert "label" not in stages[0].lower()
    assert stages[2] == [
        "stage",
        "minutes",
        "clusters",
        "intra-cluster cosine",
        "ARI other seed",
        "ARI round before",
        "selected %",
    ]
    first = stages.rows[1]
    assert first.label == "round 1, labels"
    assert first.cells == ["2.0", "400", "0.750", "0.660", "", ""]
    assert stages.rows[2].cells[-1] == "61.0"
    assert speakers.heading == "From true labels, for this report only"
    assert [row.label for row in speakers.rows] == ["round 1, labels"]
    assert "0.912" in speakers.rows[0].cells
    assert trials.heading == "From the labels of trials, for this report only"
    assert [(row.label, row.cells) for row in trials.rows] == [
        ("start", ["12.00 [11.00, 13.00]", "0.400"]),
        ("round 1", ["10.00 [9.00, 11.00]", "0.400"]),
    ]


def test_without_labels_there_is_one_table():
    assert len(rounds.tables([labels(1), train(1, 0.5)])) == 1


def test_columns_of_the_text_line_up():
    lines = rounds.text([labels(1), train(1, 0.5)]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1


def test_summary_and_page_are_written(tmp_path):
    path = rounds.write_rounds(tmp_path, summary(ROWS))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["stages"] == ROWS
    assert "decided nothing" in found["label_use"]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    words = Outline(text).words
    for wanted in (
        "All <2> rounds",
        "round 1, train: Gate: <too> early",
        "From true labels, for this report only",
        "10.00 [9.00, 11.00]",
    ):
        assert wanted in words, wanted
    assert "http://" not in text


def test_the_page_has_settings_in_words_and_no_path_of_the_machine(tmp_path):
    settings = {
        "data_folder": "/home/me/speech",
        "stop_growth": None,
        "labels": {
            "script": "make_pseudo_labels.py",
            "hparams": "hparams/pseudo_labels.yaml",
            "changes": {"clusterer": {"n_clusters": 3}, "min_size": 1},
        },
        "train": {
            "hparams": "hparams/all.yaml",
            "changes": {"clusterer": "!new:my.KMeans {n_clusters: 3}"},
        },
    }
    model = str(tmp_path / "round1/train/model")
    found = {**summary(ROWS), "model": model, "settings": settings}
    words = Outline(rounds.page(found, str(tmp_path))).words
    for wanted in (
        "last modelround1/train/model",
        "data folderspeech",
        "stop growthnot set",
        "labelspseudo_labels.yaml with clusterer: n clusters 3; min size 1",
        "trainall.yaml with clusterer KMeans n_clusters: 3",
    ):
        assert wanted in words, wanted
    body = words.partition("All <2> rounds")[2]
    assert "/home" not in body and str(tmp_path) not in body
    assert "{" not in body and '"' not in body


def test_stages_have_pages_which_are_linked(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("start/verify", "round1/labels", "round1/train"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "stage.json").write_text("{}")
    (tmp_path / "round1/labels/clusters.html").write_text("")
    write_log(tmp_path / "round1/train", [{"epoch": 1, "train": {"loss": 1}}])
    text = rounds.page(summary(ROWS), str(tmp_path))
    links = [link for link in Outline(text).links if not link.startswith("#")]
    assert links == [
        "start/verify/report.html",
        "round1/labels/clusters.html",
        "round1/train/report.html",
    ]
    assert all((tmp_path / link).is_file() for link in links)


def test_error_rates_and_agreement_are_drawn_over_rounds(tmp_path):
    pytest.importorskip("matplotlib")
    text = rounds.page(summary(ROWS), str(tmp_path))
    assert text.count("<svg") == 2
    for label in (
        "vox1_O",
        "ARI with the round before",
        "is learned",
        "round<",
    ):
        assert label in text, label
    before = text.index("ARI with the round before")
    assert before < text.index(f"<h2>{rounds.TRIALS}")


def test_without_matplotlib_the_page_has_tables_only(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = rounds.page(summary(ROWS), str(tmp_path))
    assert "<svg" not in text and "<table" in text
