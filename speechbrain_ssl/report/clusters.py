"""A page to listen to clusters, before training on them.

``clusters.html`` lies beside ``pseudo_labels.csv``. It shows the most doubtful
clusters, with a few utterances of each, played from their files: audio is
linked, never copied. The size of the page depends on the number of clusters
shown, not on their total. Corrections go into ``edits.csv`` (see
``pseudo_labels.edits``).
"""

import csv
import io
import os
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.report.render import duration, render

PAGE_NAME = "clusters.html"
DOUBTFUL, TYPICAL = 6, 2


class Shown(NamedTuple):
    """A cluster on the page; utterances are (row, margin, nearest other)."""

    number: int
    size: int
    cohesion: float  # mean cosine of its utterances to the centroid
    margin: float  # by how much the one to the next centroid is lower
    next: int | None  # the next cluster, if there is another
    typical: list[tuple[int, float, int]]  # nearest to the centroid
    doubtful: list[tuple[int, float, int]]  # of least margin


class Overview(NamedTuple):
    """Measures of all clusters."""

    sizes: np.ndarray  # number of utterances [clusters]
    centers: np.ndarray  # centroids, unit vectors [clusters, emb_dim]
    cohesion: np.ndarray  # mean cosine of utterances to it [clusters]
    next: np.ndarray  # cluster of the nearest other centroid [clusters]
    margin: np.ndarray  # by how much the cosine to that is lower [clusters]


def write_clusters(
    folder: str,
    utterances: Utterances,
    ids: Sequence[str],
    labels: np.ndarray,
    matrix: np.ndarray,
    clusters: int = 50,
) -> str:
    """Writes ``clusters.html`` beside ``pseudo_labels.csv``; gives its path.

    ``labels`` are from 0 without gaps, -1 for none [n]; ``matrix`` has their
    embeddings [n, emb_dim]. At most ``clusters`` clusters are shown.
    """
    labels = np.asarray(labels)
    overview = look_over(matrix, labels)
    chosen = most_doubtful(overview, clusters)
    shown = listen_to(matrix, labels, overview, chosen)
    voices = _voices(folder, utterances, ids, _rows(chosen, shown))
    text = render(
        "clusters.html",
        title="Clusters to listen to",
        typical=TYPICAL,
        doubtful=DOUBTFUL,
        overview=overview,
        clusters=list(_sections(chosen, shown, voices)),
        median_cohesion=np.median(overview.cohesion),
        median_margin=np.median(overview.margin),
    )
    path = os.path.join(folder, PAGE_NAME)
    with write_whole(path) as file:
        file.write(text)
    return path


def look_over(matrix: np.ndarray, labels: np.ndarray) -> Overview:
    """Measures all clusters, of labels from 0 without gaps, -1 for none.

    Of a single cluster, ``next`` is -1 and ``margin`` the cohesion.
    """
    sizes = np.bincount(labels[labels >= 0])
    centers, cohesion = quality.centroids(matrix, labels)
    after, cosine = np.full(len(sizes), -1), np.zeros(len(sizes))
    if len(sizes) > 1:
        after, cosine = quality.nearest_other(
            centers, centers, np.arange(len(sizes))
        )
    # the mean of unit vectors is the centroid times the cohesion, so that
    # this is the mean over the utterances of the difference of two cosines
    margin = cohesion * (1 - cosine)
    return Overview(sizes, centers, cohesion, after, margin)


def most_doubtful(overview: Overview, most: int) -> np.ndarray:
    """The clusters most worth listening to, the most doubtful one first.

    They are sorted by size times the distance of their margin below the median
    margin, then by margin.
    """
    lacking = np.median(overview.margin) - overview.margin
    stake = overview.sizes * np.maximum(lacking, 0)
    return np.lexsort((overview.margin, -stake))[:most]


