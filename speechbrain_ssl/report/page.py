"""One HTML page about a run, from the files of its folder.

``python -m speechbrain_ssl.report.page RUN_FOLDER`` writes ``report.html``:
one file without scripts or links, readable on a phone, offline, and years
later. ``report.run`` says which files a run folder may hold; files that are
broken are named on the page.
"""

import argparse
import datetime
import math
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from speechbrain_ssl.evaluation import metrics
from speechbrain_ssl.evaluation.fusion import Scored, read_scored
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.help import one_line
from speechbrain_ssl.report import plots
from speechbrain_ssl.report.plots import is_number
from speechbrain_ssl.report.render import (
    Row,
    count,
    duration,
    figure,
    fixed,
    percent,
    render,
    show,
)
from speechbrain_ssl.report.run import (
    Run,
    attempt,
    read_embeddings,
    read_run,
    read_settings,
)

DRAWN_LISTS = 3
DRAWN_GATES = 12
COUNTS = ("threshold", "trials", "targets", "files")
HIDDEN = ("title", "command", "label_use")
KINDS = {
    "raw": "",
    "z_norm": "Z-norm",
    "t_norm": "T-norm",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
    "plda": "PLDA",
    "calibrated": "calibrated",
    "face": "faces",
    "face_as_norm": "faces, AS-norm",
    "fused": "voices and faces",
    "fused_as_norm": "voices and faces, AS-norm",
}
MAP_WORDS = (
    "each point is a file; near points are similar embeddings, distances "
    "between far groups mean little"
)
# the loss of all pseudo-labels, or else of the selected utterances
LOSSES = ("label_loss", "loss")
SELFCHECK = "selfcheck"
CHOICES = ("selected", "corrected")
NOTHING = ([[0.0], [0.0]], [[0.0], []])


def write_report(run_folder: str, output: str | None = None) -> str:
    """Writes the HTML page of a run; gives its path.

    Any file of the run may be missing. ``output`` None is ``report.html`` in
    the run folder.
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


def page(run: Run) -> str:
    """Composes the page: an HTML document."""
    settings = read_settings(run.settings)
    lists = [
        _list(run, name, tags, number < DRAWN_LISTS)
        for number, (name, tags) in enumerate(run.lists.items())
    ]
    # like lists, gates may find what is broken
    gates = [
        _gate(run, name, records)
        for name, records in (
            ("gate", run.gate),
            ("gate of faces", run.face_gate),
        )
        if records
    ]
    inside = os.path.join(run.folder, "")
    return render(
        "run.html",
        title=_title(run, settings),
        subtitle=_subtitle(run),
        verdict=_verdict(run),
        notes=[note.replace(inside, "") for note in run.notes],
        numbers=[
            *_list_cards(run),
            *_selfcheck_card(run),
            *_training_cards(run),
        ],
        records=len(run.records),
        warnings=log_warnings(run.records),
        has_collapse=bool(_ends(run, "effective_rank")),
        has_eer=bool(_eer_keys(run.records)),
        curves=_curves(run),
        statistics=_statistics(run),
        gates=gates,
        lists=lists,
        label_use=_label_use(run, settings),
        facts=_facts(run, settings),
        command=str(run.summary.get("command") or ""),
        settings=run.settings,
    )


def log_warnings(records: Sequence[dict]) -> list[str]:
    """Warnings of a training log with their epochs, and losses not finite.

    Of warnings that differ in their numbers only, the latest is given.
    """
    epochs, latest = {}, {}
    for record in records:
        for text in _warnings_of(record):
            kind = re.sub(r"\d[\d.]*", "#", text)
            latest[kind] = text
            epochs.setdefault(kind, []).append(record["epoch"])
    return [f"{latest[k]} ({_epochs(at)})" for k, at in epochs.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; ``argv`` is None for that of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_ssl.report.page",
        description="Writes one HTML page about a run.",
    )
    parser.add_argument("run_folder", help="folder of the run")
    parser.add_argument(
        "--output", help="the page (default: RUN_FOLDER/report.html)"
    )
    arguments = parser.parse_args(argv)
    with one_line("report"):
        print(write_report(arguments.run_folder, arguments.output))


def _title(run, settings):
    """Method, data and date; of a run without settings, the folder's name."""
    if run.summary.get("title"):
        return str(run.summary["title"])
    # the first comment of a hparams file says what the method is
    lines = re.findall(r"^# (?=\w)(.*)", run.settings, flags=re.MULTILINE)
    lines = [line for line in lines if not re.match("Generated|yamllint", line)]
    method = re.split(r"[;:(,]| on a folder", lines[0])[0] if lines else ""
    method = method or str(settings.get("objective", "")).split(".")[-1]
    data = _name_of(settings.get("data_folder"))
    parts = [method.strip(), data, _date(run)]
    return " · ".join(filter(None, parts if method else [_name_of(run.folder)]))


