"""Checks for authors of objectives, in this package and outside."""

import copy

import torch

from speechbrain_ssl.nnet.branch import Views


def check_objective(
    objective, dim, views=2, teacher_views=2, batch=6, emb_dim=None
):
    """Holds an objective to the contract of ``speechbrain_ssl.objectives``.

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

    Raises
    ------
    AssertionError
        Names the clause of the contract that does not hold.

    Example
    -------
    >>> from speechbrain_ssl.objectives.simclr import SimCLR
    >>> check_objective(SimCLR(), dim=8, teacher_views=0)
    """
    sizes = (views, teacher_views, batch, emb_dim or dim, dim)
    _check_outputs(copy.deepcopy(objective), *_random_views(*sizes))
    _check_gradient(copy.deepcopy(objective), *_random_views(*sizes))
    _check_buffers(copy.deepcopy(objective), *_random_views(*sizes))
    _check_precision(copy.deepcopy(objective), *_random_views(*sizes))
    _check_state(copy.deepcopy(objective), *_random_views(*sizes))


def _random_views(views, teacher_views, batch, emb_dim, dim):
    """Student and teacher of random utterances."""
    index = torch.arange(batch)
    student = Views(
        torch.randn(views, batch, emb_dim, requires_grad=True),
        torch.randn(views, batch, dim, requires_grad=True),
        index,
    )
    if not teacher_views:
        return student, None
    teacher = Views(
        torch.randn(teacher_views, batch, emb_dim),
        torch.randn(teacher_views, batch, dim),
        index,
    )
    return student, teacher


def _require(holds, clause):
    """Raises if a clause of the contract does not hold."""
    if not holds:
        raise AssertionError(f"Objective contract: {clause}")


def _check_outputs(objective, student, teacher):
    """A scalar float32 loss and detached scalar stats."""
    loss, stats = objective(student, teacher, 0.5)
    _require(loss.shape == (), f"the loss has shape {tuple(loss.shape)}")
    _require(loss.dtype == torch.float32, f"the loss is {loss.dtype}")
    _require(bool(torch.isfinite(loss)), f"the loss is {loss.item()}")
    _require(len(stats) > 0, "there are no stats; collapse must show in them")
    for name, value in stats.items():
        _require(
            isinstance(value, torch.Tensor) and value.shape == (),
            f"stats[{name!r}] is no scalar tensor",
        )
        _require(not value.requires_grad, f"stats[{name!r}] is not detached")


def _check_gradient(objective, student, teacher):
    """Gradients reach the student, finite, and not all zero."""
    loss, _ = objective(student, teacher, 0.5)
    loss.backward()
    gradients = [
        x.grad
        for x in (student.projection, student.embedding)
        if x.grad is not None
    ]
    _require(len(gradients) > 0, "no gradient reaches the student")
    for gradient in gradients:
        _require(bool(torch.isfinite(gradient).all()), "gradient not finite")
    _require(
        any(bool(gradient.any()) for gradient in gradients),
        "the gradient of the student is zero",
    )


def _check_buffers(objective, student, teacher):
    """Buffers move in training mode only."""
    objective.eval()
    before = {k: v.clone() for k, v in objective.named_buffers()}
    first, _ = objective(student, teacher, 0.5)
    second, _ = objective(student, teacher, 0.5)
    for name, value in objective.named_buffers():
        _require(
            torch.equal(before[name], value),
            f"buffer {name} changes in evaluation mode",
        )
    _require(
        torch.equal(first, second),
        "two calls in evaluation mode give different losses",
    )


def _check_precision(objective, student, teacher):
    """bfloat16 inputs give a float32 loss close to the exact one."""
    objective.eval()

    def half(x):
        return x and Views(
            x.embedding.detach().bfloat16(),
            x.projection.detach().bfloat16(),
            x.index,
        )

    loss, _ = objective(half(student), half(teacher), 0.5)
    exact, _ = objective(student, teacher, 0.5)
    _require(
        loss.dtype == torch.float32, f"bfloat16 inputs give a {loss.dtype} loss"
    )
    error = (loss - exact).abs() / exact.abs().clamp(min=1.0)
    _require(
        bool(error < 1e-2),
        f"with bfloat16 inputs the loss is {loss.item()}, not {exact.item()}",
    )


def _check_state(objective, student, teacher):
    """What it keeps between steps survives a checkpoint."""
    twin = copy.deepcopy(objective)
    objective(student, teacher, 0.5)
    twin.load_state_dict(objective.state_dict())
    mine, _ = objective(student, teacher, 0.5)
    theirs, _ = twin(student, teacher, 0.5)
    _require(
        torch.equal(mine, theirs),
        "a state_dict does not hold all that the objective keeps",
    )
