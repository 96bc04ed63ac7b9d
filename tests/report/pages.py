"""Run folders, rounds and clusters for the pages, and what reads a page."""

import html.parser
import json
import pathlib

import numpy as np
import soundfile

from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.report import clusters, page, rounds

VOID = ("meta", "br")


class Outline(html.parser.HTMLParser):
    """Tags, ids, text and addresses; fails where tags do not match.

    It also fails where a screen reader would be lost: a table head without
    scope or text, a figure or player without a name.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        if tag == "th":
            assert found["scope"] in ("row", "col")
        if tag in ("svg", "audio"):
            assert found["aria-label"].strip()
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def record(epoch, **train):
    return {
        "epoch": epoch,
        "step": 12 * epoch,
        "seconds": 34.5 * epoch,
        "train": {
            "loss": 4.0 / epoch,
            "lr": 0.001,
            "views_per_second": 95.0,
            "embedding_spread": 0.9,
            **train,
        },
        "valid": {"EER": 33.1},
        "warnings": [],
    }


def metrics(eer, **more):
    return {
        "EER": eer,
        "EER_low": eer - 1,
        "EER_high": eer + 1,
        "minDCF_0.01": 0.9,
        "minDCF_0.05": 0.5,
        "threshold": 0.2,
        "trials": 400,
        "targets": 200,
        "files": 40,
        "bootstrap_over": "speakers",
        **more,
    }


def write_log(folder, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "train_log.jsonl").write_text(lines)


def write_list(folder, tag, name, eer, files=40, trials=400, prefix=""):
    """A verified list of 4 speakers with a few files each."""
    place = folder / "verification" / tag / name
    place.mkdir(parents=True)
    # as ``verify`` writes it without a cohort
    (place / "metrics.json").write_text(json.dumps(metrics(eer)))
    rng = np.random.default_rng(0)
    ids = [f"{prefix}{n}.wav" for n in range(files)]
    enrol, test = rng.integers(files, size=(2, trials))
    labels = (enrol % 4 == test % 4).astype(int)
    scores = labels + rng.normal(size=trials)
    rows = zip(labels, enrol, test, scores)
    (place / "scores.txt").write_text(
        "".join(f"{b} {ids[e]} {ids[t]} {s:.5f}\n" for b, e, t, s in rows)
    )
    matrix = rng.normal(size=(4, 16))[np.arange(files) % 4]
    matrix = matrix + 0.3 * rng.normal(size=(files, 16))
    np.save(place / "embeddings.npy", matrix.astype(np.float32))
    (place / "embeddings_ids.txt").write_text("\n".join(ids) + "\n")
    return place


def gate(epoch, threshold=0.5, accepted=True):
    """A line of gate.jsonl."""
    return {
        "epoch": epoch,
        "threshold": threshold,
        "accepted": accepted,
        "reason": f"reason <{epoch}>",
        "mixture": [[0.7, 0.3], [-3.0, 2.0], [1.0, 0.5]],
        "histogram": {"edges": [-6.0 - epoch, 0.0, 4.0], "counts": [7, 3]},
        "selected": 0.625,
        "corrected": None,
    }


def write_gate(folder, records, name="gate.jsonl"):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / name).write_text(lines)


def write_run(folder):
    """A run with all files."""
    log = [record(epoch, accuracy=epoch / 4) for epoch in (1, 2, 3)]
    write_log(folder, log)
    write_gate(folder, [gate(epoch) for epoch in (1, 2, 3)])
    write_list(folder, "after", "test", 12.5)
    write_list(folder, "before", "test", 33.25)
    (folder / "save").mkdir()
    help_of = {"loss": "what <training> minimizes", "accuracy": "a share"}
    (folder / "stats_help.json").write_text(json.dumps(help_of))
    (folder / "hyperparams.yaml").write_text(
        "# Generated 2026-11-07 from:\n# /home/me/train_moco.yaml\n"
        "# MoCo on a folder of unlabelled audio; small\n"
        "seed: 7 # <&>\ndata_folder: /home/me/speech\n"
        "objective: !new:speechbrain_ssl.objectives.moco.MoCo {dim: 8}\n"
    )


def labels(number, agreement=None, **more):
    return {
        "round": number,
        "stage": "labels",
        "seconds": 120.0,
        "clusters": 400,
        "intra_cluster_cosine": 0.75,
        "stability": 0.66,
        "agreement": agreement,
        "warnings": [],
        **more,
    }


def train(number, selected, **more):
    return {
        "round": number,
        "stage": "train",
        "seconds": 3600.0,
        "selected": selected,
        "corrected": None,
        "learned": selected,
        "warnings": [],
        **more,
    }


def verify(number, eer):
    rates = {"EER": eer, "EER_low": eer - 1, "EER_high": eer + 1}
    lists = {"vox1_O": {**rates, "minDCF_0.01": 0.4}}
    return {
        "round": number,
        "stage": "verify",
        "seconds": 6.0,
        "warnings": [],
        "lists": lists,
    }


ORACLE = {
    "NMI": 0.912,
    "purity": 0.834,
    "inverse_purity": 0.7,
    "ARI": 0.6,
    "speakers": 50,
}
ROWS = [
    verify(0, 12.0),
    labels(1, oracle=ORACLE),
    train(1, 0.61, warnings=["Gate: <too> early"]),
    verify(1, 10.0),
    labels(2, 0.83),
]


def summary(rows):
    return {
        "title": "Rounds",
        "outcome": "All <2> rounds",
        "model": "x/model",
        "settings": {"seed": 1},
        "stages": rows,
    }


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def voices(sizes, dim=32, noise=0.5, seed=0):
    """Embeddings of any length around as many directions, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.normal(size=(len(sizes), dim))[labels]
    points = points + noise * rng.normal(size=points.shape)
    points *= rng.uniform(1, 5, size=(len(points), 1))
    order = rng.permutation(len(points))
    return points[order].astype(np.float32), labels[order]


def write_corpus(folder):
    """A folder of labels and another one of audio: 24 stretches of files."""
    (folder / "my audio").mkdir()
    rows = []
    for number in range(6):
        name = f"ä #{number}.wav"
        path = folder / "my audio" / name
        soundfile.write(path, np.full(8000, 0.1), 8000)
        for take in range(4):
            first = 2000 * take
            row = (f"{name},{take}", 0.25, f"$data_root/{name}")
            rows.append((*row, first, first + 2000))
    write_annotation(folder / "train.csv", rows)
    (folder / "labels").mkdir()
    return read_annotation(folder / "train.csv", folder / "my audio")


def write(name, folder):
    """Writes the page ``run``, ``rounds`` or ``clusters`` with everything."""
    if name == "run":
        write_run(folder)
        return pathlib.Path(page.write_report(folder))
    if name == "rounds":
        return pathlib.Path(rounds.write_rounds(folder, summary(ROWS)))
    corpus = write_corpus(folder)
    points, labels = voices([10, 8, 6])
    ids = list(corpus.ids())
    path = clusters.write_clusters(
        folder / "labels", corpus, ids, labels, points
    )
    return pathlib.Path(path)
