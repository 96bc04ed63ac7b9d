"""Corrections of pseudo-labels by a listener.

``edits.csv`` has the columns ``action,cluster,value``::

    merge,12,57    cluster 57 is merged into cluster 12
    split,12,3     k-means on its embeddings splits cluster 12 into 3
    drop,12,       the utterances of cluster 12 get no label
    drop,,ID       this utterance gets no label

A cluster has the number ``spk_id`` of the ``pseudo_labels.csv`` to correct.
Lines are applied in order. After a merge, both numbers refer to the merged
cluster. After it is dropped or split, a cluster cannot be used again. A
repeated line has no effect.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ssl.clustering.clusterers import tidy
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.dataio.annotations import numbered_rows

COLUMNS = ("action", "cluster", "value")
ACTIONS = ("merge", "split", "drop")
DROPPED, SPLIT = -1, -2
STARTS = 5


class Edit(NamedTuple):
    """One line of ``edits.csv``."""

    place: str  # file and line, for errors
    # ``merge``, ``split``, ``drop`` (a cluster) or ``drop_utterance``
    action: str
    cluster: int | None  # the cluster; None for ``drop_utterance``
    value: object  # cluster to merge, number of parts, or ID; None for ``drop``


class Edited(NamedTuple):
    """Corrected labels."""

    # int64 cluster of each utterance, from 0 without gaps, -1 for none [n]
    labels: np.ndarray
    # number of applied lines by action, of ``repeated`` lines, and of
    # utterances that lost their label (``utterances_dropped``)
    report: dict


def read_edits(csv_path: str) -> list[Edit]:
    """Reads ``edits.csv`` into a list of Edit; an error names its line.

    Example
    -------
    >>> path = getfixture("tmp_path") / "edits.csv"
    >>> _ = path.write_text("action,cluster,value\\nmerge,12,57\\n")
    >>> read_edits(path)[0][1:]
    ('merge', 12, 57)
    """
    rows = [row for row in numbered_rows(csv_path) if any(row[0])]
    header = [name.strip() for name in rows[0][0]] if rows else []
    if header != list(COLUMNS):
        raise ValueError(
            f"{csv_path}: the first line must be {','.join(COLUMNS)}, but is "
            f"{','.join(header)!r}."
        )
    if len(rows) < 2:
        raise ValueError(f"{csv_path} has a header but no other line.")
    return [
        _parse(row, f"{csv_path}, line {line_num}")
        for row, line_num in rows[1:]
    ]


def apply_edits(
    edits: list[Edit],
    labels: np.ndarray,
    ids: list[str],
    matrix: np.ndarray,
    seed: int = 0,
) -> Edited:
    """Applies edits to labels.

    ``labels`` are numbered as in the edits, negative for none [n]; ``matrix``
    has the embeddings [n, emb_dim], ``seed`` is that of k-means.

    Example
    -------
    >>> edit = Edit("edits.csv, line 2", "merge", 7, 9)
    >>> apply_edits([edit], [3, 7, 9], ["a", "b", "c"], np.eye(3)).labels
    array([0, 1, 1])
    """
    state = _State(labels, ids, matrix, seed)
    report = dict.fromkeys((*ACTIONS, "drop_utterance", "repeated"), 0)
    for edit in edits:
        done = getattr(state, edit.action)(edit)
        report[edit.action if done else "repeated"] += 1
    found = state.labels()
    before = int((np.asarray(labels) >= 0).sum())
    report["utterances_dropped"] = before - int((found >= 0).sum())
    return Edited(tidy(found).labels, report)


class _State:
    """Labels while edits are applied; a method for each action.

    It says whether the edit changed anything.
    """

    def __init__(self, labels, ids, matrix, seed):
        labels = np.asarray(labels)
        self.numbers, place = np.unique(labels, return_inverse=True)
        # home[place]: number of the present cluster of an original one
        self.place = np.where(labels >= 0, place, -1)
        self.home = np.arange(len(self.numbers))
        self.ids, self.matrix, self.seed = ids, matrix, seed
        self.rows = None

    def labels(self):
        """Returns the present cluster of each utterance, negative for none."""
        return np.where(self.place >= 0, self.home[self.place], -1)

    def find(self, number, place):
        """Returns the present number of a cluster, or DROPPED."""
        row = np.searchsorted(self.numbers, number)
        known = row < len(self.numbers) and self.numbers[row] == number
        if not known or number < 0:
            raise ValueError(
                f"{place}: the labels have no cluster {number}. Expected a "
                "number from the column spk_id of pseudo_labels.csv."
            )
        if self.home[row] == SPLIT:
            raise ValueError(
                f"{place}: cluster {number} was split by a line above, and its "
                "parts have no numbers yet. Put this line before the split, or "
                "correct the new labels."
            )
        return self.home[row]

    def find_existing(self, number, place):
        """Returns the present number of a cluster that was not dropped."""
        found = self.find(number, place)
        if found == DROPPED:
            raise ValueError(
                f"{place}: cluster {number} was dropped by a line above. "
                "Delete one of the two lines."
            )
        return found

    def row_of(self, name, place):
        """Returns the row of an utterance."""
        if self.rows is None:
            self.rows = {name: row for row, name in enumerate(self.ids)}
        row = self.rows.get(name)
        if row is None:
            raise ValueError(f"{place}: the labels have no utterance {name!r}.")
        return row

    def merge(self, edit):
        """Merges a cluster into another one."""
        into = self.find_existing(edit.cluster, edit.place)
        joins = self.find_existing(edit.value, edit.place)
        self.home[self.home == joins] = into
        return into != joins

    def drop(self, edit):
        """Drops a cluster."""
        gone = self.find(edit.cluster, edit.place)
        if gone == DROPPED:
            return False
        self.home[self.home == gone] = DROPPED
        return True

    def drop_utterance(self, edit):
        """Drops an utterance."""
        row = self.row_of(edit.value, edit.place)
        there = self.place[row] >= 0 and self.home[self.place[row]] >= 0
        self.place[row] = -1
        return bool(there)

    def split(self, edit):
        """Splits a cluster; its parts get new places."""
        cluster = self.find_existing(edit.cluster, edit.place)
        rows = np.flatnonzero(self.labels() == cluster)
        if edit.value > len(rows):
            raise ValueError(
                f"{edit.place}: cluster {edit.cluster} has {len(rows)} "
                f"utterances and cannot be split into {edit.value}."
            )
        clusterer = KMeans(edit.value, n_init=STARTS, random_state=self.seed)
        parts = clusterer.fit_predict(self.matrix[rows])
        names, parts = np.unique(parts, return_inverse=True)
        if len(names) < edit.value:
            raise ValueError(
                f"{edit.place}: k-means found only {len(names)} of "
                f"{edit.value} parts of cluster {edit.cluster}. Give a smaller "
                "number."
            )
        first = len(self.home)
        self.home[self.home == cluster] = SPLIT
        self.home = np.append(self.home, first + np.arange(edit.value))
        self.place[rows] = first + parts
        return True


def _parse(row, place):
    """Parses a line."""
    if len(row) > len(COLUMNS):
        raise ValueError(
            f"{place}: expected {','.join(COLUMNS)}, found {','.join(row)!r}."
        )
    action, cluster, value = [*row, "", ""][: len(COLUMNS)]
    action = action.strip()
    if action not in ACTIONS:
        raise ValueError(
            f"{place}: the action must be one of {', '.join(ACTIONS)}, not "
            f"{action!r}."
        )
    if action == "drop":
        return _parse_drop(cluster, value, place)
    cluster = _number(cluster, "cluster", 0, place)
    value = _number(value, "value", 2 if action == "split" else 0, place)
    if action == "merge" and cluster == value:
        raise ValueError(
            f"{place}: cluster {cluster} cannot be merged with itself."
        )
    return Edit(place, action, cluster, value)


def _parse_drop(cluster, value, place):
    """Parses a line that drops a cluster or an utterance."""
    if bool(cluster.strip()) == bool(value):
        raise ValueError(
            f"{place}: expected drop,CLUSTER, or drop,,ID, found "
            f"'drop,{cluster},{value}'."
        )
    if value:
        return Edit(place, "drop_utterance", None, value)
    return Edit(place, "drop", _number(cluster, "cluster", 0, place), None)


def _number(text, column, least, place):
    """Parses a whole number, ``least`` or more."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(
            f"{place}: {column} must be a whole number, {least} or more, not "
            f"{text!r}."
        )
    return int(text)
