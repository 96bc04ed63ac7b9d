"""One HTML page about a run, from the files of its folder.

``python -m speechbrain_ssl.report.page RUN_FOLDER`` writes ``report.html``:
one file without scripts or links, readable on a phone, offline, and years
later. Files that are missing or broken are named at its top; the rest is
shown.

``report.run`` says which files a run folder may hold.
"""

import argparse
import math
import os
import re
import shlex

import numpy as np

from speechbrain_ssl.evaluation import metrics
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.report import html, plots
from speechbrain_ssl.report.plots import is_number
from speechbrain_ssl.report.run import (
    attempt,
    read_embeddings,
    read_run,
    read_scores,
)

DRAWN_LISTS = 3
DRAWN_TAGS = 6
WARNINGS_SHOWN = 20
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
    "unreadable": "utterances whose audio could not be read and that others "
    "replaced; save/unreadable.csv lists them",
    "gradient_norm": "length of the gradient before clipping",
    "trusted": "share of utterances whose pseudo-label was learnt",
    "corrected": "share that learnt instead what the model says of their "
    "clean view",
    "relabeled": "share that learnt another label than their own",
    "accuracy": "share whose pseudo-label is what the model says",
    "confidence": "how sure the model is of clean views",
    "label_loss": "mean loss of all pseudo-labels, trusted or not",
    "gate_log_loss": "largest log-loss that the gate lets through",
    "silent_classes": "share of classes of which nothing was learnt",
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
CHOICES = ("trusted", "corrected", "relabeled")
DRAWN_GATES = 12


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
    with write_whole(output) as file:
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
    title = run.summary.get("title") or _folder_name(run.folder)
    sections = [
        headline_section(run),
        health_section(run),
        training_section(run),
        gate_section(run),
        *list_sections(run),
        method_section(run),
        run_section(run),
    ]
    # last, because the sections find what is broken
    sections = [_notes(run), *sections]
    body = "\n".join(section for section in sections if section)
    return html.document(title, f"{_subtitle(run)}\n{body}")


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
    return html.cards([*cards, _time_card(run), _rate_card(run)])


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
        ([f"train.{name}" for name in CHOICES], "Share of utterances"),
        (("train.accuracy",), "Accuracy on pseudo-labels"),
        (("train.confidence",), "Confidence"),
    ]
    figures = []
    for keys, title in wanted:
        keys = [k for k in keys if len(plots.values(run.records, k)[0])]
        if keys:
            ylabel = title if len(keys) > 1 else _words(keys[0].split(".")[1])
            figure = plots.curves(run.records, *keys, ylabel=ylabel)
            figures.append(html.figure(figure, title, _meaning(keys)))
    if not figures:
        return ""
    return f"<h2>Training</h2>\n{html.grid(figures)}"


