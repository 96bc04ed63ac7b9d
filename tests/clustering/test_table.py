"""Cluster tables and who gives the views of a sample."""

import functools
import math

import numpy as np
import pytest
import soundfile
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ssl.clustering.clusterers import Graph, TwoStage
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterPartners, ClusterTable
from speechbrain_ssl.dataio.annotations import (
    UtteranceDataset,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.schedules import linear


class Given(BaseEstimator):
    """A clusterer that was given the answer, one for each seed."""

    def __init__(self, labels, n_clusters=8, random_state=0):
        self.labels = labels
        self.n_clusters = n_clusters
        self.random_state = random_state

    def fit_predict(self, X):
        return np.array(self.labels[self.random_state % len(self.labels)])


def table_of(*labels, **kwargs):
    """A refreshed table with these labels, one list for each seed."""
    table = ClusterTable(Given(labels), clusters=2, **kwargs)
    table.prepare(len(labels[0]))
    torch.manual_seed(0)
    report = table.refresh(torch.randn(len(labels[0]), 4), epoch=0)
    return table, report


def members(table):
    return [table.members(row).tolist() for row in range(len(table.labels))]


def test_members_are_those_of_the_cluster_the_utterance_included():
    table, report = table_of([1, 0, 1, 2, 1, 2])
    assert members(table) == [
        [0, 2, 4],
        [1],
        [0, 2, 4],
        [3, 5],
        [0, 2, 4],
        [3, 5],
    ]
    assert report["cluster_count"] == 3.0
    assert report["cluster_largest"] == 0.5
    assert report["cluster_singletons"] == pytest.approx(1 / 6)


def test_before_the_first_refresh_everybody_is_alone():
    table = ClusterTable(KMeans(), clusters=2)
    table.prepare(3)
    assert members(table) == [[0], [1], [2]]


def test_clusters_outside_the_bounds_are_not_trusted():
    table, report = table_of([0, 0, 0, 0, 1, 1], max_size=3)
    assert members(table) == [[0], [1], [2], [3], [4, 5], [4, 5]]
    assert report["cluster_singletons"] == pytest.approx(4 / 6)
    table, _ = table_of([0, 0, 0, 0, 1, 1], min_size=3)
    assert members(table) == [[0, 1, 2, 3]] * 4 + [[4], [5]]


def test_noise_stands_alone():
    table, report = table_of([7, -1, 7, -1, 3])
    assert members(table) == [[0, 2], [1], [0, 2], [3], [4]]
    assert report["cluster_count"] == 2.0


def test_utterances_without_an_embedding_have_no_cluster():
    """Zeros, as embed_utterances gives for audio that cannot be read."""
    embeddings = torch.eye(2).repeat(4, 1)
    embeddings[[0, 5]] = 0.0
    table = ClusterTable(KMeans(), clusters=2, min_agreement=0.1)
    table.prepare(8)
    assert table.refresh(embeddings, epoch=0)["cluster_accepted"] == 1.0
    assert members(table)[0] == [0] and members(table)[5] == [5]
    assert members(table)[1] == [1, 3, 7] and members(table)[2] == [2, 4, 6]


def test_a_clustering_that_is_not_stable_is_not_taken_over():
    stable = [0, 0, 1, 1, 2, 2]
    table, report = table_of(stable, stable, min_agreement=0.5)
    assert report["cluster_accepted"] == report["cluster_agreement"] == 1.0
    table, report = table_of(stable, [0, 1, 0, 1, 0, 1], min_agreement=0.5)
    assert report["cluster_accepted"] == 0.0
    assert report["cluster_agreement"] < 0.0  # chance keeps more
    assert members(table) == [[row] for row in range(6)]


@pytest.mark.parametrize("sizes", [{}, {"min_size": 4}, {"max_size": 4}])
def test_agreement_is_the_share_of_partners_kept_beyond_chance(sizes):
    rng = np.random.default_rng(1)
    labels, other = rng.integers(-1, 15, (2, 60))
    other = np.where(rng.random(60) < 0.5, labels, other)
    low, high = sizes.get("min_size", 2), sizes.get("max_size", 500)
    kept, chance = [], []
    for row in range(60):
        mates = np.flatnonzero(labels == labels[row])
        mates = mates[mates != row]
        rest = np.delete(other, row)
        if labels[row] >= 0 and low <= len(mates) + 1 <= high and len(mates):
            clustered = other[row] >= 0
            kept.append(clustered * np.mean(other[mates] == other[row]))
            chance.append(clustered * np.mean(rest == other[row]))
    wanted = (np.mean(kept) - np.mean(chance)) / (1 - np.mean(chance))
    given = labels.tolist(), other.tolist()
    _, report = table_of(*given, min_agreement=0.01, **sizes)
    assert report["cluster_agreement"] == pytest.approx(wanted)
    assert 0.1 < wanted < 0.5


def test_giant_clusters_agree_in_nothing():
    labels = [0] * 30 + [1] * 30
    table, report = table_of(labels, [0] * 60, min_agreement=0.1)
    assert report["cluster_agreement"] == report["cluster_accepted"] == 0.0
    chance = np.random.default_rng(0).permutation(labels).tolist()
    table, report = table_of(labels, chance, min_agreement=0.1)
    assert abs(report["cluster_agreement"]) < 0.1


def test_clusters_without_partners_agree_in_nothing():
    alone = list(range(6))
    table, report = table_of(alone, alone, min_agreement=0.5)
    assert report["cluster_agreement"] == report["cluster_accepted"] == 0.0


@pytest.mark.parametrize(
    "labels, sizes",
    [
        ([0, 1, 2, 3, 4, 5], {}),
        ([0, 1, 2, 3, 4, 5], {"min_size": 1}),
        ([0, 0, 0, 1, 1, -1], {"min_size": 4}),
        ([0, 0, 0, 1, 1, 1], {"max_size": 2}),
    ],
)
def test_a_table_without_partners_is_not_taken_over(labels, sizes, caplog):
    table, report = table_of(labels, **sizes)
    assert report["cluster_singletons"] == 1.0
    assert report["cluster_accepted"] == 0.0
    assert "no utterance has a partner" in caplog.text
    assert table.centroids is None


def test_partners_stay_when_a_refresh_leaves_none():
    table, _ = table_of([0, 0, 1, 1])
    before = members(table)
    table.clusterer = Given([[0, 1, 2, 3]])
    report = table.refresh(torch.randn(4, 4), epoch=1)
    assert report["cluster_accepted"] == 0.0
    assert members(table) == before == [[0, 1], [0, 1], [2, 3], [2, 3]]


AVERAGE = {"linkage": "average"}
CLUSTERERS = {
    "deterministic": AgglomerativeClustering(metric="cosine", **AVERAGE),
    "neighbors": TwoStage(**AVERAGE),
    "random": KMeans(n_init=20),
}


@pytest.mark.parametrize("kind", CLUSTERERS)
def test_embeddings_that_tell_little_apart_are_refused(kind):
    """The same pairs, wide apart and in a narrow cone."""
    torch.manual_seed(0)
    speaker = torch.nn.functional.normalize(torch.randn(20, 128), dim=-1)
    points = speaker.repeat(2, 1) + 0.02 * torch.randn(40, 128)
    cone = torch.ones(128) + 0.02 * points
    for embeddings, accepted in (points, 1.0), (cone, 0.0):
        table = ClusterTable(CLUSTERERS[kind], 20, min_agreement=0.5)
        table.prepare(40)
        report = table.refresh(embeddings, epoch=0)
        # a clusterer that finds the pairs in both is not to blame
        if kind != "random":
            assert table._cluster(embeddings, 20, 0).bincount().max() == 2
        assert report["cluster_accepted"] == accepted
        assert report["cluster_agreement"] > 0.7 or not accepted
        assert (len(table.members(3)) > 1) == bool(accepted)


def test_the_gate_repeats_for_a_seed_and_sees_it():
    torch.manual_seed(0)
    points = torch.randn(60, 16)
    found = []
    for seed in (0, 0, 1):
        table = ClusterTable(
            CLUSTERERS["neighbors"], 0.5, min_agreement=0.01, seed=seed
        )
        table.prepare(60)
        report = table.refresh(points, epoch=0)
        found.append(report["cluster_agreement"])
    assert found[0] == found[1] != found[2]
    assert 0 < found[0] < 1


def test_noise_everywhere_changes_nothing():
    table, report = table_of([-1, -1, -1])
    assert report == {"cluster_count": 0.0, "cluster_accepted": 0.0}
    assert members(table) == [[0], [1], [2]]


def test_copies_for_a_device_are_of_the_newest_table():
    table = ClusterTable(KMeans(), clusters=2)
    table.prepare(4)
    # the labels of nobody need not travel in each step
    assert table.on(torch.device("cpu")) == (None, None)
    for rows in ([0, 1, 0, 1], [0, 0, 1, 2]):
        table._fill(torch.tensor(rows), torch.randn(4, 3))
        labels, centroids = table.on(torch.device("cpu"))
        assert labels.tolist() == rows
        assert torch.equal(centroids, table.centroids)


def test_number_of_clusters_is_a_share_or_a_schedule():
    asked = []

    class Asked(Given):
        def fit_predict(self, X):
            asked.append(self.n_clusters)
            return super().fit_predict(X)

    rising = functools.partial(linear, start=0.5, stop=1.0, epochs=4)
    for clusters in (0.5, 3, lambda epoch: 2 + epoch, 1, 1.0, rising):
        table = ClusterTable(Asked([[0] * 10]), clusters)
        table.prepare(10)
        table.refresh(torch.randn(10, 4), epoch=4)
    assert asked == [5, 3, 6, 1, 10, 10]


@pytest.mark.parametrize("clusterer", [HDBSCAN(copy=True), Graph(0.5)])
def test_clusterers_that_find_the_number_make_tables(clusterer):
    torch.manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
    points = centers.repeat(8, 1) + 0.01 * torch.randn(32, 32)
    table = ClusterTable(clusterer, clusters=None, min_agreement=0.1)
    table.prepare(32)
    report = table.refresh(points, epoch=0)
    assert report["cluster_count"] == 4
    assert members(table)[1] == list(range(1, 32, 4))


def test_a_number_for_a_clusterer_that_finds_it_is_refused():
    with pytest.raises(ValueError, match="clusters is 5, but HDBSCAN has no"):
        ClusterTable(HDBSCAN(copy=True), clusters=5)


@pytest.mark.parametrize("made", [KMeans, functools.partial(KMeans), object()])
def test_what_cannot_cluster_is_refused_when_the_table_is_made(made):
    with pytest.raises(ValueError, match="fit_predict.*write !new:"):
        ClusterTable(made)


def test_settings_that_do_not_fit_the_number_are_refused_before_training():
    table = ClusterTable(TwoStage(2, fine_clusters=4), clusters=5)
    with pytest.raises(ValueError, match=r"fine_clusters is 4.*n_clusters \(5"):
        table.prepare(20)


@pytest.mark.parametrize("clusters", [0, lambda epoch: epoch])
def test_no_clusters_are_refused_when_the_table_is_made(clusters):
    with pytest.raises(ValueError, match="clusters must be a number above 0"):
        ClusterTable(KMeans(), clusters)


@pytest.mark.parametrize("clusters", [7, 0.01])
def test_an_impossible_number_of_clusters_is_refused_before_training(clusters):
    table = ClusterTable(KMeans(), clusters, start=6.5)
    with pytest.raises(ValueError, match="1 to 6 clusters .* at epoch 7"):
        ClusterPartners(table).prepare(range(6))
    # nobody minds where nothing is clustered
    ClusterTable(KMeans(), clusters, start=math.inf).prepare(6)


def test_a_schedule_may_not_rise_above_the_number_of_utterances():
    table = ClusterTable(KMeans(), lambda epoch: 5 + epoch)
    table.prepare(6)
    with pytest.raises(ValueError, match="clusters is 7 at epoch 2"):
        table.refresh(torch.randn(6, 4), epoch=2)


def test_refreshes_are_due_from_the_start_on_and_once_an_epoch():
    table = ClusterTable(KMeans(), 1, start=2.5, every=2)
    table.prepare(2)
    assert [e for e in range(9) if table.due(e)] == [3, 5, 7]
    table.refresh(torch.randn(2, 4), epoch=3)
    assert not table.due(3) and table.due(5)
    assert not ClusterTable(KMeans(), 1, start=math.inf).due(10**6)


def test_nearest_clusters_are_never_the_cluster_itself():
    table, _ = table_of([0, 1, 2, 3] * 2)
    cosine = table.centroids @ table.centroids.T
    cosine.fill_diagonal_(-2)
    wanted = cosine.argsort(dim=1, descending=True)
    assert torch.equal(table.nearest(1), wanted[:, :1])
    assert torch.equal(table.nearest(2), wanted[:, :2])
    assert table.nearest(9).shape == (4, 3)


def test_a_checkpoint_brings_the_table_back(tmp_path):
    table, _ = table_of([1, 0, 1, 2, 1, 2])
    checkpointer = Checkpointer(tmp_path, {"table": table})
    checkpointer.save_checkpoint()
    found = ClusterTable(KMeans(), 2)
    found.prepare(6)
    Checkpointer(tmp_path, {"table": found}).recover_if_possible()
    assert members(found) == members(table)
    assert torch.equal(found.centroids, table.centroids)
    assert not found.due(0)
    other = ClusterTable(KMeans(), 2)
    other.prepare(7)
    with pytest.raises(ValueError, match="6 utterances.* has 7"):
        Checkpointer(tmp_path, {"table": other}).recover_if_possible()


def partners_of(*labels, **kwargs):
    table, _ = table_of(*labels, **kwargs)
    return ClusterPartners(table)


def test_views_come_from_the_cluster_and_the_anchor_is_among_them():
    labels = [0, 1, 0, 1, 0, 1, 0, 0]
    partners = partners_of(labels)
    for row in range(8):
        for epoch in range(5):
            rows = partners((3, epoch, row), (2, 4))
            assert len(rows) == 6 and rows[0] == row
            assert {labels[r] for r in rows} == {labels[row]}
            assert len(set(rows[:2])) == 2
            # nobody is drawn again before everybody was
            assert len(set(rows)) == min(labels.count(labels[row]), 6)


def test_draws_repeat_for_a_key_and_differ_between_epochs():
    partners = partners_of([0] * 9)
    draws = [partners((3, epoch, 4), (2, 4)) for epoch in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] or draws[0] != draws[3]


@pytest.fixture
def corpus(tmp_path):
    """Six files, each of a constant of its own."""
    rows = []
    for n in range(6):
        path = str(tmp_path / f"{n}.wav")
        wav = np.full(8000 + 100 * n, (n + 1) / 10, np.float32)
        soundfile.write(path, wav, 16000, subtype="FLOAT")
        rows.append((str(n), len(wav) / 16000, path, 0, len(wav)))
    write_annotation(tmp_path / "train.csv", rows)
    return read_annotation(tmp_path / "train.csv")


def sampler_of(partners, **kwargs):
    return ViewSampler(
        16000, 2, 0.1, 4, 0.05, partners=partners, seed=5, **kwargs
    )


def sample(sampler, utterances, row, epoch=0):
    item = utterances.row(row)
    views, _ = sampler((epoch, row), item["wav"], item["start"], item["stop"])
    return views


@pytest.mark.parametrize("min_gap", [None, 0.0])
def test_one_cluster_for_each_utterance_is_plain_sampling_draw_for_draw(
    corpus, tmp_path, min_gap
):
    for n in range(6):  # noise, so that a moved crop would show
        wav = np.random.default_rng(n).uniform(-1, 1, 9000)
        soundfile.write(tmp_path / f"{n}.wav", wav, 16000, subtype="FLOAT")
    plain = sampler_of(None, min_gap=min_gap, speeds=[0.9, 1.0, 1.1])
    partners = partners_of([3, 1, 2, 0, 5, 4], min_size=1)
    aware = sampler_of(partners, min_gap=min_gap, speeds=[0.9, 1.0, 1.1])
    aware.prepare(corpus)
    for row in range(6):
        for epoch in range(3):
            wanted = sample(plain, corpus, row, epoch)
            assert torch.equal(sample(aware, corpus, row, epoch), wanted)


def test_each_view_is_cut_from_the_utterance_drawn_for_it(corpus):
    partners = partners_of([0, 1, 0, 0, 1, 0])
    sampler = sampler_of(partners)
    sampler.prepare(corpus)
    for row in range(6):
        views = sample(sampler, corpus, row)
        globals_, locals_ = sampler.split(views[None])
        found = [round(10 * v.mean().item()) - 1 for v in globals_ + locals_]
        assert found == partners((5, 0, row), (2, 4))


def test_workers_that_live_on_see_the_new_table(corpus):
    clusterer = Given([[0, 1, 0, 1, 0, 1]])
    table = ClusterTable(clusterer, clusters=2)
    partners = ClusterPartners(table)
    partners.prepare(corpus)
    dataset = UtteranceDataset(corpus)
    dataset.add_dynamic_item(
        lambda key: partners((5, *key), (2, 4)), ["key"], "rows"
    )
    dataset.set_output_keys(["rows"])
    loader = SaveableDataLoader(
        dataset, num_workers=1, persistent_workers=True, collate_fn=list
    )
    alone = [set(batch[0]["rows"]) for batch in loader]
    assert alone == [{row} for row in range(6)]
    table.refresh(torch.randn(6, 4), epoch=0)
    together = [set(batch[0]["rows"]) for batch in loader]
    assert together == [{0, 2, 4}, {1, 3, 5}] * 3
