"""Figures of a run: curves, scores, DET curve, embedding map, gate.

Each function returns a ``matplotlib.figure.Figure`` and touches no global
state of matplotlib; ``save`` writes one to a file, ``svg`` makes it part of
an HTML page. matplotlib is an extra: ``pip install speechbrain_ssl[report]``.
"""

import functools
import io
import itertools
import math
import os
import re
import textwrap

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from speechbrain_ssl.files import write_whole

# Okabe and Ito's colors, which color-blind readers can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAY = "#B8B8B8"
COLORED_GROUPS = 12
TSNE_LIMIT = 2000
RASTER_LIMIT = 300
DET_POINTS = 500
DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
# 360 points wide: the text is about 10 px on a phone and 16 px on a desktop
SIZE = (5.0, 3.6)
TALL = (5.0, 4.5)
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.title_fontsize": 10.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
}


def _matplotlib():
    """The extra, or how to get it."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib, which is not installed: "
            "pip install speechbrain_ssl[report]"
        ) from error
    return matplotlib


def _in_style(draw):
    """Runs a function in our style and leaves the user's as it was."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with _matplotlib().rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_in_style
def curves(records, *keys, ylabel=None, title=None, path=None):
    """Draws statistics of the training log against the epoch.

    Values that are not finite are left out of the line and marked by a red
    cross at the foot of the figure.

    Arguments
    ---------
    records : list of dict
        One per epoch, with ``"epoch"`` and dicts such as ``"train"``.
    *keys : str
        Part and name of each curve, such as ``"train.loss"``.
    ylabel : str
        Label of the vertical axis; None names the only curve.
    title : str
        Title of the figure.
    path : str
        Also saves the figure there.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If no record has any of the keys.
    """
    series = {key: values(records, key) for key in keys}
    series = {key: found for key, found in series.items() if len(found[0])}
    if not series:
        raise ValueError(
            f"None of the {len(records)} records of the training log has "
            f"{' or '.join(keys)}. Name statistics that the log contains."
        )
    figure, axes = _figure(title=title)
    for color, (key, (epochs, y)) in zip(
        itertools.cycle(COLORS), series.items()
    ):
        _line(axes, epochs, y, color, _plain(key))
    axes.set_xlabel("epoch")
    axes.set_ylabel(_plain(ylabel or " / ".join(series)))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if len(axes.lines) > 1:
        axes.legend()
    return _finish(figure, path)


def values(records, key):
    """Reads one statistic out of the records of a training log.

    Arguments
    ---------
    records : list of dict
        One per epoch.
    key : str
        Part and name, such as ``"train.loss"``.

    Returns
    -------
    epochs : np.ndarray
        The epochs whose record has the statistic, float64 [epochs].
    found : np.ndarray
        Its values, finite or not, float64 [epochs].

    Example
    -------
    >>> records = [{"epoch": 1, "train": {"loss": 2.0}}, {"epoch": 2}]
    >>> values(records, "train.loss")
    (array([1.]), array([2.]))
    """
    part, name = key.split(".", 1)
    pairs = [
        (record["epoch"], record[part][name])
        for record in records
        if isinstance(record.get(part), dict)
        and is_number(record[part].get(name))
    ]
    epochs, found = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return epochs, found


def is_number(value):
    """Whether a value of a log can be drawn; bool is no number.

    Arguments
    ---------
    value : Any
        The value.

    Returns
    -------
    bool
        True for int and float, also NaN and infinity.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@_in_style
def det_plot(curves, path=None, title=None):
    """Draws DET curves on probit axes, with the equal error rates marked.

    Arguments
    ---------
    curves : dict of str to (np.ndarray, np.ndarray)
        False alarm and miss rates [points] of each system, as
        ``evaluation.metrics.error_rates`` gives them.
    path : str
        Also saves the figure there.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    figure, axes = _figure(TALL, title)
    low, high = _det_limits(curves)
    axes.plot(ndtri([low, high]), ndtri([low, high]), ":", color=GRAY, lw=1)
    for color, (name, (false_alarm, miss)) in zip(
        itertools.cycle(COLORS), curves.items()
    ):
        eer = _equal_error_rate(false_alarm, miss)
        label = f"{_plain(name)} (EER {100 * eer:.2f} %)"
        axes.plot(*thin(false_alarm, miss, low), color=color, label=label)
        mark = ndtri(np.clip(eer, low, high))
        axes.plot(mark, mark, "o", color=color, ms=6, mec="white")
    _probit_axes(axes, low, high)
    figure.legend(loc="outside lower center")
    return _finish(figure, path)


