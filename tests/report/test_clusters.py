"""The page shows doubtful clusters first, and plays their files."""

import csv
import html
import re
import urllib.parse

import numpy as np
import pytest

from speechbrain_ssl.clustering import quality
from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.pseudo_labels.edits import read_edits
from speechbrain_ssl.report import clusters
from speechbrain_ssl.report.clusters import (
    audio_source,
    listen_to,
    look_over,
    most_doubtful,
    write_clusters,
)
from tests.report.pages import unit, voices, write_corpus


@pytest.fixture
def corpus(tmp_path):
    """A folder of labels and another one of audio: 24 segments of files."""
    return write_corpus(tmp_path)


def test_overview_is_what_loops_over_utterances_give(monkeypatch):
    monkeypatch.setattr(quality, "CHUNK", 5)
    points, labels = voices([4, 7, 1, 12], noise=1.0)
    labels[3] = -1
    found = look_over(points, labels)
    rows = unit(points.astype(float))
    centers = [unit(rows[labels == c].sum(0)[None])[0] for c in range(4)]
    for number in range(4):
        mine = rows[labels == number]
        cosines = [(mine @ center).mean() for center in centers]
        own = cosines.pop(number)
        others = [c for c in range(4) if c != number]
        assert found.sizes[number] == len(mine)
        assert found.cohesion[number] == pytest.approx(own, abs=1e-6)
        assert found.next[number] == others[int(np.argmax(cosines))]
        margin = own - max(cosines)
        assert found.margin[number] == pytest.approx(margin, abs=1e-6)


def test_large_clusters_that_are_hardly_two_come_first():
    points, labels = voices([30, 30, 30, 30, 30, 30], noise=0.3)
    # 4 and 5 are one voice; so are 1 and 2, but half of 2 has no label
    points[labels == 5] = points[labels == 4]
    points[labels == 2] = points[labels == 1]
    labels[np.flatnonzero(labels == 2)[:15]] = -1
    overview = look_over(points, labels)
    order = most_doubtful(overview, 4).tolist()
    assert sorted(order[:3]) == [1, 4, 5] and order[3] == 2
    assert overview.next[[4, 5, 1, 2]].tolist() == [5, 4, 2, 1]


def test_doubtful_utterances_are_those_of_least_margin(monkeypatch):
    monkeypatch.setattr(quality, "CHUNK", 7)
    points, labels = voices([20, 25, 3], noise=1.5)
    overview = look_over(points, labels)
    shown = listen_to(points, labels, overview, np.array([0]))
    assert set(shown) == {0, overview.next[0]}
    rows = unit(points.astype(float))
    cosines = rows @ overview.centers.T.astype(float)
    mine = np.flatnonzero(labels == 0)
    by_cosine = mine[np.argsort(-cosines[mine, 0])]
    assert [row for row, *_ in shown[0].typical] == by_cosine[:2].tolist()
    margins = cosines[mine, 0] - cosines[mine][:, 1:].max(1)
    by_margin = [row for row in mine[np.argsort(margins)]]
    by_margin = [row for row in by_margin if row not in by_cosine[:2]]
    assert [row for row, *_ in shown[0].doubtful] == by_margin[:6]
    for row, margin, other in (*shown[0].typical, *shown[0].doubtful):
        assert margin == pytest.approx(margins[mine.tolist().index(row)], 1e-3)
        assert other == 1 + cosines[row, 1:].argmax()


def test_a_small_cluster_is_shown_whole_and_once():
    points, labels = voices([3, 9])
    shown = listen_to(points, labels, look_over(points, labels), np.array([0]))
    rows = [row for row, *_ in (*shown[0].typical, *shown[0].doubtful)]
    assert sorted(rows) == np.flatnonzero(labels == 0).tolist()


