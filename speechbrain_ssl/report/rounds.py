"""Rounds of pseudo-labels: what each stage came to, as tables and one page.

``recipes/*/SSL/run_rounds.py`` calls this after every stage. What needs labels
to be known stands apart, under headings that say so.
"""

import functools
import importlib.util
import json
import os

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.files import write_json, write_whole
from speechbrain_ssl.pseudo_labels.decisions import read_decisions
from speechbrain_ssl.pseudo_labels.labels import (
    CSV_NAME,
    REPORT_NAME,
    read_labels,
    read_truth,
)
from speechbrain_ssl.report import html, plots
from speechbrain_ssl.report.run import read_log, read_object
from speechbrain_ssl.stages import MARK

DECISIONS = "decisions.csv"
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
    ("trusted", "trusted %", 1, 100),
    ("corrected", "corrected %", 1, 100),
]
ORACLE = [
    ("NMI", "NMI", 3, 1),
    ("purity", "purity", 3, 1),
    ("inverse_purity", "inverse purity", 3, 1),
    ("ARI", "ARI", 3, 1),
    ("speakers", "speakers", 0, 1),
    ("trusted_right", "trusted right %", 1, 100),
    ("corrected_right", "corrected right %", 1, 100),
]
COLUMN_WORDS = (
    "Own cosine: of an utterance to the centroid of its cluster. Margin: how "
    "much that is above the cosine to the next centroid. Misplaced: nearer to "
    "another centroid. ARI, the adjusted Rand index, is 1 for the same labels "
    "and 0 for chance: against the same embeddings clustered from another "
    "seed, and against the labels of the round before. Trusted, corrected: "
    "shares of the utterances that the last epoch learnt with their own label "
    "and with another one."
)


def read_stage(folder, number, name, truth=None, data_folder=None):
    """What a stage that is done came to.

    Arguments
    ---------
    folder : str
        Its folder.
    number : int
        Its round, from 1; 0 is what comes before them.
    name : str
        ``labels``, ``train``, ``verify`` or any other name.
    truth : str
        CSV file of true speakers, or None.
    data_folder : str
        What ``$data_root`` in label files stands for.

    Returns
    -------
    dict
        ``round``, ``stage``, ``seconds``, ``attempts``, ``warnings``. Of
        labels also ``clusters``, ``labelled``, ``intra_cluster_cosine``, ``margin``,
        ``misplaced``, ``stability``, ``agreement`` and, with true speakers,
        ``oracle``; of training ``epochs``, ``trusted``, ``corrected``,
        ``selected``, their sum, and ``oracle``; of verification ``lists``, by name. What is
        not known is None.
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


def why_stop(rows, stop_agreement, stop_growth):
    """Says why the rounds should end here; no speaker label has a say.

    Arguments
    ---------
    rows : list of dict
        What ``read_stage`` gave of the stages that are done.
    stop_agreement : float
        ARI of the labels with those of the round before beyond which training
        on them is the same again; None if none is.
    stop_growth : float
        By how much the share of utterances that is learnt must grow in a
        round; None if it need not.

    Returns
    -------
    str
        The reason with its figures; None to go on.

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
    if None not in (ari, stop_agreement) and ari > stop_agreement:
        return (
            f"Stopped before training in {place}, as its labels are those of "
            f"the round before: ARI {ari:.3f} is more than stop_agreement "
            f"{stop_agreement:g}."
        )
    shares = [row["selected"] for row in rows if row["stage"] == "train"][-2:]
    if rows[-1]["stage"] != "train" or len(shares) < 2:
        return None
    if None in (*shares, stop_growth) or shares[1] - shares[0] >= stop_growth:
        return None
    return (
        f"Stopped after {place}: the share of utterances that is learnt went "
        f"from {shares[0]:.3f} to {shares[1]:.3f}, which is less growth than "
        f"stop_growth {stop_growth:g}."
    )


def write_rounds(folder, summary):
    """Writes ``summary.json`` and ``rounds.html``.

    Arguments
    ---------
    folder : str
        Where to.
    summary : dict
        ``title``, ``outcome``, ``stages`` (what ``read_stage`` gave, in
        order) and whatever else is to be kept.

    Returns
    -------
    str
        The path of the page.
    """
    summary = {**summary, "label_use": LABEL_USE}
    write_json(os.path.join(folder, "summary.json"), summary)
    path = os.path.join(folder, "rounds.html")
    with write_whole(path) as file:
        file.write(page(summary))
    return path


def tables(rows):
    """The stages as tables of text: without labels first, then with them.

    Arguments
    ---------
    rows : list of dict
        What ``read_stage`` gave.

    Returns
    -------
    list of (str, str, list of str, list of list of str)
        Heading, words, heads and lines of each table that has something to
        say.
    """
    found = [(STAGES, COLUMN_WORDS, *_columns(rows, LABEL_FREE))]
    known = [{**row, **row["oracle"]} for row in rows if row.get("oracle")]
    if known:
        words = (
            "How well the pseudo-labels agree with true speakers, and how many "
            "of the utterances that the last epoch trusted or corrected learnt "
            "the class in which their speaker is most frequent."
        )
        found.append((SPEAKERS, words, *_columns(known, ORACLE)))
    verified = [row for row in rows if row.get("lists")]
    if verified:
        words = "EER in %, with its 95 % interval, and minDCF at p=0.01."
        found.append((TRIALS, words, *_error_rates(verified)))
    return found


