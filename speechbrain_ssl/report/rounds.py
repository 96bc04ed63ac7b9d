"""Rounds of pseudo-labels: results of each stage, as tables and one page.

``recipes/*/SSL/run_rounds.py`` calls this after every stage. Results that need
labels are apart, below headings that say so.
"""

import functools
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.files import write_json, write_whole
from speechbrain_ssl.pseudo_labels.decisions import read_decisions
from speechbrain_ssl.pseudo_labels.labels import (
    CSV_NAME,
    REPORT_NAME,
    read_labels,
    read_truth,
)
from speechbrain_ssl.report import plots
from speechbrain_ssl.report.clusters import PAGE_NAME
from speechbrain_ssl.report.page import write_report
from speechbrain_ssl.report.render import Row, figure, fixed, render
from speechbrain_ssl.report.run import read_log, read_object
from speechbrain_ssl.stages import MARK

logger = logging.getLogger(__name__)

DECISIONS = "decisions.csv"
REPORT = "report.html"
LABEL_USE = (
    "Labels decided nothing: neither training nor when to stop. True speakers "
    "and the labels of trials, where given, are read for the tables that say "
    "so."
)
STAGES = "Stages"
SPEAKERS = "From true labels, for this report only"
TRIALS = "From the labels of trials, for this report only"
# (key of a row, head of the column, digits, factor)
LABEL_FREE = [
    ("seconds", "minutes", 1, 1 / 60),
    ("clusters", "clusters", 0, 1),
    ("intra_cluster_cosine", "intra-cluster cosine", 3, 1),
    ("margin", "margin", 3, 1),
    ("misplaced", "misplaced %", 1, 100),
    ("stability", "ARI other seed", 3, 1),
    ("agreement", "ARI round before", 3, 1),
    ("epochs", "epochs", 0, 1),
    ("selected", "selected %", 1, 100),
    ("corrected", "corrected %", 1, 100),
]
ORACLE = [
    ("NMI", "NMI", 3, 1),
    ("purity", "purity", 3, 1),
    ("inverse_purity", "inverse purity", 3, 1),
    ("ARI", "ARI", 3, 1),
    ("speakers", "speakers", 0, 1),
    ("selected_right", "selected right %", 1, 100),
    ("corrected_right", "corrected right %", 1, 100),
]
COLUMN_WORDS = (
    "Intra-cluster cosine: of an utterance to the centroid of its cluster. "
    "Margin: the difference to its cosine to the next centroid. Misplaced: "
    "nearer to another centroid. ARI, the adjusted Rand index, is 1 for equal "
    "labels and 0 for chance: against a clustering of the same embeddings from "
    "another seed, and against the labels of the round before. Selected, "
    "corrected: shares of the utterances that the last epoch learned with "
    "their own label and with another one."
)
ORACLE_WORDS = (
    "Agreement of the pseudo-labels with true speakers, and the share of the "
    "selected or corrected utterances of the last epoch that learned the class "
    "in which their speaker is most frequent."
)
CURVES = {
    "agreement": "ARI with the round before",
    "stability": "ARI with another seed",
    "learned": "share that is learned",
}


class Table(NamedTuple):
    """A table of stages: heading, explanation, heads of columns, rows."""

    heading: str
    words: str
    heads: list[str]
    rows: list[Row]


def read_stage(
    folder: str,
    number: int,
    name: str,
    truth: str | None = None,
    data_folder: str | None = None,
) -> dict[str, Any]:
    """Results of a stage that is done; unknown values are None.

    ``number`` is the round, from 1, or 0 before the rounds; ``name`` is
    ``labels``, ``train``, ``verify`` or any other. ``truth`` is a CSV of true
    speakers. Each stage has ``round``, ``stage``, ``seconds``, ``attempts``,
    ``warnings``; labels also the keys of ``LABEL_FREE`` and, with true
    speakers, ``oracle``; training ``epochs``, ``selected``, ``corrected``,
    their sum ``learned``, and ``oracle``; verification ``lists``, by name.
    """
    mark = read_object(os.path.join(folder, MARK))
    row = {
        "round": number,
        "stage": name,
        "seconds": mark["seconds"],
        "attempts": mark["attempts"],
        "warnings": [],
    }
    if name == "labels":
        row.update(_read_quality(folder))
        if truth is not None:
            csv_path = os.path.join(folder, CSV_NAME)
            row["oracle"] = _oracle(csv_path, truth, data_folder)
    elif name == "train":
        row.update(_read_training(folder))
        path = os.path.join(folder, DECISIONS)
        if truth is not None and os.path.isfile(path):
            ids, columns = read_decisions(path)
            speakers = read_truth(truth, ids)
            row["oracle"] = quality.oracle_decisions(**columns, truth=speakers)
    elif name == "verify":
        row["lists"] = dict(_read_lists(folder))
    return row


