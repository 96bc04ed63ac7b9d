"""What an epoch decided, kept for the gate, for reports and for a restart."""

import csv
import math

import pytest
import torch

from speechbrain_ssl.pseudo_labels.decisions import (
    COLUMNS,
    Decisions,
    read_decisions,
)
from speechbrain_ssl.pseudo_labels.loss import LabelDecisions

LABELS = torch.tensor([0, 0, 1, 2])


def decided(losses, selected, corrected, labels):
    return LabelDecisions(
        torch.tensor(losses),
        torch.tensor(selected, dtype=torch.bool),
        torch.tensor(corrected, dtype=torch.bool),
        torch.tensor(labels),
    )


@pytest.fixture
def decisions():
    made = Decisions(LABELS)
    batch = decided([-1.5, 2.0], [1, 0], [0, 1], [2, 1])
    made.write(torch.tensor([3, 0]), batch)
    return made


def test_the_gate_gets_losses_of_the_utterances_that_were_seen(decisions):
    assert decisions.loss_logs().tolist() == [2.0, -1.5]


def test_an_utterance_seen_twice_counts_once_as_it_was_last(decisions):
    batch = decided([0.5], [1], [0], [0])
    decisions.write(torch.tensor([0]), batch)
    assert decisions.loss_logs().tolist() == [0.5, -1.5]
    assert decisions.corrected_labels().tolist() == LABELS.tolist()


def test_corrected_labels_replace_the_ones_given(decisions):
    assert decisions.corrected_labels().tolist() == [1, 0, 1, 2]


def test_classes_of_which_nothing_is_learned_are_counted(decisions):
    # 2 by a selected label, 1 by a correction, 0 not at all
    assert decisions.silent_classes() == 1


def test_shares_are_of_the_utterances_seen(decisions):
    assert decisions.shares() == {
        "selected": 0.5,
        "corrected": 0.5,
        "label_changed": 0.5,
    }
    same = decided([0.5], [0], [1], [0])
    decisions.write(torch.tensor([0]), same)
    assert decisions.shares()["label_changed"] == 0.0


def test_a_new_epoch_knows_nothing(decisions):
    decisions.clear()
    assert len(decisions.loss_logs()) == 0
    assert decisions.silent_classes() == 3


def test_a_histogram_leaves_out_what_is_not_finite():
    decisions = Decisions(LABELS)
    assert decisions.histogram() == {"edges": [], "counts": []}
    losses = [math.nan, -math.inf, 1.0, 3.0]
    batch = decided(losses, [0] * 4, [0] * 4, LABELS.tolist())
    decisions.write(torch.arange(4), batch)
    found = decisions.histogram()
    assert sum(found["counts"]) == 2
    assert (found["edges"][0], found["edges"][-1]) == (1.0, 3.0)


def test_the_csv_has_a_row_for_each_utterance_seen(decisions, tmp_path):
    path = tmp_path / "decisions.csv"
    decisions.write_csv(path, ["a", "b", "c", "d"])
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(COLUMNS),
        ["a", "0", "2.0", "0", "1", "1"],
        ["d", "2", "-1.5", "1", "0", "2"],
    ]
    ids, columns = read_decisions(path)
    assert ids == ["a", "d"]
    found = {name: column.tolist() for name, column in columns.items()}
    assert found == {
        "given": [0, 2],
        "label": [1, 2],
        "selected": [False, True],
        "corrected": [True, False],
    }


def test_decisions_survive_a_restart(decisions, tmp_path):
    decisions._save(tmp_path / "x.ckpt")
    again = Decisions(LABELS)
    again._load(tmp_path / "x.ckpt", False)
    assert again.seen.equal(decisions.seen)
    for mine, other in zip(again.table, decisions.table):
        assert torch.equal(mine.nan_to_num(), other.nan_to_num())


def test_a_checkpoint_of_other_labels_is_refused(decisions, tmp_path):
    decisions._save(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="4 labelled .* has 2"):
        Decisions(LABELS[:2])._load(tmp_path / "x.ckpt", False)
