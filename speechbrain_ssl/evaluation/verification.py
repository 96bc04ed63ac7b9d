"""Speaker verification: scores and error rates of an encoder on a trial list."""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from speechbrain_ssl.dataio import faces
from speechbrain_ssl.dataio.annotations import read_by_id
from speechbrain_ssl.dataio.embedding import describe, try_files
from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.evaluation.fusion import read_same
from speechbrain_ssl.evaluation.trials import (
    Trials,
    few,
    known_files,
    parts_of,
    read_trials,
    trial_paths,
)
from speechbrain_ssl.files import write_whole

logger = logging.getLogger(__name__)

P_TARGETS = (0.01, 0.05)
# lines of scores that are written at once
LINES_PER_PIECE = 8192
# kinds of scores, in the order of reports
KINDS = ("raw", "as_norm", "plda", "calibrated")
LABEL_USE = (
    "The labels of the trial list were used to measure: EER, its threshold, "
    "minDCF and minCllr look for the best decision with them, actDCF and Cllr "
    "do not. Nothing was trained or calibrated on them."
)
NO_LABELS = "The trial list has no labels: there are scores and no error rates."


class CachedFile(NamedTuple):
    """An embedding in the cache of ``verify``."""

    row: torch.Tensor  # the embedding [emb_dim]
    windowed: bool  # whether the file is long and was embedded in windows
    silence: float  # seconds of digital silence that were left out


def read_conditions(path: str) -> dict[str, str]:
    """Reads the recording condition of each file of a trial list.

    The CSV has the columns ``ID`` (a file, as the trial list names it) and
    ``condition`` (any word, for instance a language or a device).
    """
    conditions = {}
    for name, condition, line in read_by_id(path, "condition"):
        if conditions.setdefault(name, condition) != condition:
            raise ValueError(
                f"{path}, line {line}: {name!r} has the condition "
                f"{condition!r}, but had {conditions[name]!r} before."
            )
    return conditions