def listen_to(
    matrix: np.ndarray,
    labels: np.ndarray,
    overview: Overview,
    chosen: np.ndarray,
) -> dict[int, Shown]:
    """Typical and doubtful utterances of clusters and of their next ones."""
    wanted = np.zeros(len(overview.sizes) + 1, dtype=bool)
    wanted[chosen] = wanted[overview.next[chosen]] = True
    # the last entry is that of label -1, and of no next cluster
    wanted[-1] = False
    members = np.where(wanted[labels], labels, -1)
    found = [
        _near(rows, unit, labels[rows], overview.centers)
        for rows, unit in quality.unit_chunks(matrix, members)
    ]
    rows, own, margin, other = map(np.concatenate, zip(*found))
    order = np.lexsort((margin, labels[rows]))
    firsts = np.flatnonzero(wanted)
    ends = np.searchsorted(labels[rows][order], firsts, side="right")
    shown = {}
    for number, end in zip(firsts.tolist(), ends.tolist()):
        mine = order[end - overview.sizes[number] : end]
        typical = mine[np.argsort(-own[mine], kind="stable")[:TYPICAL]]
        doubtful = mine[~np.isin(mine, typical)][:DOUBTFUL]
        after = int(overview.next[number])
        shown[number] = Shown(
            number,
            int(overview.sizes[number]),
            float(overview.cohesion[number]),
            float(overview.margin[number]),
            after if after >= 0 else None,
            *(
                [(int(rows[i]), float(margin[i]), int(other[i])) for i in group]
                for group in (typical, doubtful)
            ),
        )
    return shown


def audio_source(row: dict, folder: str) -> tuple[str | None, float | None]:
    """Address of an utterance's audio from a page in ``folder``, and seconds.

    The address is relative; a segment of a file ends with ``#t=start,stop`` in
    seconds. It is None if the audio cannot be read, or is a member of a tar
    file.
    """
    start, stop = row["start"], row["stop"]
    try:
        info = audio.info(row["wav"])
    except (OSError, RuntimeError):
        return None, None
    seconds = (stop - start) / info.sample_rate
    if audio.SHARD in row["wav"]:  # no player opens it
        return None, seconds
    address = urllib.parse.quote(os.path.relpath(row["wav"], folder))
    if start > 0 or stop < info.frames:
        times = (f"{x / info.sample_rate:.3f}" for x in (start, stop))
        address += f"#t={','.join(times)}"
    return address, seconds


def _rows(chosen, shown):
    """Rows of the utterances that are on the page."""
    clusters = [shown[number] for number in chosen.tolist()]
    after = [shown[c.next] for c in clusters if c.next is not None]
    groups = [c.typical for c in clusters + after]
    groups += [c.doubtful for c in clusters]
    return {row for group in groups for row, *_ in group}


def _near(rows, unit, mine, centers):
    """Rows, cosines to the own centroid, margins and other clusters."""
    own = np.einsum("ne,ne->n", unit, centers[mine])
    if len(centers) == 1:
        return rows, own, own, np.full(len(rows), -1)
    other, cosine = quality.nearest_other(unit, centers, mine)
    return rows, own, own - cosine, other


def _voices(folder, utterances, ids, rows):
    """What a player needs of these utterances, by row."""
    wanted = {ids[row]: row for row in rows}
    found = {}
    for place, name in enumerate(utterances.ids()):
        if name in wanted:
            row = utterances.row(place)
            address, seconds = audio_source(row, folder)
            found[wanted[name]] = {
                "name": name,
                "address": address,
                "duration": seconds and duration(seconds),
                "drop": _line("drop", "", name),
            }
    return found


def _sections(chosen, shown, voices):
    """What the page shows of each chosen cluster."""

    def players(group):
        return [
            {**voices[row], "margin": margin, "other": other}
            for row, margin, other in group
            if row in voices
        ]

    for number in chosen.tolist():
        cluster, after = shown[number], shown.get(shown[number].next)
        lines = [_line("split", number, 2), _line("drop", number, "")]
        groups = [
            ("Typical", players(cluster.typical)),
            ("Doubtful", players(cluster.doubtful)),
        ]
        if after is not None:
            lines.insert(0, _line("merge", number, after.number))
            title = f"Typical of cluster {after.number}"
            groups.append((title, players(after.typical)))
        yield {
            "cluster": cluster,
            "after": after,
            "lines": lines,
            "groups": [group for group in groups if group[1]],
        }


def _line(*cells):
    """A line of edits.csv."""
    text = io.StringIO()
    # readers strip leading spaces, unless there are quotes
    spaced = any(str(cell).startswith(" ") for cell in cells)
    quoting: Any = csv.QUOTE_ALL if spaced else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="", quoting=quoting).writerow(cells)
    return text.getvalue()
