"""Files of pseudo-labels.

``pseudo_labels.csv`` is the training CSV with a column ``spk_id``, as training
scripts of SpeechBrain expect it, without the utterances that have no label.
``report.json`` in the same folder has the hash of the embeddings and the
quality of the labels. It is written last: without it, the labels are
incomplete.
"""

import contextlib
import json
import logging
import os
from typing import NamedTuple

import numpy as np

from speechbrain_ssl.dataio.annotations import (
    Utterances,
    numbered_rows,
    portable,
    read_annotation,
    read_by_id,
    write_annotation,
)
from speechbrain_ssl.files import hash_of, read_json, write_json, write_whole

logger = logging.getLogger(__name__)

CSV_NAME, REPORT_NAME = "pseudo_labels.csv", "report.json"
# records the labels of a training, in its output folder
TRAINED_ON = "trained_on.json"
COLUMN = "spk_id"
SPEAKER_COLUMNS = ("spk_id", "speaker", "speaker_id")


class Labels(NamedTuple):
    """Labelled utterances."""

    utterances: Utterances  # the utterances
    # int64 class of each utterance, from 0 without gaps [utterances]
    classes: np.ndarray
    # number of classes
    count: int  # type: ignore[assignment]  # instead of tuple.count
    report: dict | None  # content of report.json, or None
    names: np.ndarray  # int64 ``spk_id`` of each class, ascending [count]


def write_labels(
    folder: str | os.PathLike,
    utterances: Utterances,
    ids: list[str],
    labels: np.ndarray | list[int],
    embeddings: str | None,
    report: dict | None = None,
    count: int | None = None,
) -> dict:
    """Writes ``pseudo_labels.csv`` and ``report.json``.

    Paths in the ``data_root`` of the utterances are written as
    ``$data_root/...``, so that the audio can be moved. ``utterances`` are the
    training set, or a part of it; ``ids`` and ``labels`` are those of the
    clustered utterances, from 0, -1 for none [n]; ``embeddings`` is the hash of
    what was clustered, ``report`` has more entries of report.json, and
    ``count`` is the size of the training set (None: that of ``utterances``).

    Gives the content of report.json: ``report`` and ``labels``, which has
    "embeddings", "utterances" (size of the training set), "labelled" and
    "clusters".
    """
    if len(ids) != len(labels):
        raise ValueError(
            f"Expected a label for each of {len(ids)} utterances, found "
            f"{len(labels)} labels."
        )
    labels = np.asarray(labels).tolist()
    found = {name: label for name, label in zip(ids, labels) if label >= 0}
    if unknown := set(found).difference(utterances.ids()):
        raise ValueError(
            f"{len(unknown)} labelled utterances are not in the training set, "
            f"e.g. {min(unknown)!r}. Cluster the embeddings of this training "
            "set."
        )
    report_path = os.path.join(folder, REPORT_NAME)
    with contextlib.suppress(FileNotFoundError):
        os.remove(report_path)  # it belongs to other labels
    rows = (utterances.row(row) for row in range(len(utterances)))
    write_annotation(
        os.path.join(folder, CSV_NAME),
        (
            {
                **row,
                "duration": np.float32(row["duration"]),
                **{
                    name: portable(row[name], utterances.data_root)
                    for name in ("wav", *utterances.extra)
                },
                COLUMN: found[row["ID"]],
            }
            for row in rows
            if row["ID"] in found
        ),
        extra=(*(x for x in utterances.extra if x != COLUMN), COLUMN),
    )
    report = {
        "labels": {
            "embeddings": embeddings,
            "utterances": count or len(utterances),
            "labelled": len(found),
            "clusters": len(set(found.values())),
        },
        **(report or {}),
    }
    with write_whole(report_path) as file:
        json.dump(report, file, indent=2, allow_nan=False)
    return report


