"""A page to listen to clusters, before training on them.

``clusters.html`` lies beside ``pseudo_labels.csv``. It shows the clusters that
seem most worth listening to, with a few utterances of each, played from their
files: audio is linked, never copied. Its size depends on how many clusters are
shown, not on how many there are. What one hears goes into ``edits.csv`` (see
``pseudo_labels.edits``).
"""

import csv
import io
import os
import pathlib
import urllib.parse
from typing import NamedTuple

import numpy as np

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.report import html

PAGE_NAME = "clusters.html"
DOUBTFUL, TYPICAL = 6, 2


class Shown(NamedTuple):
    """What the page says of a cluster.

    Arguments
    ---------
    number : int
        Its number.
    size : int
        Its utterances.
    cohesion : float
        Their mean cosine to the centroid.
    margin : float
        How much lower it is to the centroid of the next cluster.
    next : int
        The next cluster; None if there is no other.
    typical : list of (int, float, int)
        Row, margin and nearest other cluster of the utterances nearest to
        the centroid.
    doubtful : list of (int, float, int)
        The same of those of least margin.
    """

    number: int
    size: int
    cohesion: float
    margin: float
    next: int
    typical: list
    doubtful: list


class Overview(NamedTuple):
    """What is known of all clusters.

    Arguments
    ---------
    sizes : np.ndarray
        Utterances of each [clusters].
    centers : np.ndarray
        Their centroids, unit vectors [clusters, emb_dim].
    cohesion : np.ndarray
        Mean cosine of their utterances to them [clusters].
    next : np.ndarray
        The cluster to whose centroid these are nearest, else [clusters].
    margin : np.ndarray
        How much less near they are to that one, on average [clusters].
    """

    sizes: np.ndarray
    centers: np.ndarray
    cohesion: np.ndarray
    next: np.ndarray
    margin: np.ndarray


def write_clusters(
    folder, utterances, ids, labels, matrix, clusters=50, chunk_size=65536
):
    """Writes ``clusters.html``.

    Arguments
    ---------
    folder : str
        Where ``pseudo_labels.csv`` is.
    utterances : Utterances
        The training set, or what of it is labelled.
    ids : list of str
        IDs of the utterances that were clustered [n].
    labels : np.ndarray
        Their clusters, from 0 without gaps, -1 for none [n].
    matrix : np.ndarray
        Their embeddings; may be memory-mapped [n, emb_dim].
    clusters : int
        Most clusters that are shown.
    chunk_size : int
        Embeddings that are read at a time.

    Returns
    -------
    str
        The path of the page.
    """
    labels = np.asarray(labels)
    overview = look_over(matrix, labels, chunk_size)
    chosen = most_doubtful(overview, clusters)
    shown = listen_to(matrix, labels, overview, chosen, chunk_size)
    voices = _voices(folder, utterances, ids, _rows(chosen, shown))
    text = html.document(
        "Clusters to listen to", _body(overview, chosen, shown, voices)
    )
    path = os.path.join(folder, PAGE_NAME)
    with write_whole(path) as file:
        file.write(text)
    return path


def look_over(matrix, labels, chunk_size=65536):
    """Measures all clusters.

    Arguments
    ---------
    matrix : np.ndarray
        Embeddings, of any length; may be memory-mapped [n, emb_dim].
    labels : np.ndarray
        Cluster of each, from 0 without gaps, -1 for none [n].
    chunk_size : int
        Embeddings that are read at a time.

    Returns
    -------
    Overview
        Of a single cluster, ``next`` is -1 and ``margin`` the cohesion.

    Example
    -------
    >>> points = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> found = look_over(points, np.array([0, 1, 2]))
    >>> found.next.tolist(), found.margin.round(3).tolist()
    ([1, 0, 1], [1.0, 1.0, 1.0])
    """
    sizes = np.bincount(labels[labels >= 0])
    centers, cohesion = quality.centroids(matrix, labels, chunk_size)
    after, cosine = np.full(len(sizes), -1), np.zeros(len(sizes))
    if len(sizes) > 1:
        after, cosine = quality.nearest_other(
            centers, centers, np.arange(len(sizes))
        )
    # the mean of unit vectors is the centroid times the cohesion, so that
    # this is the mean over the utterances of the difference of two cosines
    margin = cohesion * (1 - cosine)
    return Overview(sizes, centers, cohesion, after, margin)


