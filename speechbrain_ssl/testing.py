"""Checks for authors of objectives, in this package and in others."""

import copy
import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.branch import BranchOutput

EPOCH = 0.5
NORMALIZATION = torch.nn.modules.batchnorm._NormBase


def check_objective(
    objective: torch.nn.Module,
    dim: int,
    views: int = 2,
    teacher_views: int = 2,
    batch: int = 6,
    emb_dim: int | None = None,
    processes: int = 1,
    exchangeable: bool = True,
    learning_views: int | None = None,
) -> None:
    """Tests whether an objective keeps ``speechbrain_ssl.objectives``.

    Errors that the objective itself raises keep their traceback.

    Arguments
    ---------
    objective : torch.nn.Module
        The objective; it is copied and left as it is.
    dim : int
        Width of the projections it works on.
    views : int
        Number of views of the student.
    teacher_views : int
        Number of views of the teacher; 0 for objectives without one.
    batch : int
        Number of utterances.
    emb_dim : int
        Width of the embeddings; ``dim`` by default.
    processes : int
        With 2, new processes share the batch in a gloo group, and must give
        what a single process gives. BatchNorm is in evaluation mode there.
    exchangeable : bool
        Whether the first two views may change places, as the contract wants;
        False if one of them has a special role.
    learning_views : int
        Number of views, the first ones, that must get a gradient; None: all.

    Raises
    ------
    AssertionError
        Names the clause of the contract that does not hold.

    Example
    -------
    >>> from speechbrain_ssl.objectives.simclr import SimCLR
    >>> check_objective(SimCLR(), dim=8, teacher_views=0)
    """

    def fresh() -> tuple[Any, ...]:
        return copy.deepcopy(objective), *_random_views(
            views, teacher_views, batch, emb_dim or dim, dim
        )

    _check_outputs(*fresh())
    _check_gradient(learning_views or views, *fresh())
    _check_forward_changes_nothing(*fresh())
    _check_state(*fresh())
    _check_precision(*fresh())
    if exchangeable:
        _check_order(*fresh())
    if processes > 1:
        _check_processes(processes, *fresh())


def run_processes(
    function: Callable, *arguments: Any, processes: int = 2
) -> list:
    """Calls a function in new processes that form a gloo group.

    The function, its arguments and its results can be pickled. Gives the result
    of each process, by rank.
    """
    # processes start fast from one that has imported everything
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _join,
            (processes, folder, function, arguments),
            nprocs=processes,
            start_method="forkserver",
        )
        return [
            torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False)
            for rank in range(processes)
        ]


