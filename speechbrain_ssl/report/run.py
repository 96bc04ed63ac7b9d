"""Reads the files of a run folder; a file that cannot be read becomes a note.

A training leaves ``hyperparams.yaml`` (settings), ``train_log.jsonl`` (one
JSON object for each epoch), ``save/train.csv`` and ``stats_help.json``
(what each statistic of the log means); on pseudo-labels also ``gate.jsonl`` and,
with faces, ``face_gate.jsonl``.
The demo adds ``summary.json`` and ``verification/<tag>/<trial list>/``, where
the tag is ``before`` or ``after`` training, or any other name. Each trial list
is a folder as verify.py writes it: ``metrics.json``, ``scores.txt``,
``embeddings.npy`` and ``embeddings_ids.txt``. A folder that verify.py wrote is
read, too.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import yaml

from speechbrain_ssl.dataio.annotations import size_of
from speechbrain_ssl.report.plots import is_number

TEXT_LIMIT = 200_000
CSV_LIMIT = 100_000_000  # bytes; a larger list of utterances is not summed up
VERIFIED = "verified"  # the tag of a folder of verify.py


class Verified(NamedTuple):
    """Results of one model on one trial list."""

    folder: str
    metrics: dict[str, dict]  # by kind of score: raw, as_norm ...


class Run(NamedTuple):
    """What the page knows about a run."""

    folder: str
    summary: dict  # summary.json
    settings: str  # text of hyperparams.yaml
    records: list[dict]  # train_log.jsonl, one for each epoch
    meanings: dict[str, str]  # what a statistic of the log means
    gate: list[dict]  # gate.jsonl, one for each epoch
    face_gate: list[dict]  # face_gate.jsonl, the same for faces
    lists: dict[str, dict[str, Verified]]  # by trial list and tag, in order
    data: dict  # utterances, hours, unreadable: as far as they are known
    notes: list[str]  # what is missing or broken; sections add to it


def read_run(folder: str) -> Run:
    """Reads a run folder."""
    notes = []

    def read(reader, name, default):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return default
        return attempt(notes, reader, path, default=default)

    records, broken = read(read_log, "train_log.jsonl", ([], []))
    gates = []
    for name in ("gate.jsonl", "face_gate.jsonl"):
        found, broken_gate = read(read_log, name, ([], []))
        gates.append(found)
        broken += broken_gate
    notes += broken
    lists = _read_verification(folder, notes)
    if not records and not lists:
        notes.append(
            "train_log.jsonl: missing, and there is no metrics.json of a trial "
            "list either; expected the output folder of a training or of "
            "verify.py"
        )
    unreadable = read(_rows_of_csv, "save/unreadable.csv", [])
    return Run(
        folder=folder,
        summary=read(read_object, "summary.json", {}),
        settings=read(_read_text, "hyperparams.yaml", ""),
        records=records,
        meanings=read(read_object, "stats_help.json", {}),
        gate=gates[0],
        face_gate=gates[1],
        lists=lists,
        data={
            **read(_size_of_data, "save/train.csv", {}),
            **({"unreadable": len(unreadable)} if unreadable else {}),
        },
        notes=notes,
    )


def _read_text(path):
    """At most 200,000 characters of a text file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(TEXT_LIMIT + 1)
    if len(text) > TEXT_LIMIT:
        return text[:TEXT_LIMIT] + "\n... (cut here)"
    return text


def read_settings(text: str) -> dict[str, Any]:
    """Top-level keys of a hparams file; nothing is built, whatever its tags.

    Example
    -------
    >>> read_settings("seed: 1\\nobjective: !new:a.MoCo {size: 2}")
    {'seed': 1, 'objective': '!new:a.MoCo'}
    """

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda _, suffix, node: f"!{suffix}")
    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_object(path: str) -> dict:
    """Reads a JSON file that holds one object."""
    with open(path, encoding="utf-8") as file:
        return _parse_object(file.read(), path)


def read_log(path: str) -> tuple[list[dict], list[str]]:
    """Reads a training log; a damaged line damages only itself.

    Gives the records in order, of an epoch that was trained twice the later
    one, and what is wrong with the lines that were left out.
    """
    records, broken = {}, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                record = _parse_object(line, place)
                epoch = record.get("epoch")
                if not is_number(epoch) or not math.isfinite(epoch):
                    raise ValueError(
                        f'{place}: expected a number as "epoch", found '
                        f"{epoch!r}"
                    )
                records[epoch] = record
            except ValueError as error:
                broken.append(str(error))
    return [records[epoch] for epoch in sorted(records)], broken


def _read_verification(folder, notes):
    """Results by trial list and tag, ``before`` first and ``after`` last."""
    root = os.path.join(folder, "verification")
    places = [
        (tag, os.path.join(root, tag))
        for tag in sorted(_folders(root), key=_tag_order)
    ]
    lists = {}
    for tag, place in [(VERIFIED, folder), *places]:
        for name in sorted(_folders(place)):
            path = os.path.join(place, name, "metrics.json")
            if not os.path.isfile(path):
                continue
            found = attempt(notes, read_object, path)
            if found is not None:
                # without AS-norm there is one kind of scores, and no name
                kinds = {k: v for k, v in found.items() if isinstance(v, dict)}
                kinds = {"raw": found} if "EER" in found else kinds
                verified = Verified(os.path.join(place, name), kinds)
                lists.setdefault(name, {})[tag] = verified
    return lists


def read_embeddings(folder: str) -> tuple[np.ndarray, list[str]]:
    """Reads embeddings [files, emb_dim] of a trial list and their files."""
    path = os.path.join(folder, "embeddings.npy")
    try:
        matrix = np.load(path, mmap_mode="r")
    except EOFError as error:
        raise ValueError(f"{path}: the file is empty") from error
    names = os.path.join(folder, "embeddings_ids.txt")
    with open(names, encoding="utf-8") as file:
        # not splitlines(), which also splits at rarer characters
        return matrix, file.read().removesuffix("\n").split("\n")


def attempt(
    notes: list[str], function: Callable, *arguments: Any, default: Any = None
) -> Any:
    """Calls a function; an error about a file becomes a note, not an end."""
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


def _rows_of_csv(path):
    """Rows of a CSV file."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def _size_of_data(path):
    """Number of utterances and hours of a training CSV."""
    if os.path.getsize(path) > CSV_LIMIT:
        return {}
    count, hours = size_of(path)
    return {"utterances": count, "hours": hours}


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
