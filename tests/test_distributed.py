"""Two gloo processes do what one does with the doubled batch."""

import functools
import os
import socket
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl import distributed, testing
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.objectives.sdpn import SDPN
from speechbrain_ssl.pseudo_labels.extract import embed_utterances
from speechbrain_ssl.pseudo_labels.gating import FixedGate, MixtureGate
from speechbrain_ssl.pseudo_labels.loss import AAMSoftmax, GatedLoss
from tests.brains import test_pseudo_label as stage_two
from tests.brains import tiny
from tests.objectives import examples

WORLD, DIM = 2, 5


def run(worker, folder, *inputs):
    """Runs a function of (rank, folder, ...) in two processes."""
    return testing.run_processes(
        _with_rank, worker, str(folder), inputs, processes=WORLD
    )


def _with_rank(worker, folder, inputs):
    return worker(distributed.rank(), folder, *inputs)


def cases():
    """Each objective with views of student and teacher."""
    made = {}
    for name, make in examples.all_examples().items():
        torch.manual_seed(7)
        student, teacher = (
            examples.random_views(examples.VIEWS) for _ in range(2)
        )
        made[name] = make(), student, teacher
    return made


def _all_steps(cases):
    return {n: testing._step_of_a_part(*case) for n, case in cases.items()}


@pytest.fixture(scope="module")
def both_processes():
    """What two processes say of all objectives: starting them takes long."""
    return testing.run_processes(_all_steps, cases())


@pytest.mark.parametrize("name", examples.all_examples())
def test_objectives_see_one_batch(name, both_processes):
    objective, student, teacher = cases()[name]
    for points in student[:2]:
        points.requires_grad_()
    testing._compare(
        [results[name] for results in both_processes],
        testing._step(objective, student, teacher),
    )


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
    """What one step of SDPN changes, for several options of its prototypes."""
    found = []
    for number, options in enumerate([{}, {"sum": True, "clip": False}]):
        torch.manual_seed(0)
        objective = SDPN(tiny.DIM, 5)
        brain = tiny.make_brain(
            corpus,
            os.path.join(folder, f"options{number}"),
            objective=objective,
            opt_class=functools.partial(
                torch.optim.SGD, lr=0.01, weight_decay=0.1
            ),
            parameter_options=[[objective, {"decay": False, **options}]],
            decay_vectors=False,
            lr_for="linear",
            reference_batch=3,
            max_grad_norm=1e-3 if options else float("inf"),
            clip_each_tensor=True,
            batch_size=6,
            epochs=1,
            distributed_launch=True,
            distributed_backend="gloo",
        )
        before = tiny.state_of(brain)
        tiny.fit(brain)
        after = tiny.state_of(brain)
        groups = brain.optimizer.param_groups
        decays = {
            name: group["weight_decay"]
            for group in groups
            for module in ("student", "objective")
            for name, parameter in brain.module(module).named_parameters()
            if any(parameter is member for member in group["params"])
        }
        moved = {name: after[name] - before[name] for name in before}
        norm = brain.train_stats["gradient_norm"]
        found.append((moved, decays, groups[0]["lr"], norm))
    return found


def test_parameter_groups_are_those_of_sdpns_code(tmp_path):
    """Gradients of prototypes are summed and not clipped, others averaged and
    clipped tensor by tensor; only matrices of the networks decay."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tiny.write_corpus(corpus)
    first, second = run(_options_worker, tmp_path, str(corpus))
    prototypes = "objective.prototypes.weight"
    bias = "student.embedding_model.layer.bias"
    for mine, other in zip(first, second):
        assert torch.equal(mine[0][prototypes], other[0][prototypes])
        assert torch.equal(mine[0][bias], other[0][bias])
    (averaged, decays, rate, _), (summed, _, _, norm) = first
    # the step was not clipped to the norm of 1e-3
    assert norm > 1e-2
    assert torch.allclose(
        summed[prototypes], 2 * averaged[prototypes], rtol=1e-4
    )
    # two processes of six utterances, for a reference of three
    assert rate == pytest.approx(0.04)
    assert averaged[bias].norm() > 2e-3 * rate
    assert summed[bias].norm() == pytest.approx(1e-3 * rate, rel=1e-3)
    assert decays == {
        "embedding_model.layer.weight": 0.1,
        "embedding_model.layer.bias": 0.0,
        "prototypes.weight": 0.0,
    }


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
    """Weights, gates and decisions after three epochs of stage two."""
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
    decided = tuple(brain.decisions.table)
    return tiny.state_of(brain), thresholds, decided, brain.optimizer_step


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
    # where nothing is selected before correction, no process makes a step
    assert first[1][3] == second[1][3] < one[3]


def test_batch_normalisation_trains_in_processes_without_gpu(tmp_path):
    _, (first, _), (second, _) = train_both(tmp_path, tiny.ecapa)
    for name, value in first.items():
        # statistics are those of the last batch of each process until the
        # next forward spreads those of process 0, which are the ones saved
        if "running" not in name:
            assert torch.equal(value, second[name]), name


@pytest.fixture
def port(monkeypatch):
    """Makes this process the second one of a group; the port of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    values = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}
    values.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=number)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return number


def test_missing_first_process_is_not_waited_for(port):
    began = time.monotonic()
    with pytest.raises(ValueError, match="Process 1 cannot reach the first"):
        distributed.start({"distributed_backend": "gloo"}, seconds=0.5)
    assert time.monotonic() - began < 5


def test_first_process_that_ends_before_the_group_stands_is_an_error(port):
    first = [
        torch.distributed.TCPStore(
            "127.0.0.1", port, 2, is_master=True, wait_for_workers=False
        )
    ]
    timer = threading.Timer(2.0, first.clear)  # its server ends with it
    timer.start()
    with pytest.raises(ValueError, match="Was one of them killed"):
        distributed.start({"distributed_backend": "gloo"})
    timer.join()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fails", [True, False])
def test_error_of_the_first_process_is_one_of_all(monkeypatch, rank, fails):
    calls = []

    def function(text):
        calls.append(text)
        if fails:
            raise OSError(text)
        return 7

    def gather(mine):
        assert rank == 0 or mine is None
        return [("OSError: full" if fails else None), None]

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "gather_objects", gather)
    if fails:
        expected = OSError if rank == 0 else ValueError
        with pytest.raises(expected, match="full"):
            distributed.on_first(function, "full")
    else:
        found = distributed.on_first(function, "full")
        assert found == (7 if rank == 0 else None)
    assert calls == ["full"] * (rank == 0)