def _join(rank, processes, folder, function, arguments):
    """One process of a group."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes)
    )
    torch.distributed.init_process_group(
        "gloo",
        f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
        # a process that waits in vain fails soon
        timeout=datetime.timedelta(minutes=3),
    )
    # tensors arrive in memory that all processes share
    result = function(*copy.deepcopy(arguments))
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.barrier()
    distributed.leave()


def _random_views(views, teacher_views, batch, emb_dim, dim):
    """Student and teacher outputs of random utterances."""
    index = torch.arange(batch)
    student = BranchOutput(
        torch.randn(views, batch, emb_dim, requires_grad=True),
        torch.randn(views, batch, dim, requires_grad=True),
        index,
        tuple(range(views)),
    )
    if not teacher_views:
        return student, None
    teacher = BranchOutput(
        torch.randn(teacher_views, batch, emb_dim),
        torch.randn(teacher_views, batch, dim),
        index,
        tuple(range(teacher_views)),
    )
    return student, teacher


def _require(holds, clause):
    """Raises if a clause of the contract does not hold."""
    if not holds:
        raise AssertionError(f"Objective contract: {clause}")


def _commit(objective, student, teacher):
    """Calls ``commit`` as the brain does."""
    with torch.no_grad():
        if hasattr(objective, "commit"):
            objective.commit(student, teacher)


def _check_outputs(objective, student, teacher):
    """A scalar float32 loss and detached scalar stats, all finite."""
    output = objective(student, teacher, EPOCH)
    _require(
        isinstance(output, tuple) and len(output) == 2,
        f"it returns a {type(output).__name__}, not (loss, stats)",
    )
    loss, stats = output
    _require(
        isinstance(loss, torch.Tensor) and loss.shape == (),
        f"the loss has shape {list(getattr(loss, 'shape', []))}, "
        "it must be a scalar tensor",
    )
    _require(loss.dtype == torch.float32, f"the loss is {loss.dtype}")
    _require(bool(loss.isfinite()), f"the loss is {loss.item()}")
    _require(
        isinstance(stats, dict) and len(stats) > 0,
        "there are no stats, a dict of tensors; collapse must show in them",
    )
    help_of = getattr(objective, "stats_help", dict.fromkeys(stats, ""))
    for name, value in stats.items():
        what = f"stats[{name!r}]"
        _require(
            isinstance(value, torch.Tensor) and value.shape == (),
            f"{what} is {value!r}, not a scalar tensor",
        )
        _require(
            value.is_floating_point(),
            f"{what} is {value.dtype}, not of floating point",
        )
        _require(not value.requires_grad, f"{what} is not detached")
        _require(bool(value.isfinite()), f"{what} is {value.item()}")
        _require(name in help_of, f"{what} has no line in stats_help")


def _check_gradient(learning_views, objective, student, teacher):
    """Finite gradients, in each view and in each parameter that learns."""
    loss, _ = objective(student, teacher, EPOCH)
    _require(loss.requires_grad, "no gradient reaches the student")
    loss.backward()
    reached = torch.zeros(len(student.projection), dtype=torch.bool)
    for points in student[:2]:
        if points.grad is not None:
            _require(
                bool(points.grad.isfinite().all()),
                "a gradient of the student is not finite",
            )
            reached |= points.grad.flatten(1).any(1)
    _require(bool(reached.any()), "no gradient reaches the student")
    missing = [v for v in range(learning_views) if not reached[v]]
    _require(not missing, f"no gradient reaches view {missing} of the student")
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            _require(
                parameter.grad is not None,
                f"no gradient reaches the parameter {name}",
            )
            _require(
                bool(parameter.grad.isfinite().all()),
                f"the gradient of the parameter {name} is not finite",
            )


def _check_forward_changes_nothing(objective, student, teacher):
    """Two calls give the same, and state and inputs stay as they are."""
    statistics = {
        f"{name}.{key}"
        for name, module in objective.named_modules()
        if isinstance(module, NORMALIZATION)
        for key, _ in module.named_buffers()
    }
    views = [x for x in (student, teacher) if x is not None]
    inputs = [x for side in views for x in side[:3]]
    before = copy.deepcopy([x.detach() for x in inputs])
    state = copy.deepcopy(objective.state_dict())
    calls = []
    for _ in range(2):
        torch.manual_seed(0)
        calls.append(objective(student, teacher, EPOCH))
    for name, value in objective.state_dict().items():
        _require(
            name in statistics or torch.equal(state[name], value),
            f"forward changes {name}; change it in commit(student, teacher)",
        )
    (first, stats), (second, again) = calls
    same = torch.equal(first, second) and all(
        torch.equal(stats[name], again[name]) for name in stats
    )
    _require(
        same,
        "forward changes something: a second call gives other values. Change "
        "it in commit(student, teacher)",
    )
    _commit(objective, student, teacher)
    _require(
        all(torch.equal(x, old) for x, old in zip(inputs, before)),
        "forward or commit changes the embeddings or projections it is given",
    )


def _check_state(objective, student, teacher):
    """What is kept between steps survives a checkpoint."""
    loaded = copy.deepcopy(objective)
    for _ in range(2):
        objective(student, teacher, EPOCH)
        _commit(objective, student, teacher)
    for name, buffer in objective.named_buffers():
        _require(
            not buffer.requires_grad,
            f"buffer {name} keeps a graph of gradients",
        )
    loaded.load_state_dict(objective.state_dict())
    values = []
    for one in (objective, loaded):
        torch.manual_seed(0)
        values.append(one(student, teacher, EPOCH)[0])
    _require(
        torch.equal(*values),
        "a state_dict does not hold all that the objective keeps: after "
        "loading it the loss is another one",
    )


def _check_precision(objective, student, teacher):
    """bfloat16 inputs give a float32 loss close to the exact one."""
    objective.eval()

    def half(side):
        return side and side._replace(
            embedding=side.embedding.detach().bfloat16(),
            projection=side.projection.detach().bfloat16(),
        )

    loss, _ = objective(half(student), half(teacher), EPOCH)
    exact, _ = objective(student, teacher, EPOCH)
    _require(
        loss.dtype == torch.float32, f"bfloat16 inputs give a {loss.dtype} loss"
    )
    error = (loss - exact).abs() / exact.abs().clamp(min=1.0)
    _require(
        bool(error < 1e-2),
        f"with bfloat16 inputs the loss is {loss.item()}, not {exact.item()}",
    )


def _check_order(objective, student, teacher):
    """The first two views may change places, with their numbers."""
    objective.eval()

    def swapped(side):
        if side is None or len(side.projection) < 2:
            return side
        order = [1, 0, *range(2, len(side.projection))]
        return side._replace(
            embedding=side.embedding[order],
            projection=side.projection[order],
            view_id=tuple(side.view_id[v] for v in order),
        )

    loss, _ = objective(student, teacher, EPOCH)
    other, _ = objective(swapped(student), swapped(teacher), EPOCH)
    _require(
        torch.allclose(loss, other, rtol=1e-5, atol=1e-5),
        f"the loss is {loss.item()}, but {other.item()} if the first two views "
        "change places. (exchangeable=False if they have different roles)",
    )


def _step(objective, student, teacher):
    """Loss, gradients and state of a second step."""
    objective.eval()
    objective(student, teacher, EPOCH)
    _commit(objective, student, teacher)
    loss, _ = objective(student, teacher, EPOCH)
    loss.backward()
    _commit(objective, student, teacher)
    gradients = [
        torch.zeros_like(x) if x.grad is None else x.grad for x in student[:2]
    ]
    learning = {
        name: parameter.grad
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach(), gradients, learning, objective.state_dict()


def _step_of_a_part(objective, student, teacher):
    """The step of this process with its utterances."""
    size = student.projection.shape[1] // distributed.world_size()
    mine = slice(distributed.rank() * size, (distributed.rank() + 1) * size)

    def part(side):
        return side and side._replace(
            embedding=side.embedding[:, mine].detach(),
            projection=side.projection[:, mine].detach(),
            index=side.index[mine],
        )

    student = part(student)
    for points in student[:2]:
        points.requires_grad_()
    return _step(objective, student, part(teacher))


def _check_processes(processes, objective, student, teacher):
    """Several processes give what one gives for the whole batch."""
    student = student._replace(
        embedding=student.embedding.detach(),
        projection=student.projection.detach(),
    )
    parts = run_processes(
        _step_of_a_part, objective, student, teacher, processes=processes
    )
    for points in student[:2]:
        points.requires_grad_()
    _compare(parts, _step(objective, student, teacher))


def _compare(parts, whole):
    """Compares steps of several processes with that of a single one."""
    count = len(parts)
    loss, gradients, learning, state = whole
    losses, shares, learned, states = zip(*parts)
    for name in state:
        _require(
            all(torch.equal(own[name], states[0][name]) for own in states),
            f"{name} differs between processes after commit",
        )
    _require(
        torch.allclose(torch.stack(losses).mean(), loss, rtol=1e-5, atol=1e-6),
        f"the losses of {count} processes are "
        f"{[x.item() for x in losses]}; their mean must be that of one "
        f"process, {loss.item()}",
    )
    for name, share, gradient in zip(
        BranchOutput._fields, zip(*shares), gradients
    ):
        _require(
            torch.allclose(
                torch.cat(share, dim=1) / count, gradient, rtol=1e-4, atol=1e-6
            ),
            f"{count} processes give other gradients of the {name}. "
            "Gather with distributed.gather_with_gradient",
        )
    for name, gradient in learning.items():
        mean = torch.stack([own[name] for own in learned]).mean(0)
        _require(
            torch.allclose(mean, gradient, rtol=1e-4, atol=1e-6),
            f"{count} processes give another gradient of {name}",
        )
    for name, value in state.items():
        _require(
            torch.allclose(states[0][name].double(), value.double(), atol=1e-6),
            f"{name} of {count} processes differs from that of one",
        )
