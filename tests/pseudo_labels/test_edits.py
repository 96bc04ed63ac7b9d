"""Corrections do what their lines say, in order, or name the line."""

import numpy as np
import pytest

from speechbrain_ssl.pseudo_labels.edits import apply_edits, read_edits

# clusters 2, 5 and 9 of 2, 3 and 4 utterances, and one without a label
LABELS = [2, 5, 9, 2, -1, 5, 9, 5, 9, 9]
IDS = ["a", "b", "c", "d", "noise", "e", "f,g", "h", "i", "j"]


@pytest.fixture
def edit(tmp_path):
    def edit(*lines, matrix=None):
        path = tmp_path / "edits.csv"
        text = "\n".join(["action,cluster,value", *lines, ""])
        path.write_text(text)
        matrix = np.zeros((len(IDS), 4)) if matrix is None else matrix
        return apply_edits(read_edits(path), LABELS, IDS, matrix)

    return edit


def groups(labels):
    """Sets of the utterances that share a label."""
    assert set(labels[labels >= 0]) == set(range(labels.max() + 1))
    return [
        {IDS[row] for row in np.flatnonzero(labels == number)}
        for number in range(labels.max() + 1)
    ]


TWO, FIVE, NINE = {"a", "d"}, {"b", "e", "h"}, {"c", "f,g", "i", "j"}


def test_a_cluster_joins_another_one(edit):
    labels, report = edit("merge,2,9")
    assert groups(labels) == [TWO | NINE, FIVE]
    assert report == {
        "merge": 1,
        "split": 0,
        "drop": 0,
        "drop_utterance": 0,
        "repeated": 0,
        "utterances_dropped": 0,
    }


@pytest.mark.parametrize(
    "lines",
    [
        ("merge,5,9", "merge,2,5"),
        ("merge,2,5", "merge,5,9"),
        ("merge,9,5", "merge,5,2"),
    ],
)
def test_chains_of_merges_end_in_one_cluster(edit, lines):
    found = edit(*lines)
    assert groups(found.labels) == [TWO | FIVE | NINE]
    assert found.report["merge"] == 2


def test_neighbors_that_name_each_other_are_merged_once(edit):
    labels, report = edit("merge,2,5", "merge,5,2")
    assert groups(labels) == [TWO | FIVE, NINE]
    assert (report["merge"], report["repeated"]) == (1, 1)


def test_clusters_and_utterances_lose_their_labels(edit):
    labels, report = edit("drop,2,", "drop,,h", 'drop,,"f,g"', "drop,2")
    assert groups(labels) == [{"b", "e"}, {"c", "i", "j"}]
    assert report["drop"] == 1 and report["drop_utterance"] == 2
    assert report["repeated"] == 1 and report["utterances_dropped"] == 4


def test_a_dropped_cluster_takes_along_what_joined_it(edit):
    labels, report = edit("merge,2,5", "drop,5,")
    assert groups(labels) == [NINE]
    assert report["utterances_dropped"] == 5


def test_an_utterance_without_label_may_be_dropped_again(edit):
    report = edit("drop,,noise", "drop,2,", "drop,,a").report
    assert (report["drop_utterance"], report["repeated"]) == (0, 2)
    assert report["utterances_dropped"] == 2


def test_a_cluster_is_split_where_its_embeddings_part(edit):
    angles = dict.fromkeys(IDS, 1.0) | {"c": 0.0, "i": 0.1, "j": 3.0}
    points = [(np.cos(angles[name]), np.sin(angles[name])) for name in IDS]
    # other lengths change nothing: embeddings are compared by cosine
    points *= np.arange(1, 11)[:, None]
    labels, report = edit("split,9,3", matrix=points)
    assert groups(labels)[:2] == [TWO, FIVE]
    assert sorted(map(sorted, groups(labels)[2:])) == [
        ["c", "i"],
        ["f,g"],
        ["j"],
    ]
    assert report["split"] == 1


def test_what_was_merged_can_be_split(edit):
    points = np.array([[1.0, x] for x in np.isin(IDS, [*FIVE])])
    labels = edit("merge,2,5", "split,5,2", matrix=points).labels
    expected = sorted(map(sorted, [TWO, FIVE, NINE]))
    assert sorted(map(sorted, groups(labels))) == expected


@pytest.mark.parametrize(
    "lines, message",
    [
        (["merge,2,7"], "line 2: the labels have no cluster 7"),
        (
            ["merge,2,5", "", "drop,10,"],
            "line 4: the labels have no cluster 10",
        ),
        (["drop,,z"], "line 2: the labels have no utterance 'z'"),
        (["drop,2,", "merge,2,5"], "line 3: cluster 2 was dropped"),
        (["drop,5,", "merge,2,5"], "line 3: cluster 5 was dropped"),
        (["merge,5,2", "drop,5,", "merge,2,9"], "line 4: cluster 2 was drop"),
        (["drop,2,", "split,2,2"], "line 3: cluster 2 was dropped"),
        (["split,2,3"], "line 2: cluster 2 has 2 utterances .* into 3"),
        (["drop,,a", "split,2,2"], "line 3: cluster 2 has 1 utterances"),
        (["split,9,2"], "line 2: k-means found only 1 of 2"),
        (["join,2,5"], "line 2: the action must be one of merge.*'join'"),
        (["merge,2,2"], "line 2: cluster 2 cannot be merged with itself"),
        (["merge,x,2"], "line 2: cluster must be a whole number.*'x'"),
        (["merge,2,"], "line 2: value must be a whole number.*''"),
        (["merge,-1,2"], "line 2: cluster must be .*'-1'"),
        (["split,2,1"], "line 2: value must be a whole number, 2 or more"),
        (["drop,2,a"], "line 2: expected drop,CLUSTER, or drop,,ID"),
        (["drop,,"], "line 2: expected drop,CLUSTER, or drop,,ID"),
        (["drop,,a,b"], "line 2: expected action,cluster,value, found"),
        ([], "a header but no other line"),
        (["drop,2,", "drop,5,", "drop,9,"], "No cluster"),
    ],
)
def test_what_cannot_be_followed_is_named(edit, lines, message):
    with pytest.raises(ValueError, match=message):
        edit(*lines)


def test_a_split_cluster_has_no_name(edit):
    points = np.arange(20.0).reshape(10, 2)
    for after in ("merge,9,2", "merge,2,9", "drop,9,", "split,9,2"):
        with pytest.raises(ValueError, match="line 3: cluster 9 was split"):
            edit("split,9,2", after, matrix=points)


def test_an_utterance_of_a_split_cluster_can_be_dropped(edit):
    points = np.arange(20.0).reshape(10, 2)
    labels, report = edit("split,9,2", "drop,,c", matrix=points)
    assert labels[IDS.index("c")] == -1
    assert report["utterances_dropped"] == report["drop_utterance"] == 1


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "edits.csv"
    path.write_text("action;cluster;value\nmerge;1;2\n")
    with pytest.raises(ValueError, match="first line must be action,cluster"):
        read_edits(path)
    path.write_text("")
    with pytest.raises(ValueError, match="first line"):
        read_edits(path)


def test_a_spreadsheets_file_is_read(tmp_path):
    path = tmp_path / "edits.csv"
    text = "\ufeffaction,cluster,value\r\nmerge, 12 ,57\r\n,,\r\ndrop,3,\r\n"
    path.write_bytes(text.encode())
    found = [edit[1:] for edit in read_edits(path)]
    assert found == [("merge", 12, 57), ("drop", 3, None)]
