"""Pseudo-labels on disk: stock SpeechBrain reads them, and so do we."""

import json

import numpy as np
import pytest
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.labels import (
    check_same_labels,
    labels_of,
    note_labels,
    read_labels,
    read_truth,
    write_labels,
)

IDS = ["a", "b c", " d", "e"]


@pytest.fixture
def training(tmp_path):
    rows = [
        (name, 1.1 + n, f"$data_root/x/{name}.wav", n, 17600 + n)
        for n, name in enumerate(IDS)
    ]
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv", data_root="/audio")


@pytest.fixture
def csv_path(training, tmp_path):
    write_labels(tmp_path, training, IDS[1:], [4, -1, 2], "aa11")
    return tmp_path / "pseudo_labels.csv"


def test_what_is_written_is_read_back(training, csv_path):
    found = read_labels(csv_path, "/audio", "aa11", training)
    assert list(found.utterances.ids()) == ["b c", "e"]
    assert found.classes.tolist() == [1, 0]
    assert found.count == 2
    for row, there in (0, 1), (1, 3):
        mine = found.utterances.row(row)
        del mine["spk_id"]
        assert mine == training.row(there)
    assert found.report["labels"] == {
        "embeddings": "aa11",
        "utterances": 4,
        "labelled": 2,
        "clusters": 2,
    }


def test_paths_stay_portable(training, csv_path):
    assert "/audio" not in csv_path.read_text()
    moved = read_labels(csv_path, data_root="/elsewhere").utterances
    assert moved.row(0)["wav"] == "/elsewhere/x/b c.wav"
    # SpeechBrain's own way
    stock = DynamicItemDataset.from_csv(
        str(csv_path), replacements={"data_root": "/stock"}
    )
    assert stock.data["e"]["wav"] == "/stock/x/e.wav"
    assert stock.data["e"]["spk_id"] == "2"
    assert float(stock.data["e"]["duration"]) == 4.1


def test_paths_outside_the_folder_stay_as_they_are(tmp_path):
    rows = [("a", 1.0, "/audio2/a.wav", 0, 9), ("b", 1.0, "/b.wav", 0, 9)]
    write_annotation(tmp_path / "train.csv", rows)
    utterances = read_annotation(tmp_path / "train.csv", data_root="/audio")
    write_labels(tmp_path, utterances, ["a", "b"], [0, 1], "")
    found = read_labels(tmp_path / "pseudo_labels.csv").utterances
    assert [found.row(n)["wav"] for n in (0, 1)] == ["/audio2/a.wav", "/b.wav"]


def test_labels_of_other_embeddings_are_refused(csv_path):
    with pytest.raises(ValueError, match=r"aa11\.\.\.\) .* \(bb22"):
        read_labels(csv_path, "/audio", embeddings="bb22")
    csv_path.with_name("report.json").unlink()
    with pytest.raises(FileNotFoundError, match="report.json does not exist"):
        read_labels(csv_path, "/audio", embeddings="aa11")
    assert read_labels(csv_path, "/audio").report is None


def test_labels_of_another_training_set_are_refused(csv_path, tmp_path):
    rows = [("e", 1.0, "e.wav", 0, 9)]
    write_annotation(tmp_path / "other.csv", rows)
    other = read_annotation(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="1 utterances are not in.*'b c'"):
        read_labels(csv_path, "/audio", training=other)


def test_a_row_that_got_lost_is_missed(training, csv_path):
    lines = csv_path.read_text().splitlines()
    csv_path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(ValueError, match="3 utterances .* but 2 when"):
        read_labels(csv_path, "/audio", training=training)


def test_missing_rows_may_be_allowed(training, tmp_path):
    write_labels(tmp_path, training, IDS, [0, 1, 2, 2], "")
    path = tmp_path / "pseudo_labels.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(ValueError, match="allow_missing"):
        read_labels(path, "/audio", training=training)
    found = read_labels(path, "/audio", training=training, allow_missing=True)
    assert found.classes.tolist() == [0, 1]


@pytest.mark.parametrize("bad", ["-1", "1.5", "", "x"])
def test_a_wrong_label_is_named(csv_path, bad):
    text = csv_path.read_text()
    csv_path.write_text(text.replace(",4\n", f",{bad}\n"))
    with pytest.raises(ValueError, match=f"'b c' is '{bad}'"):
        read_labels(csv_path, "/audio")


def test_one_class_is_refused(training, tmp_path):
    write_labels(tmp_path, training, IDS, [5] * 4, "")
    with pytest.raises(ValueError, match="two classes"):
        read_labels(tmp_path / "pseudo_labels.csv", "/audio")


def test_unknown_utterances_are_not_written(training, tmp_path):
    with pytest.raises(ValueError, match="1 labelled .* 'z'"):
        write_labels(tmp_path, training, ["a", "z"], [0, 1], "")
    with pytest.raises(ValueError, match="each of 2 utterances, found 1"):
        write_labels(tmp_path, training, ["a", "b c"], [0], "")