def text(rows):
    """The tables for a console.

    Arguments
    ---------
    rows : list of dict
        What ``read_stage`` gave.

    Returns
    -------
    str
        Lines of text.

    Example
    -------
    >>> print(text([{"round": 1, "stage": "train", "seconds": 90}]))
    Stages
    stage         minutes
    round1/train      1.5
    """
    parts = []
    for heading, _, heads, lines in tables(rows):
        grid = [heads, *lines]
        widths = [max(map(len, column)) for column in zip(*grid)]
        parts.append(heading)
        for first, *cells in grid:
            cells = [c.rjust(w) for c, w in zip(cells, widths[1:])]
            parts.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(parts)


def page(summary):
    """Composes the page.

    Arguments
    ---------
    summary : dict
        What was written to summary.json.

    Returns
    -------
    str
        An HTML document; with figures if matplotlib is installed.
    """
    rows = summary["stages"]
    can_draw = importlib.util.find_spec("matplotlib") is not None
    figures = {STAGES: _agreement, TRIALS: _eers} if can_draw else {}
    parts = [f"<p>{html.escape(summary['outcome'])}</p>", _warnings(rows)]
    for heading, words, heads, lines in tables(rows):
        body = [html.row(first, cells) for first, *cells in lines]
        parts += [f"<h2>{heading}</h2>", html.table(heads, body)]
        parts.append(f'<p class="soft">{words}</p>')
        if heading in figures:
            parts.append(figures[heading](rows))
    parts.append(f"<h2>The run</h2>\n<p>{html.escape(LABEL_USE)}</p>")
    facts = {k: v for k, v in summary.items() if k in ("model", "settings")}
    facts = html.escape(json.dumps(facts, indent=2, ensure_ascii=False))
    parts.append(f"<pre>{facts}</pre>")
    return html.document(summary["title"], "\n".join(filter(None, parts)))


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
    trusted = last["train"].get("trusted")
    corrected = last["train"].get("corrected")
    selected = None if trusted is None else trusted + (corrected or 0.0)
    return {
        "epochs": last["epoch"],
        "trusted": trusted,
        "corrected": corrected,
        "selected": selected,
        "warnings": last.get("warnings", []),
    }


def _read_lists(folder):
    """Name and error rates of each trial list."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "metrics.json")
        if not os.path.isfile(path):
            continue
        found = read_object(path)
        kinds = {"": found.get("raw", found), ", AS-norm": found.get("as_norm")}
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


def _label(row):
    """A stage for readers, as its folder is called."""
    place = f"round{row['round']}" if row["round"] else "start"
    return f"{place}/{row['stage']}"


def _columns(rows, columns):
    """Heads and lines of those columns that any row knows."""
    known = [c for c in columns if any(r.get(c[0]) is not None for r in rows)]
    lines = []
    for row in rows:
        line = [_label(row)]
        for key, _, digits, factor in known:
            value = row.get(key)
            value = None if value is None else value * factor
            line.append("" if value is None else html.fixed(value, digits))
        lines.append(line)
    return ["stage", *(head for _, head, *_ in known)], lines


def _error_rates(rows):
    """Heads and lines: two columns for each list."""
    names = list(dict.fromkeys(name for row in rows for name in row["lists"]))
    heads = ["model of"]
    for name in names:
        heads += [f"EER {name}", f"minDCF {name}"]
    lines = []
    for row in rows:
        place = f"round{row['round']}" if row["round"] else "start"
        lines.append([place])
        for name in names:
            rates = row["lists"].get(name, {})
            low, high = (
                html.fixed(rates.get(key), 2) for key in ("EER_low", "EER_high")
            )
            lines[-1].append(
                f"{html.fixed(rates.get('EER'), 2)} [{low}, {high}]"
            )
            lines[-1].append(html.fixed(rates.get("minDCF_0.01"), 3))
    return heads, lines


def _warnings(rows):
    """What any stage warns of."""
    lines = [
        html.escape(f"{_label(row)}: {warning}")
        for row in rows
        for warning in row.get("warnings", [])
    ]
    return f'<div class="note">{html.items(lines)}</div>' if lines else ""


def _agreement(rows):
    """How labels, and what is learnt of them, change over the rounds."""
    names = {
        "agreement": "ARI.round before",
        "stability": "ARI.other seed",
        "selected": "share.learnt",
    }
    found = [
        (row["round"], name, row[key])
        for row in rows
        for key, name in names.items()
        if row.get(key) is not None
    ]
    title = "Agreement of the labels, and share of them that is learnt"
    return _curves(found, title, "ARI, share")


def _eers(rows):
    """Error rates over the rounds."""
    found = [
        (row["round"], f"EER.{name}", rates["EER"])
        for row in rows
        for name, rates in row.get("lists", {}).items()
    ]
    title = "EER (%) after each round, from the labels of trials"
    return _curves(found, title, "EER (%)")


def _curves(points, title, ylabel):
    """A figure of (round, part.name, value); empty for less than two rounds."""
    records = {}
    for number, key, value in points:
        # what plots.curves calls an epoch is a round here
        record = records.setdefault(number, {"epoch": number})
        part, name = key.split(".", 1)
        record.setdefault(part, {})[name] = value
    if len(records) < 2:
        return ""
    keys = list(dict.fromkeys(key for _, key, _ in points))
    if len(keys) == 1:  # which has no legend
        ylabel = keys[0].replace(".", " ", 1)
    drawn = plots.curves(list(records.values()), *keys, ylabel=ylabel)
    drawn.axes[0].set_xlabel("round")
    return html.grid([html.figure(drawn, title)])
