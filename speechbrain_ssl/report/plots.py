"""Figures of a run: curves, scores, DET curve, embedding map, gate.

Each function returns a ``matplotlib.figure.Figure`` and changes no global
state of matplotlib. ``save`` writes a figure to a file, ``svg`` makes it part
of an HTML page. matplotlib is an extra: ``pip install speechbrain_ssl[report]``.
"""

import functools
import io
import itertools
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri

from speechbrain_ssl.extras import extra
from speechbrain_ssl.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GRAY, GRID, PAPER, ALARM = (
    *("#000000", "#B8B8B8", "#E4E4E4", "#FFFFFF", "#B00020"),
)
# a page gives these colors other values in dark mode
VARIABLES = {
    **{color.lower(): f"var(--c{n})" for n, color in enumerate(COLORS)},
    INK: "var(--text)",
    GRAY.lower(): "var(--gray)",
    GRID.lower(): "var(--line)",
    PAPER.lower(): "var(--page)",
    ALARM.lower(): "var(--bad)",
}
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
    "grid.color": GRID,
    "axes.axisbelow": True,
    # what lies below is the page's business
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.title_fontsize": 10.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
}


def _matplotlib():
    """matplotlib, or an error that says how to get it."""
    extra("matplotlib")
    import matplotlib.figure

    return matplotlib


def _in_style(draw):
    """Runs a function in our style and leaves the user's style unchanged."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with _matplotlib().rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def is_number(value: Any) -> bool:
    """Whether a log's value can be drawn: int or float, also NaN; not bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def values(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs that have a statistic (such as ``"train.loss"``), and its values.

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


@_in_style
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    xlabel: str = "epoch",
) -> "Figure":
    """Draws statistics, given as x and y by name, against the epoch.

    Values that are not finite are left out of the line and marked by a red
    cross at the bottom of the figure.
    """
    figure, axes = _figure()
    for color, (name, (x, y)) in zip(itertools.cycle(COLORS), series.items()):
        _line(axes, np.asarray(x), np.asarray(y), color, _plain(name))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(_plain(ylabel))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if len(axes.lines) > 1:
        axes.legend()
    return figure


@_in_style
def det_plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """Draws DET curves on probit axes, with the equal error rates marked.

    ``curves`` has false alarm and miss rates [points] of each system.
    """
    figure, axes = _figure(TALL)
    low, high = _det_limits(curves)
    axes.plot(ndtri([low, high]), ndtri([low, high]), ":", color=GRAY, lw=1)
    for color, (name, (false_alarm, miss)) in zip(
        itertools.cycle(COLORS), curves.items()
    ):
        eer = _equal_error_rate(false_alarm, miss)
        label = f"{_plain(name)} (EER {100 * eer:.2f} %)"
        axes.plot(*thin(false_alarm, miss, low), color=color, label=label)
        mark = ndtri(np.clip(eer, low, high))
        axes.plot(mark, mark, "o", color=color, ms=6, mec=PAPER)
    _probit_axes(axes, low, high)
    figure.legend(loc="outside lower center")
    return figure