def test_the_report_is_the_last_thing_written(training, csv_path, monkeypatch):
    from speechbrain_ssl.pseudo_labels import labels

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "write_annotation", fail)
    with pytest.raises(KeyboardInterrupt):
        write_labels(csv_path.parent, training, IDS, [0, 1, 0, 1], "cc33")
    assert not csv_path.with_name("report.json").exists()


def test_further_entries_stand_in_the_report(training, tmp_path):
    found = write_labels(
        tmp_path, training, IDS, [0, 1, 0, 1], "", {"quality": {"x": 1.0}}
    )
    assert found["quality"] == {"x": 1.0}
    assert json.loads((tmp_path / "report.json").read_text()) == found


def test_labels_are_put_in_the_order_of_others(csv_path):
    found = labels_of(read_labels(csv_path, "/audio"), ["e", "new", "b c"])
    assert found.tolist() == [0, -1, 1]


@pytest.mark.parametrize("column", ["spk_id", "speaker"])
def test_truth_is_found_with_and_without_extension(tmp_path, column):
    path = tmp_path / "truth.csv"
    path.write_text(f"ID,corpus,{column}\n1,x,Ann\nd/2.wav,x,Bob\n3,x,Ann\n")
    found = read_truth(path, ["d/2.wav", "3.flac", "1", "4"])
    assert np.array_equal(found, [1, 0, 0, -1])


def test_rows_without_speaker_or_utterance_are_counted(tmp_path, caplog):
    path = tmp_path / "speakers.csv"
    path.write_text("ID,spk_id\na,s1\nb,\nc.wav, \nd,s2\na,s1\nx,s3\n")
    found = read_truth(path, ["a.wav", "b.wav", "c.wav", "d", "e"])
    assert found.tolist() == [0, -1, -1, 1, -1]
    (message,) = caplog.messages
    assert "2 of 5 utterances have a speaker (2 speakers). 3 utt" in message
    assert "2 without a speaker, 1 of unknown utterances" in message


@pytest.mark.parametrize(
    "rows, message",
    [
        ("a.wav,s1\nb.wav,s2\na.wav,s2", "'a.wav' .*'s1' on line 2 .* line 4"),
        ("a,s1\na.wav,s2", "'a.wav' of 's2' on line 3 and 'a' of 's1' on lin"),
        ("a.wav,s1\nb.wav", "line 3: expected 2 values"),
        ("a.wav,s1\nb.wav,s,2", "line 3: expected 2 values"),
        ("a.wav,\nb.wav,", "no speaker for any of 1 utterances"),
    ],
)
def test_contradictions_of_speakers_are_refused(tmp_path, rows, message):
    path = tmp_path / "speakers.csv"
    path.write_text(f"ID,spk_id\n{rows}\n")
    with pytest.raises(ValueError, match=f"speakers.csv.*{message}"):
        read_truth(path, ["a.wav"])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "speakers.csv is empty. Expected a line ID,spk_id"),
        (
            "ID,spk_id\na,Andr\xe9\n".encode("latin-1"),
            "Save it as CSV in UTF-8",
        ),
        (b"ID,name\na,Ann\n", "has the columns ID, name; expected ID and one"),
    ],
)
def test_a_file_without_speakers_says_what_is_expected(
    tmp_path, content, message
):
    path = tmp_path / "speakers.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_truth(path, ["a.wav"])


def test_the_log_says_which_of_two_speaker_columns_is_used(tmp_path, caplog):
    path = tmp_path / "speakers.csv"
    path.write_text("ID,speaker,spk_id\na,Ann,1\nb,Bob,1\n")
    assert read_truth(path, ["a", "b"]).tolist() == [0, 0]
    assert "of the column spk_id; not used: speaker." in caplog.text


def test_truth_of_other_data_is_refused(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("ID,spk_id\n1,Ann\n")
    with pytest.raises(ValueError, match="any of 1 utterances.*'7'.*'1'"):
        read_truth(path, ["7"])
    path.write_text("ID,spk_id,spk_id\n1,Ann,Bob\n")
    with pytest.raises(ValueError, match="two columns spk_id"):
        read_truth(path, ["1"])
    path.write_text("ID,name\n1,Ann\n")
    with pytest.raises(ValueError, match="spk_id, speaker"):
        read_truth(path, ["1"])


def test_other_labels_than_those_trained_on_are_refused(tmp_path, csv_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        FileNotFoundError, match="trained_on.json does not exist"
    ):
        check_same_labels(str(run), str(csv_path))
    note_labels(str(run), str(csv_path))
    moved = csv_path.rename(tmp_path / "moved.csv")
    check_same_labels(str(run), str(moved))
    moved.write_text(moved.read_text().replace(",4", ",5"))
    with pytest.raises(ValueError, match="trained on .*pseudo_labels.csv"):
        check_same_labels(str(run), str(moved))
