"""DeepCluster against the formula, and the prototype term of ProtoMoCo."""

import math

import numpy as np
import pytest
import torch

from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.testing import check_objective


def table(labels, points):
    class Given:
        def fit_predict(self, X):
            return np.array(labels)

    made = ClusterTable(Given())
    made.prepare(len(labels))
    made.refresh(points, epoch=0)
    return made


def unit(x):
    return x / np.linalg.norm(x)


def slow(embedding, rows, labels, points, temperatures):
    """Mean cross-entropy with loops."""
    rest = [unit(p) for p in points.double().numpy()]
    names = sorted(set(labels) - {-1})
    centroids = [
        unit(
            np.mean([p for p, own in zip(rest, labels) if own == name], axis=0)
        )
        for name in names
    ]
    losses = []
    for view in embedding.numpy():
        for x, row in zip(view, rows):
            if labels[row] < 0:
                continue
            scores = [
                float(unit(x) @ c) / t for c, t in zip(centroids, temperatures)
            ]
            total = sum(math.exp(score) for score in scores)
            target = names.index(labels[row])
            losses.append(math.log(total) - scores[target])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2, 2], [0, -1, 0, 1, 1, -1]])
@pytest.mark.parametrize("count", [1, 3])
def test_equals_the_written_out_formula(labels, count):
    points = torch.randn(6, 5)
    rows = [4, 0, 1, 2]
    embedding = torch.randn(count, 4, 5, dtype=torch.float64)
    student = BranchOutput(embedding, embedding, torch.tensor(rows))
    loss, _ = DeepCluster([table(labels, points)], 0.3)(student, None, 0.0)
    wanted = slow(embedding, rows, labels, points, [0.3] * 3)
    # the table holds its centroids in float32
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


def test_several_tables_are_averaged():
    points = torch.randn(6, 5)
    tables = [table(x, points) for x in ([0, 0, 1, 1, 2, 2], [0, 1] * 3)]
    embedding = torch.randn(2, 6, 5)
    student = BranchOutput(embedding, embedding, torch.arange(6))
    losses = [DeepCluster([t])(student, None, 0.0)[0] for t in tables]
    both, _ = DeepCluster(tables)(student, None, 0.0)
    assert both.item() == pytest.approx(sum(losses).item() / 2, rel=1e-6)


def test_concentrations_are_those_of_pcl_around_the_temperature():
    labels = [0] * 5 + [1] * 3 + [2] * 4
    points = torch.randn(12, 5)
    made = DeepCluster([table(labels, points)], 0.2, True)
    rest = torch.nn.functional.normalize(points.double(), dim=-1)
    wanted = []
    for name in range(3):
        mine = rest[torch.tensor(labels) == name]
        distances = (mine - mine.mean(0)).norm(dim=1)
        size = len(mine)
        wanted.append((distances.sum() / (size * math.log(size + 10))).item())
    low, high = np.quantile(wanted, [0.1, 0.9])
    wanted = np.clip(wanted, low, high)
    wanted = 0.2 * wanted / wanted.mean()
    (only,) = made.tables
    found = made._temperatures(only, only.centroids)
    assert found.numpy() == pytest.approx(wanted, rel=1e-6)
    embedding = torch.randn(1, 12, 5, dtype=torch.float64)
    student = BranchOutput(embedding, embedding, torch.arange(12))
    loss, _ = made(student, None, 0.0)
    formula = slow(embedding, range(12), labels, points, wanted)
    assert loss.item() == pytest.approx(formula, rel=1e-6)


def test_concentrations_are_made_once_for_each_refresh():
    labels, points = [0, 0, 0, 1, 1, 2, 2, 2], torch.randn(8, 5)
    made = table(labels, points)
    kept = DeepCluster([made], concentrations=True)
    for epoch, refreshed in enumerate([labels, [0, 1, 2, 3] * 2]):
        labels[:] = refreshed
        made.refresh(points, epoch)
        _, centroids = made.on(torch.device("cpu"))
        found = kept._temperatures(made, centroids)
        assert kept._temperatures(made, centroids) is found
        anew = DeepCluster([made], concentrations=True)
        assert torch.equal(anew._temperatures(made, centroids), found)


def test_collapse_shows():
    points = torch.eye(4).repeat(2, 1)
    objective = DeepCluster([table([0, 1, 2, 3] * 2, points)])
    healthy = BranchOutput(points[None], points[None], torch.arange(8))
    _, stats = objective(healthy, None, 0.0)
    assert stats["clusters_predicted"].item() == pytest.approx(4.0, rel=1e-3)
    point = points[:1].expand(1, 8, 4)
    _, stats = objective(BranchOutput(point, point, torch.arange(8)), None, 0.0)
    assert stats["clusters_predicted"].item() < 1.1
    assert stats["accuracy"].item() == 0.25


def test_a_batch_of_noise_only_gives_zero_and_a_finite_gradient():
    labels = [0, 0, 1, 1, -1, -1]
    objective = DeepCluster([table(labels, torch.randn(6, 5))])
    embedding = torch.randn(2, 2, 5, requires_grad=True)
    student = BranchOutput(embedding, embedding, torch.tensor([4, 5]))
    loss, _ = objective(student, None, 0.0)
    loss.backward()
    assert loss.item() == 0.0 and not embedding.grad.any()


def test_keeps_the_contract():
    made = table([0, 1, 2] * 2, torch.randn(6, 5))
    check_objective(DeepCluster([made]), dim=5, views=3, teacher_views=0)
    check_objective(DeepCluster([made], concentrations=True), dim=5)


def test_missing_indices_and_tables_are_refused():
    points = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="index of the utterances"):
        DeepCluster([ClusterTable(KMeans(), 2)])(
            BranchOutput(points, points), None, 0
        )
    with pytest.raises(ValueError, match="one table or more"):
        DeepCluster([])


def test_missing_clusters_are_refused():
    empty = ClusterTable(KMeans(), 2)
    empty.prepare(3)
    points = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="cluster_from"):
        DeepCluster([empty])(
            BranchOutput(points, points, torch.arange(3)), None, 0
        )