def thin(
    false_alarm: np.ndarray, miss: np.ndarray, low: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Probit coordinates of a DET curve, thinned evenly along it."""
    x = ndtri(np.clip(false_alarm, low, 1 - low))
    y = ndtri(np.clip(miss, low, 1 - low))
    if len(x) <= DET_POINTS:
        return x, y
    steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
    way = np.concatenate([[0.0], np.cumsum(steps)])
    keep = np.searchsorted(way, np.linspace(0.0, way[-1], DET_POINTS))
    keep = np.unique(np.clip(keep, 0, len(x) - 1))
    return x[keep], y[keep]


@_in_style
def score_plot(
    score: float, threshold: float | None, cosines: np.ndarray
) -> "Figure":
    """Draws the score of two recordings, and the cosines of their windows.

    ``threshold`` is the lowest cosine that counts as the same speaker; None:
    not drawn. ``cosines`` has each window of the first recording and each of
    the second one; NaN for windows without an embedding [first, second].
    """
    figure = _matplotlib().figure.Figure(figsize=TALL, layout="constrained")
    line, grid = figure.subplots(2, height_ratios=[1, 4])
    line.plot([score], [0], "o", color=COLORS[0], ms=9, label="score")
    _mark_threshold(line, threshold)
    line.set(xlim=(-1.02, 1.02), ylim=(-1, 1), yticks=[], xlabel="cosine")
    line.legend(loc="upper left", ncols=2)
    image = grid.imshow(
        np.ma.masked_invalid(cosines.T),
        origin="lower",
        vmin=-1,
        vmax=1,
        cmap="cividis",
        aspect="auto",
    )
    grid.grid(False)
    grid.set_xlabel("window of the first recording")
    grid.set_ylabel("window of the second recording")
    for axis in (grid.xaxis, grid.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.colorbar(image, ax=grid, label="cosine")
    return figure


@_in_style
def score_histogram(
    targets: np.ndarray, scores: np.ndarray, threshold: float | None = None
) -> "Figure":
    """Draws the distributions of the finite target and non-target scores."""
    targets, scores = np.asarray(targets, bool), np.asarray(scores, float)
    finite = np.isfinite(scores)
    targets, scores = targets[finite], scores[finite]
    bins = int(np.clip(math.sqrt(len(scores)), 10, 60))
    edges = np.histogram_bin_edges(scores, bins)
    figure, axes = _figure(TALL)
    for name, color, chosen in (
        ("non-target", COLORS[1], ~targets),
        ("target", COLORS[0], targets),
    ):
        counts, _ = np.histogram(scores[chosen], edges)
        share = 100 * counts / max(1, counts.sum())
        label = f"{name} ({counts.sum():,})"
        axes.stairs(share, edges, fill=True, color=color, alpha=0.35)
        axes.stairs(share, edges, color=color, lw=1.5, label=label)
    _mark_threshold(axes, threshold)
    axes.set_xlabel("score")
    axes.set_ylabel("share of its trials (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def target_groups(
    ids: Sequence[str], target_trials: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Groups of files that target trials connect, 0 the largest, -1 for none."""
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


def project(embeddings: np.ndarray) -> tuple[np.ndarray, str]:
    """Projects embeddings [files, emb_dim] to [files, 2]; also says how.

    Rows are scaled to unit length, as cosine scoring sees them. Up to 2,000
    files go through PCA to 50 dimensions and t-SNE. More files, fewer than 5,
    or equal rows (collapse) go through PCA alone.
    """
    rows = np.array(embeddings, dtype=np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if 5 <= len(rows) <= TSNE_LIMIT and not _collapsed(rows):
        return _tsne(_pca(rows, 50)), "t-SNE"
    return _pca(rows, 2), "PCA"


@_in_style
def embedding_map(
    embeddings: np.ndarray,
    ids: Sequence[str],
    target_trials: Sequence[tuple[str, str]],
) -> tuple["Figure", str]:
    """Draws a map of test embeddings, colored by the trial list's labels.

    Rows of embeddings [files, emb_dim] that are not finite are left out. Files
    that ``target_trials`` (enrol and test file) connect are one group, which is
    one speaker or a part of one. The caption says how the points were found,
    and what their colors are.
    """
    finite = np.isfinite(embeddings).all(axis=-1)
    if np.shape(finite) != (len(ids),) or not finite.any():
        raise ValueError(
            "The embedding map needs one row of embeddings for each file, and "
            f"finite ones; found {int(finite.sum())} finite rows in an array "
            f"of shape {np.shape(embeddings)} for {len(ids)} files. Check the "
            "model that made them."
        )
    groups = target_groups(ids, target_trials)[finite]
    points, method = project(np.asarray(embeddings)[finite])
    figure, axes = _figure((5.0, 4.6))
    axes.spines[:].set(visible=True, color=GRAY)
    _scatter(axes, points, groups)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    parts = [f"{method} of {len(points):,} embeddings"]
    if dropped := int((~finite).sum()):
        parts.append(f"{dropped:,} are not finite and left out")
    if not points.any():
        parts.append("all are the same")
    count = int(groups.max(initial=-1)) + 1
    if colored := min(count, COLORED_GROUPS):
        parts.append(
            f"colors come from the labels of the trial list: the {colored} "
            f"largest of {count} groups of files that target trials connect, "
            "all others are gray"
        )
    if single := int((groups < 0).sum()):
        parts.append(f"{single:,} files have no target trial")
    return figure, "; ".join(parts)


@_in_style
def gate_plot(record: Mapping[str, Any]) -> "Figure":
    """Draws the distribution of the losses of an epoch, and the gate.

    ``record`` is a line of ``gate.jsonl``: ``epoch``; ``histogram`` (``edges``
    [bins + 1] and ``counts`` [bins] of the losses' logarithms); ``mixture``
    (weights, means and deviations of two Gaussians) or None; ``accepted``
    (whether the gate uses it); ``threshold`` or None; ``reason``; ``selected``
    (share of selected utterances) or None. Without losses, a sentence says so.
    """
    share: Any = record.get("selected")
    title = f"epoch {record.get('epoch')}"
    if is_number(share) and math.isfinite(share):
        title += f": {100 * share:.1f} % selected"
    figure, axes = _figure(TALL, title)
    try:
        edges, counts = (record["histogram"][k] for k in ("edges", "counts"))
        if (np.diff(edges) <= 0).any():
            raise ValueError("edges do not ascend")
        if np.sum(counts):
            density = np.divide(counts, np.sum(counts) * np.diff(edges))
            axes.stairs(density, edges, fill=True, color=GRAY, alpha=0.7)
            axes.set_ylim(0, 1.1 * density.max())
            if record.get("mixture") is not None:
                _draw_mixture(axes, record, edges)
        else:
            axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Gate of epoch {record.get('epoch')}: expected a histogram with n "
            "counts and n + 1 ascending edges, and a mixture of [two weights, "
            f"two means, two positive deviations] or null ({error!r})"
        ) from error
    _mark_threshold(axes, record.get("threshold"))
    axes.set_xlabel("logarithm of the loss")
    axes.set_ylabel("density")
    reason = textwrap.fill(str(record.get("reason") or ""), 60)
    figure.legend(
        *axes.get_legend_handles_labels(),
        title=reason.replace("$", r"\$"),
        title_fontsize=9.5,
        fontsize=9.5,
        handlelength=1.5,
        columnspacing=1.2,
        ncols=3,
        loc="outside lower center",
    )
    return figure


@_in_style
def save(figure: "Figure", path: str | os.PathLike) -> None:
    """Saves a figure, whole or not at all; the extension is the format."""
    suffix = os.path.splitext(path)[1]
    with write_whole(path, "wb") as file:
        figure.savefig(
            file, format=suffix[1:] or "png", dpi=160, facecolor=PAPER
        )


@_in_style
def svg(figure: "Figure", prefix: str, label: str = "") -> str:
    """Turns a figure into an SVG element of an HTML page; text stays text.

    Colors become CSS variables (``VARIABLES``), which the page sets for light
    and dark mode. ``prefix`` (letters, digits, ``-``) is put before all ids,
    which must be unique on a page. ``label`` is for screen readers, and must be
    escaped for HTML.
    """
    buffer = io.StringIO()
    # a fixed salt: the same figure gives the same bytes
    with _matplotlib().rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", dpi=160)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for pattern, instead in (
        (r"<metadata>.*?</metadata>\s*", ""),
        (r"<style[^>]*>.*?</style>", ""),
        (r"<!--.*?-->\s*", ""),
        (r'\bid="', f'id="{prefix}-'),
        (r"url\(#", f"url(#{prefix}-"),
        (r'href="#', f'href="#{prefix}-'),
        (r"\n\s*", "\n"),
        (
            r"(?<=: )#[0-9a-f]{6}\b",
            lambda m: VARIABLES.get(m.group(), m.group()),
        ),
    ):
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{label}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _figure(size=SIZE, title=None):
    """An empty figure with one pair of axes."""
    figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(_plain(title))
    return figure, axes


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
            color=ALARM,
            mew=2,
            transform=axes.get_xaxis_transform(),
            label=f"{label}: no finite value",
        )


