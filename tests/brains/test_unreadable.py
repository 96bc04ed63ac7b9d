"""Training goes on without the audio that it cannot read."""

import csv
import os

import pytest
import torch

from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.dataio.views import ViewSampler
from tests.brains import tiny


@pytest.fixture
def corpus(tmp_path):
    """Twelve noises, two of which cannot be read."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    tiny.write_corpus(folder)
    tiny.damage_corpus(folder)
    return folder


def listed(output):
    path = os.path.join(output, "save", "unreadable.csv")
    with open(path, newline="") as file:
        return {row["ID"]: row["reason"] for row in csv.DictReader(file)}


def test_unreadable_utterances_are_replaced_counted_and_listed_once(
    corpus, tmp_path
):
    output = tmp_path / "out"
    whole = tiny.run(corpus, output, epochs=3)
    logged = tiny.records(output)
    # epochs of twelve utterances, in batches of three
    assert [line["train"]["unreadable"] for line in logged] == [2, 2, 2]
    assert "2 utterances cannot be read" in logged[0]["warnings"][-1]
    assert sorted(listed(output)) == ["utt05", "utt07"]
    assert "05.wav" in listed(output)["utt05"]
    assert len((output / "save/unreadable.csv").read_text().splitlines()) == 3
    # a run that is resumed draws the same utterances and lists none again
    other = tmp_path / "resumed"
    tiny.run(corpus, other, epochs=1)
    resumed = tiny.run(corpus, other, epochs=3)
    assert len((other / "save/unreadable.csv").read_text().splitlines()) == 3
    states = tiny.state_of(whole), tiny.state_of(resumed)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_run_without_unreadable_audio_counts_zero(tmp_path):
    (tmp_path / "corpus").mkdir()
    tiny.write_corpus(tmp_path / "corpus")
    tiny.run(tmp_path / "corpus", tmp_path / "out", epochs=1)
    assert tiny.records(tmp_path / "out")[0]["train"]["unreadable"] == 0
    assert not (tmp_path / "out/save/unreadable.csv").exists()


def test_too_many_unreadable_utterances_end_training(corpus, tmp_path):
    sampler = ViewSampler(16000, 2, 0.1, seed=3, max_unreadable=0.1)
    with pytest.raises(ValueError, match="2 of the 12 .*max_unreadable"):
        tiny.run(corpus, tmp_path / "out", epochs=1, view_sampler=sampler)
    assert sorted(listed(tmp_path / "out")) == ["utt05", "utt07"]


def test_clusters_are_made_without_unreadable_utterances(corpus, tmp_path):
    table = ClusterTable(KMeans(), clusters=2)
    tiny.run(corpus, tmp_path / "out", epochs=1, cluster_tables=[table])
    assert (table.labels < 0).nonzero().flatten().tolist() == [5, 7]