def _date(run):
    """When the run began, from what SpeechBrain writes above the settings."""
    found = re.search(r"# Generated (\d{4})-(\d\d)-(\d\d)", run.settings)
    if not found:
        return ""
    date = datetime.date(*map(int, found.groups()))
    return f"{date.day} {date:%B %Y}"


def _name_of(path):
    """The last part of a path."""
    return os.path.basename(os.path.abspath(path)) if path else ""


def _subtitle(run):
    """Size of the data, machine and seed, as far as they are known."""
    parts = []
    if "hours" in run.data:
        size = count(run.data["utterances"], "utterance")
        parts.append(f"{size}, {duration(3600 * run.data['hours'])}")
    for key in ("machine", "seed"):
        if run.summary.get(key) is not None:
            parts.append(f"{key} {run.summary[key]}")
    return " · ".join(parts)


def _verdict(run):
    """Plain words on whether training worked; None without a log."""
    if not run.records:
        return None
    last = _warnings_of(run.records[-1])
    fell = [ends for name in LOSSES if (ends := _ends(run, name))][:1]
    fell = fell[0] if fell else []
    rank = _ends(run, "effective_rank")
    if any("not finite" in text for text in last):
        kind, headline = "bad", "The loss is not finite: do not use this model"
    elif last:
        kind, headline = "bad", "The last epoch gave warnings: read them first"
    elif [_ends(run, name)[-1:] for name in CHOICES] in NOTHING:
        kind, headline = "bad", "The gate selects nothing: nothing is learned"
    elif not rank:
        kind, headline = "", "No warning in the last epoch"
    elif len(fell) == 2 and not fell[1] < fell[0]:
        kind, headline = "", "No collapse, but the loss did not fall"
    else:
        kind = "good"
        headline = "Learning, no collapse" if len(fell) == 2 else "No collapse"
    facts = [f"loss {' → '.join(map(show, fell))}"] if fell else []
    share = _ends(run, "rank_share")
    if rank and share and share[-1] > 0:
        size = round(rank[-1] / share[-1])
        facts.insert(0, f"effective rank {rank[-1]:.0f} of {size}")
    for name in ("accuracy", "selected", "corrected"):
        if ends := _ends(run, name):
            facts.append(f"{_words(run, name)} {percent(ends[-1])}")
    return {"kind": kind, "headline": headline, "facts": facts}


def _list_cards(run):
    """EER, interval and minDCF of each trial list, first and last tag."""
    for name, tags in run.lists.items():
        ends = list(dict.fromkeys([next(iter(tags)), next(reversed(tags))]))
        raw = [_metrics(tags[tag]) for tag in ends]
        lines = []
        if _interval(raw[-1]):
            lines.append(f"95 %: {' → '.join(map(_interval, raw))}")
        for key in filter(_is_cost, raw[-1]):
            costs = " → ".join(fixed(found.get(key), 3) for found in raw)
            lines.append(f"{_cost_name(key)} {costs}")
        yield {
            "name": f"EER, {name} ({' → '.join(ends)})",
            "value": " → ".join(fixed(m.get("EER")) for m in raw) + " %",
            "lines": lines,
        }