def read_labels(
    csv_path: str | os.PathLike,
    data_root: str | os.PathLike | None = None,
    embeddings: str | None = None,
    training: Utterances | None = None,
    allow_missing: bool = False,
    extra: tuple[str, ...] = (),
) -> Labels:
    """Reads ``pseudo_labels.csv`` and checks it.

    Classes are numbered from 0 without gaps, in the order of ``spk_id``, so
    rows may have been deleted from the file. ``data_root`` replaces
    ``$data_root``; ``extra`` are other columns to read, such as ``face``.

    Labels of other embeddings than those with the hash ``embeddings``, or of
    another training set than ``training``, are an error; None: no check.
    ``allow_missing`` allows more utterances of the training set without a label
    than when the labels were made.
    """
    report_path = os.path.join(os.path.dirname(csv_path), REPORT_NAME)
    report = None
    if os.path.isfile(report_path):
        report = read_json(report_path)
    utterances = read_annotation(csv_path, data_root, extra=(*extra, COLUMN))
    if embeddings is not None:
        _check_embeddings(csv_path, report, report_path, embeddings)
    if training is not None:
        _check_training(csv_path, utterances, training, report, allow_missing)
    names, classes = _classes(csv_path, utterances)
    return Labels(utterances, classes, len(names), report, names)


def keep_labels(labels: Labels, kept: np.ndarray) -> Labels:
    """The labelled utterances where ``kept`` is True [utterances].

    Classes have no gaps again; there must be two or more.
    """
    used, classes = np.unique(labels.classes[kept], return_inverse=True)
    if len(used) < 2:
        raise ValueError(
            f"Without the utterances that are held out, {len(used)} of "
            f"{labels.count} classes are left; training needs two. Lower "
            "selfcheck_share."
        )
    return labels._replace(
        utterances=labels.utterances.take(kept),
        classes=classes.astype(np.int64),
        count=len(used),
        names=labels.names[used],
    )


def note_labels(run_folder: str, csv_path: str) -> None:
    """Records the labels of a training; a resumed one must have the same."""
    if os.path.isfile(os.path.join(run_folder, TRAINED_ON)):
        check_same_labels(run_folder, csv_path)
        return
    record = {"labels": os.path.abspath(csv_path), "hash": hash_of(csv_path)}
    write_json(os.path.join(run_folder, TRAINED_ON), record)


def check_same_labels(run_folder: str, csv_path: str) -> None:
    """Checks that an earlier training used the same labels."""
    path = os.path.join(run_folder, TRAINED_ON)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist, so the labels of {run_folder} are "
            "unknown. Give an output folder of train_pseudo_labels.py."
        )
    record = read_json(path)
    found = hash_of(csv_path)
    if found != record["hash"]:
        raise ValueError(
            f"{run_folder} was trained on {record['labels']} "
            f"({record['hash'][:12]}...), but {csv_path} has other labels "
            f"({found[:12]}...). Give the same file, or a new output_folder."
        )


def labels_of(labels: Labels, ids: list[str]) -> np.ndarray:
    """Returns the class of each ID in ``labels``, -1 for none, int64 [n]."""
    found = dict(zip(labels.utterances.ids(), labels.classes.tolist()))
    return np.array([found.get(name, -1) for name in ids], np.int64)


def read_truth(csv_path: str, ids: list[str]) -> np.ndarray:
    """Reads true speakers: for reports, and for supervised training.

    The CSV has the columns ``ID`` and ``spk_id``, ``speaker`` or
    ``speaker_id``; IDs may lack the extension of the audio file. Rows without a
    speaker, and rows of unknown utterances, are ignored; their numbers, and
    that of utterances without a speaker, are logged. Gives the int64 number of
    the speaker of each of ``ids``, -1 if unknown [n].
    """
    speakers, lines, nameless = _read_speakers(csv_path)
    names, used = [], set()
    for name in ids:
        keys = [k for k in (name, os.path.splitext(name)[0]) if k in speakers]
        if len({speakers[key] for key in keys}) > 1:
            _refuse_two_speakers(csv_path, keys, speakers, lines)
        used.update(keys)
        names.append(speakers[keys[0]] if keys else None)
    numbers = {
        name: n
        for n, name in enumerate(
            sorted({name for name in names if name is not None})
        )
    }
    if not numbers:
        raise ValueError(
            f"{csv_path} has no speaker for any of {len(ids)} utterances. "
            f"Expected IDs such as {ids[0]!r}, found "
            f"{next(iter(speakers), None)!r}."
        )
    missing, unknown = names.count(None), len(speakers) - len(used)
    logger.log(
        logging.WARNING if missing or unknown or nameless else logging.INFO,
        "%s: %d of %d utterances have a speaker (%d speakers). %d utterances "
        "have none and are left out. Ignored rows: %d without a speaker, %d of "
        "unknown utterances.",
        csv_path,
        len(names) - missing,
        len(names),
        len(numbers),
        missing,
        nameless,
        unknown,
    )
    return np.array([numbers.get(name, -1) for name in names], np.int64)


