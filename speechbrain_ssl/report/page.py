"""One HTML page about a run, from the files of its folder.

``python -m speechbrain_ssl.report.page RUN_FOLDER`` writes ``report.html``:
one file without scripts or links, readable on a phone, offline, and years
later. Files that are missing or broken are named at its top; the rest is
shown.

A run folder may hold ``summary.json`` (what was run), ``hyperparams.yaml``
(settings), ``train_log.jsonl`` (one JSON object per epoch) and
``verification/<tag>/<trial list>/`` with ``metrics.json``, ``scores.txt``,
``embeddings.npy`` and ``embeddings_ids.txt``. Tags say when: ``before``
training, ``after`` it, or any other name.
"""

import argparse
import html
import json
import math
import os
import re
import shlex
import zlib
from typing import NamedTuple

import numpy as np

from speechbrain_ssl.dataio.annotations import open_whole
from speechbrain_ssl.evaluation import metrics
from speechbrain_ssl.report import plots
from speechbrain_ssl.report.plots import is_number

DRAWN_LISTS = 3
DRAWN_TAGS = 6
WARNINGS_SHOWN = 20
TEXT_LIMIT = 200_000
MEANINGS = {
    "loss": "what training makes small",
    "embedding_spread": "how far apart the embeddings lie: near 1 if they "
    "point everywhere, 0 if all are equal (collapse)",
    "effective_rank": "how many directions the embeddings make use of; "
    "few are a sign of collapse",
    "rank_share": "the effective rank as a share of the embedding size",
    "teacher_agreement": "mean cosine of what student and teacher make of "
    "an utterance; high is good only while the embeddings stay spread",
    "view_agreement": "mean cosine of two views of an utterance; high is "
    "good only while the embeddings stay spread",
    "teacher_entropy": "how undecided the teacher is between prototypes, in "
    "nats; the log of their number, or 0, is collapse",
    "kl": "how far the student's prototypes are from the teacher's; 0 with a "
    "constant teacher_entropy is collapse",
    "prototypes_used": "how many prototypes share the utterances; 1 is collapse",
    "negative_cosine": "mean cosine of different utterances; near 1 is "
    "collapse",
    "cluster_agreement": "how alike two clusterings from different seeds are "
    "(adjusted Rand index)",
    "cluster_cosine": "mean cosine of an utterance to its cluster's centroid",
    "views_per_second": "stretches of audio that training saw per second",
    "rate_views_per_s": "stretches of audio that training saw per second",
    "data_wait": "share of the time spent waiting for data",
    "gradient_norm": "length of the gradient before clipping",
}
COUNTS = ("threshold", "trials", "targets", "files")
RATES = ("train.views_per_second", "train.rate_views_per_s")
COLLAPSE = (
    "embedding_spread",
    "effective_rank",
    "teacher_agreement",
    "view_agreement",
    "negative_cosine",
    "prototypes_used",
    "teacher_entropy",
    "kl",
    "cluster_agreement",
    "cluster_cosine",
)
CSS = """
:root{color-scheme:light dark;--page:#fff;--text:#1b1f24;--soft:#57606a;
--line:#d5dae0;--box:#f5f7f9;--accent:#0b5cad;--good:#1a6b37;--bad:#9a3412;
--bad-box:#fff4e5}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--text:#e6e8eb;
--soft:#a3abb5;--line:#353b43;--box:#1e2329;--accent:#7db8f5;--good:#74d093;
--bad:#ffb678;--bad-box:#33261a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:20px 16px 48px;max-width:1120px;
background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:.3em 0 .2em}
h2{font-size:1.3rem;margin:2em 0 .6em;padding-top:.5em;
border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.6em 0 .5em}
p{margin:.5em 0;max-width:75ch}
.soft,figcaption{color:var(--soft)}
.cards{display:grid;gap:12px;margin:18px 0;
grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr))}
.card,.note{background:var(--box);border:1px solid var(--line);
border-radius:8px;padding:12px 14px}
.card b{display:block;font-size:1.45rem;line-height:1.3;font-weight:650}
.card .name{font-size:.9rem;color:var(--soft)}
.card .more{font-size:.9rem}
.note{background:var(--bad-box);border-color:var(--bad);margin:14px 0}
.note ul{margin:.3em 0;padding-left:1.2em}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
.figures{display:grid;gap:16px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
figure{margin:0;min-width:0}
figure .white{background:#fff;border:1px solid var(--line);border-radius:8px;
padding:8px;text-align:center}
figure svg{display:block;width:100%;max-width:540px;height:auto;margin:0 auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{font-size:.9rem;padding:6px 2px}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.94rem}
th,td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;
border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;overflow-wrap:normal}
tbody th{font-weight:500;overflow-wrap:break-word}
.number{white-space:nowrap;font-variant-numeric:tabular-nums}
.small{font-size:.88rem;font-weight:400;min-width:11em}
.facts th{color:var(--soft);min-width:7.5em}
.facts td{min-width:10em}
pre{background:var(--box);border:1px solid var(--line);border-radius:8px;
padding:10px 12px;font:.85rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.6em 0}
summary{cursor:pointer;color:var(--accent);padding:6px 0}
@media (max-width:480px){table{font-size:.85rem}th,td{padding-right:7px}}
"""


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
    lists : dict of str to (dict of str to dict)
        Metrics by trial list and tag, tags in order of time.
    notes : list of str
        What is missing or broken; sections add to it.
    """

    folder: str
    summary: dict
    settings: str
    records: list
    lists: dict
    notes: list


def write_report(run_folder, output=None):
    """Writes the HTML page of a run.

    Arguments
    ---------
    run_folder : str
        Folder of the run; any of its files may be missing.
    output : str
        Where to; None writes ``report.html`` into the run folder.

    Returns
    -------
    str
        The path of the page.

    Raises
    ------
    NotADirectoryError
        If there is no such folder.
    ImportError
        If matplotlib is not installed.
    """
    run_folder = os.fspath(run_folder)
    if not os.path.isdir(run_folder):
        raise NotADirectoryError(
            f"Expected the folder of a run, found no folder at {run_folder}. "
            "Give the output folder of a training or verification."
        )
    output = output or os.path.join(run_folder, "report.html")
    text = page(read_run(run_folder))
    with open_whole(output) as file:
        file.write(text)
    return output


def page(run):
    """Composes the page.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        A whole HTML document.
    """
    title = _escape(run.summary.get("title") or _folder_name(run.folder))
    sections = [
        headline_section(run),
        health_section(run),
        training_section(run),
        *list_sections(run),
        method_section(run),
        run_section(run),
    ]
    # last, because the sections find what is broken
    sections = [_notes(run), *sections]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{title}</title>\n<style>{CSS}</style>\n'
        f"</head>\n<body>\n<h1>{title}</h1>\n{_subtitle(run)}\n{body}\n"
        "</body>\n</html>\n"
    )


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
        return _try(notes, reader, path, default=default)

    records, broken = read(read_log, "train_log.jsonl", ([], []))
    notes += broken
    return Run(
        folder=folder,
        summary=read(read_object, "summary.json", {}),
        settings=read(read_text, "hyperparams.yaml", ""),
        records=records,
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
            found = _try(notes, read_object, path)
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


def headline_section(run):
    """The numbers that one looks for first, as cards.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        HTML.
    """
    cards = [_list_card(name, tags) for name, tags in run.lists.items()]
    cards += [_time_card(run), _rate_card(run)]
    cards = "\n".join(card for card in cards if card)
    return f'<div class="cards">\n{cards}\n</div>' if cards else ""


def health_section(run):
    """Whether training warns of anything, and the collapse statistics.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        HTML; empty without a training log.
    """
    if not run.records:
        return ""
    return (
        "<h2>Did training stay healthy?</h2>\n"
        f"{_verdict(run.records)}\n{_statistics_table(run.records)}"
    )


def log_warnings(records):
    """All warnings of a training log, and losses that are not finite.

    Arguments
    ---------
    records : list of dict
        One per epoch.

    Returns
    -------
    list of str
        One line per warning, with the epochs that gave it; of warnings that
        differ in their numbers only, the latest.
    """
    epochs, latest = {}, {}
    for record in records:
        loss = _part(record, "train").get("loss", 0.0)
        finite = is_number(loss) and math.isfinite(loss)
        found = [] if finite else ["The training loss is not finite."]
        given = record.get("warnings") or []
        found += [given] if isinstance(given, str) else list(given)
        for text in dict.fromkeys(map(str, found)):
            kind = re.sub(r"\d[\d.]*", "#", text)
            latest[kind] = text
            epochs.setdefault(kind, []).append(record["epoch"])
    return [f"{latest[k]} ({_epochs(at)})" for k, at in epochs.items()]


def training_section(run):
    """Curves over the epochs.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        HTML; empty without a training log.
    """
    wanted = [
        (("train.loss", "valid.loss"), "Loss"),
        (("train.lr",), "Learning rate"),
        (_eer_keys(run.records), "Equal error rate (%) during training"),
        *(((f"train.{name}",), _title(name)) for name in COLLAPSE),
    ]
    figures = []
    for keys, title in wanted:
        keys = [k for k in keys if len(plots.values(run.records, k)[0])]
        if keys:
            ylabel = title if len(keys) > 1 else _words(keys[0].split(".")[1])
            figure = plots.curves(run.records, *keys, ylabel=ylabel)
            meaning = MEANINGS.get(keys[0].split(".")[1], "")
            figures.append(_figure(figure, title, meaning))
    if not figures:
        return ""
    return f"<h2>Training</h2>\n{_grid(figures)}"


def list_sections(run):
    """Numbers and figures of every trial list.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    list of str
        HTML of each list; the first three lists have figures.
    """
    sections = []
    for number, (name, tags) in enumerate(run.lists.items()):
        if number < DRAWN_LISTS:
            figures = _grid(list_figures(run, name, list(tags)))
        else:
            figures = (
                '<p class="soft">Figures are drawn for the first '
                f"{DRAWN_LISTS} trial lists only.</p>"
            )
        sections.append(
            f"<h2>Verification: {_escape(name)}</h2>\n"
            f"{_metrics_table(tags)}\n{figures}"
        )
    return sections


def list_figures(run, name, tags):
    """DET curves, score histogram and embedding maps of one trial list.

    Arguments
    ---------
    run : Run
        What is known about the run; its notes get what cannot be drawn.
    name : str
        The trial list.
    tags : list of str
        Its tags, in order of time.

    Returns
    -------
    list of str
        HTML of each figure.
    """
    if len(tags) > DRAWN_TAGS:
        tags = [tags[0], *tags[1 - DRAWN_TAGS :]]
    root = os.path.join(run.folder, "verification")
    folders = {tag: os.path.join(root, tag, name) for tag in tags}
    found = {tag: _trials(run.notes, path) for tag, path in folders.items()}
    trials = {tag: scored for tag, scored in found.items() if scored}
    last = tags[-1]
    threshold = _part(run.lists[name][last], "raw").get("threshold")
    figures = [_det(run.notes, name, trials)]
    if last in trials:
        figures.append(_histogram(name, last, trials[last], threshold))
    for tag in dict.fromkeys([tags[0], last]):
        if tag in trials:
            arguments = (name, tag, folders[tag], trials[tag])
            figures.append(_try(run.notes, _map, *arguments))
    return [figure for figure in figures if figure]


def method_section(run):
    """How the numbers came about, and which labels they use.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        HTML.
    """
    said = run.summary.get("label_use")
    label_use = (
        f"<p><b>What the run says about labels:</b> {_escape(said)}</p>"
        if said
        else "<p>The run does not say which labels it used "
        "(<code>label_use</code> in summary.json).</p>"
    )
    return f"""<h2>How the numbers were computed</h2>
{label_use}
<p><b>Labels on this page:</b> error rates (also those during training),
score histograms, DET curves and the colors of the maps use the labels of the
trial lists: target trial or not. All else is copied from the training log
and the settings.</p>
<p><b>EER</b>: the error rate at the threshold where as many target trials
are rejected as non-target trials are accepted; lower is better, 50 % is
guessing. <b>minDCF</b>: the lowest detection cost over all thresholds when
both errors cost 1 and a share p of the trials are targets, divided by the
cost of the better constant answer; 1 is useless.</p>
<p><b>Interval</b>: 95 %, from drawing {_escape(_bootstrap_units(run))}
again with replacement; it covers the choice of test data, not the chance in
training. <b>Scores</b>: raw scores of pairs of embeddings; AS-norm, where
shown, normalizes each score by the closest cohort utterances.</p>"""


def run_section(run):
    """What was run: data, machine, command, settings.

    Arguments
    ---------
    run : Run
        What is known about the run.

    Returns
    -------
    str
        HTML.
    """
    hidden = ["title", "command", "label_use"]
    if run.lists:
        # the same numbers stand above, from metrics.json
        hidden += ["before", "after"]
    facts = {k: v for k, v in run.summary.items() if k not in hidden}
    facts["run folder"] = _folder_name(run.folder)
    rows = [
        f"<tr><th>{_escape(_words(key))}</th><td>{_escape(value)}</td></tr>"
        for key, value in _flat(facts)
    ]
    parts = [
        "<h2>The run</h2>",
        f'<div class="facts">{_table("", rows)}</div>',
    ]
    if run.summary.get("command"):
        command = _escape(_command(run.summary["command"]))
        parts.append(f"<h3>Command</h3>\n<pre>{command}</pre>")
    if run.settings:
        lines = _count(run.settings.count("\n") + 1, "line")
        parts.append(
            f"<details>\n<summary>Settings (hyperparams.yaml, {lines})"
            f"</summary>\n<pre>{_escape(run.settings)}</pre>\n</details>"
        )
    return "\n".join(parts)


def main(argv=None):
    """Runs the command ``python -m speechbrain_ssl.report.page``.

    Arguments
    ---------
    argv : list of str
        Arguments of the command; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_ssl.report.page",
        description="Writes one HTML page about a run.",
    )
    parser.add_argument("run_folder", help="folder of the run")
    parser.add_argument(
        "--output", help="the page (default: RUN_FOLDER/report.html)"
    )
    arguments = parser.parse_args(argv)
    print(write_report(arguments.run_folder, arguments.output))