def gate_section(run):
    """What the gate made of the losses, over the epochs.

    Arguments
    ---------
    run : Run
        What is known about the run; its notes get what cannot be drawn.

    Returns
    -------
    str
        HTML; empty without ``gate.jsonl``.
    """
    if not run.gate:
        return ""
    last = len(run.gate) - 1
    chosen = np.linspace(0, last, min(last + 1, DRAWN_GATES)).round()
    found = {}
    for record in (run.gate[int(place)] for place in chosen):
        drawn = attempt(run.notes, plots.gate_plot, record)
        if drawn is not None:
            found[record["epoch"]] = drawn
    # one axis for all, so that the eye can compare
    limits = [drawn.axes[0].get_xlim() for drawn in found.values()]
    for drawn in found.values():
        drawn.axes[0].set_xlim(np.min(limits), np.max(limits))
    figures = [
        html.figure(drawn, f"Gate after epoch {html.show(epoch)}")
        for epoch, drawn in found.items()
    ]
    rows = [_gate_row(record) for record in run.gate]
    heads = ["epoch", "threshold", "accepted", "trusted", "corrected"]
    table = html.table(heads, rows)
    return f"""<h2>The gate</h2>
<p>How the log-losses of the pseudo-labels spread at the end of an epoch. What
lies left of the dashed line is trusted in the next epoch; the share in the
title is that of the epoch itself, for which the line before counted. Two
Gaussians that were refused are dotted.</p>
{html.grid(figures, multiples=True)}
{html.details(f"Why, in {html.count(len(rows), 'epoch')}", table)}"""


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
            figures = html.grid(list_figures(run, name, list(tags)))
        else:
            figures = (
                '<p class="soft">Figures are drawn for the first '
                f"{DRAWN_LISTS} trial lists only.</p>"
            )
        sections.append(
            f"<h2>Verification: {html.escape(name)}</h2>\n"
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
            figures.append(attempt(run.notes, _map, *arguments))
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
        f"<p><b>What the run says about labels:</b> {html.escape(said)}</p>"
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
<p><b>Interval</b>: 95 %, from drawing {html.escape(_bootstrap_units(run))}
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
        f"<tr><th>{html.escape(_words(key))}</th>"
        f"<td>{html.escape(value)}</td></tr>"
        for key, value in _flat(facts)
    ]
    parts = [
        "<h2>The run</h2>",
        f'<div class="facts">{html.table("", rows)}</div>',
    ]
    if run.summary.get("command"):
        command = html.escape(_command(run.summary["command"]))
        parts.append(f"<h3>Command</h3>\n<pre>{command}</pre>")
    if run.settings:
        lines = html.count(run.settings.count("\n") + 1, "line")
        settings = f"<pre>{html.escape(run.settings)}</pre>"
        parts.append(
            html.details(f"Settings (hyperparams.yaml, {lines})", settings)
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

    eers = change(lambda m: html.fixed(m.get("EER"), 2)) + " %"
    more = [f"95 %: {change(_interval)}"] if _interval(raw[-1]) else []
    for key in filter(_is_cost, raw[-1]):
        costs = change(lambda m: html.fixed(m.get(key), 3))
        more.append(f"{_cost_name(key)} {costs}")
    more = "<br>".join(map(html.escape, more))
    return html.card(f"EER, {name} ({' → '.join(ends)})", eers, more)


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
        more = html.count(len(run.records), "epoch")
        if is_number(last.get("step")):
            more += ", " + html.count(last["step"], "optimizer step")
    return html.card("Training time", html.duration(seconds), more)


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
        more += f"<br>{html.escape(_brief(run.summary['machine']))}"
    return html.card("Training speed", f"{rate:,.0f} views/s", more)


def _verdict(records):
    """Plain words on whether anything warns."""
    warnings = log_warnings(records)
    if warnings:
        lines = [html.escape(text) for text in warnings[:WARNINGS_SHOWN]]
        if len(warnings) > WARNINGS_SHOWN:
            lines.append(f"and {len(warnings) - WARNINGS_SHOWN} more")
        return (
            '<p class="bad">Training gave warnings; read them before '
            f"trusting the numbers.</p>\n{html.items(lines)}"
        )
    epochs = html.count(len(records), "epoch")
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
        html.row(
            _words(name),
            [html.show(_part(record, "train").get(name)) for record in ends],
            MEANINGS.get(name, ""),
        )
        for name in names
    ]
    heads = ["", *(f"epoch {html.show(record['epoch'])}" for record in ends)]
    return html.table(heads, rows) if rows else ""


def _meaning(keys):
    """What curves show; of several ones, with their names."""
    names = dict.fromkeys(key.split(".", 1)[1] for key in keys)
    found = {name: MEANINGS[name] for name in names if name in MEANINGS}
    if len(names) == 1:
        return "".join(found.values())
    return "; ".join(f"{_words(name)}: {text}" for name, text in found.items())