def thin(false_alarm, miss, low=1e-4, points=DET_POINTS):
    """Probit coordinates of a DET curve, thinned evenly along the curve.

    Arguments
    ---------
    false_alarm : np.ndarray
        False alarm rates [points].
    miss : np.ndarray
        Miss rates [points].
    low : float
        Rates are clipped to [low, 1 - low], whose probit is finite.
    points : int
        Most points to keep.

    Returns
    -------
    x : np.ndarray
        Probit of the false alarm rates [at most points].
    y : np.ndarray
        Probit of the miss rates [at most points].
    """
    x = ndtri(np.clip(false_alarm, low, 1 - low))
    y = ndtri(np.clip(miss, low, 1 - low))
    if len(x) <= points:
        return x, y
    steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
    way = np.concatenate([[0.0], np.cumsum(steps)])
    keep = np.searchsorted(way, np.linspace(0.0, way[-1], points))
    keep = np.unique(np.clip(keep, 0, len(x) - 1))
    return x[keep], y[keep]


@_in_style
def score_histogram(targets, scores, threshold=None, path=None, title=None):
    """Draws how the scores of target and non-target trials spread.

    Arguments
    ---------
    targets : np.ndarray
        Whether each trial is a target trial, bool [trials].
    scores : np.ndarray
        Scores [trials].
    threshold : float
        Marked by a line, such as the threshold of the EER.
    path : str
        Also saves the figure there.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; scores that are not finite are left out.
    """
    targets, scores = np.asarray(targets, bool), np.asarray(scores, float)
    finite = np.isfinite(scores)
    targets, scores = targets[finite], scores[finite]
    bins = int(np.clip(math.sqrt(len(scores)), 10, 60))
    edges = np.histogram_bin_edges(scores, bins)
    figure, axes = _figure(TALL, title)
    for name, color, chosen in (
        ("non-target", COLORS[1], ~targets),
        ("target", COLORS[0], targets),
    ):
        counts, _ = np.histogram(scores[chosen], edges)
        share = 100 * counts / max(1, counts.sum())
        label = f"{name} ({counts.sum():,})"
        axes.stairs(share, edges, fill=True, color=color, alpha=0.35)
        axes.stairs(share, edges, color=color, lw=1.5, label=label)
    if is_number(threshold) and math.isfinite(threshold):
        label = f"threshold {threshold:.3f}"
        axes.axvline(threshold, color="#333333", ls="--", lw=1.2, label=label)
    axes.set_xlabel("score")
    axes.set_ylabel("share of its trials (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return _finish(figure, path)


def target_groups(ids, target_trials):
    """Groups of files that target trials connect, the largest first.

    Arguments
    ---------
    ids : list of str
        The files [files].
    target_trials : list of (str, str)
        Enrol and test file of each target trial; those with a file that is
        not in ``ids`` are passed over.

    Returns
    -------
    np.ndarray
        Group of each file, int64 [files]; 0 is the largest group, -1 a file
        that no target trial connects to another one.

    Example
    -------
    >>> target_groups(["a", "b", "c", "d", "e", "f"],
    ...               [("b", "c"), ("d", "e"), ("e", "f")])
    array([-1,  1,  1,  0,  0,  0])
    """
    rows = {name: row for row, name in enumerate(ids)}
    pairs = [
        (rows[enrol], rows[test])
        for enrol, test in target_trials
        if enrol in rows and test in rows
    ]
    enrol, test = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array(
        (np.ones(len(pairs)), (enrol, test)), shape=(len(ids), len(ids))
    )
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=len(ids))
    by_size = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    return np.where(sizes[component] > 1, rank[component], -1)