def _selfcheck_card(run):
    """The last figures of the self-check without labels, if there are any."""
    records = [r for r in run.records if SELFCHECK in _part(r, "valid")]
    if records:
        found = _part(records[-1], "valid")
        lines = [
            "cross-entropy of same utterance against others, without labels",
            f"EER of the same {fixed(found.get('selfcheck_EER'))} %",
            f"after epoch {show(records[-1]['epoch'])}",
        ]
        value = f"{fixed(found[SELFCHECK], 3)} bits"
        yield {"name": "Self-check", "value": value, "lines": lines}


def _training_cards(run):
    """How long training took, and how fast it was."""
    last = run.records[-1] if run.records else {}
    seconds = run.summary.get("training_seconds", last.get("seconds"))
    if is_number(seconds) and math.isfinite(seconds):
        lines = [count(len(run.records), "epoch")] if last else []
        if is_number(last.get("step")):
            lines.append(count(last["step"], "optimizer step"))
        value = duration(seconds)
        yield {"name": "Training time", "value": value, "lines": lines}
    _, rates = plots.values(run.records, "train.views_per_second")
    rates = rates[np.isfinite(rates)]
    if len(rates):
        lines = ["median of the epochs"]
        if run.summary.get("machine"):
            lines.append(str(run.summary["machine"]))
        value = f"{np.median(rates):,.0f} views/s"
        yield {"name": "Training speed", "value": value, "lines": lines}


def _curves(run):
    """A figure of each statistic of the log, over two or more epochs."""
    wanted = {"EER (%)": _eer_keys(run.records)}
    for name in _valid_names(run.records, SELFCHECK):
        wanted[_words(run, name)] = [f"valid.{name}"]
    for name in _names(run.records):
        wanted[_words(run, name)] = [f"train.{name}"]
    figures = []
    for title, keys in wanted.items():
        found = {key: plots.values(run.records, key) for key in keys}
        series = {
            _words(run, key.split(".", 1)[1]): pair
            for key, pair in found.items()
            if len(pair[0])
        }
        if series and len(run.records) > 1:
            drawn = plots.curves(series, title)
            meaning = str(run.meanings.get(keys[0].split(".", 1)[1], ""))
            figures.append(figure(drawn, title, meaning))
    return figures


def _statistics(run):
    """Every number of the training log, first and last epoch."""
    ends = [run.records[0], run.records[-1]] if run.records else []
    ends = ends[: len(run.records)]
    parts = dict.fromkeys(_names(ends), "train")
    parts.update(dict.fromkeys(_valid_names(ends, SELFCHECK), "valid"))
    rows = [
        Row(
            _words(run, name),
            [show(_part(record, part).get(name)) for record in ends],
            str(run.meanings.get(name, "")),
        )
        for name, part in parts.items()
    ]
    heads = [f"epoch {show(record['epoch'])}" for record in ends]
    return {"heads": ["statistic", *heads], "rows": rows}


def _names(records):
    """Names of the statistics of training, the loss first."""
    names = dict.fromkeys(k for r in records for k in _part(r, "train"))
    return sorted(names, key=lambda name: name != "loss")