def _mark_threshold(axes, threshold):
    """A dashed line, if there is a threshold."""
    if is_number(threshold) and math.isfinite(threshold):
        label = f"threshold {threshold:.3f}"
        axes.axvline(threshold, color=INK, ls="--", lw=1.3, label=label)


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


def _draw_mixture(axes, record, edges):
    """Two weighted Gaussians over the histogram; dotted if rejected."""
    if min(record["mixture"][2]) <= 0:
        raise ValueError("a deviation is not positive")
    x = np.linspace(edges[0], edges[-1], 300)
    for color, (weight, mean, deviation) in zip(
        COLORS, np.transpose(record["mixture"])
    ):
        bell = np.exp(-0.5 * ((x - mean) / deviation) ** 2)
        axes.plot(
            x,
            weight * bell / (deviation * math.sqrt(2 * math.pi)),
            color=color,
            ls="-" if record.get("accepted") else ":",
            label=f"{100 * weight:.0f} % at {mean:.2f}",
        )


def _collapsed(rows):
    """Whether all rows are the same, up to rounding."""
    return rows.std(axis=0).max(initial=0.0) < 1e-6


def _pca(rows, dim):
    """Principal components [files, dim], zeros where there are fewer."""
    from sklearn.decomposition import PCA

    keep = min(dim, *rows.shape)
    if not keep or _collapsed(rows):
        return np.zeros((len(rows), dim))
    found = PCA(keep, random_state=0).fit_transform(rows)
    return np.pad(found, ((0, 0), (0, dim - keep)))


def _tsne(rows):
    """t-SNE to the plane; the perplexity must be below the file count."""
    from sklearn.manifold import TSNE  # takes a second to import

    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(rows.astype(np.float32))


def _scatter(axes, points, groups):
    """Gray files first, so that the colored ones lie on top."""
    look: dict[str, Any] = {"s": 16, "lw": 0}
    look["rasterized"] = len(points) > RASTER_LIMIT
    rest = (groups < 0) | (groups >= COLORED_GROUPS)
    axes.scatter(*points[rest].T, color=GRAY, alpha=0.6, **look)
    for group in range(COLORED_GROUPS):
        chosen = points[groups == group]
        # color and marker together tell the groups apart
        color = COLORS[group % len(COLORS)]
        marker = "o^"[group // len(COLORS) % 2]
        if len(chosen):
            look.update(alpha=0.85, color=color, marker=marker)
            axes.scatter(*chosen.T, **look)