def project(embeddings):
    """Brings embeddings to the plane.

    Rows get unit length, as cosine scoring sees them. Up to 2,000 files go
    through PCA to 50 dimensions and t-SNE, more through PCA alone, which is
    also the way of embeddings that t-SNE cannot spread: fewer than 5 files,
    or all the same (collapsed).

    Arguments
    ---------
    embeddings : np.ndarray
        Finite embeddings [files, emb_dim].

    Returns
    -------
    points : np.ndarray
        Places in the plane [files, 2].
    method : str
        ``"t-SNE"`` or ``"PCA"``.
    """
    rows = np.array(embeddings, dtype=np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if 5 <= len(rows) <= TSNE_LIMIT and not _collapsed(rows):
        return _tsne(_pca(rows, 50)), "t-SNE"
    return _pca(rows, 2), "PCA"


@_in_style
def embedding_map(embeddings, ids, target_trials, path=None, title=None):
    """Draws a map of test embeddings, colored by the trial list's labels.

    Files that target trials connect are one group, which is one speaker or
    a part of one. The largest groups are colored, the others gray.

    Arguments
    ---------
    embeddings : np.ndarray
        Embeddings [files, emb_dim]; rows that are not finite are left out.
    ids : list of str
        The files [files].
    target_trials : list of (str, str)
        Enrol and test file of each target trial.
    path : str
        Also saves the figure there.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If there are not as many ids as embeddings, or none is finite.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(ids):
        raise ValueError(
            "The embedding map needs one row of embeddings per file, found "
            f"embeddings of shape {embeddings.shape} for {len(ids)} files."
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.any():
        raise ValueError(
            f"None of the {len(ids)} embeddings is finite: there is nothing "
            "to draw a map of. Check the model that made them."
        )
    groups = target_groups(ids, target_trials)[finite]
    dropped = int((~finite).sum())
    points, method = project(embeddings[finite])
    figure, axes = _figure((5.0, 5.2), title)
    axes.spines[:].set(visible=True, color="#D0D0D0")
    _scatter(axes, points, groups)
    axes.set(xticks=[], yticks=[])
    remark = f", {dropped:,} not finite" if dropped else ""
    remark += "" if points.any() else ", all the same"
    axes.set_xlabel(f"{method} of {len(points):,} embeddings{remark}")
    axes.margins(0.04)
    _map_legend(figure, groups)
    return _finish(figure, path)


@_in_style
def gate_plot(record, path=None):
    """Draws how the log-losses of an epoch spread, and where the gate is.

    Arguments
    ---------
    record : dict
        One line of ``gate.jsonl``: ``epoch``; ``histogram`` (``edges``
        [bins + 1] and ``counts`` [bins] of log-losses); ``mixture`` (weights,
        means and deviations of two Gaussians) or None; ``accepted`` (whether
        the gate took it); ``threshold`` or None; ``reason``; ``trusted`` (a
        share) or None.
    path : str
        Also saves the figure there.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; of no losses at all, it says so.

    Raises
    ------
    ValueError
        If histogram or mixture are not what is described above.
    """
    edges, density = _density(record)
    figure, axes = _figure(TALL, _gate_title(record))
    if len(density):
        axes.stairs(density, edges, fill=True, color=GRAY, alpha=0.7)
        axes.set_ylim(0, 1.1 * density.max())
        _draw_mixture(axes, record, edges)
    else:
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no finite loss", **middle)
    threshold = record.get("threshold")
    if is_number(threshold) and math.isfinite(threshold):
        label = f"threshold {threshold:.3f}"
        axes.axvline(threshold, color="#333333", ls="--", lw=1.4, label=label)
    axes.set_xlabel("log-loss")
    axes.set_ylabel("density")
    figure.legend(
        *axes.get_legend_handles_labels(),
        title=_wrapped(record.get("reason")),
        title_fontsize=9.5,
        fontsize=9.5,
        handlelength=1.5,
        columnspacing=1.2,
        ncols=3,
        loc="outside lower center",
    )
    return _finish(figure, path)


@_in_style
def save(figure, path):
    """Saves a figure; the file appears whole or not at all.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    path : str
        Where to; the extension (.png, .svg, .pdf) is the format.
    """
    suffix = os.path.splitext(path)[1]
    with write_whole(path, "wb") as file:
        figure.savefig(file, format=suffix[1:] or "png", dpi=160)


@_in_style
def svg(figure, prefix, label=""):
    """Turns a figure into an SVG element for the inside of an HTML page.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    prefix : str
        Put before all ids, since a page has one space for the ids of all
        its figures: letters, digits and ``-``.
    label : str
        What a screen reader says; must be escaped for HTML.

    Returns
    -------
    str
        ``<svg ...>...</svg>``, without XML header, with text as text.
    """
    buffer = io.StringIO()
    # a fixed salt: the same figure gives the same bytes
    with _matplotlib().rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", dpi=160)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, count=1, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"\n\s*", "\n", text)
    view_box = re.search(r'viewBox="[^"]*"', text).group()
    opening = f'<svg {view_box} role="img" aria-label="{label}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _figure(size=SIZE, title=None):
    """An empty figure with one pair of axes."""
    figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(_plain(title))
    return figure, axes


def _finish(figure, path):
    """Saves if a path is given."""
    if path is not None:
        save(figure, path)
    return figure


def _plain(text, most=44):
    """Text as it stands: no formulas, no hidden labels, not too long."""
    text = " ".join(str(text).split()).lstrip("_")
    if len(text) > most:
        half = most // 2
        text = f"{text[: half - 1]}…{text[-half:]}"
    return text.replace("$", r"\$")


def _line(axes, x, y, color, label):
    """One curve; few points get markers, so that one epoch can be seen."""
    marker = "o" if len(x) <= 30 else None
    axes.plot(x, y, color=color, marker=marker, ms=4, label=label)
    broken = x[~np.isfinite(y)]
    if len(broken):
        axes.plot(
            broken,
            np.full(len(broken), 0.03),
            "x",
            color="#B00020",
            mew=2,
            transform=axes.get_xaxis_transform(),
            label=f"{label}: no finite value",
        )


def _equal_error_rate(false_alarm, miss):
    """The EER as ``evaluation.metrics.eer`` defines it."""
    best = int(np.argmin(np.abs(np.subtract(miss, false_alarm))))
    return float(miss[best] + false_alarm[best]) / 2


def _det_limits(curves):
    """The range of rates that the trials can resolve, the same both ways."""
    rates = [np.concatenate(pair) for pair in curves.values()]
    rates = np.concatenate(rates) if rates else np.array([0.5])
    smallest = rates[rates > 0].min(initial=0.01)
    low = float(np.clip(smallest, 1e-4, 0.01))
    eers = [_equal_error_rate(*pair) for pair in curves.values()]
    return low, 0.65 if max(eers, default=0.0) < 0.4 else 0.95


def _probit_axes(axes, low, high):
    """Axes that are labeled with rates in %."""
    ticks = [rate for rate in DET_TICKS if low <= rate <= high]
    names = [f"{100 * rate:g}" for rate in ticks]
    limits = ndtri([low, high])
    axes.set_xticks(ndtri(ticks), names)
    axes.set_yticks(ndtri(ticks), names)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel("false alarms (%)")
    axes.set_ylabel("misses (%)")


def _gate_title(record):
    """The epoch, and how much was trusted in it."""
    trusted = record.get("trusted")
    share = ""
    if is_number(trusted) and math.isfinite(trusted):
        share = f": {100 * trusted:.1f} % trusted"
    return f"epoch {record.get('epoch')}{share}"


def _wrapped(reason):
    """A reason in lines of the figure's width."""
    text = textwrap.fill(str(reason or ""), 60)
    return text.replace("$", r"\$")


def _density(record):
    """Edges and heights of the histogram, both empty without losses."""
    found = record.get("histogram")
    try:
        edges, counts = (
            np.asarray(found[name], dtype=float) for name in ("edges", "counts")
        )
        good = len(edges) == len(counts) + 1 or len(edges) == len(counts) == 0
        good = good and np.isfinite([*edges, *counts]).all()
        good = good and (np.diff(edges) > 0).all() and (counts >= 0).all()
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"Gate of epoch {record.get('epoch')}: expected a histogram with "
            "n counts and n + 1 ascending edges, found "
            f"{str(found)[:100]}."
        )
    if not counts.sum():
        return np.empty(0), np.empty(0)
    return edges, counts / (counts.sum() * np.diff(edges))


