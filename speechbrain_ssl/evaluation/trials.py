"""Trial lists in the layouts of VoxCeleb, Kaldi, CN-Celeb and VoxSRC.

A list has one trial per line. Its layout is found out:

    1 id10270/a.wav id10300/b.wav               VoxCeleb: label, enrol, test
    id10270/a.wav id10300/b.wav target          Kaldi, wespeaker, CN-Celeb
    id10270/a.wav id10300/b.wav                 VoxSRC: without labels

Labels are 1, ``target`` or ``tgt``; 0, ``nontarget`` or ``imp``. Fields are
separated by spaces, or by tabs if the first line holds one; names with spaces
need tabs. All lines have the same layout.

An enrol or test name is an audio file, or a model in a map file with lines
``model file1 file2 ...`` (Kaldi's spk2utt; with one file each, its wav.scp).
"""

import collections
import concurrent.futures
import filecmp
import itertools
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from speechbrain_ssl.dataio import audio, kaldi
from speechbrain_ssl.files import read_text

logger = logging.getLogger(__name__)

LABELS = {
    "0": 0,
    "nontarget": 0,
    "non-target": 0,
    "impostor": 0,
    "imposter": 0,
    "imp": 0,
    "1": 1,
    "target": 1,
    "tgt": 1,
}
LABEL_FIRST = "label enrol test"
LABEL_LAST = "enrol test label"
NO_LABEL = "enrol test"


class Trials(NamedTuple):
    """A trial list, with its names numbered."""

    # the names of both sides, sorted and unique [names]: files or models
    files: list[str]
    enrol: np.ndarray  # int64 index of the enrol name of each trial [trials]
    test: np.ndarray  # int64 index of the test name of each trial [trials]
    # uint8, 1 for target trials and 0 for non-target trials [trials]; None if
    # the list has no labels
    targets: np.ndarray | None
    layout: str = LABEL_FIRST  # order of the fields in the list

    def take(self, kept: np.ndarray) -> "Trials":
        """The trials where ``kept`` is True [trials], with all names."""
        labels = None if self.targets is None else self.targets[kept]
        return self._replace(
            enrol=self.enrol[kept], test=self.test[kept], targets=labels
        )


def read_trials(
    path: str, need_labels: bool = False, need_both: bool = True
) -> Trials:
    """Reads and checks a trial list, in the order of its lines.

    Blank lines are skipped. ``need_labels`` refuses a list without labels,
    ``need_both`` one whose labels are all the same. An error names file and
    line: of different layouts, an unknown label or a trial with both labels.
    """
    line_numbers, columns = _read_fields(path)
    layout = _layout(path, line_numbers, columns)
    if need_labels and layout == NO_LABEL:
        raise ValueError(
            f"{path} has no labels (its lines are `{NO_LABEL}`), which error "
            f"rates need. Give a list with lines `{LABEL_FIRST}` or "
            f"`{LABEL_LAST}`."
        )
    named = dict(zip(layout.split(), columns))
    files, (enrol, test) = _number([named["enrol"], named["test"]])
    targets = None
    if "label" in named:
        targets = _targets(path, named["label"], need_both)
    pairs = enrol * len(files) + test
    _check_duplicates(path, pairs, targets, line_numbers)
    if targets is not None:
        low, high = np.minimum(enrol, test), np.maximum(enrol, test)
        _check_orders(path, low * len(files) + high, targets, line_numbers)
    return Trials(files, enrol, test, targets, layout)


