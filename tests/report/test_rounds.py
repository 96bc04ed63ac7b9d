"""The tables keep apart what is known without labels and what is not."""

import html.parser
import importlib.util
import json

import pytest

from speechbrain_ssl.report import rounds


def labels(number, agreement=None, **more):
    return {
        "round": number,
        "stage": "labels",
        "seconds": 120.0,
        "clusters": 400,
        "intra_cluster_cosine": 0.75,
        "stability": 0.66,
        "agreement": agreement,
        "warnings": [],
        **more,
    }


def train(number, selected, **more):
    return {
        "round": number,
        "stage": "train",
        "seconds": 3600.0,
        "trusted": selected,
        "corrected": None,
        "selected": selected,
        "warnings": [],
        **more,
    }


def verify(number, eer):
    rates = {"EER": eer, "EER_low": eer - 1, "EER_high": eer + 1}
    lists = {"vox1_O": {**rates, "minDCF_0.01": 0.4}}
    return {
        "round": number,
        "stage": "verify",
        "seconds": 6.0,
        "warnings": [],
        "lists": lists,
    }


ORACLE = {
    "NMI": 0.912,
    "purity": 0.834,
    "inverse_purity": 0.7,
    "ARI": 0.6,
    "speakers": 50,
}
ROWS = [
    verify(0, 12.0),
    labels(1, oracle=ORACLE),
    train(1, 0.61, warnings=["Gate: <too> early"]),
    verify(1, 10.0),
    labels(2, 0.83),
]


class Words(html.parser.HTMLParser):
    """Text of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def summary(rows):
    return {
        "title": "Rounds",
        "outcome": "All <2> rounds",
        "model": "x/model",
        "settings": {"seed": 1},
        "stages": rows,
    }


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
    record = {"epoch": 1, "train": {"trusted": 0.5}}
    rows = ["a,0,-1.0,1,0,0", "b,0,-1.0,1,0,0", "c,1,2.0,0,1,0"]
    head = "ID,spk_id,log_loss,trusted,corrected,learnt"
    place = folder(
        **{
            "train_log.jsonl": json.dumps(record) + "\n",
            "decisions.csv": "\n".join([head, *rows, ""]),
            "truth.csv": "ID,spk_id\na,x\nb,x\nc,y\n",
        }
    )
    row = rounds.read_stage(place, 1, "train", str(place / "truth.csv"))
    assert row["oracle"] == {"trusted_right": 1.0, "corrected_right": 0.0}
    assert "oracle" not in rounds.read_stage(place, 1, "train")
    tables = rounds.tables([row])
    assert tables[1][0] == rounds.SPEAKERS
    assert tables[1][2] == ["stage", "trusted right %", "corrected right %"]


def test_the_last_epoch_of_training_counts(folder):
    records = [
        {"epoch": 1, "train": {"trusted": 0.2}, "warnings": ["early"]},
        {"epoch": 2, "train": {"trusted": 0.5, "corrected": 0.2}},
    ]
    log = "".join(json.dumps(record) + "\n" for record in records)
    row = rounds.read_stage(folder(**{"train_log.jsonl": log}), 1, "train")
    assert row["selected"] == pytest.approx(0.7)
    assert row["epochs"] == 2 and row["warnings"] == []


def test_training_without_a_gate_has_no_share(folder):
    log = json.dumps({"epoch": 1, "train": {"loss": 1.0}}) + "\n"
    row = rounds.read_stage(folder(**{"train_log.jsonl": log}), 1, "train")
    assert row["trusted"] is None and row["selected"] is None


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
        "trusted %",
    ]
    assert stages[3][1] == ["round1/labels", "2.0", "400", "0.750", "0.660"] + [
        "",
        "",
    ]
    assert stages[3][2][-1] == "61.0"
    assert speakers[0] == "From true labels, for this report only"
    assert [line[0] for line in speakers[3]] == ["round1/labels"]
    assert "0.912" in speakers[3][0]
    assert trials[0] == "From the labels of trials, for this report only"
    assert trials[3] == [
        ["start", "12.00 [11.00, 13.00]", "0.400"],
        ["round1", "10.00 [9.00, 11.00]", "0.400"],
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
    words = Words(text).words
    for wanted in (
        "All <2> rounds",
        "round1/train: Gate: <too> early",
        "From true labels, for this report only",
        "10.00 [9.00, 11.00]",
        '"seed": 1',
    ):
        assert wanted in words, wanted
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_error_rates_and_agreement_are_drawn_over_rounds():
    pytest.importorskip("matplotlib")
    text = rounds.page(summary(ROWS))
    assert text.count("<svg") == 2
    for label in ("EER vox1_O", "ARI.round before", "share.learnt", "round<"):
        assert label in text, label
    assert text.index("ARI.round before") < text.index(rounds.TRIALS)


def test_without_matplotlib_the_page_has_tables_only(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = rounds.page(summary(ROWS))
    assert "<svg" not in text and "<table" in text