def summarize_conditions(
    scores: np.ndarray, trials: Trials, conditions: Mapping[str, str]
) -> dict[str, dict]:
    """Error rates of the trials of each condition.

    A trial of two conditions counts as ``first / second``, in alphabetical
    order. By condition there are "EER" in percent (None without targets or
    without non-targets), "trials" and "targets".

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
            f"{few(missing)}. Write them as the trial list does."
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
    labels: Any = trials.targets
    found = {}
    for code, rows in zip(codes.tolist(), parts):
        two = dict.fromkeys(names[list(divmod(code, len(names)))].tolist())
        targets = labels[rows]
        hits = int(targets.sum())
        rate = None
        if 0 < hits < len(rows):
            rate = 100 * metrics.eer(scores[rows], targets)[0]
        found[" / ".join(two)] = {
            "EER": rate,
            "trials": len(rows),
            "targets": hits,
        }
    return found


def summarize(
    scores: np.ndarray | torch.Tensor,
    trials: Trials,
    are_llrs: bool = False,
    costs: tuple[float, float] = (1.0, 1.0),
) -> dict:
    """The metrics of one trial list.

    Arguments
    ---------
    scores : np.ndarray | torch.Tensor
        Score of each trial, higher for targets [trials].
    trials : Trials
        The trials.
    are_llrs : bool
        Whether the scores are natural log-likelihood ratios, whose
        calibration is measured too.
    costs : tuple of float
        Costs of a miss and of a false alarm in the minDCF; others than 1 are
        in the summary as "c_miss" and "c_fa".

    Returns
    -------
    dict
        "EER", its 95% interval "EER_low" and "EER_high" (all in percent),
        "minDCF_0.01", "minDCF_0.05" (normalized, named by p_target),
        "threshold" (of the EER), the numbers of "trials", "targets" and
        "files", and "bootstrap_over": "folders" (the folder that holds a file,
        in most corpora a speaker or a recording of one) if there are at least
        two, with two files each on average, or "files". Of ratios also
        "actDCF_0.01", "actDCF_0.05", "Cllr" and "minCllr" (bits). Without
        trials of both labels only "trials" and "files", and an "EER" of None.

    Raises
    ------
    ValueError
        As ``speechbrain_ssl.evaluation.metrics.error_rates``.
    """
    drawn, group = _groups(trials.files)
    targets, files = trials.targets, len(trials.files)
    if targets is None or targets.min() == targets.max():
        return {"EER": None, "trials": len(trials.enrol), "files": files}
    points = metrics.error_rates(scores, targets)
    rate, threshold = metrics.eer_at(points)
    low, high = metrics.bootstrap(
        scores, targets, group[trials.enrol], group[trials.test]
    )
    found = {
        f"minDCF_{p_target}": metrics.min_dcf_at(points, p_target, *costs)
        for p_target in P_TARGETS
    }
    if tuple(costs) != (1.0, 1.0):
        found["c_miss"], found["c_fa"] = costs
    if are_llrs:
        for p_target in P_TARGETS:
            cost = metrics.act_dcf(scores, targets, p_target)
            found[f"actDCF_{p_target}"] = cost
        found["Cllr"] = metrics.cllr(scores, targets)
        found["minCllr"] = metrics.min_cllr(scores, targets)
    return {
        "EER": 100 * rate,
        "EER_low": 100 * low,
        "EER_high": 100 * high,
        **found,
        "threshold": threshold,
        "trials": len(targets),
        "targets": int(targets.sum()),
        "files": files,
        "bootstrap_over": drawn,
    }


def compare(before: str, after: str) -> dict[str, float]:
    """The difference of the EERs of two models on one list.

    ``before`` and ``after`` are folders of the list, as ``verify`` writes them
    for each model. Gives "difference" (EER after minus EER before, in points)
    and its 95 % interval "low" and "high", from a bootstrap that draws the same
    groups for both models. Scores of other trials, or without labels, are an
    error.
    """
    trials, scores = read_same(
        [os.path.join(folder, "scores.txt") for folder in (before, after)]
    )
    if trials.targets is None:
        raise ValueError(f"The scores of {before} have no labels.")
    _, group = _groups(trials.files)
    old, new = scores.T
    first, last = (metrics.eer(own, trials.targets)[0] for own in (old, new))
    low, high = metrics.bootstrap_difference(
        old, new, trials.targets, group[trials.enrol], group[trials.test]
    )
    found = {"difference": last - first, "low": low, "high": high}
    return {key: 100 * value for key, value in found.items()}


def verify(
    embed: Callable,
    list_path: str,
    output_folder: str | None = None,
    data_root: str | None = None,
    cohort: torch.Tensor | None = None,
    top_n: int = 300,
    sample_rate: int = 16000,
    batch_seconds: float = 120.0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    cache: dict | None = None,
    back_ends: Mapping[str, Callable] | None = None,
    conditions: Mapping[str, str] | None = None,
    label_use: str = LABEL_USE,
    models: Mapping[str, tuple[str, ...]] | None = None,
    strict: bool = True,
    known: Mapping[str, Iterable[str]] | None = None,
    scorers: Mapping[str, Callable] | None = None,
    costs: tuple[float, float] = (1.0, 1.0),
    norms: Sequence[str] = ("as_norm",),
    face_size: int | None = None,
) -> dict:
    """Verifies an encoder on a trial list and keeps what it found.

    The folder ``output_folder/<name of the list>`` gets ``metrics.json``,
    ``scores.txt`` (lines ``label enrol test score``; without labels ``enrol
    test score``), ``embeddings.npy`` (float32 [names, emb_dim]) and
    ``embeddings_ids.txt`` (a name per line); with a cohort also
    ``scores_as_norm.txt`` (one for each norm), and one for each back end.

    Arguments
    ---------
    embed : Callable
        See ``dataio.embedding.try_files``.
    list_path : str
        Trial list, see ``read_trials``.
    output_folder : str
        Where the folder of results is made; None writes nothing.
    data_root : str
        Folder that the paths in the list start from, see ``trial_paths``.
    cohort : torch.Tensor
        Embeddings of unlabelled utterances for the normalization
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
    cache : dict of str to CachedFile
        Embeddings by path, used and added to: with one dict for several
        lists, a file that is in many is embedded once.
    back_ends : dict of str to Callable
        Log-likelihood ratios to report as well, by kind. A back end maps
        embeddings [names, emb_dim], paths of the files of each name and
        Trials to ratios [trials].
    conditions : dict of str to str
        Condition by file, see ``summarize_conditions``; adds "conditions" to
        each summary.
    label_use : str
        What labels were used for.
    models : dict of str to tuple of str
        Files of the names that stand for several files, see ``read_models``.
        Their embedding is the mean of the files' embeddings of length 1,
        times the mean length of these.
    strict : bool
        Whether a file that cannot be embedded is an error. Otherwise its
        trials are left out, with a warning and "left_out" in the summary.
    known : dict of str to iterable of str
        Files that should not be in the list, by what they are: "cohort",
        "training set". Those that are get a warning, see ``known_files``, and
        "known_files" in the summary has their numbers.
    scorers : dict of str to Callable
        More scores that are no log-likelihood ratios, by kind, called as
        ``back_ends`` are; each kind is one more key of the summary. Trials
        with the score NaN are left out; "without_score" has their number.
    costs : tuple of float
        Costs of a miss and of a false alarm in the minDCF.
    norms : tuple of str
        Normalizations with the cohort, see
        ``speechbrain_ssl.evaluation.scoring.normalize``.
    face_size : int
        Height and width of the images of a face encoder, for which the list
        names images, videos, or audio with a face beside it (see
        ``speechbrain_ssl.dataio.faces.face_of``); None: a voice encoder.

    Returns
    -------
    dict
        The summaries of "raw", "as_norm", "plda" and "calibrated" scores, see
        ``summarize``; None for kinds that were not asked for. Other norms
        and scorers are more keys. Beside them
        "label_use" and, where there were such files, "audio" with the numbers
        of long files and of files with digital silence. The same is in
        ``metrics.json``.

    Raises
    ------
    ValueError
        If the list, its audio or ``top_n`` is wrong.
    OSError
        If a file is missing or cannot be read.
    """
    trials = read_trials(list_path)
    paths = trial_paths(trials, list_path, data_root, models)
    if cohort is not None:
        count = top_n if "as_norm" in norms else len(cohort)
        scoring.check_top_n(count, len(cohort))
    numbers = _warn_of_known(list_path, paths, known or {})
    cache = {} if cache is None else cache
    settings = sample_rate, batch_seconds, device, progress
    failed = _fill(cache, embed, paths, settings, face_size, strict)
    parts = parts_of(trials, models)
    files = sorted(set(itertools.chain.from_iterable(parts)))
    by_file = dict(zip(files, paths))
    parts = [tuple(map(by_file.__getitem__, own)) for own in parts]
    trials, parts, left_out = _leave_out(trials, parts, failed, list_path)
    embeddings = torch.stack(
        [scoring.model_of([cache[p].row for p in own]) for own in parts]
    )
    scores = _score(embeddings, trials, cohort, top_n, norms)
    back_ends = back_ends or {}
    for name, back_end in {**back_ends, **(scorers or {})}.items():
        scores[name] = back_end(embeddings, parts, trials)
    summary = dict.fromkeys(KINDS)
    scored = {name: _scored(trials, x) for name, x in scores.items()}
    for name, (part, values) in scored.items():
        found = summarize(values, part, are_llrs=name in back_ends, costs=costs)
        if len(part.enrol) < len(trials.enrol):
            found["without_score"] = len(trials.enrol) - len(part.enrol)
        if conditions is not None and trials.targets is not None:
            found["conditions"] = summarize_conditions(values, part, conditions)
        summary[name] = found
    no_labels = trials.targets is None
    summary["label_use"] = NO_LABELS if no_labels else label_use
    if audio := _audio(cache, paths, list_path):
        summary["audio"] = audio
    if any(numbers.values()):
        summary["known_files"] = numbers
    if left_out:
        summary["left_out"] = left_out
    if output_folder is not None:
        folder = results_folder(output_folder, list_path)
        _write_results(folder, summary, scored, trials, embeddings.numpy())
    return summary


def _fill(cache, embed, paths, settings, face_size, strict):
    """Embeds the files that are not in the cache; gives reasons of failures."""
    new = [path for path in paths if path not in cache]
    if not new:
        return {}
    if face_size is not None:
        images = [faces.face_of(path) for path in new]
        _, _, device, _ = settings
        found = faces.try_faces(embed, images, face_size, device)
    else:
        found = try_files(embed, new, *settings, strict=strict)
    if strict and found.failed:
        raise found.failed[min(found.failed)]
    for n, path in enumerate(new):
        if n not in found.failed:
            silence = found.silence.get(n, 0.0)
            cache[path] = CachedFile(
                found.rows[n], n in found.windowed, silence
            )
    return {new[n]: str(error) for n, error in found.failed.items()}


def _audio(cache, paths, list_path):
    """Numbers of long files and of files with silence; None without such."""
    facts = [cache[path] for path in paths if path in cache]
    seconds = [fact.silence for fact in facts if fact.silence]
    windowed = sum(fact.windowed for fact in facts)
    for line in describe(windowed, len(seconds), sum(seconds)):
        logger.info("%s: %s", list_path, line)
    if not windowed and not seconds:
        return None
    return {
        "windowed": windowed,
        "with_silence": len(seconds),
        "silence_seconds": round(sum(seconds), 1),
    }


def score_lines(
    trials: Trials, scores: np.ndarray | torch.Tensor
) -> Iterator[str]:
    """Text of a file of scores in pieces of many lines.

    Fields are separated by tabs, for names with spaces. Lines are ``label
    enrol test score``; without labels the first field is missing.
    """
    names = np.array([f"{file}\t" for file in trials.files], dtype=object)
    words = np.array(["0\t", "1\t"], dtype=object)
    scores = np.asarray(scores)
    for start in range(0, len(scores), LINES_PER_PIECE):
        part = slice(start, start + LINES_PER_PIECE)
        columns = [
            names[trials.enrol[part]].tolist(),
            names[trials.test[part]].tolist(),
            [f"{score:.9g}\n" for score in scores[part].tolist()],
        ]
        if trials.targets is not None:
            columns.insert(0, words.take(trials.targets[part]).tolist())
        yield "".join(itertools.chain.from_iterable(zip(*columns)))


def results_folder(output_folder: str, list_path: str) -> str:
    """Where ``verify`` writes the results of a list: a folder of its name.

    Example
    -------
    >>> results_folder("results", "lists/vox1_O.txt").replace(os.sep, "/")
    'results/vox1_O'
    """
    stem = os.path.splitext(os.path.basename(list_path))[0]
    return os.path.join(output_folder, stem)


def _warn_of_known(list_path, paths, known):
    """Numbers of the files of a list that are elsewhere too."""
    numbers = {}
    for where, others in known.items():
        found = known_files(paths, others)
        numbers[where] = len(found)
        if found:
            logger.warning(
                "%s: %d of %d files are in the %s too, for instance %s. The "
                "error rates are not those of unknown recordings.",
                list_path,
                len(found),
                len(paths),
                where,
                min(found),
            )
    return numbers


def _leave_out(trials, parts, failed, list_path):
    """Trials without those of files that failed, and what was left out.

    A model loses the files that failed, and is kept if it has others.
    """
    if not failed:
        return trials, parts, None
    parts = [tuple(path for path in own if path not in failed) for own in parts]
    kept = np.array([bool(own) for own in parts])
    rows = kept[trials.enrol] & kept[trials.test]
    place = np.cumsum(kept) - 1
    path, reason = next(iter(failed.items()))
    logger.warning(
        "%s: %d of %d trials are left out, because %d files cannot be "
        "embedded. The first one: %s",
        list_path,
        (~rows).sum(),
        len(rows),
        len(failed),
        reason,
    )
    if not rows.any():
        raise ValueError(
            f"{list_path} has no trial whose files can be embedded. The first "
            f"file: {reason}"
        )
    trials = trials.take(rows)
    trials = trials._replace(
        files=[name for name, keep in zip(trials.files, kept) if keep],
        enrol=place[trials.enrol],
        test=place[trials.test],
    )
    left_out = {"trials": int((~rows).sum()), "files": failed}
    return trials, [own for own in parts if own], left_out


def _groups(files):
    """What the bootstrap draws, and the number of each file's group."""
    found = [os.path.dirname(file) for file in files]
    folders = sorted(set(found))
    place = dict(zip(folders, range(len(folders))))
    if len(folders) >= 2 and len(files) >= 2 * len(folders):
        return "folders", np.array([place[folder] for folder in found])
    return "files", np.arange(len(files))