def why_stop(
    rows: Sequence[dict],
    stop_agreement: float | None,
    stop_growth: float | None,
) -> str | None:
    """Says why the rounds should end here, or None, from no speaker label.

    ``rows`` are results of ``read_stage``. Rounds end if the ARI of the labels
    with those of the round before is above ``stop_agreement``, or if the share
    of learned utterances grows by less than ``stop_growth``; None: never.

    Example
    -------
    >>> rows = [{"round": 2, "stage": "labels", "agreement": 0.97}]
    >>> why_stop(rows, stop_agreement=0.95, stop_growth=None)[:34]
    'Stopped before training in round 2'
    """
    rows = [row for row in rows if row["stage"] in ("labels", "train")]
    if not rows:
        return None
    place = f"round {rows[-1]['round']}"
    ari = rows[-1].get("agreement")
    if ari is not None and stop_agreement is not None and ari > stop_agreement:
        return (
            f"Stopped before training in {place}, because its labels are those "
            f"of the round before: ARI {ari:.3f} is more than stop_agreement "
            f"{stop_agreement:g}."
        )
    shares = [row["learned"] for row in rows if row["stage"] == "train"][-2:]
    if rows[-1]["stage"] != "train" or len(shares) < 2:
        return None
    if None in (*shares, stop_growth) or shares[1] - shares[0] >= stop_growth:
        return None
    return (
        f"Stopped after {place}: the share of learned utterances went from "
        f"{shares[0]:.3f} to {shares[1]:.3f}, less growth than stop_growth "
        f"{stop_growth:g}."
    )


def write_rounds(folder: str, summary: dict[str, Any]) -> str:
    """Writes ``summary.json``, ``rounds.html`` and pages of the stages.

    Stages are in folders below ``folder``. ``summary`` has ``title``,
    ``outcome``, ``model``, ``settings``, ``stages`` (results of ``read_stage``,
    in order) and other things to keep. Gives the path of ``rounds.html``.
    """
    summary = {**summary, "label_use": LABEL_USE}
    write_json(os.path.join(folder, "summary.json"), summary)
    path = os.path.join(folder, "rounds.html")
    text = page(summary, folder)
    with write_whole(path) as file:
        file.write(text)
    return path


def tables(rows: Sequence[dict]) -> list[Table]:
    """The stages as tables of text: without labels first, then with them."""
    found = [Table(STAGES, COLUMN_WORDS, *_columns(rows, LABEL_FREE))]
    known = [{**row, **row["oracle"]} for row in rows if row.get("oracle")]
    if known:
        found.append(Table(SPEAKERS, ORACLE_WORDS, *_columns(known, ORACLE)))
    verified = [row for row in rows if row.get("lists")]
    if verified:
        words = "EER in %, with its 95 % interval, and minDCF at p=0.01."
        found.append(Table(TRIALS, words, *_error_rates(verified)))
    return found


def text(rows: Sequence[dict]) -> str:
    """The tables for a console.

    Example
    -------
    >>> print(text([{"round": 1, "stage": "train", "seconds": 90}]))
    Stages
    stage           minutes
    round 1, train      1.5
    """
    parts = []
    for table in tables(rows):
        grid = [table.heads, *([row.label, *row.cells] for row in table.rows)]
        widths = [max(map(len, column)) for column in zip(*grid)]
        parts.append(table.heading)
        for first, *cells in grid:
            cells = [c.rjust(w) for c, w in zip(cells, widths[1:])]
            parts.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(parts)


def page(summary: dict[str, Any], folder: str) -> str:
    """The page, as HTML; with figures if matplotlib is installed."""
    rows = summary["stages"]
    can_draw = importlib.util.find_spec("matplotlib") is not None
    links = [_link(folder, row, can_draw) for row in rows]
    return render(
        "rounds.html",
        title=summary["title"],
        outcome=summary["outcome"],
        warnings=[
            f"{_label(row)}: {warning}"
            for row in rows
            for warning in row.get("warnings", [])
        ],
        links=[link for link in links if link],
        tables=tables(rows),
        shown=_figures(rows) if can_draw else {},
        label_use=LABEL_USE,
        facts=list(_facts(summary, folder)),
    )


def _link(folder, row, can_draw):
    """Label and relative address of the page of a stage, which is written."""
    place = os.path.join(_round(row).replace(" ", ""), row["stage"])
    stage = os.path.join(folder, place)
    name = PAGE_NAME if row["stage"] == "labels" else REPORT
    path = os.path.join(stage, name)
    done = os.path.join(stage, MARK)
    if name == REPORT and can_draw and os.path.isfile(done):
        try:
            if not os.path.isfile(path) or (
                os.path.getmtime(path) < os.path.getmtime(done)
            ):
                write_report(stage)
        except (OSError, ValueError) as error:
            logger.warning("%s: no page of this stage (%s)", stage, error)
    if not os.path.isfile(path):
        return None
    return _label(row), "/".join([*place.split(os.sep), name])


def _read_quality(folder):
    """Label-free figures of report.json."""
    report = read_object(os.path.join(folder, REPORT_NAME))
    found = report["quality"]
    return {
        "clusters": found["clusters"],
        "labelled": found["labelled"],
        "intra_cluster_cosine": found["intra_cluster_cosine"]["mean"],
        "margin": found["margin"]["mean"],
        "misplaced": found["misplaced"],
        "stability": (found["stability"] or {}).get("ARI"),
        "agreement": (found["previous"] or {}).get("ARI"),
        "warnings": found["warnings"],
    }


