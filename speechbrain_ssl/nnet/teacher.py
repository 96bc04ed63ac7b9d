"""The teacher: a moving average of the student."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from speechbrain_ssl.checks import checked, number, schedule
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import at


class EMATeacher(torch.nn.Module):
    """Exponential moving average of a student network.

    Parameters follow the student; buffers (batch-norm statistics) come from
    the teacher's own forward passes. Called ``momentum encoder`` in MoCo.

    Arguments
    ---------
    student : torch.nn.Module
        The network to follow; it is copied.
    momentum : float or callable
        Share of the old value kept by each update, or a schedule of it.

    Example
    -------
    >>> student = torch.nn.Linear(2, 1, bias=False)
    >>> teacher = EMATeacher(student, momentum=0.75)
    >>> _ = torch.nn.init.ones_(student.weight)
    >>> _ = torch.nn.init.zeros_(teacher.network.weight)
    >>> teacher.update(student, epoch=0.0)
    >>> teacher.network.weight.tolist()
    [[0.25, 0.25]]
    """

    @checked(momentum=schedule(number(0, 1)))
    def __init__(
        self,
        student: torch.nn.Module,
        momentum: float | Callable[[float], float],
    ):
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, views: list[torch.Tensor]) -> BranchOutput:
        """Runs the network on views without gradient."""
        return self.network(views)

    @torch.no_grad()
    def reset(self, student: torch.nn.Module) -> None:
        """Copies parameters and buffers of the student."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def update(
        self,
        student: torch.nn.Module,
        epoch: float,
        moved: torch.Tensor | None = None,
    ) -> None:
        """Moves one step towards the student; call after each optimizer step.

        ``epoch`` is for the momentum schedule. ``moved`` is a scalar on the
        device: 0 if the optimizer has skipped its step, so that the teacher
        stays, or 1. None: it made its step.
        """
        step = 1.0 - at(self.momentum, epoch)
        mine: Any = list(self.network.parameters())
        theirs: Any = list(student.parameters())
        if moved is None:
            torch._foreach_lerp_(mine, theirs, step)
            return
        apart: Any = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(apart, moved * step)
        torch._foreach_add_(mine, apart)
