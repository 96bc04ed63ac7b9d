"""Speaker verification: trial lists, embeddings of whole files, metrics.

A trial list has one trial per line, ``label enrol test``, as VoxCeleb has it:

    1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav
    0 id10270/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav

The label is 1 or ``target`` for the same speaker, 0 or ``nontarget`` for
different speakers. Fields are parted by spaces, or by tabs if the first line
holds one; only then may paths contain spaces.
"""

import collections
import csv
import itertools
import json
import logging
import os
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ssl.dataio.embedding import embed_files
from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.files import write_whole

logger = logging.getLogger(__name__)

LABELS = {"0": 0, "nontarget": 0, "1": 1, "target": 1}
P_TARGETS = (0.01, 0.05)
LABEL_USE = (
    "The labels of the trial list were used to measure: EER, its threshold, "
    "minDCF and minCllr look for the best decision with them, actDCF and Cllr "
    "do not. Nothing was trained or calibrated on them."
)


class Trials(NamedTuple):
    """A trial list, with its files numbered.

    Arguments
    ---------
    files : list of str
        The files, as written in the list, sorted and unique [files].
    enrol : np.ndarray
        int64 index of the enrol file of each trial [trials].
    test : np.ndarray
        int64 index of the test file of each trial [trials].
    targets : np.ndarray
        uint8, 1 for target trials and 0 for non-target trials [trials].
    """

    files: list
    enrol: np.ndarray
    test: np.ndarray
    targets: np.ndarray


def read_trials(path):
    """Reads and checks a trial list.

    Arguments
    ---------
    path : str
        Text file of lines ``label enrol test``; blank lines are skipped.

    Returns
    -------
    Trials
        The trials, in the order of the list.

    Raises
    ------
    ValueError
        If a line has not three fields or an unknown label, if a trial stands
        in the list with both labels, or if targets or non-targets are
        missing; the message names file and line.
    """
    line_numbers, labels, enrol, test = _read_fields(path)
    targets = _targets(path, labels, line_numbers)
    files, (enrol, test) = _number([enrol, test])
    pairs = enrol * len(files) + test
    _check_duplicates(path, pairs, targets, line_numbers)
    return Trials(files, enrol, test, targets)


def trial_paths(trials, list_path, data_root=None):
    """Finds the audio files of a trial list.

    Relative paths start from ``data_root``. Without it they start from the
    folder of the list or, if the first file is not there, from the folder
    above it.

    Arguments
    ---------
    trials : Trials
        The trials.
    list_path : str
        The file that they were read from.
    data_root : str
        Folder that relative paths start from.

    Returns
    -------
    list of str
        Path of each file, in the order of ``trials.files``.

    Raises
    ------
    FileNotFoundError
        If any file is missing: how many, the first few, and the line of the
        list that names the first one.
    """
    root = data_root or _find_root(trials.files, list_path)
    paths = [os.path.join(root, file) for file in trials.files]
    missing = {
        file
        for file, path in zip(trials.files, paths)
        if not os.path.isfile(path)
    }
    if missing:
        line, first = _first_line_with(missing, list_path)
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} audio files of {list_path} are "
            f"missing below {root}: {_few(missing)} (the first one is "
            f"{first}, line {line}). Set data_root to the folder that the "
            "paths in the list start from."
        )
    return paths


def read_conditions(path):
    """Reads what is known of the recordings of a trial list.

    Arguments
    ---------
    path : str
        CSV file with the columns ``ID`` (a file, as the trial list names it)
        and ``condition`` (any word: a language, a device ...).

    Returns
    -------
    dict of str to str
        Condition by file.

    Raises
    ------
    ValueError
        If a column is missing, or a file is there with two conditions.
    """
    conditions = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames or []
        if not {"ID", "condition"} <= set(columns):
            raise ValueError(
                f"{path} has the columns {', '.join(columns)}; expected ID "
                "and condition."
            )
        for row in reader:
            name, condition = row["ID"], row["condition"]
            if conditions.setdefault(name, condition) != condition:
                raise ValueError(
                    f"{path}, line {reader.line_num}: {name!r} has the "
                    f"condition {condition!r}, but had "
                    f"{conditions[name]!r} before."
                )
    return conditions


