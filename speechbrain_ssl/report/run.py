"""Reads the files of a run folder; what cannot be read becomes a note.

A run folder may hold ``summary.json`` (what was run), ``hyperparams.yaml``
(settings), ``train_log.jsonl`` (one JSON object per epoch), ``gate.jsonl`` (of
pseudo-labels: what the gate decided, one per epoch) and
``verification/<tag>/<trial list>/`` with ``metrics.json``, ``scores.txt``,
``embeddings.npy`` and ``embeddings_ids.txt``. Tags say when: ``before``
training, ``after`` it, or any other name.
"""

import json
import math
import os
import re
from typing import NamedTuple

import numpy as np

from speechbrain_ssl.report.plots import is_number

TEXT_LIMIT = 200_000


class Trials(NamedTuple):
    """The scored trials of one list.

    Arguments
    ---------
    targets : np.ndarray
        Whether each trial is a target trial, bool [trials].
    enrol : list of str
        Enrol file of each trial.
    test : list of str
        Test file of each trial.
    scores : np.ndarray
        Scores, float64 [trials].
    dropped : int
        Number of trials that were left out, as their score is not finite.
    """

    targets: np.ndarray
    enrol: list
    test: list
    scores: np.ndarray
    dropped: int


class Run(NamedTuple):
    """What the page knows about a run.

    Arguments
    ---------
    folder : str
        The run folder.
    summary : dict
        What was run; empty if unknown.
    settings : str
        Text of the settings file; empty if unknown.
    records : list of dict
        One per epoch.
    gate : list of dict
        What the gate decided, one per epoch; empty if there is none.
    lists : dict of str to (dict of str to dict)
        Metrics by trial list and tag, tags in order of time.
    notes : list of str
        What is missing or broken; sections add to it.
    """

    folder: str
    summary: dict
    settings: str
    records: list
    gate: list
    lists: dict
    notes: list


def read_run(folder):
    """Reads a run folder; what cannot be read becomes a note.

    Arguments
    ---------
    folder : str
        The run folder.

    Returns
    -------
    Run
        What is known about the run.
    """
    notes = []

    def read(reader, name, default):
        path = os.path.join(folder, name)
        return attempt(notes, reader, path, default=default)

    records, broken = read(read_log, "train_log.jsonl", ([], []))
    notes += broken
    gate, broken = [], []
    if os.path.isfile(os.path.join(folder, "gate.jsonl")):
        gate, broken = read(read_log, "gate.jsonl", ([], []))
    notes += broken
    return Run(
        folder=folder,
        summary=read(read_object, "summary.json", {}),
        settings=read(read_text, "hyperparams.yaml", ""),
        records=records,
        gate=gate,
        lists=read_verification(folder, notes),
        notes=notes,
    )


