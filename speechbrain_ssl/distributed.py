"""Means and concatenations over processes; identities in a single process."""

import datetime
import gc
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.nn
from speechbrain.utils.distributed import (
    MainProcessContext,
    ddp_init_group,
    ddp_prevent_block,
)

from speechbrain_ssl import watch


def world_size() -> int:
    """Number of processes; 1 unless torch.distributed is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def start(run_opts: Any, seconds: float = 50) -> None:
    """Joins the group of processes that a launcher started, if there is one.

    From then on all processes end soon after one of them is lost, see
    ``speechbrain_ssl.watch``. It waits ``seconds`` for the other processes: if
    one was killed, the others end instead of waiting for hours.
    """
    if os.environ.get("RANK", "0") != "0" and "MASTER_ADDR" in os.environ:
        _find_first(seconds)
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ:
            wait = datetime.timedelta(seconds=seconds)
            meeting = torch.distributed.rendezvous("env://", timeout=wait)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = torch.distributed.PrefixStore(
                f"watch/{attempt}", next(meeting)[0]
            )
            watch.meet(store, size, seconds)
            watch.begin(store, size, seconds)
        ddp_init_group(run_opts)
    except torch.distributed.DistError as error:
        raise ValueError(
            f"The group of processes cannot be started: {error} Was one of "
            "them killed?"
        ) from error


def _find_first(seconds):
    """Waits until the first process listens."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(place, timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() < end:
                time.sleep(0.2)
                continue
            raise ValueError(
                f"Process {os.environ['RANK']} cannot reach the first process "
                f"at {place[0]}:{place[1]} ({error}): it has ended, or was "
                f"not started within {seconds} s."
            ) from error


def on_first(function: Callable, *args: Any) -> Any:
    """Runs a function in the first process; if it fails, all processes fail.

    The function must not wait for other processes. Its result is returned in
    the first process, None in the others.
    """
    if world_size() == 1:
        return function(*args)
    result = error = None
    if rank() == 0:
        with MainProcessContext():
            try:
                result = function(*args)
            except Exception as caught:
                error = caught
    message = gather_objects(error and f"{type(error).__name__}: {error}")[0]
    if message is not None:
        raise error or ValueError(message)
    return result


def leave() -> None:
    """Ends the group of processes, after a script's last word to the others.

    A group, or a DDP model of it, that is still there when Python exits may
    abort the process, and a launcher would call the run a failure.
    """
    if torch.distributed.is_initialized():  # torchrun: one process, too
        if world_size() > 1:
            watch.leave()
        gc.collect()  # models that only cycles hold
        torch.distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0; 0 without torch.distributed."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenates the tensors of all processes along the first axis.

    They have the same shape; the result has no gradient.
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_objects(x: Any) -> list:
    """Lists an object of each process, which is pickled, in all processes."""
    if world_size() == 1 or ddp_prevent_block():
        return [x]
    objects = [None] * world_size()
    torch.distributed.all_gather_object(objects, x)
    return objects


class _Gather(torch.autograd.Function):
    """Concatenation over processes.

    torch.distributed.nn.functional.all_gather gives wrong gradients on gloo
    when those it receives are not contiguous (torch 2.11).
    """

    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient.narrow(0, rank() * ctx.rows, ctx.rows)


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """Like ``gather``, but gradients flow back to the process they concern.

    The gradient of each process is the sum over the losses of all of them,
    so that averaging over processes, as DDP does, gives the gradient of the
    mean loss.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x)


def mean(x: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over processes: differentiable, the same bits in all."""
    if world_size() == 1:
        return x
    return torch.distributed.nn.functional.all_reduce(x) / world_size()


@torch.no_grad()
def everywhere(flags: torch.Tensor) -> torch.Tensor:
    """Whether something is true in all processes.

    ``flags`` are booleans of any shape, on the device of the process; nothing
    waits for their values.
    """
    if world_size() == 1:
        return flags
    flags = flags.to(torch.uint8)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN)
    return flags.bool()


@torch.no_grad()
def from_first(x: torch.Tensor) -> torch.Tensor:
    """The first process's tensor, for all.

    Shape and type are the same in all processes; ``x`` is overwritten in the
    others.
    """
    if world_size() == 1:
        return x
    # NCCL moves nothing but tensors of accelerators
    on_gpu = torch.distributed.get_backend() == "nccl"
    sent = x.cuda() if on_gpu else x
    torch.distributed.broadcast(sent, 0)
    return sent.to(x.device)