def summarize_conditions(scores, trials, conditions):
    """Error rates of the trials of each condition.

    A trial of two conditions counts as ``first / second``, in alphabetical
    order.

    Arguments
    ---------
    scores : np.ndarray
        Score of each trial, higher for targets [trials].
    trials : Trials
        The trials.
    conditions : dict of str to str
        Condition by file.

    Returns
    -------
    dict of str to dict
        By condition: "EER" in percent (None without targets or without
        non-targets), "trials" and "targets".

    Raises
    ------
    ValueError
        If a file of the trials has no condition.

    Example
    -------
    >>> sides = np.array([0, 0]), np.array([1, 2])
    >>> trials = Trials(["a", "b", "c"], *sides, np.array([1, 0]))
    >>> words = {"a": "far", "b": "far", "c": "near"}
    >>> list(summarize_conditions(np.array([1.0, 0.0]), trials, words))
    ['far', 'far / near']
    """
    missing = {file for file in trials.files if file not in conditions}
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(trials.files)} files have no condition: "
            f"{_few(missing)}. Write them as the trial list does."
        )
    names, number = np.unique(
        [conditions[file] for file in trials.files], return_inverse=True
    )
    pair = np.sort([number[trials.enrol], number[trials.test]], axis=0)
    codes, place = np.unique(
        pair[0] * len(names) + pair[1], return_inverse=True
    )
    order = np.argsort(place, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(place))[:-1])
    found = {}
    for code, rows in zip(codes.tolist(), parts):
        pair = dict.fromkeys(names[list(divmod(code, len(names)))].tolist())
        targets = trials.targets[rows]
        hits = int(targets.sum())
        rate = None
        if 0 < hits < len(rows):
            rate = 100 * metrics.eer(scores[rows], targets)[0]
        found[" / ".join(pair)] = {
            "EER": rate,
            "trials": len(rows),
            "targets": hits,
        }
    return found


def summarize(scores, trials, groups="auto", are_llrs=False):
    """The metrics of one trial list.

    Arguments
    ---------
    scores : np.ndarray | torch.Tensor
        Score of each trial, higher for targets [trials].
    trials : Trials
        The trials.
    groups : str
        What the bootstrap draws: "folders" (the folder that holds a file,
        in most corpora a speaker or a recording of one), "files", or "auto":
        folders if there are at least two, with two files each on average.
    are_llrs : bool
        Whether the scores claim to be natural log-likelihood ratios, and
        shall be held to it.

    Returns
    -------
    dict
        "EER", its 95% interval "EER_low" and "EER_high" (all in percent),
        "minDCF_0.01", "minDCF_0.05" (normalised, named by p_target),
        "threshold" (of the EER), the numbers of "trials", "targets" and
        "files", and "bootstrap_over" ("folders" or "files"). Of ratios also
        "actDCF_0.01", "actDCF_0.05", "Cllr" and "minCllr" (bits).

    Raises
    ------
    ValueError
        If ``groups`` is none of the three, else as
        ``speechbrain_ssl.evaluation.metrics.error_rates``.
    """
    drawn, group = _groups(trials.files, groups)
    targets = trials.targets
    rate, threshold = metrics.eer(scores, targets)
    low, high = metrics.bootstrap(
        scores, targets, group[trials.enrol], group[trials.test]
    )
    costs = {
        f"minDCF_{p_target}": metrics.min_dcf(scores, targets, p_target)
        for p_target in P_TARGETS
    }
    if are_llrs:
        for p_target in P_TARGETS:
            cost = metrics.act_dcf(scores, targets, p_target)
            costs[f"actDCF_{p_target}"] = cost
        costs["Cllr"] = metrics.cllr(scores, targets)
        costs["minCllr"] = metrics.min_cllr(scores, targets)
    return {
        "EER": 100 * rate,
        "EER_low": 100 * low,
        "EER_high": 100 * high,
        **costs,
        "threshold": threshold,
        "trials": len(targets),
        "targets": int(targets.sum()),
        "files": len(trials.files),
        "bootstrap_over": drawn,
    }