def read_text(path):
    """Reads a text file, at most 200,000 characters of it.

    Arguments
    ---------
    path : str
        The file, UTF-8.

    Returns
    -------
    str
        Its text.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(TEXT_LIMIT + 1)
    if len(text) > TEXT_LIMIT:
        return text[:TEXT_LIMIT] + "\n... (cut here)"
    return text


def read_object(path):
    """Reads a JSON file that holds one object.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    dict
        Its content.

    Raises
    ------
    ValueError
        If it is no JSON or no object.
    """
    with open(path, encoding="utf-8") as file:
        return _parse_object(file.read(), path)


def read_log(path):
    """Reads a training log; a line that is cut off spoils only itself.

    Arguments
    ---------
    path : str
        The file, one JSON object per line with ``"epoch"``.

    Returns
    -------
    records : list of dict
        One per epoch, in order; of an epoch that was run twice, because
        training was resumed, the later one.
    broken : list of str
        What is wrong with the lines that were left out.
    """
    records, broken = {}, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = _parse_object(line, f"{path}, line {number}")
                records[_epoch(record, path, number)] = record
            except ValueError as error:
                broken.append(str(error))
    return [records[epoch] for epoch in sorted(records)], broken


def read_verification(folder, notes):
    """Reads all metrics below ``verification``.

    Arguments
    ---------
    folder : str
        The run folder.
    notes : list of str
        Gets a line for all that is missing or broken.

    Returns
    -------
    dict of str to (dict of str to dict)
        Metrics by trial list and tag; ``before`` is the first tag, then
        others by name, ``after`` is the last one.
    """
    root = os.path.join(folder, "verification")
    lists = {}
    for tag in sorted(_folders(root), key=_tag_order):
        for name in sorted(_folders(os.path.join(root, tag))):
            path = os.path.join(root, tag, name, "metrics.json")
            found = attempt(notes, read_object, path)
            if found is not None:
                # without AS-norm there is one kind of scores, and no name
                kinds = found.keys() & {"raw", "as_norm"}
                found = found if kinds else {"raw": found}
                lists.setdefault(name, {})[tag] = found
    if not lists:
        notes.append("verification: no metrics.json of any trial list")
    return lists


def read_scores(path):
    """Reads scored trials.

    Arguments
    ---------
    path : str
        One ``label enrol test score`` per line, separated by tabs or, if
        the names have none, by spaces; label 1 is a target trial.

    Returns
    -------
    Trials
        The trials whose scores are finite.

    Raises
    ------
    ValueError
        If a line is something else.
    """
    with open(path, encoding="utf-8") as file:
        rows = [
            _trial(line, path, number)
            for number, line in enumerate(file, start=1)
            if line.strip()
        ]
    finite = [row for row in rows if math.isfinite(row[3])]
    targets, enrol, test, scores = zip(*finite) if finite else 4 * ((),)
    return Trials(
        targets=np.array(targets, dtype=bool),
        enrol=list(enrol),
        test=list(test),
        scores=np.array(scores, dtype=np.float64),
        dropped=len(rows) - len(finite),
    )


def read_embeddings(folder):
    """Reads the embeddings of a trial list.

    Arguments
    ---------
    folder : str
        Where ``embeddings.npy`` and ``embeddings_ids.txt`` are.

    Returns
    -------
    matrix : np.ndarray
        Embeddings [files, emb_dim].
    ids : list of str
        The files [files].
    """
    path = os.path.join(folder, "embeddings.npy")
    try:
        matrix = np.load(path, mmap_mode="r")
    except EOFError as error:
        raise ValueError(f"{path}: the file is empty") from error
    with open(
        os.path.join(folder, "embeddings_ids.txt"), encoding="utf-8"
    ) as file:
        return matrix, file.read().splitlines()


def attempt(notes, function, *arguments, default=None):
    """Calls a function; what cannot be read becomes a note.

    Arguments
    ---------
    notes : list of str
        Gets what went wrong.
    function : Callable
        What to call.
    *arguments
        What to call it with.
    default : Any
        What is returned if that fails.

    Returns
    -------
    Any
        What the function returned.
    """
    try:
        return function(*arguments)
    except FileNotFoundError as error:
        notes.append(f"{error.filename}: missing")
    except (OSError, ValueError) as error:
        notes.append(str(error))
    return default


def _parse_object(text, place):
    """A JSON object, or an error that names the place."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: no valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{place}: expected a JSON object, found {type(found).__name__}"
        )
    return found


def _epoch(record, path, number):
    """The epoch of a record."""
    epoch = record.get("epoch")
    if not is_number(epoch) or not math.isfinite(epoch):
        raise ValueError(
            f'{path}, line {number}: expected a number as "epoch", '
            f"found {epoch!r}"
        )
    return epoch


def _trial(line, path, number):
    """One line of a score file."""
    line = line.strip()
    fields = line.split("\t") if "\t" in line else line.split()
    try:
        label, enrol, test, score = fields
        return {"1": True, "0": False}[label], enrol, test, float(score)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}, line {number}: expected 'label enrol test score' with "
            f"label 0 or 1, found {line[:200]!r}"
        ) from error


def _folders(path):
    """Names of the folders in a folder, none if there is no such folder."""
    if not os.path.isdir(path):
        return []
    return [entry.name for entry in os.scandir(path) if entry.is_dir()]


def _tag_order(tag):
    """Sorts before < numbered tags by number < after."""
    rank = {"before": 0, "after": 2}.get(tag, 1)
    parts = re.split(r"(\d+)", tag)
    return rank, [(int(p), "") if p.isdigit() else (0, p) for p in parts]
