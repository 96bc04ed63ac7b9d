"""Margins: functions that lower the cosine of positives in a loss.

The ``margin`` of a contrastive objective is a number or a schedule, which is
subtracted (CosFace), or a module with the call ::

    positive = margin(positive, epoch)

from the cosines of positives to lower ones. The settings of the papers are for
cross-entropy over identities; contrastive losses want smaller ones, see T.
Lepage and R. Dehak, Interspeech 2023 (https://arxiv.org/abs/2306.03664).
"""

import math
from collections.abc import Callable

import torch

from speechbrain_ssl.checks import checked, number, schedule
from speechbrain_ssl.nnet.schedules import at

# the sine of an angle has no gradient where the cosine is 1 or -1
END = 1e-7


class CosFace(torch.nn.Module):
    """Subtracts a constant from the cosine.

    H. Wang et al., "CosFace: large margin cosine loss for deep face
    recognition", CVPR 2018 (https://arxiv.org/abs/1801.09414).

    Arguments
    ---------
    margin : float or callable
        The constant, or a schedule of it; 0 changes nothing.

    Example
    -------
    >>> CosFace(0.25)(torch.tensor([1.0, 0.0]), epoch=0.0)
    tensor([ 0.7500, -0.2500])
    """

    @checked(margin=schedule(number()))
    def __init__(self, margin: float | Callable[[float], float] = 0.1):
        super().__init__()
        self.margin = margin

    def forward(self, positive: torch.Tensor, epoch: float) -> torch.Tensor:
        """Lowers cosines; see the top of this file."""
        return positive - at(self.margin, epoch)


class ArcFace(torch.nn.Module):
    """Adds a constant to the angle.

    J. Deng et al., "ArcFace: additive angular margin loss for deep face
    recognition", CVPR 2019 (https://arxiv.org/abs/1801.07698).

    Arguments
    ---------
    margin : float or callable
        The constant in radians, from 0 to pi, or a schedule of it.

    Example
    -------
    >>> ArcFace(math.pi / 2)(torch.tensor([1.0]), epoch=0.0).round(decimals=3)
    tensor([-0.])
    """

    @checked(margin=schedule(number(0, math.pi)))
    def __init__(self, margin: float | Callable[[float], float] = 0.1):
        super().__init__()
        self.margin = margin

    def forward(self, positive: torch.Tensor, epoch: float) -> torch.Tensor:
        """Lowers cosines; see the top of this file."""
        return add_to_angle(positive, at(self.margin, epoch))


def as_margin(
    margin: float | Callable[[float], float] | torch.nn.Module,
) -> torch.nn.Module:
    """Turns a number or a schedule into CosFace; a margin stays.

    Example
    -------
    >>> as_margin(0.2).margin, type(as_margin(ArcFace())).__name__
    (0.2, 'ArcFace')
    """
    return margin if isinstance(margin, torch.nn.Module) else CosFace(margin)


def add_to_angle(cosine: torch.Tensor, margin: float) -> torch.Tensor:
    """Cosines of angles to which a margin is added.

    Where the angle would exceed pi and the cosine rise again, ``margin *
    sin(margin)`` is subtracted from the cosine instead. Cosines have any shape;
    the margin is in radians, from 0 to pi.
    """
    return torch.where(
        cosine > -math.cos(margin),
        turn(cosine, margin),
        cosine - margin * math.sin(margin),
    )


def turn(cosine: torch.Tensor, angle: float) -> torch.Tensor:
    """Cosines of angles to which a constant in radians is added."""
    cosine = cosine.clamp(-1 + END, 1 - END)
    sine = torch.sqrt((1 - cosine) * (1 + cosine))
    return cosine * math.cos(angle) - sine * math.sin(angle)