def verify(
    embed,
    list_path,
    output_folder=None,
    data_root=None,
    cohort=None,
    top_n=300,
    sample_rate=16000,
    batch_seconds=120.0,
    device="cpu",
    progress=True,
    cache=None,
    back_ends=None,
    conditions=None,
    label_use=LABEL_USE,
):
    """Verifies an encoder on a trial list and keeps what it found.

    The folder ``output_folder/<name of the list>`` gets ``metrics.json``,
    ``scores.txt`` (lines ``label enrol test score``), ``embeddings.npy``
    (float32 [files, emb_dim]) and ``embeddings_ids.txt`` (a file per line);
    with a cohort also ``scores_as_norm.txt``, and one for each back end.

    Arguments
    ---------
    embed : Callable
        See ``embed_files``.
    list_path : str
        Trial list, see ``read_trials``.
    output_folder : str
        Where the folder of results is made; None writes nothing.
    data_root : str
        Folder that the paths in the list start from, see ``trial_paths``.
    cohort : torch.Tensor
        Embeddings of unlabelled utterances for AS-norm
        [cohort utterances, emb_dim].
    top_n : int
        Number of cohort scores that AS-norm uses.
    sample_rate : int
        The encoder's sample rate in Hz.
    batch_seconds : float
        Upper bound of the audio in a batch, in seconds.
    device : str | torch.device
        Where the encoder is.
    progress : bool
        Whether to show a progress bar.
    cache : dict
        Embeddings by path, used and added to: with one dict for several
        lists, a file that stands in many is embedded once.
    back_ends : dict of str to Callable
        Log-likelihood ratios to report as well, by name. A back end maps
        embeddings [files, emb_dim], paths of the files and Trials to ratios
        [trials].
    conditions : dict of str to str
        Condition by file, see ``summarize_conditions``; adds "conditions" to
        each summary.
    label_use : str
        What labels were used for.

    Returns
    -------
    dict
        The summary, see ``summarize``; with a cohort or back ends one summary
        for each of the keys "raw", "as_norm" and the names of the back ends.
        Beside them "label_use". The same stands in ``metrics.json``.

    Raises
    ------
    ValueError
        If the list, its audio or ``top_n`` is wrong.
    OSError
        If a file is missing or cannot be read.
    """
    trials = read_trials(list_path)
    paths = trial_paths(trials, list_path, data_root)
    if cohort is not None:
        scoring.check_top_n(top_n, len(cohort))
    cache = {} if cache is None else cache
    new = [path for path in paths if path not in cache]
    if new:
        rows = embed_files(
            embed, new, sample_rate, batch_seconds, device, progress
        )
        cache.update(zip(new, rows))
    embeddings = torch.stack([cache[path] for path in paths])
    scores = _score(embeddings, trials, cohort, top_n)
    back_ends = back_ends or {}
    for name, back_end in back_ends.items():
        scores[name] = back_end(embeddings, paths, trials)
    summary = {}
    for name, values in scores.items():
        found = summarize(values, trials, are_llrs=name in back_ends)
        if conditions is not None:
            found["conditions"] = summarize_conditions(
                values, trials, conditions
            )
        summary[name] = found
    if len(summary) == 1:
        summary = summary["raw"]
    summary = {**summary, "label_use": label_use}
    if output_folder is not None:
        folder = results_folder(output_folder, list_path)
        _write_results(folder, summary, scores, trials, embeddings.numpy())
    return summary


def results_folder(output_folder, list_path):
    """Where ``verify`` writes the results of a list.

    Arguments
    ---------
    output_folder : str
        The folder given to ``verify``.
    list_path : str
        The trial list.

    Returns
    -------
    str
        A folder with the name of the list.

    Example
    -------
    >>> results_folder("results", "lists/vox1_O.txt").replace(os.sep, "/")
    'results/vox1_O'
    """
    stem = os.path.splitext(os.path.basename(list_path))[0]
    return os.path.join(output_folder, stem)


def _read_fields(path):
    """Numbers of the lines that are not blank, and their three fields.

    Lines are split all at once, as 580,000 small lists would take seconds.
    """
    text = _read_text(path)
    first = next(filter(None, map(str.strip, text.split("\n"))), "")
    separator = "\t" if "\t" in first else " "
    if separator == " ":
        text = text.replace("\t", " ")
    # not splitlines(), which also splits at rarer characters
    lines = [line.strip() for line in text.split("\n")]
    line_numbers = [number for number, line in enumerate(lines, 1) if line]
    lines = list(filter(None, lines))
    for row, line in enumerate(lines):
        if line.count(separator) != 2 or 2 * separator in line:
            fields = _three_fields(path, line_numbers[row], line, separator)
            lines[row] = separator.join(fields)
    fields = separator.join(lines).split(separator)
    if not lines:
        raise ValueError(
            f"{path} holds no trials. Expected lines `label enrol test`."
        )
    return line_numbers, fields[0::3], fields[1::3], fields[2::3]


