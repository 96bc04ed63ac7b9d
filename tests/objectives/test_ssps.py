"""SSPS: which positives are replaced, and by what."""

import pytest
import torch

from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.objectives.ssps import SSPS
from speechbrain_ssl.testing import check_objective
from tests.objectives.examples import step

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
# clusters 0 and 1 are neighbors, 2 is on its own side, nearer to 1
CENTROIDS = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]])


def table():
    made = ClusterTable(KMeans(), clusters=3)
    made.prepare(len(LABELS))
    made._fill(LABELS)
    made.centroids = CENTROIDS
    return made


class Witness(torch.nn.Module):
    """An objective that keeps what it is called with."""

    def forward(self, student, teacher, epoch):
        self.student, self.teacher = student, teacher
        loss = student.projection.float().square().mean()
        if teacher is not None:
            loss = loss + teacher.projection.float().mean()
        return loss, {"loss": loss.detach()}


def views(batch, count=2, dim=4):
    points = torch.randn(count, len(batch), dim)
    return BranchOutput(points, points, torch.tensor(batch))


def filled(neighbors=1, **kwargs):
    """All six utterances are in the queue."""
    objective = SSPS(Witness(), table(), 4, 8, neighbors, **kwargs)
    teacher = views(range(6))
    step(objective, views(range(6)), teacher)
    return objective, teacher.projection[0]


@pytest.mark.parametrize("neighbors, wanted", [(1, [1, 0, 1]), (2, None)])
def test_positives_come_from_the_nearest_other_clusters(neighbors, wanted):
    objective, queued = filled(neighbors)
    student, teacher = views([0, 2, 5]), views([0, 2, 5])
    _, stats = objective(student, teacher, 0.0)
    given = objective.objective.teacher.projection
    assert stats["replaced"].item() == 1.0
    assert torch.equal(given[0], given[1])
    place = torch.cdist(given[0], queued).argmin(1)
    assert torch.equal(queued[place], given[0])
    clusters = LABELS[place].tolist()
    if wanted is not None:
        assert clusters == wanted
    assert all(a != b for a, b in zip(clusters, [0, 1, 2]))
    assert objective.objective.student is student
    rows = objective.objective.teacher.index
    assert torch.equal(LABELS[rows], LABELS[place])


def test_moco_keeps_the_keys_of_the_utterances_themselves():
    objective = SSPS(MoCo(4, queue_size=6), table(), 4, 8)
    first, second = views(range(6), count=2), views([0, 2, 5], count=2)
    step(objective, first, first)
    _, stats = step(objective, second, second)
    assert stats["replaced"].item() == 1.0
    keys = second.projection.transpose(0, 1).flatten(0, 1)
    unit = torch.nn.functional.normalize(keys, dim=-1)
    assert torch.equal(objective.objective.queue, unit)


def test_moco_does_not_take_the_positive_for_a_negative():
    """Whatever rounding does to its cosine, as TF32 does on a GPU."""
    objective = SSPS(MoCo(4, queue_size=12), table(), 4, 8)
    batch = views(range(6))
    step(objective, batch, batch)
    rough = batch.projection + 1e-2 * torch.randn(2, 6, 4)
    objective.objective.queue = torch.nn.functional.normalize(
        rough.transpose(0, 1).flatten(0, 1), dim=-1
    )
    loss, stats = objective(batch, batch, 0.0)
    moco = objective.objective
    slot = objective._draw(batch.index)
    positive = batch._replace(projection=objective.queue[slot].expand(2, 6, 4))
    for i in range(6):
        kept = moco.rows != objective.row[slot[i]]
        alone = MoCo(4, queue_size=10)
        alone.queue = moco.queue[kept]
        one = [
            BranchOutput(*[x[:, i : i + 1] for x in side[:2]])
            for side in (batch, positive)
        ]
        loss = loss - alone(*one, 0.0)[0] / 6
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert stats["replaced"] == 1.0


def test_with_a_single_cluster_nothing_is_replaced():
    objective, _ = filled()
    objective.table._fill(torch.zeros(6, dtype=torch.long))
    objective.table.centroids = CENTROIDS[:1]
    _, stats = objective(views([0, 2]), views([0, 2]), 0.0)
    assert stats["replaced"].item() == 0.0


def test_in_the_own_cluster_another_utterance_is_taken():
    objective, queued = filled(neighbors=0)
    objective(views([0, 3, 4]), views([0, 3, 4]), 0.0)
    given = objective.objective.teacher.projection
    assert torch.equal(given[0], queued[[1, 2, 5]])


def test_without_a_teacher_the_first_view_stays():
    objective = SSPS(Witness(), table(), 4, 8)
    step(objective, views(range(6)))
    student = views([0, 2, 5], count=3)
    objective(student, None, 0.0)
    given = objective.objective.student.projection
    assert torch.equal(given[0], student.projection[0])
    assert not (given[1:] == student.projection[1:]).any()


def test_nothing_is_replaced_before_clusters_and_candidates_are_there():
    empty = SSPS(Witness(), table(), 4, 8)
    unclustered = SSPS(Witness(), ClusterTable(KMeans(), 2), 4, 8)
    unclustered.table.prepare(6)
    for objective in (empty, unclustered):
        for _ in range(2):
            teacher = views([0, 2, 5])
            _, stats = objective(views([0, 2, 5]), teacher, 0.0)
            assert stats["replaced"].item() == 0.0
            given = objective.objective.teacher.projection
            assert torch.equal(given, teacher.projection)


def test_noise_keeps_its_own_positive():
    objective, _ = filled()
    objective.table.labels[2] = -1
    teacher = views([0, 2])
    objective(views([0, 2]), teacher, 0.0)
    given = objective.objective.teacher.projection
    assert torch.equal(given[:, 1], teacher.projection[:, 1])
    assert not torch.equal(given[:, 0], teacher.projection[:, 0])


def test_the_queue_keeps_the_newest_after_wrapping():
    objective = SSPS(Witness(), table(), 4, queue_size=5)
    batches = [[0, 1, 2], [3, 4, 5], [1]]
    teachers = [views(batch) for batch in batches]
    for teacher in teachers:
        step(objective, teacher, teacher)
    assert objective.row.tolist() == [5, 1, 2, 3, 4]
    newest = torch.cat([t.projection[0] for t in teachers])[-5:]
    assert {tuple(x) for x in objective.queue.tolist()} == {
        tuple(x) for x in newest.tolist()
    }


@pytest.mark.parametrize(
    "objective, teachers",
    [(SimCLR(0.2), 0), (MoCo(4, 9), 2), (DINO(4), 2)],
    ids=["simclr", "moco", "dino"],
)
def test_keeps_the_contract_with_every_kind(objective, teachers):
    made = SSPS(objective, table(), 4, 8)
    points = views(range(6))
    step(made, points, points if teachers else None)
    # without a teacher the first view keeps its place, and all others are
    # replaced by what has no gradient
    check_objective(
        made,
        dim=4,
        teacher_views=teachers,
        exchangeable=bool(teachers),
        learning_views=None if teachers else 1,
    )


def test_draws_do_not_repeat_for_ever():
    objective, _ = filled()
    slots = set()
    for seen in range(20):
        objective.seen.fill_(seen)
        slots.add(tuple(objective._draw(torch.tensor([0, 5])).tolist()))
    assert len(slots) > 2


def test_missing_indices_are_refused():
    points = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="index"):
        SSPS(Witness(), table(), 4)(BranchOutput(points, points), None, 0.0)