def _score(embeddings, trials, cohort, top_n, norms):
    """Scores by name: "raw" and, with a cohort, those of the norms."""
    sides = trials.enrol, trials.test
    scores = {"raw": scoring.cosine_scores(embeddings, *sides)}
    for norm in norms if cohort is not None else ():
        scores[norm] = scoring.normalize(
            scores["raw"], *sides, embeddings, cohort, norm, top_n
        )
    return scores


def _scored(trials, values):
    """The trials that have a score (not NaN), and these scores."""
    values = np.asarray(values)
    kept = ~np.isnan(values)
    # NaN in all kinds of scores is an error that the metrics report
    if kept.all() or not kept.any():
        return trials, values
    return trials.take(kept), values[kept]


def _write_results(folder, summary, scored, trials, embeddings):
    """Writes all files of one list; the metrics last, as sign of success."""
    with write_whole(os.path.join(folder, "embeddings_ids.txt")) as file:
        file.writelines(f"{name}\n" for name in trials.files)
    with write_whole(os.path.join(folder, "embeddings.npy"), "wb") as file:
        np.save(file, embeddings)
    for name, (part, values) in scored.items():
        stem = "scores" if name == "raw" else f"scores_{name}"
        with write_whole(os.path.join(folder, f"{stem}.txt")) as file:
            file.writelines(score_lines(part, values))
    with write_whole(os.path.join(folder, "metrics.json")) as file:
        json.dump(summary, file, indent=2, allow_nan=False)