def _read_text(path):
    """The text of a list, without a byte order mark."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no trial list: expected UTF-8 text, found {error}"
        ) from error


def _three_fields(path, line_number, line, separator):
    """The fields of an unusual line, or a clear ValueError."""
    fields = line.split(None if separator == " " else separator)
    if len(fields) != 3 or not all(fields):
        raise ValueError(
            f"{path}, line {line_number}: expected 3 fields `label enrol "
            f"test`, found {len(fields)}: {fields}. Fields are parted by "
            "spaces, or by tabs if the first line holds one; paths with "
            "spaces need tabs."
        )
    return fields


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


def _targets(path, labels, line_numbers):
    """Labels as 0 and 1, both present."""
    unknown = 2
    targets = np.fromiter(
        (LABELS.get(label, unknown) for label in labels), np.uint8, len(labels)
    )
    wrong = np.flatnonzero(targets == unknown)
    if len(wrong):
        raise ValueError(
            f"{path}, line {line_numbers[wrong[0]]}: expected a label of "
            f"{', '.join(LABELS)} in the first field, found "
            f"{labels[wrong[0]]!r}."
        )
    if targets.min() == targets.max():
        raise ValueError(
            f"{path} holds {int(targets.sum())} target and "
            f"{int((1 - targets).sum())} non-target trials. Error rates need "
            "both."
        )
    return targets


def _check_duplicates(path, pairs, targets, line_numbers):
    """Refuses a pair of files with both labels, warns of one given twice.

    Published lists are drawn at random and may repeat a trial; leaving it out
    would give other figures than the published ones.
    """
    order = np.argsort(pairs, kind="stable")
    same = np.flatnonzero(np.diff(pairs[order]) == 0)
    if not len(same):
        return
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


def _find_root(files, list_path):
    """The folder of the list, or the one above if the first file is there."""
    folder = os.path.dirname(os.path.abspath(list_path))
    above = os.path.dirname(folder)
    first = next((file for file in files if not os.path.isabs(file)), "")
    is_here = os.path.isfile(os.path.join(folder, first))
    is_above = os.path.isfile(os.path.join(above, first))
    return above if is_above and not is_here else folder


def _first_line_with(files, list_path):
    """Number of the first line that names one of the files, and that file."""
    line_numbers, _, enrol, test = _read_fields(list_path)
    for number, *pair in zip(line_numbers, enrol, test):
        for file in pair:
            if file in files:
                return number, file


def _groups(files, groups):
    """What the bootstrap draws, and the number of each file's group."""
    if groups not in ("auto", "folders", "files"):
        raise ValueError(
            "Expected groups to be 'auto', 'folders' or 'files', found "
            f"{groups!r}."
        )
    folders, index = np.unique(
        [os.path.dirname(file) for file in files], return_inverse=True
    )
    if groups == "auto":
        many = len(folders) >= 2 and len(files) >= 2 * len(folders)
        groups = "folders" if many else "files"
    return groups, index if groups == "folders" else np.arange(len(files))


def _score(embeddings, trials, cohort, top_n):
    """Scores by name: "raw" and, with a cohort, "as_norm"."""
    sides = trials.enrol, trials.test
    scores = {"raw": scoring.cosine_scores(embeddings, *sides)}
    if cohort is not None:
        scores["as_norm"] = scoring.as_norm(
            scores["raw"], *sides, embeddings, cohort, top_n
        )
    return scores


def _write_results(folder, summary, scores, trials, embeddings):
    """Writes all files of one list; the metrics last, as sign of success."""
    with write_whole(os.path.join(folder, "embeddings_ids.txt")) as file:
        file.writelines(f"{name}\n" for name in trials.files)
    with write_whole(os.path.join(folder, "embeddings.npy"), "wb") as file:
        np.save(file, embeddings)
    for name, values in scores.items():
        stem = "scores" if name == "raw" else f"scores_{name}"
        with write_whole(os.path.join(folder, f"{stem}.txt")) as file:
            file.write(_score_lines(trials, values))
    with write_whole(os.path.join(folder, "metrics.json")) as file:
        json.dump(summary, file, indent=2, allow_nan=False)


def _score_lines(trials, scores):
    """Lines ``label enrol test score``, parted by tabs as paths may hold spaces."""
    files = trials.files
    return "".join(
        f"{label}\t{files[enrol]}\t{files[test]}\t{score:.9g}\n"
        for label, enrol, test, score in zip(
            trials.targets.tolist(),
            trials.enrol.tolist(),
            trials.test.tolist(),
            scores.tolist(),
        )
    )


def _few(names):
    """The first three names in order, for messages."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