def _gate(run, name, records):
    """Figures and decisions of a gate over the epochs."""
    last = len(records) - 1
    chosen = np.linspace(0, last, min(last + 1, DRAWN_GATES)).round()
    found = {}
    for record in (records[int(place)] for place in chosen):
        drawn = attempt(run.notes, plots.gate_plot, record)
        if drawn is not None:
            found[record["epoch"]] = drawn
    # one axis for all, so that the eye can compare
    limits = [drawn.axes[0].get_xlim() for drawn in found.values()]
    for drawn in found.values():
        drawn.axes[0].set_xlim(np.min(limits), np.max(limits))
    figures = [
        figure(drawn, f"{name.capitalize()} after epoch {show(epoch)}")
        for epoch, drawn in found.items()
    ]
    rows = [
        Row(
            show(record["epoch"]),
            [
                fixed(record.get("threshold"), 3),
                {"True": "yes", "False": "no"}.get(str(record.get("accepted"))),
                percent(record.get("selected")),
                percent(record.get("corrected")),
            ],
            str(record.get("reason") or ""),
        )
        for record in records
    ]
    return {"name": name, "figures": figures, "rows": rows}


def _list(run, name, tags, draw):
    """Table and figures of one trial list; figures are None if not drawn."""
    columns = {
        ", ".join(filter(None, [tag, kind])): _metrics(verified, key)
        for tag, verified in tags.items()
        for key, kind in KINDS.items()
    }
    columns = {head: column for head, column in columns.items() if column}
    costs = {k: None for c in columns.values() for k in c if _is_cost(k)}
    found = list(columns.values())
    rows = [
        Row("EER (%)", [fixed(column.get("EER")) for column in found]),
        Row("95 % interval", [_interval(column) or "–" for column in found]),
    ]
    for key in costs:
        cells = [fixed(column.get(key), 3) for column in found]
        rows.append(Row(_cost_name(key), cells))
    for key in (*COUNTS, "bootstrap_over"):
        cells = [show(column.get(key)) for column in found]
        rows.append(Row(key.replace("_", " "), cells))
    return {
        "name": name,
        "heads": ["metric", *columns],
        "rows": rows,
        "figures": list(_list_figures(run, name, tags)) if draw else None,
    }


def _list_figures(run, name, tags) -> Iterator:
    """DET curves, score histogram and embedding maps of one trial list."""
    first, last = next(iter(tags)), next(reversed(tags))
    scored, points = {}, {}
    for tag in tags:
        found = _scored(run.notes, tags[tag].folder)
        if found is not None:
            scored[tag] = found
            arguments = (found.scores, found.trials.targets)
            rates = attempt(run.notes, metrics.error_rates, *arguments)
            if rates is not None:
                points[tag] = (rates.false_alarm, rates.miss)
    if points:
        yield figure(
            plots.det_plot(points),
            f"DET curves, {name}",
            "misses against false alarms over all thresholds; closer to the "
            "lower left corner is better, dots mark the EER",
        )
    if last in scored:
        threshold = _metrics(tags[last]).get("threshold")
        trials, scores = scored[last]
        yield figure(
            plots.score_histogram(trials.targets, scores, threshold),
            f"Scores {last}, {name}",
            "the less the two kinds of trials overlap, the better; the "
            "threshold is that of the EER",
        )
    for tag in dict.fromkeys([first, last]):
        if tag in scored:
            arguments = tags[tag].folder, scored[tag].trials
            drawn = attempt(run.notes, _map, *arguments)
            if drawn is not None:
                title = f"Map of the embeddings {tag}, {name}"
                yield figure(drawn[0], title, f"{MAP_WORDS}; {drawn[1]}")


def _map(folder, trials):
    """The embeddings of a trial list, with its target trials as groups."""
    matrix, ids = read_embeddings(folder)
    hits = np.flatnonzero(trials.targets)
    sides = (
        [trials.files[n] for n in side[hits].tolist()]
        for side in (trials.enrol, trials.test)
    )
    return plots.embedding_map(matrix, ids, list(zip(*sides)))


def _scored(notes, folder):
    """Labelled trials of one tag and finite scores, None if there are none."""
    path = os.path.join(folder, "scores.txt")
    found = attempt(notes, read_scored, path, False)
    if found is None or found.trials.targets is None:
        return None
    trials, scores = found
    kept = np.isfinite(scores)
    if not kept.all():
        notes.append(
            f"{path}: {(~kept).sum():,} of {count(len(kept), 'score')} not "
            "finite; the figures leave them out"
        )
    return Scored(trials.take(kept), scores[kept]) if kept.any() else None