def _gate_row(record):
    """One epoch of the gate in words."""
    accepted = {True: "yes", False: "no"}.get(record.get("accepted"))
    cells = [
        html.fixed(record.get("threshold"), 3),
        html.show(accepted),
        *(_percent(record.get(name)) for name in ("trusted", "corrected")),
    ]
    reason = record.get("reason") or ""
    return html.row(html.show(record["epoch"]), cells, reason)


def _percent(value):
    """A share for readers."""
    if not is_number(value) or not math.isfinite(value):
        return html.show(value)
    return f"{100 * value:.1f} %"


def _metrics_table(tags):
    """All metrics of one trial list; a column for each tag and score."""
    columns = {}
    for tag, found in tags.items():
        columns[tag] = _part(found, "raw")
        columns[f"{tag}, AS-norm"] = _part(found, "as_norm")
    columns = {head: column for head, column in columns.items() if column}
    costs = {k: None for c in columns.values() for k in c if _is_cost(k)}
    texts = {
        "EER (%)": lambda column: html.fixed(column.get("EER"), 2),
        "95 % interval": lambda column: _interval(column) or "–",
        **{_cost_name(key): _getter(key, 3) for key in costs},
        **{key: _getter(key) for key in COUNTS},
    }
    rows = [
        html.row(name, [text(column) for column in columns.values()])
        for name, text in texts.items()
    ]
    return html.table(["", *columns], rows)


def _getter(key, digits=None):
    """A function that shows one metric of a column."""
    if digits is None:
        return lambda column: html.show(column.get(key))
    return lambda column: html.fixed(column.get(key), digits)


def _trials(notes, folder):
    """The scored trials of one tag, None if there are none."""
    path = os.path.join(folder, "scores.txt")
    trials = attempt(notes, read_scores, path)
    if trials is None:
        return None
    if trials.dropped:
        total = trials.dropped + len(trials.scores)
        notes.append(
            f"{path}: {trials.dropped:,} of {html.count(total, 'score')} not "
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
        points = attempt(notes, metrics.error_rates, *arguments)
        if points is not None:
            found[tag] = (points.false_alarm, points.miss)
    if not found:
        return ""
    return html.figure(
        plots.det_plot(found),
        f"DET curves, {name}",
        "misses against false alarms over all thresholds; closer to the "
        "lower left corner is better, dots mark the EER",
    )


def _histogram(name, tag, trials, threshold):
    """Scores of one tag."""
    return html.figure(
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
    return html.figure(
        plots.embedding_map(matrix, ids, pairs),
        f"Map of the embeddings {tag}, {name}",
        "each point is a file; near points are similar embeddings, "
        "distances between far groups mean little",
    )


def _subtitle(run):
    """Machine and seed, if known."""
    keys = ("machine", "seed")
    parts = [
        f"{key} {_brief(run.summary[key])}"
        for key in keys
        if run.summary.get(key) is not None
    ]
    return (
        f'<p class="soft">{html.escape(" · ".join(parts))}</p>' if parts else ""
    )


def _notes(run):
    """What is missing or broken, with paths seen from the run folder."""
    if not run.notes:
        return ""
    inside = os.path.join(run.folder, "")
    lines = [html.escape(note.replace(inside, "")) for note in run.notes]
    return (
        '<div class="note"><b>Not on this page, because it is missing or '
        f"broken:</b>{html.items(lines)}</div>"
    )


def _interval(values):
    """The interval of the EER in %, empty if unknown."""
    low, high = values.get("EER_low"), values.get("EER_high")
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{html.fixed(low, 2)}–{html.fixed(high, 2)}"


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


def _epochs(epochs):
    """Which epochs, briefly."""
    if len(epochs) == 1:
        return f"epoch {html.show(epochs[0])}"
    if len(epochs) <= 5:
        return "epochs " + ", ".join(map(html.show, epochs))
    first, last = html.show(epochs[0]), html.show(epochs[-1])
    return f"{len(epochs)} epochs from {first} to {last}"


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