def _draw_mixture(axes, record, edges):
    """Two weighted Gaussians over the histogram; dotted if refused."""
    mixture = record.get("mixture")
    if mixture is None:
        return
    try:
        mixture = np.asarray(mixture, dtype=float)
        good = mixture.shape == (3, 2) and np.isfinite(mixture).all()
    except (TypeError, ValueError):
        good = False
    if not good or not (mixture[2] > 0).all():
        raise ValueError(
            f"Gate of epoch {record.get('epoch')}: expected a mixture of "
            "[two weights, two means, two positive deviations], found "
            f"{str(record['mixture'])[:100]}."
        )
    x = np.linspace(edges[0], edges[-1], 300)
    for color, (weight, mean, deviation) in zip(COLORS, mixture.T):
        axes.plot(
            x,
            weight * norm.pdf(x, mean, deviation),
            color=color,
            ls="-" if record.get("accepted") else ":",
            label=f"{100 * weight:.0f} % at {mean:.2f}",
        )


def _collapsed(rows):
    """Whether all rows are the same, up to rounding."""
    return rows.std(axis=0).max(initial=0.0) < 1e-6


def _pca(rows, dim):
    """Principal components [files, dim], zeros where there are fewer."""
    keep = min(dim, *rows.shape)
    if not keep or _collapsed(rows):
        return np.zeros((len(rows), dim))
    found = PCA(keep, random_state=0).fit_transform(rows)
    return np.pad(found, ((0, 0), (0, dim - keep)))