def test_a_single_cluster_has_no_next_one(corpus, tmp_path):
    ids = list(corpus.ids())
    points, labels = voices([24])
    path = write_clusters(tmp_path / "labels", corpus, ids, labels, points)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert "merge,0" not in text and "split,0,2" in text


def test_every_player_points_to_a_stretch_of_a_file(corpus, tmp_path):
    ids = list(corpus.ids())
    points, labels = voices([10, 8, 6])
    labels[:2] = -1
    folder = tmp_path / "labels"
    write_clusters(folder, corpus, ids, labels, points, clusters=3)
    text = (folder / "clusters.html").read_text(encoding="utf-8")
    sources = re.findall(r'<audio controls preload="none" src="([^"]*)"', text)
    assert len(sources) == text.count("<audio") >= 12
    starts = set()
    for source in map(html.unescape, sources):
        path, _, times = source.partition("#t=")
        assert (folder / urllib.parse.unquote(path)).is_file()
        start, stop = map(float, times.split(","))
        assert stop - start == pytest.approx(0.25)
        starts.add(start)
    assert len(starts) == 4
    assert "script" not in text and "data:" not in text


def test_lines_of_the_page_can_be_copied_into_the_file(corpus, tmp_path):
    ids = list(corpus.ids())
    points, labels = voices([12, 12])
    folder = tmp_path / "labels"
    write_clusters(folder, corpus, ids, labels, points, clusters=2)
    text = (folder / "clusters.html").read_text(encoding="utf-8")
    text = text[text.index("<h2 id=") :]
    lines = re.findall(r"<code[^>]*>(.*?)</code>", text)
    path = tmp_path / "edits.csv"
    copied = "\n".join(map(html.unescape, lines))
    path.write_text(f"action,cluster,value\n{copied}\n", encoding="utf-8")
    edits = read_edits(path)
    pairs = {edit[1:] for edit in edits if edit.action == "merge"}
    assert pairs == {("merge", 0, 1), ("merge", 1, 0)}
    dropped = {e.value for e in edits if e.action == "drop_utterance"}
    assert len(dropped) == 16 and dropped <= set(ids)


def test_ids_with_spaces_in_front_keep_them():
    line = clusters._line("drop", "", " a")
    assert next(csv.reader([line], skipinitialspace=True)) == ["drop", "", " a"]


def test_a_whole_file_is_linked_without_times(corpus, tmp_path):
    row = {**corpus.row(0), "start": 0, "stop": 8000}
    address, is_readable = audio_source(row, tmp_path / "labels")
    assert address == "../my%20audio/%C3%A4%20%230.wav" and is_readable
    address, _ = audio_source({**row, "stop": 7999}, tmp_path / "labels")
    assert address.endswith("#t=0.000,1.000")


def test_audio_that_is_gone_is_said_to_be(corpus, tmp_path):
    ids = list(corpus.ids())
    points, labels = voices([24])
    for path in (tmp_path / "my audio").iterdir():
        path.unlink()
    path = write_clusters(tmp_path / "labels", corpus, ids, labels, points)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text.count("cannot be played") == 8 and "<audio" not in text


def test_the_page_grows_with_what_it_shows_only(tmp_path, monkeypatch):
    count, utterances = 400, 2000
    path = "$data_root/" + 20 * "folder/"
    rows = [(f"{path}{n}", 1.0, f"{path}{n}.wav", 0, 9) for n in range(2000)]
    write_annotation(tmp_path / "train.csv", rows)
    found = read_annotation(tmp_path / "train.csv", "/audio")
    points, labels = voices([utterances // count] * count)
    info = clusters.audio.AudioInfo(9, 8000, 1)
    monkeypatch.setattr(clusters.audio, "info", lambda path: info)
    write_clusters(tmp_path, found, list(found.ids()), labels, points, 50)
    page = tmp_path / "clusters.html"
    assert page.stat().st_size < 500_000
    text = page.read_text()
    assert text.count("<h2 id=") == 50
    assert "400" in text and "50 of them" in text