def read_models(paths: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads which files each model is made of, from one or more map files.

    Fields are separated as in trial lists. A file may itself be a model of
    another line: spk2utt and wav.scp of Kaldi together lead from speakers to
    files. A model without a file or on two lines, a command (a pipe of Kaldi),
    and models that are made of each other are errors.
    """
    models: dict[str, tuple[str, ...]] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        for number, line, separator in _lines(read_text(path, "trial list")):
            name, *files = _split(line, separator)
            place = f"{path}, line {number}"
            if not files or not all(files):
                raise ValueError(
                    f"{place}: expected `model file1 file2 ...`, found "
                    f"{line!r}."
                )
            kaldi.add_line(models, name, files, place)
    if not models:
        raise ValueError(f"{paths} holds no lines `model file1 file2 ...`.")
    return {name: _files_of(name, models) for name in models}


def parts_of(
    trials: Trials, models: Mapping[str, tuple[str, ...]] | None = None
) -> list[tuple[str, ...]]:
    """Audio files that each name of a trial list stands for [names].

    ``models`` is what ``read_models`` gives; files are as written in list or
    map.
    """
    models = models or {}
    return [models.get(name, (name,)) for name in trials.files]


def trial_paths(
    trials: Trials,
    list_path: str,
    data_root: str | None = None,
    models: Mapping[str, tuple[str, ...]] | None = None,
) -> list[str]:
    """Finds the audio files of a trial list.

    Relative paths start from ``data_root``. Without it they start from the
    folder of the list or, if the first file is not there, from the folder above
    it. ``models`` is what ``read_models`` gives. Paths are sorted by name and
    not repeated. If files are missing, the message counts them and names the
    line of the first one.
    """
    parts = parts_of(trials, models)
    files = sorted(set(itertools.chain(*parts)))
    root = data_root or _find_root(files, list_path)
    paths = [audio.place(root, file) for file in files]
    missing = {file for file, path in zip(files, paths) if path is None}
    if missing:
        names = {
            name
            for name, own in zip(trials.files, parts)
            if not missing.isdisjoint(own)
        }
        line, first = _first_line_with(names, trials.layout, list_path)
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} audio files of {list_path} are "
            f"missing below {root}: {few(missing)} (the first one is "
            f"{first}, line {line}). Relative paths start from data_root of "
            "verify.yaml or, without it, from the folder of the list or the "
            "one above it. Names of models need a map file (enrolment of "
            "verify.yaml)."
        )
    return [path for path in paths if path is not None]


def known_files(paths: Collection[str], others: Iterable[str]) -> set[str]:
    """Finds files of a trial list in a cohort or a training set.

    A file is found there if it is the same file (also through a link), or a
    copy with the same name. Copies with another name are not found: all audio
    would have to be read. ``others`` are files of the cohort or training set;
    missing ones are passed over.
    """
    places, copies = {}, collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(_stat, paths)):
            if found:
                places[found.st_dev, found.st_ino] = path
                name = os.path.basename(path)
                copies[name, found.st_size].append(path)
        known = set()
        others = list(dict.fromkeys(others))
        for other, found in zip(others, pool.map(_stat, others)):
            if not found:
                continue
            if path := places.get((found.st_dev, found.st_ino)):
                known.add(path)
            key = os.path.basename(other), found.st_size
            for path in copies.get(key, ()):
                # stops at the first difference
                if path not in known and filecmp.cmp(path, other, False):
                    known.add(path)
    return known


def few(names: Collection[str]) -> str:
    """The first three names in order, for messages."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _stat(path):
    """What the file system knows about a file, None if it is not there."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _lines(text):
    """Number, text and separator of the lines that are not blank."""
    first = next(filter(None, map(str.strip, text.split("\n"))), "")
    separator = "\t" if "\t" in first else " "
    if separator == " ":
        text = text.replace("\t", " ")
    # not splitlines(), which also splits at rarer characters
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    return [(number, line, separator) for number, line in lines if line]


def _split(line, separator):
    """Fields of a line, whatever the number of spaces between them."""
    return line.split(None if separator == " " else separator)


def _read_fields(path):
    """Numbers of the lines that are not blank, and their columns.

    Lines are split all at once, as 580,000 small lists would take seconds.
    """
    text = read_text(path, "trial list")
    if width := _regular_width(text):
        fields = text.split()
        columns = [fields[place::width] for place in range(width)]
        return range(1, len(columns[0]) + 1), columns
    lines = _lines(text)
    if not lines:
        raise ValueError(
            f"{path} holds no trials. Expected lines `{LABEL_FIRST}`, "
            f"`{LABEL_LAST}` or `{NO_LABEL}`."
        )
    for number, line, _ in lines:
        if line.startswith("# "):
            raise ValueError(
                f"{path}, line {number}: trial lists have no comments, found "
                f"{line!r}. Delete the line."
            )
    line_numbers, lines, separators = zip(*lines)
    separator, lines = separators[0], list(lines)
    width = len(_split(lines[0], separator))
    expected = f"{width} fields as on line {line_numbers[0]}"
    if width not in (2, 3):
        width, expected = 3, f"`{LABEL_FIRST}` or `{LABEL_LAST}`, 3 fields"
    for row, line in enumerate(lines):
        if line.count(separator) != width - 1 or 2 * separator in line:
            fields = _split(line, separator)
            if len(fields) != width or not all(fields):
                raise ValueError(
                    f"{path}, line {line_numbers[row]}: expected {expected}, "
                    f"found {len(fields)}: {fields}. Fields are separated by "
                    "spaces, or by tabs if the first line holds one; names "
                    "with spaces need tabs."
                )
            lines[row] = separator.join(fields)
    fields = separator.join(lines).split(separator)
    return line_numbers, [fields[place::width] for place in range(width)]


def _regular_width(text):
    """Number of fields of each line, or 0 if they need a closer look.

    Nearly all lists are ASCII with 2 or 3 fields on each line, one space
    between them and nothing else. Their bytes are checked all at once.
    """
    width = text.partition("\n")[0].count(" ") + 1
    if not (
        width in (2, 3)
        and text.isascii()
        and text.endswith("\n")
        and not text.startswith("# ")
        and "\n# " not in text
    ):
        return 0
    data = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    ends = np.flatnonzero(data <= ord(" "))  # of fields
    expected = np.frombuffer(b"  "[: width - 1] + b"\n", dtype=np.uint8)
    if len(ends) % width or ends[0] == 0 or np.diff(ends).min() < 2:
        return 0
    found = data[ends].reshape(-1, width)
    return width if (found == expected).all() else 0


def _layout(path, line_numbers, columns):
    """The order of the fields, the same on all lines."""
    ends = columns[0], columns[-1]
    # few different labels, many lines
    first, last = (
        all(field.casefold() in LABELS for field in set(column))
        for column in ends
    )
    if len(columns) == 2:
        if first or last:
            raise ValueError(
                f"{path}, line {line_numbers[0]}: expected 3 fields "
                f"`{LABEL_FIRST}`, found 2: a label and one name."
            )
        return NO_LABEL
    if first and last:
        raise ValueError(
            f"{path}, line {line_numbers[0]}: the first and the last field of "
            "each line could be its label. Rename the models, or give a list "
            f"with lines `{LABEL_FIRST}` and labels target and nontarget."
        )
    if first != last:
        return LABEL_FIRST if first else LABEL_LAST
    rows = [
        tuple(field.casefold() in LABELS for field in pair)
        for pair in zip(*ends)
    ]
    # the first line with one label says where the others should have theirs
    model = next((row for row in rows if row[0] != row[1]), None)
    wrong, at, place = 0, 0, "the first or the last field"
    if model is not None:
        at = model.index(True)
        wrong = next(number for number, row in enumerate(rows) if not row[at])
        line = line_numbers[rows.index(model)]
        place = f"the {('first', 'last')[at]} field, as on line {line}"
    fields = [column[wrong] for column in columns]
    hint = " Delete the line if it is a header." if wrong == 0 else ""
    raise ValueError(
        f"{path}, line {line_numbers[wrong]}: expected a label of "
        f"{', '.join(LABELS)} in {place}, found {fields[-at]!r} in "
        f"{' '.join(fields)!r}.{hint}"
    )


def _number(columns):
    """Sorted unique names, and each column as indices into them."""
    seen = collections.defaultdict(itertools.count().__next__)
    columns = [
        np.fromiter(map(seen.__getitem__, column), np.int64, len(column))
        for column in columns
    ]
    names = sorted(seen)
    rank = np.empty(len(names), dtype=np.int64)
    rank[[seen[name] for name in names]] = np.arange(len(names))
    return names, [rank[column] for column in columns]


def _targets(path, labels, need_both):
    """Labels as 0 and 1."""
    values = {label: LABELS[label.casefold()] for label in set(labels)}
    targets = np.fromiter(map(values.get, labels), np.uint8, len(labels))
    if need_both and targets.min() == targets.max():
        raise ValueError(
            f"{path} holds {int(targets.sum())} target and "
            f"{int((1 - targets).sum())} non-target trials. Error rates need "
            "both."
        )
    return targets


def _check_duplicates(path, pairs, targets, line_numbers):
    """Refuses a pair of names with both labels, warns of one given twice.

    Published lists are drawn at random and may repeat a trial; leaving it out
    would give other figures than the published ones.
    """
    order = np.argsort(pairs, kind="stable")
    same = np.flatnonzero(np.diff(pairs[order]) == 0)
    if not len(same):
        return
    torn = same[:0]
    if targets is not None:
        torn = same[np.diff(targets[order].astype(int))[same] != 0]
    first = (torn if len(torn) else same)[0]
    lines = line_numbers[order[first]], line_numbers[order[first + 1]]
    place = f"{path}: lines {lines[0]} and {lines[1]} are the same trial"
    if len(torn):
        raise ValueError(f"{place} with different labels. Correct one.")
    logger.warning(
        "%s; %d lines repeat an earlier trial and count again.",
        place,
        len(same),
    )


def _check_orders(path, pairs, targets, line_numbers):
    """Warns of pairs of names that are targets in one order only."""
    order = np.lexsort([targets, pairs])
    same = np.diff(pairs[order]) == 0
    torn = np.flatnonzero(same & (np.diff(targets[order].astype(int)) != 0))
    if len(torn):
        lines = sorted(line_numbers[order[torn[0] + n]] for n in (0, 1))
        logger.warning(
            "%s: lines %d and %d are one pair of names in both orders, with "
            "different labels; there are %d such pairs. Correct one line of "
            "each.",
            path,
            *lines,
            len(torn),
        )


def _files_of(name, models, above=()):
    """The files of a model, through models that it is made of."""
    files = []
    for part in models[name]:
        if part in above:
            raise ValueError(
                f"The map files contain a loop: model {part!r} is made of "
                f"{name!r}, which is made of {part!r}."
            )
        # a model may have the name of its file
        if part in models and part != name:
            files += _files_of(part, models, (name, *above))
        else:
            files.append(part)
    return tuple(files)


def _find_root(files, list_path):
    """The folder of the list, or the one above if the first file is there."""
    folder = os.path.dirname(os.path.abspath(list_path))
    above = os.path.dirname(folder)
    first = next((file for file in files if not os.path.isabs(file)), "")
    is_here = audio.place(folder, first)
    is_above = audio.place(above, first)
    return above if is_above and not is_here else folder


def _first_line_with(names, layout, list_path):
    """Number of the first line with one of the names, and that name."""
    line_numbers, columns = _read_fields(list_path)
    named = dict(zip(layout.split(), columns))
    for number, *pair in zip(line_numbers, named["enrol"], named["test"]):
        for name in pair:
            if name in names:
                return number, name