def _read_speakers(csv_path):
    """Returns speaker and line of each ID, and the rows without a speaker."""
    speakers, lines, nameless = {}, {}, 0
    columns, _ = next(numbered_rows(csv_path), ([], 0))
    if not columns:
        raise ValueError(
            f"{csv_path} is empty. Expected a line ID,spk_id, and a line for "
            "each utterance."
        )
    named = [name for name in SPEAKER_COLUMNS if name in columns]
    double = [c for c in ("ID", *named) if columns.count(c) > 1]
    if double:
        raise ValueError(
            f"{csv_path} has two columns {double[0]}; expected one."
        )
    if "ID" not in columns or not named:
        raise ValueError(
            f"{csv_path} has the columns {', '.join(columns)}; expected ID "
            f"and one of {', '.join(SPEAKER_COLUMNS)}."
        )
    if len(named) > 1:
        logger.warning(
            "%s: the speakers are those of the column %s; not used: %s.",
            csv_path,
            named[0],
            ", ".join(named[1:]),
        )
    for name, speaker, line in read_by_id(csv_path, named[0]):
        name, speaker = name.strip(), speaker.strip()
        if not speaker:
            nameless += 1
            continue
        if speakers.setdefault(name, speaker) != speaker:
            raise ValueError(
                f"{csv_path}: {name!r} has the speaker {speakers[name]!r} on "
                f"line {lines[name]} and {speaker!r} on line {line}. Keep one "
                "of the rows."
            )
        lines[name] = line
    return speakers, lines, nameless


def _refuse_two_speakers(csv_path, keys, speakers, lines):
    """Raises for an utterance listed with and without its extension."""
    rows = [
        f"{key!r} of {speakers[key]!r} on line {lines[key]}" for key in keys
    ]
    raise ValueError(
        f"{csv_path}: {' and '.join(rows)} are one utterance. Keep one of the "
        "rows."
    )


def _check_embeddings(csv_path, report, report_path, embeddings):
    """Checks that labels were made from these embeddings."""
    if report is None:
        raise FileNotFoundError(
            f"{report_path} does not exist, so the embeddings of {csv_path} "
            "are unknown. Make the labels again."
        )
    found = report["labels"]["embeddings"]
    if found != embeddings:
        raise ValueError(
            f"{csv_path} was made from other embeddings ({found[:12]}...) "
            f"than the given ones ({embeddings[:12]}...). Make the labels "
            "again."
        )


def _check_training(csv_path, utterances, training, report, allow_missing):
    """Checks that labels belong to a training set."""
    mine = set(training.ids())
    labelled = set(utterances.ids())
    if unknown := labelled - mine:
        raise ValueError(
            f"{csv_path}: {len(unknown)} utterances are not in the training "
            f"set, e.g. {min(unknown)!r}. Make labels for this training set."
        )
    made = (report or {}).get("labels", {"utterances": 0, "labelled": 0})
    expected = made["utterances"] - made["labelled"]
    if len(mine - labelled) > expected and not allow_missing:
        raise ValueError(
            f"{csv_path}: {len(mine - labelled)} utterances of the training "
            f"set have no label, but {expected} when the labels were made; "
            f"one is {min(mine - labelled)!r}. Make labels for this training "
            "set, or set allow_missing to True."
        )


def _classes(csv_path, utterances):
    """Returns ``spk_id`` of each class, and the class of each utterance."""
    numbers = []
    for row in range(len(utterances)):
        text = utterances.row(row)[COLUMN]
        if not (text.isascii() and text.isdigit()):
            raise ValueError(
                f"{csv_path}: {COLUMN} of {utterances.row(row)['ID']!r} is "
                f"{text!r}; expected a whole number, 0 or more."
            )
        numbers.append(int(text))
    names, classes = np.unique(numbers, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"{csv_path}: all utterances have the {COLUMN} {names[0]}. "
            "Training needs at least two classes."
        )
    return names, classes.astype(np.int64)