def _label_use(run, settings):
    """What the run says about labels, or what its kind implies."""
    if run.summary.get("label_use"):
        return str(run.summary["label_use"])
    if settings.get("speakers"):
        return "Trained on speaker labels."
    if run.records:
        return "No speaker label was used in training."
    return "Nothing was trained here."


def _facts(run, settings):
    """What was run, in rows of plain values."""
    facts = {**settings, **run.summary}
    shown = ("data_folder", "seed", "number_of_epochs", "batch_size")
    facts = {
        **{key: facts[key] for key in shown if key in facts},
        **{k: v for k, v in run.summary.items() if k not in HIDDEN},
        **run.data,
        "run folder": run.folder,
    }
    if isinstance(facts.get("hours"), float):
        facts["hours"] = fixed(facts["hours"], 1)
    return [
        # a seed is no count: no thousands separator
        Row(
            key.replace("_", " "),
            [_name_of(value) if key.endswith("folder") else str(value)],
        )
        for key, value in facts.items()
        if not isinstance(value, (dict, list))
    ]


def _ends(run, name):
    """First and last finite value of a statistic, or as many as there are."""
    _, y = plots.values(run.records, f"train.{name}")
    y = y[np.isfinite(y)].tolist()
    return [y[0], y[-1]] if len(y) > 1 else y


def _warnings_of(record):
    """Warnings of an epoch."""
    loss = _part(record, "train").get("loss", 0.0)
    finite = is_number(loss) and math.isfinite(loss)
    found = [] if finite else ["The training loss is not finite."]
    given = record.get("warnings") or []
    found += [given] if isinstance(given, str) else list(given)
    return list(dict.fromkeys(map(str, found)))


def _words(run, name):
    """The name of a statistic for readers."""
    if name == "accuracy":
        # pseudo-labels have a loss of their own
        is_pseudo = any("label_loss" in _part(r, "train") for r in run.records)
        kind = "on pseudo-labels" if is_pseudo or run.gate else ""
        return f"accuracy {kind}" if kind else "contrastive accuracy"
    known = {"lr": "learning rate"}
    return known.get(name, str(name).replace("_", " "))


def _part(record, name):
    """A dict inside of a dict, empty if it is missing or something else."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _metrics(verified, kind="raw"):
    """Metrics of one kind of score, empty if there is none."""
    return _part(verified.metrics, kind)


def _interval(found):
    """The interval of the EER in %, empty if unknown."""
    low, high = found.get("EER_low"), found.get("EER_high")
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{fixed(low)}–{fixed(high)}"


def _is_cost(key):
    """Whether a metric is a detection cost."""
    return key.startswith("minDCF")


def _cost_name(key):
    """minDCF_0.01 for readers; the no-break space keeps it together."""
    name, _, p_target = key.partition("_")
    return f"{name}\u00a0p={p_target}" if p_target else name


def _epochs(epochs):
    """Which epochs, briefly."""
    if len(epochs) == 1:
        return f"epoch {show(epochs[0])}"
    if len(epochs) <= 5:
        return "epochs " + ", ".join(map(show, epochs))
    return f"{len(epochs)} epochs from {show(epochs[0])} to {show(epochs[-1])}"


def _valid_names(records, start):
    """Names of the figures of validation that begin so."""
    names = {name: None for r in records for name in _part(r, "valid")}
    return [name for name in names if name.startswith(start)]


def _eer_keys(records):
    """The EERs of validation; intervals are no curve."""
    return [
        f"valid.{name}"
        for name in _valid_names(records, "EER")
        if not name.endswith(("_low", "_high"))
    ]


if __name__ == "__main__":
    main()
