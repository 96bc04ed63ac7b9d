"""Two gloo processes do what one does with the doubled batch."""

import os
import sys

import pytest
import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.branch import Views
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR
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
        "gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    result = worker(rank, folder, *inputs)
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def everyone():
    """The doubled batch, the same in all processes."""
    torch.manual_seed(7)
    return torch.randn(4, 2, WORLD * BATCH, DIM)


OBJECTIVES = {
    "simclr": lambda: SimCLR(0.2, margin=0.1),
    "moco": lambda: MoCo(DIM, queue_size=2 * WORLD * BATCH + 1),
}


def step(name, points, keys):
    """Loss, gradient of the points, and state after two calls."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    teacher = Views(keys, keys)
    if name == "simclr":
        teacher = None
    objective(Views(points, points), teacher, 0.0)
    points = points.clone().requires_grad_()
    loss, _ = objective(Views(points, points), teacher, 0.0)
    loss.backward()
    return loss.detach(), points.grad, objective.state_dict()


def _objective_worker(rank, folder, name):
    points, keys = everyone()[:2]
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    return step(name, points[:, mine], keys[:, mine])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_see_one_batch(name, tmp_path):
    first, second = run(_objective_worker, tmp_path, name)
    loss, gradient, state = step(name, *everyone()[:2])
    # the mean over processes is the loss of the doubled batch
    assert (first[0] + second[0]) / 2 == pytest.approx(loss.item(), rel=1e-6)
    found = torch.cat([first[1], second[1]], dim=1) / WORLD
    assert torch.allclose(found, gradient, atol=1e-7)
    for key, value in state.items():
        assert torch.equal(first[2][key], second[2][key])
        assert torch.allclose(first[2][key], value, atol=1e-7)


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
    two = run(_brain_worker, tmp_path, str(corpus), encoder)
    one = tiny.make_brain(
        str(corpus), str(tmp_path / "one"), batch_size=6, encoder=encoder
    )
    return tiny.state_of(tiny.fit(one)), *two


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_two_processes_train_as_one_does_on_the_doubled_batch(tmp_path):
    one, (first, drawn), (second, drawn_too) = train_both(tmp_path, tiny.Pooled)
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5), name
    assert not torch.equal(drawn, drawn_too)


def test_batch_normalisation_trains_in_processes_without_gpu(tmp_path):
    _, (first, _), (second, _) = train_both(tmp_path, tiny.ecapa)
    for name, value in first.items():
        # statistics are those of the last batch of each process until the
        # next forward spreads those of process 0, which are the ones saved
        if "running" not in name:
            assert torch.equal(value, second[name]), name