def _tsne(rows):
    """t-SNE to the plane; the perplexity must be below the file count."""
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(rows.astype(np.float32))


def _group_style(group):
    """Color and marker; both tell the groups apart."""
    marker = "o^"[group // len(COLORS) % 2]
    return {"color": COLORS[group % len(COLORS)], "marker": marker}


def _scatter(axes, points, groups):
    """Gray files first, so that the colored ones lie on top."""
    look = {"s": 16, "lw": 0, "rasterized": len(points) > RASTER_LIMIT}
    rest = (groups < 0) | (groups >= COLORED_GROUPS)
    axes.scatter(*points[rest].T, color=GRAY, alpha=0.6, **look)
    for group in range(COLORED_GROUPS):
        chosen = points[groups == group]
        if len(chosen):
            axes.scatter(*chosen.T, alpha=0.85, **look, **_group_style(group))


def _map_legend(figure, groups):
    """Says what is colored, and that the colors are labels."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    def mark(**look):
        return Line2D([], [], ls="", ms=5, **look)

    count = int(groups.max(initial=-1)) + 1
    colored = min(count, COLORED_GROUPS)
    handles, labels = [], []
    if colored:
        shown = range(0, colored, max(1, colored // 4))
        handles.append(tuple(mark(**_group_style(group)) for group in shown))
        labels.append(f"the {colored} largest of {count} groups")
    if colored < count or (groups < 0).any():
        handles.append(mark(color=GRAY, marker="o"))
        single = int((groups < 0).sum())
        labels.append(_rest_label(count - colored, single))
    figure.legend(
        handles,
        labels,
        title="Colors come from the labels of the trial list:\n"
        "a group is what its target trials connect",
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.3)},
        loc="outside lower center",
    )


def _rest_label(groups, files):
    """What is gray."""
    parts = [f"the other {groups} groups"] if groups else []
    parts += [f"{files:,} files without a target trial"] if files else []
    return ", ".join(parts)
