"""Two gloo processes do what one does with the doubled batch."""

import datetime
import functools
import os
import sys

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.dataio.annotations import (
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.nnet.branch import Views
from speechbrain_ssl.nnet.margins import (
    AdaFace,
    ArcFace,
    CurricularFace,
    MagFace,
)
from speechbrain_ssl.objectives.barlow_twins import BarlowTwins
from speechbrain_ssl.objectives.byol import BYOL
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.koleo import KoLeo
from speechbrain_ssl.objectives.lim import LIM
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.nnclr import NNCLR
from speechbrain_ssl.objectives.rdino import RDINO
from speechbrain_ssl.objectives.sdpn import SDPN
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.objectives.simsiam import SimSiam
from speechbrain_ssl.objectives.ssps import SSPS
from speechbrain_ssl.objectives.swav import SwAV
from speechbrain_ssl.objectives.vibcreg import VIbCReg
from speechbrain_ssl.objectives.vicreg import VICReg
from speechbrain_ssl.objectives.weighted import Weighted
from speechbrain_ssl.objectives.wmse import WMSE
from speechbrain_ssl.pseudo_labels.extract import embed_utterances
from speechbrain_ssl.pseudo_labels.gating import FixedGate, MixtureGate
from speechbrain_ssl.pseudo_labels.loss import AAMSoftmax, GatedLoss
from tests.brains import test_pseudo_label as stage_two
from tests.brains import tiny

WORLD, BATCH, DIM = 2, 3, 5


def run(worker, folder, *inputs):
    """Runs a function of (rank, folder, ...) in two processes."""
    torch.multiprocessing.spawn(
        _join, (worker, str(folder), *inputs), nprocs=WORLD
    )
    return [
        torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(WORLD)
    ]


def _join(rank, worker, folder, *inputs):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group(
        "gloo",
        f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD,
        # who waits in vain fails, instead of half an hour later
        timeout=datetime.timedelta(minutes=3),
    )
    result = worker(rank, folder, *inputs)
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.barrier()
    distributed.leave()


def everyone():
    """The doubled batch, the same in all processes."""
    torch.manual_seed(7)
    return torch.randn(4, 2, WORLD * BATCH, DIM)


def clusters():
    """A table of three clusters and one utterance of noise."""
    table = ClusterTable(KMeans(), clusters=3)
    table.prepare(WORLD * BATCH)
    points = torch.nn.functional.normalize(everyone()[2, 0], dim=-1)
    table._fill(torch.tensor([0, 1, -1, 2, 1, 0]), points)
    return table


QUEUE = 2 * WORLD * BATCH + 1
# name to what makes it, and whether it wants a teacher
OBJECTIVES = {
    "simclr": (lambda: SimCLR(0.2, margin=0.1), False),
    "moco": (lambda: MoCo(DIM, queue_size=QUEUE), True),
    "dino": (lambda: DINO(DIM, consistency_weight=0.5), True),
    "dino_sinkhorn": (
        lambda: DINO(DIM, sinkhorn_iterations=3, koleo_weight=0.3),
        True,
    ),
    "rdino": (lambda: RDINO(DINO(3), width=DIM - 3), True),
    "sdpn": (
        lambda: SDPN(DIM, 7, dimension_weight=0.5, consistency_weight=0.3),
        True,
    ),
    "ssps_moco": (
        lambda: SSPS(MoCo(DIM, queue_size=QUEUE), clusters(), DIM, 11),
        True,
    ),
    "ssps_simclr": (lambda: SSPS(SimCLR(), clusters(), DIM, 11, 0), False),
    "simclr_arcface": (lambda: SimCLR(0.2, ArcFace(0.3)), False),
    "simclr_curricularface": (lambda: SimCLR(0.2, CurricularFace(0.3)), False),
    "simclr_adaface": (lambda: SimCLR(0.2, AdaFace(0.3, 2.0, 0.5)), False),
    "simclr_magface": (
        lambda: SimCLR(0.2, MagFace((0.1, 0.4), (0.5, 3.0), 2.0)),
        False,
    ),
    "moco_curricularface": (
        lambda: MoCo(DIM, QUEUE, margin=CurricularFace(0.3)),
        True,
    ),
    "swav": (lambda: SwAV(DIM, 9, epsilon=0.2), False),
    # 6 rows fill it in the first call; 5 does not divide by 2
    "swav_queue": (
        lambda: SwAV(DIM, 9, epsilon=0.2, queue_size=5, queue_from=0.0),
        False,
    ),
    "nnclr": (lambda: NNCLR(DIM, 7, queue_size=QUEUE, norm=None), False),
    "koleo": (lambda: KoLeo(), False),
    "lim_nce": (lambda: LIM("nce"), False),
    "lim_bce": (lambda: LIM("bce"), False),
    "lim_mine": (lambda: LIM("mine"), False),
    "barlow_twins": (lambda: BarlowTwins(), False),
    # BatchNorm without SyncBatchNorm would see one process
    "byol": (lambda: BYOL(DIM, hidden=8, norm=None), True),
    "simsiam": (lambda: SimSiam(DIM, hidden=8, norm=None), False),
    "vibcreg": (lambda: VIbCReg(), False),
    "vicreg": (lambda: VICReg(), False),
    # six utterances, five dimensions: one part
    "wmse": (lambda: WMSE(DIM, eps=0.1), False),
    "weighted": (
        lambda: Weighted([SimCLR(), MoCo(DIM, QUEUE)], [0.5, lambda e: 2.0]),
        True,
    ),
    "deep_cluster": (
        lambda: DeepCluster([clusters()], concentrations=True),
        False,
    ),
}


def step(name, points, keys, index):
    """Loss, gradients of points and parameters, and state after two calls."""
    torch.manual_seed(0)
    make, has_teacher = OBJECTIVES[name]
    objective = make()
    teacher = Views(keys, keys, index) if has_teacher else None
    objective(Views(points, points, index), teacher, 0.0)
    points = points.clone().requires_grad_()
    loss, _ = objective(Views(points, points, index), teacher, 0.0)
    loss.backward()
    own = {
        name: parameter.grad
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach(), points.grad, own, objective.state_dict()


def _objective_worker(rank, folder):
    points, keys = everyone()[:2]
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    index = torch.arange(WORLD * BATCH)[mine]
    return {
        name: step(name, points[:, mine], keys[:, mine], index)
        for name in OBJECTIVES
    }


@pytest.fixture(scope="module")
def both_processes(tmp_path_factory):
    """What two processes say of all objectives: starting them takes long."""
    return run(_objective_worker, tmp_path_factory.mktemp("objectives"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_see_one_batch(name, both_processes):
    first, second = (results[name] for results in both_processes)
    index = torch.arange(WORLD * BATCH)
    loss, gradient, own, state = step(name, *everyone()[:2], index)
    # the mean over processes is the loss of the doubled batch
    assert (first[0] + second[0]) / 2 == pytest.approx(loss.item(), rel=1e-6)
    found = torch.cat([first[1], second[1]], dim=1) / WORLD
    assert torch.allclose(found, gradient, atol=1e-6)
    for key, value in own.items():
        averaged = (first[2][key] + second[2][key]) / WORLD
        assert torch.allclose(averaged, value, rtol=1e-4, atol=1e-6), key
    for key, value in state.items():
        assert torch.equal(first[3][key], second[3][key]), key
        assert torch.allclose(first[3][key], value, atol=1e-6), key


def _table_worker(rank, folder, share):
    torch.manual_seed(rank)  # a clusterer alone would differ
    table = ClusterTable(
        KMeans(distributed=share),
        clusters=12,
        max_size=2000,
        min_agreement=0.01,
    )
    # more than a block for each process, in groups that pass the gate
    generator = torch.Generator().manual_seed(7)
    points = 0.3 * torch.randn(6000, DIM, generator=generator)
    points += torch.eye(3, DIM).repeat(2000, 1)
    table.prepare(len(points))
    report = table.refresh(points, epoch=0)
    return table.labels, table.centroids, report


@pytest.mark.parametrize("share", [False, True])
def test_all_processes_get_one_cluster_table(tmp_path, share):
    first, second = run(_table_worker, tmp_path, share)
    alone = _table_worker(0, None, share)
    for mine, other, single in zip(first[:2], second[:2], alone[:2]):
        assert torch.equal(mine, other)
        assert torch.equal(mine, single)
    assert first[2] == second[2] == pytest.approx(alone[2])
    assert first[2]["cluster_accepted"] == 1.0
    assert first[0].max() == 11


def _extract_worker(rank, folder, csv):
    def embed(wavs, lengths):
        return wavs[:, :3]

    return embed_utterances(embed, read_annotation(csv), 16000)


@pytest.mark.parametrize("count", [1, 5])
def test_processes_share_the_embedding_of_utterances(tmp_path, count):
    rows = []
    for n in range(count):
        path = str(tmp_path / f"{n}.wav")
        wav = np.random.default_rng(n).uniform(-0.5, 0.5, 4000 + n)
        soundfile.write(path, wav, 16000)
        rows.append((str(n), 0.25, path, 0, 4000 + n))
    csv = str(tmp_path / "train.csv")
    write_annotation(csv, rows)
    first, second = run(_extract_worker, tmp_path, csv)
    assert torch.equal(first, second)
    assert torch.equal(first, _extract_worker(0, None, csv))
    assert len(first.unique(dim=0)) == count


def _collectives_worker(rank, folder):
    x = torch.tensor([float(rank), 1.0])
    return {
        "gather": distributed.gather(x),
        "mean": distributed.mean(x),
        "everywhere": [
            distributed.everywhere(torch.tensor(True)),
            distributed.everywhere(torch.tensor(rank == 0)),
        ],
        "rank": distributed.rank(),
        "size": distributed.world_size(),
    }


def test_collectives(tmp_path):
    first, second = run(_collectives_worker, tmp_path)
    assert first["gather"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert torch.equal(first["mean"], second["mean"])
    assert first["mean"].tolist() == [0.5, 1.0]
    assert first["everywhere"] == second["everywhere"] == [True, False]
    assert (first["rank"], second["rank"], first["size"]) == (0, 1, 2)


def test_alone_they_are_identities():
    x = torch.randn(3)
    assert distributed.gather(x) is x
    assert distributed.gather_with_gradient(x) is x
    assert distributed.mean(x) is x
    assert distributed.everywhere(torch.tensor(True))
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def _brain_worker(rank, folder, corpus, encoder):
    settings = {"batch_size": 3, "epochs": 2, "encoder": encoder}
    brain = tiny.make_brain(
        corpus,
        os.path.join(folder, "two"),
        distributed_launch=True,
        distributed_backend="gloo",
        **settings,
    )
    tiny.fit(brain)
    return tiny.state_of(brain), torch.rand(2)


def train_both(tmp_path, encoder):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tiny.write_corpus(corpus)
    tiny.damage_corpus(corpus)
    two = run(_brain_worker, tmp_path, str(corpus), encoder)
    one = tiny.make_brain(
        str(corpus), str(tmp_path / "one"), batch_size=6, encoder=encoder
    )
    return tiny.state_of(tiny.fit(one)), *two


def _options_worker(rank, folder, corpus):
    """Weights before and after one step of SDPN, for several options."""
    found = []
    for number, options in enumerate([{}, {"sum": True, "clip": False}]):
        torch.manual_seed(0)
        objective = SDPN(tiny.DIM, 5)
        before = objective.prototypes.weight.detach().clone()
        brain = tiny.make_brain(
            corpus,
            os.path.join(folder, f"options{number}"),
            objective=objective,
            opt_class=functools.partial(torch.optim.SGD, lr=0.01),
            parameter_options=[[objective, options]],
            lr_for="linear",
            reference_batch=3,
            max_grad_norm=1e-3 if options else float("inf"),
            clip_each_tensor=True,
            batch_size=6,
            epochs=1,
            distributed_launch=True,
            distributed_backend="gloo",
        )
        tiny.fit(brain)
        after = brain.module("objective").prototypes.weight.detach()
        rate = brain.optimizer.param_groups[0]["lr"]
        found.append((after - before, rate, brain.train_stats["gradient_norm"]))
    return found


def test_gradients_of_prototypes_are_summed_and_not_clipped(tmp_path):
    """As in SDPN's code; all other gradients are averaged and clipped."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tiny.write_corpus(corpus)
    first, second = run(_options_worker, tmp_path, str(corpus))
    for mine, other in zip(first, second):
        assert torch.equal(mine[0], other[0])
    (averaged, rate, _), (summed, _, norm) = first
    # the step was not clipped to the norm of 1e-3
    assert norm > 1e-2
    assert torch.allclose(summed, 2 * averaged, rtol=1e-4)
    # two processes of six utterances, for a reference of three
    assert rate == pytest.approx(0.04)


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_two_processes_train_as_one_does_on_the_doubled_batch(tmp_path):
    one, (first, drawn), (second, drawn_too) = train_both(tmp_path, tiny.Pooled)
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5), name
    assert not torch.equal(drawn, drawn_too)
    # unreadable utterances are replaced by the same ones, and counted together
    for name in ("one", "two"):
        logged = [line["train"] for line in tiny.records(tmp_path / name)]
        assert [line["unreadable"] for line in logged] == [2, 2]
        listed = (tmp_path / name / "save/unreadable.csv").read_text()
        assert sorted(line[:5] for line in listed.splitlines()[1:]) == [
            *("utt05", "utt07")
        ]


def _stage_two(folder, corpus, batch_size, gate, **run_opts):
    """Weights, gates and what was learnt after three epochs of stage two."""
    loss = GatedLoss(AAMSoftmax(), correct_from=1.0, threshold=0.3)
    brain = stage_two.make_brain(
        corpus,
        folder,
        gate=gate,
        loss=loss,
        epochs=3,
        batch_size=batch_size,
        **run_opts,
    )
    tiny.fit(brain)
    thresholds = [gate["threshold"] for gate in stage_two.gates(folder)]
    learnt = tuple(brain.decisions.table)
    return tiny.state_of(brain), thresholds, learnt, brain.optimizer_step


def _stage_two_worker(rank, folder, corpus):
    settings = {"distributed_launch": True, "distributed_backend": "gloo"}
    return [
        _stage_two(os.path.join(folder, name), corpus, 3, gate, **settings)
        for name, gate in (("gate", MixtureGate()), ("none", FixedGate(0.0)))
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_stage_two_sees_one_batch_and_one_gate(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tiny.write_corpus(corpus)
    first, second = run(_stage_two_worker, tmp_path, str(corpus))
    one = _stage_two(str(tmp_path / "one"), str(corpus), 6, MixtureGate())
    for place in (0, 1):
        for name, value in first[place][0].items():
            assert torch.equal(second[place][0][name], value), name
    for name, value in one[0].items():
        assert torch.allclose(first[0][0][name], value, atol=1e-4), name
    assert first[0][1] == pytest.approx(one[1], abs=1e-3)
    for mine, other, alone in zip(first[0][2], second[0][2], one[2]):
        assert torch.equal(mine, other)
        assert torch.allclose(mine.double(), alone.double(), atol=1e-3)
    # where nothing is trusted before correction, no process makes a step
    assert first[1][3] == second[1][3] < one[3]


def test_batch_normalisation_trains_in_processes_without_gpu(tmp_path):
    _, (first, _), (second, _) = train_both(tmp_path, tiny.ecapa)
    for name, value in first.items():
        # statistics are those of the last batch of each process until the
        # next forward spreads those of process 0, which are the ones saved
        if "running" not in name:
            assert torch.equal(value, second[name]), name