def most_doubtful(overview, most):
    """Chooses the clusters that are most worth listening to.

    Arguments
    ---------
    overview : Overview
        Of all clusters.
    most : int
        How many to choose.

    Returns
    -------
    np.ndarray
        Their numbers, the most doubtful one first: by their size times what
        their margin lacks to that of the median cluster, then by margin.
    """
    lacking = np.median(overview.margin) - overview.margin
    stake = overview.sizes * np.maximum(lacking, 0)
    return np.lexsort((overview.margin, -stake))[:most]


def listen_to(matrix, labels, overview, chosen, chunk_size=65536):
    """Finds typical and doubtful utterances of some clusters.

    Arguments
    ---------
    matrix : np.ndarray
        Embeddings [n, emb_dim].
    labels : np.ndarray
        Cluster of each, -1 for none [n].
    overview : Overview
        Of all clusters.
    chosen : np.ndarray
        Numbers of the clusters.
    chunk_size : int
        Embeddings that are read at a time.

    Returns
    -------
    dict of int to Shown
        Of these clusters and of the next one of each.
    """
    wanted = np.zeros(len(overview.sizes) + 1, dtype=bool)
    wanted[chosen] = wanted[overview.next[chosen]] = True
    # the last entry is that of label -1, and of no next cluster
    wanted[-1] = False
    members = np.where(wanted[labels], labels, -1)
    found = [
        _near(rows, unit, labels[rows], overview.centers)
        for rows, unit in quality.unit_chunks(matrix, members, chunk_size)
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


def audio_source(row, folder):
    """Address of an utterance's audio, seen from a page.

    Arguments
    ---------
    row : dict
        Of an annotation: wav, start and stop.
    folder : str
        Folder of the page.

    Returns
    -------
    address : str
        Relative, or ``file://`` where there is no relative one; a stretch of
        a file ends with ``#t=start,stop`` in seconds.
    is_readable : bool
        Whether there is such a file of audio.
    """
    path = os.path.abspath(row["wav"])
    try:
        address = pathlib.Path(os.path.relpath(path, folder)).as_posix()
        address = urllib.parse.quote(address)
    except ValueError:  # on another drive
        address = pathlib.Path(path).as_uri()
    try:
        info = audio.info(path)
    except (OSError, RuntimeError):
        return address, False
    start, stop = row["start"], row["stop"]
    if start > 0 or stop < info.frames:
        times = (f"{x / info.sample_rate:.3f}" for x in (start, stop))
        address += f"#t={','.join(times)}"
    return address, True


def _near(rows, unit, mine, centers):
    """Rows, cosines to the own centroid, margins and other clusters."""
    own = np.einsum("ne,ne->n", unit, centers[mine])
    if len(centers) == 1:
        return rows, own, own, np.full(len(rows), -1)
    other, cosine = quality.nearest_other(unit, centers, mine)
    return rows, own, own - cosine, other


def _rows(chosen, shown):
    """Rows of the utterances that stand on the page."""
    groups = [
        group
        for number in chosen.tolist()
        for group in (shown[number].typical, shown[number].doubtful)
    ]
    groups += [
        shown[shown[number].next].typical
        for number in chosen.tolist()
        if shown[number].next is not None
    ]
    return {row for group in groups for row, *_ in group}


def _voices(folder, utterances, ids, rows):
    """ID, audio address and whether it can be read, by row."""
    wanted = {ids[row]: row for row in rows}
    return {
        wanted[name]: (name, *audio_source(utterances.row(place), folder))
        for place, name in enumerate(utterances.ids())
        if name in wanted
    }


def _body(overview, chosen, shown, voices):
    """All below the title."""
    total = len(overview.sizes)
    median = {
        "cohesion": np.median(overview.cohesion),
        "margin": np.median(overview.margin),
    }
    cards = [
        html.card(
            "Clusters",
            f"{total:,}",
            f"{len(chosen):,} of them are on this page",
        ),
        html.card(
            "Labelled utterances",
            f"{overview.sizes.sum():,}",
            f"{overview.sizes.min():,} to {overview.sizes.max():,} in a "
            "cluster",
        ),
        *(
            html.card(f"{name.capitalize()} of the median cluster", f"{x:.3f}")
            for name, x in median.items()
        ),
    ]
    sections = [
        _section(shown[number], shown, voices) for number in chosen.tolist()
    ]
    return "\n".join(
        [_what(), html.cards(cards), _how(), _table(chosen, shown), *sections]
    )


def _what():
    """What is on the page."""
    return f"""<p>No speaker label was used for this page: it shows what the
encoder takes for one voice. <b>Cohesion</b> is the mean cosine of a cluster's
utterances to its centroid; <b>margin</b> is how much less near they are to the
next cluster. First come the clusters whose margin falls furthest below that of
the median cluster, times their size: there a correction changes most. Of each
there are the {TYPICAL} most typical utterances, up to {DOUBTFUL} doubtful ones
(of least margin), and the {TYPICAL} most typical ones of the next cluster.</p>
<p class="soft">Audio is played from its files, so open this page on a machine
that has them where they were. From a server: <code>python -m http.server</code>
in a folder that holds both the audio and this page.</p>"""


def _how():
    """What to do with what one hears."""
    lines = {
        "merge,12,57": "cluster 57 joins cluster 12",
        "split,12,3": "cluster 12 is parted into 3, by k-means",
        "drop,12,": "no utterance of cluster 12 gets a label",
        "drop,,ID": "the utterance ID gets no label",
    }
    lines = [f"<code>{line}</code>: {text}" for line, text in lines.items()]
    return f"""<h2>How to correct</h2>
<p>Write what you hear into <code>edits.csv</code>, beside this page and
<code>pseudo_labels.csv</code>, whose <code>spk_id</code> are the numbers here.
Its first line is <code>action,cluster,value</code>; those below count in their
order:</p>
{html.items(lines)}
<p>Then run the command that made the labels once more, with
<code>--edits</code> and this folder's <code>edits.csv</code>, and with another
<code>--output_folder</code>. Nothing is clustered anew; that folder gets the
corrected labels, and a page like this one with new numbers.</p>"""


def _table(chosen, shown):
    """All clusters of the page in one table."""
    rows = []
    for number in chosen.tolist():
        cluster = shown[number]
        cells = [
            f'<a href="#c{number}">{number}</a>',
            f"{cluster.size:,}",
            f"{cluster.cohesion:.3f}",
            f"{cluster.margin:.3f}",
            "–" if cluster.next is None else str(cluster.next),
        ]
        cells = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr>{cells}</tr>")
    heads = ["cluster", "utterances", "cohesion", "margin", "next cluster"]
    return html.details(
        f"{html.count(len(rows), 'cluster')} in one table",
        html.table(heads, rows),
    )


def _section(cluster, shown, voices):
    """One cluster: numbers, what to write, what to hear."""
    number, after = cluster.number, cluster.next
    facts = [
        html.count(cluster.size, "utterance"),
        f"cohesion {cluster.cohesion:.3f}",
    ]
    lines = [_line("split", number, 2), _line("drop", number, "")]
    known = [("Typical", cluster.typical)]
    if after is not None:
        size = html.count(shown[after].size, "utterance")
        facts.append(f"margin {cluster.margin:.3f} to cluster {after} ({size})")
        lines.insert(0, _line("merge", number, after))
        known.append((f"Typical of cluster {after}", shown[after].typical))
    lines = " or ".join(f"<code>{line}</code>" for line in lines)
    tables = [_group(known, voices)]
    if cluster.doubtful:
        tables.append(_group([("Doubtful", cluster.doubtful)], voices))
    return f"""<h2 id="c{number}">Cluster {number}</h2>
<p>{" · ".join(facts)}<br><span class="soft">{lines}</span></p>
{html.grid(tables)}"""


def _group(groups, voices):
    """Named groups of utterances, one below the other."""
    rows = [
        row
        for name, group in groups
        for row in (
            f'<tr><th colspan="3" class="soft">{name}</th></tr>',
            *(_voice(*voices[row], *rest) for row, *rest in group),
        )
    ]
    return html.table(["utterance", "margin", "to cluster"], rows)


def _voice(name, address, is_readable, margin, other):
    """One utterance as a row of a table."""
    line = html.escape(_line("drop", "", name))
    player = '<span class="bad">cannot be read</span><br>'
    if is_readable:
        source = html.escape(address)
        player = f'<audio controls preload="none" src="{source}"></audio>'
    return (
        f'<tr><td>{player}<code class="soft">{line}</code></td>'
        f'<td class="number">{margin:.3f}</td>'
        f'<td class="number">{other if other >= 0 else "–"}</td></tr>'
    )


def _line(*cells):
    """A line of edits.csv."""
    text = io.StringIO()
    # readers strip leading spaces, unless there are quotes
    spaced = any(str(cell).startswith(" ") for cell in cells)
    quoting = csv.QUOTE_ALL if spaced else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="", quoting=quoting).writerow(cells)
    return text.getvalue()