def _try(notes, function, *arguments, default=None):
    """Calls a function; what cannot be read becomes a note."""
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


def _part(record, name):
    """A dict inside of a dict, empty if it is missing or something else."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _list_card(name, tags):
    """EER before and after, interval and minDCF of one trial list."""
    ends = list(dict.fromkeys([next(iter(tags)), next(reversed(tags))]))
    raw = [_part(tags[tag], "raw") for tag in ends]

    def change(text):
        return " → ".join(map(text, raw))

    eers = change(lambda m: _fixed(m.get("EER"), 2)) + " %"
    more = [f"95 %: {change(_interval)}"] if _interval(raw[-1]) else []
    for key in filter(_is_cost, raw[-1]):
        costs = change(lambda m: _fixed(m.get(key), 3))
        more.append(f"{_cost_name(key)} {costs}")
    more = "<br>".join(map(_escape, more))
    return _card(f"EER, {name} ({' → '.join(ends)})", eers, more)


def _time_card(run):
    """How long training took."""
    seconds = run.summary.get("training_seconds")
    if not is_number(seconds) and run.records:
        seconds = run.records[-1].get("seconds")
    if not is_number(seconds) or not math.isfinite(seconds):
        return ""
    more = ""
    if run.records:
        last = run.records[-1]
        more = _count(len(run.records), "epoch")
        if is_number(last.get("step")):
            more += ", " + _count(last["step"], "optimizer step")
    return _card("Training time", _duration(seconds), more)


def _rate_card(run):
    """Training speed; the median, as the first epoch warms up."""
    found = [plots.values(run.records, key)[1] for key in RATES]
    rates = np.concatenate(found)
    rates = rates[np.isfinite(rates)]
    if not len(rates):
        return ""
    rate = float(np.median(rates))
    more = "median of the epochs"
    if run.summary.get("machine"):
        more += f"<br>{_escape(_brief(run.summary['machine']))}"
    return _card("Training speed", f"{rate:,.0f} views/s", more)


def _card(name, value, more):
    """One headline number; ``more`` is HTML."""
    return (
        f'<div class="card"><span class="name">{_escape(name)}</span>'
        f'<b>{_escape(value)}</b><span class="more">{more}</span></div>'
    )


def _verdict(records):
    """Plain words on whether anything warns."""
    warnings = log_warnings(records)
    if warnings:
        lines = [_escape(text) for text in warnings[:WARNINGS_SHOWN]]
        if len(warnings) > WARNINGS_SHOWN:
            lines.append(f"and {len(warnings) - WARNINGS_SHOWN} more")
        return (
            '<p class="bad">Training gave warnings; read them before '
            f"trusting the numbers.</p>\n{_items(lines)}"
        )
    epochs = _count(len(records), "epoch")
    if any(len(plots.values(records, f"train.{k}")[0]) for k in COLLAPSE):
        return f'<p class="good">Nothing warns in {epochs}.</p>'
    return (
        f"<p>No warning in {epochs}, but this log has no collapse "
        "statistics, which could have shown more.</p>"
    )


def _statistics_table(records):
    """Every scalar of the training log, first and last epoch."""
    ends = records if len(records) == 1 else [records[0], records[-1]]
    order = {name: number for number, name in enumerate(MEANINGS)}
    names = dict.fromkeys(k for r in ends for k in _part(r, "train"))
    names = sorted(names, key=lambda name: order.get(name, len(order)))
    rows = [
        _row(
            _words(name),
            [_show(_part(record, "train").get(name)) for record in ends],
            MEANINGS.get(name, ""),
        )
        for name in names
    ]
    heads = ["", *(f"epoch {_show(record['epoch'])}" for record in ends)]
    return _table(heads, rows) if rows else ""


def _metrics_table(tags):
    """All metrics of one trial list; a column for each tag and score."""
    columns = {}
    for tag, found in tags.items():
        columns[tag] = _part(found, "raw")
        columns[f"{tag}, AS-norm"] = _part(found, "as_norm")
    columns = {head: column for head, column in columns.items() if column}
    costs = {k: None for c in columns.values() for k in c if _is_cost(k)}
    texts = {
        "EER (%)": lambda column: _fixed(column.get("EER"), 2),
        "95 % interval": lambda column: _interval(column) or "–",
        **{_cost_name(key): _getter(key, 3) for key in costs},
        **{key: _getter(key) for key in COUNTS},
    }
    rows = [
        _row(name, [text(column) for column in columns.values()])
        for name, text in texts.items()
    ]
    return _table(["", *columns], rows)


def _getter(key, digits=None):
    """A function that shows one metric of a column."""
    if digits is None:
        return lambda column: _show(column.get(key))
    return lambda column: _fixed(column.get(key), digits)


def _trials(notes, folder):
    """The scored trials of one tag, None if there are none."""
    path = os.path.join(folder, "scores.txt")
    trials = _try(notes, read_scores, path)
    if trials is None:
        return None
    if trials.dropped:
        total = trials.dropped + len(trials.scores)
        notes.append(
            f"{path}: {trials.dropped:,} of {_count(total, 'score')} not "
            "finite; the figures leave them out"
        )
    elif not len(trials.scores):
        notes.append(f"{path}: no trials")
    return trials if len(trials.scores) else None


def _det(notes, name, trials):
    """The DET curves of all tags in one figure."""
    found = {}
    for tag, scored in trials.items():
        arguments = (scored.scores, scored.targets)
        points = _try(notes, metrics.error_rates, *arguments)
        if points is not None:
            found[tag] = (points.false_alarm, points.miss)
    if not found:
        return ""
    return _figure(
        plots.det_plot(found),
        f"DET curves, {name}",
        "misses against false alarms over all thresholds; closer to the "
        "lower left corner is better, dots mark the EER",
    )


def _histogram(name, tag, trials, threshold):
    """Scores of one tag."""
    return _figure(
        plots.score_histogram(trials.targets, trials.scores, threshold),
        f"Scores {tag}, {name}",
        "the less the two kinds of trials overlap, the better; the "
        "threshold is the one of the EER",
    )


def _map(name, tag, folder, trials):
    """Embeddings of one tag."""
    matrix, ids = read_embeddings(folder)
    pairs = zip(trials.targets, trials.enrol, trials.test)
    pairs = [(enrol, test) for target, enrol, test in pairs if target]
    return _figure(
        plots.embedding_map(matrix, ids, pairs),
        f"Map of the embeddings {tag}, {name}",
        "each point is a file; near points are similar embeddings, "
        "distances between far groups mean little",
    )


def _figure(figure, title, text=""):
    """A figure with its caption; the title also makes its ids unique."""
    prefix = f"f{zlib.crc32(title.encode()):08x}"
    picture = plots.svg(figure, prefix, _escape(title))
    return (
        f'<figure><div class="white">{picture}</div><figcaption><b>'
        f"{_escape(title)}</b>{': ' if text else ''}{_escape(text)}"
        "</figcaption></figure>"
    )


def _grid(figures):
    """Figures beside each other where there is room."""
    body = "\n".join(figures)
    return f'<div class="figures">\n{body}\n</div>' if figures else ""


def _subtitle(run):
    """Machine and seed, if known."""
    keys = ("machine", "seed")
    parts = [
        f"{key} {_brief(run.summary[key])}"
        for key in keys
        if run.summary.get(key) is not None
    ]
    return f'<p class="soft">{_escape(" · ".join(parts))}</p>' if parts else ""


def _notes(run):
    """What is missing or broken, with paths seen from the run folder."""
    if not run.notes:
        return ""
    inside = os.path.join(run.folder, "")
    lines = [_escape(note.replace(inside, "")) for note in run.notes]
    return (
        '<div class="note"><b>Not on this page, because it is missing or '
        f"broken:</b>{_items(lines)}</div>"
    )


def _items(lines):
    """A list; the lines are HTML."""
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _table(heads, rows):
    """A table that scrolls by itself where the screen is narrow."""
    head = "".join(f"<th>{_escape(name)}</th>" for name in heads)
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
    )


def _row(label, cells, text=""):
    """A table row: what it is, with words on it if there are any; values."""
    words = f'<div class="soft small">{_escape(text)}</div>' if text else ""
    values = "".join(f'<td class="number">{_escape(c)}</td>' for c in cells)
    return f"<tr><th>{_escape(label)}{words}</th>{values}</tr>"


def _escape(text):
    """Text for HTML."""
    return html.escape(str(text))


def _show(value):
    """A value for readers."""
    if value is None:
        return "–"
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _fixed(value, digits):
    """A number with so many digits after the point."""
    if not is_number(value) or not math.isfinite(value):
        return _show(value)
    return f"{value:.{digits}f}"


def _interval(values):
    """The interval of the EER in %, empty if unknown."""
    low, high = values.get("EER_low"), values.get("EER_high")
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{_fixed(low, 2)}–{_fixed(high, 2)}"


def _is_cost(key):
    """Whether a metric is a detection cost."""
    return key.startswith("minDCF")


def _cost_name(key):
    """minDCF_0.01 for readers; the no-break space keeps it together."""
    name, _, p_target = key.partition("_")
    return f"{name}\u00a0p={p_target}" if p_target else name


def _words(name):
    """The name of a statistic for readers."""
    known = {
        "kl": "KL divergence",
        "lr": "learning rate",
        "rate_views_per_s": "views per second",
        "data_wait": "waiting for data",
    }
    return known.get(name, str(name).replace("_", " "))


def _title(name):
    """The name of a statistic as a title."""
    words = _words(name)
    return words[:1].upper() + words[1:]


def _duration(seconds):
    """Seconds as hours and minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _count(number, name):
    """A number with its noun."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _epochs(epochs):
    """Which epochs, briefly."""
    if len(epochs) == 1:
        return f"epoch {_show(epochs[0])}"
    if len(epochs) <= 5:
        return "epochs " + ", ".join(map(_show, epochs))
    return (
        f"{len(epochs)} epochs from {_show(epochs[0])} to {_show(epochs[-1])}"
    )


def _eer_keys(records):
    """The EERs of validation; intervals are no curve."""
    names = {name: None for r in records for name in _part(r, "valid")}
    return [
        f"valid.{name}"
        for name in names
        if name.startswith("EER") and not name.endswith(("_low", "_high"))
    ]


def _bootstrap_units(run):
    """What the intervals were drawn over."""
    units = {
        str(_part(found, kind)["bootstrap_over"])
        for tags in run.lists.values()
        for found in tags.values()
        for kind in ("raw", "as_norm")
        if "bootstrap_over" in _part(found, kind)
    }
    units = " or ".join(sorted(units)) or "speakers or files"
    return units.replace("folders", "folders (speakers or recordings)")


def _flat(facts, prefix=""):
    """Keys and values of nested dicts in one row each."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}: ")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            # a seed or a year is no count: no thousands separator
            yield f"{prefix}{key}", str(value)


def _brief(value):
    """A value in one line: of a dict, its values."""
    if isinstance(value, dict):
        return ", ".join(text for _, text in _flat(value))
    return str(value)


def _command(command):
    """A command as one would type it."""
    if isinstance(command, list):
        return shlex.join(map(str, command))
    return str(command)


def _folder_name(folder):
    """The last part of a path."""
    return os.path.basename(os.path.abspath(folder))


if __name__ == "__main__":
    main()
