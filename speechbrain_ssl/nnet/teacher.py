"""The teacher: a moving average of the student."""

import copy
from collections.abc import Callable

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
        """Runs the network without gradient.

        Arguments
        ---------
        views : list of torch.Tensor
            Waveforms of each view [batch, time].

        Returns
        -------
        BranchOutput
            Embeddings and projections.
        """
        return self.network(views)

    @torch.no_grad()
    def reset(self, student: torch.nn.Module) -> None:
        """Copies parameters and buffers, e.g. after loading a checkpoint.

        Arguments
        ---------
        student : torch.nn.Module
            The network to copy.
        """
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def update(self, student: torch.nn.Module, epoch: float) -> None:
        """Moves one step towards the student; call after each optimizer step.

        Arguments
        ---------
        student : torch.nn.Module
            The network to follow.
        epoch : float
            Training time, for the momentum schedule.
        """
        step = 1.0 - at(self.momentum, epoch)
        torch._foreach_lerp_(
            list(self.network.parameters()), list(student.parameters()), step
        )