def _read_training(folder):
    """The last epoch of train_log.jsonl."""
    records, _ = read_log(os.path.join(folder, "train_log.jsonl"))
    last = records[-1]
    selected = last["train"].get("selected")
    corrected = last["train"].get("corrected")
    learned = None if selected is None else selected + (corrected or 0.0)
    return {
        "epochs": last["epoch"],
        "selected": selected,
        "corrected": corrected,
        "learned": learned,
        "warnings": last.get("warnings", []),
    }


def _read_lists(folder):
    """Name and error rates of each trial list."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "metrics.json")
        if not os.path.isfile(path):
            continue
        found = read_object(path)
        kinds = {
            "": found.get("raw", found),
            ", AS-norm": found.get("as_norm"),
            ", faces": found.get("face"),
            ", voices and faces": found.get("fused"),
        }
        keys = ("EER", "EER_low", "EER_high", "minDCF_0.01")
        for kind, rates in kinds.items():
            if rates and rates.get("EER") is not None:
                yield name + kind, {key: rates.get(key) for key in keys}


@functools.cache
def _oracle(csv_path, truth, data_folder):
    """Labels against true speakers; cached, as each stage asks again."""
    labels = read_labels(csv_path, data_root=data_folder)
    ids = list(labels.utterances.ids())
    return quality.oracle(labels.classes, read_truth(truth, ids))


def _round(row):
    """The round of a stage for readers."""
    return f"round {row['round']}" if row["round"] else "start"


def _label(row):
    """A stage for readers."""
    return f"{_round(row)}, {row['stage']}"


def _columns(rows, columns):
    """Heads and rows of those columns that any stage has."""
    known = [c for c in columns if any(r.get(c[0]) is not None for r in rows)]
    lines = [
        Row(
            _label(row),
            [
                "" if row.get(key) is None else fixed(row[key], digits, factor)
                for key, _, digits, factor in known
            ],
        )
        for row in rows
    ]
    return ["stage", *(head for _, head, *_ in known)], lines


def _error_rates(rows):
    """Heads and rows: two columns for each list."""
    names = list(dict.fromkeys(name for row in rows for name in row["lists"]))
    heads = ["model of"]
    for name in names:
        heads += [f"EER {name}", f"minDCF {name}"]
    lines = []
    for row in rows:
        cells = []
        for name in names:
            rates = row["lists"].get(name, {})
            eer, low, high = (
                fixed(rates.get(key)) for key in ("EER", "EER_low", "EER_high")
            )
            cost = fixed(rates.get("minDCF_0.01"), 3)
            cells += [f"{eer} [{low}, {high}]", cost]
        lines.append(Row(_round(row), cells))
    return heads, lines


def _figures(rows):
    """Figures over the rounds, by heading of the table above them."""
    labels, rates = {}, {}
    for row in rows:
        for key, name in CURVES.items():
            if row.get(key) is not None:
                labels.setdefault(name, []).append((row["round"], row[key]))
        for name, found in row.get("lists", {}).items():
            rates.setdefault(name, []).append((row["round"], found["EER"]))
    title = "Agreement of the labels, and share of them that is learned"
    wanted = {
        STAGES: (labels, title, "ARI, share"),
        TRIALS: (rates, "EER (%) after each round", "EER (%)"),
    }
    found = {}
    for heading, (series, title, ylabel) in wanted.items():
        if len({x for pairs in series.values() for x, _ in pairs}) > 1:
            series = {k: list(zip(*pairs)) for k, pairs in series.items()}
            if len(series) == 1:  # which has no legend
                ylabel = f"{ylabel}, {next(iter(series))}"
            drawn = plots.curves(series, ylabel, "round")
            found[heading] = [figure(drawn, title)]
    return found


def _facts(summary, folder) -> Iterator[Row]:
    """The settings in words, without paths of the machine."""
    if summary.get("model"):
        model = os.path.abspath(summary["model"])
        model = os.path.relpath(model, os.path.abspath(folder))
        model = os.path.basename(model) if model.startswith("..") else model
        yield Row("last model", [model])
    for key, value in summary.get("settings", {}).items():
        if isinstance(value, dict):  # a stage: script, hparams, changes
            changes = _words_of(value.get("changes", {}))
            value = os.path.basename(str(value.get("hparams", "")))
            value += f" with {changes}" if changes else ""
        elif key.endswith("folder"):
            value = os.path.basename(os.path.normpath(str(value)))
        value = "not set" if value is None else value
        yield Row(key.replace("_", " "), [str(value)])


def _words_of(changes, prefix=""):
    """Changed keys with their values, in one line."""
    parts = []
    for key, value in changes.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            parts.append(_words_of(value, f"{name}: "))
        elif isinstance(value, list):
            parts.append(f"{name} {', '.join(map(str, value))}")
        else:  # of an object its class and settings
            value = re.sub(r"!\w+:(\w+\.)*|[{}]", "", str(value))
            parts.append(f"{name} {value}")
    return "; ".join(filter(None, parts))
