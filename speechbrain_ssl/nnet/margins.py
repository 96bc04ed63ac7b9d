"""Margins: what makes a positive harder to find than it is.

The ``margin`` of a contrastive objective is a number (CosFace) or a module
with the call ::

    adjusted = margin(positive, negative, norm, anchor)

positive : torch.Tensor
    Cosine of each pair of different views of an utterance [pairs, batch].
negative : torch.Tensor
    Cosines of each view to other utterances [views, batch, others]; -inf
    where there is none.
norm : torch.Tensor
    Length of the projection whose positive it is [pairs, batch].
anchor : list of int or torch.Tensor
    Place of each pair's view in ``negative`` [pairs].
adjusted : Adjusted
    What takes their places.

The settings of the papers are for faces and cross-entropy over identities;
contrastive losses want smaller ones, see T. Lepage and R. Dehak, Interspeech
2023 (https://arxiv.org/abs/2306.03664).
"""

import math
from typing import NamedTuple

import torch

from speechbrain_ssl import distributed

# acos has no gradient at the ends; the closest that float32 can tell from 1
END = 1e-7


class Adjusted(NamedTuple):
    """Cosines after a margin.

    Arguments
    ---------
    positive : torch.Tensor
        [pairs, batch].
    negative : torch.Tensor
        [rows, batch, others]; the tensor that came in, not a copy, where the
        margin leaves negatives alone.
    row : list of int, slice or torch.Tensor
        Row of ``negative`` of each pair.
    penalty : torch.Tensor
        Scalar to add to the loss.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    row: object
    penalty: torch.Tensor | float = 0.0


def as_margin(margin):
    """Lets a number stand for CosFace.

    Arguments
    ---------
    margin : float or torch.nn.Module
        A number, or a margin.

    Returns
    -------
    torch.nn.Module
        A margin.

    Example
    -------
    >>> as_margin(0.2).margin, type(as_margin(ArcFace())).__name__
    (0.2, 'ArcFace')
    """
    return margin if isinstance(margin, torch.nn.Module) else CosFace(margin)


class CosFace(torch.nn.Module):
    """Takes a constant off the positive cosine.

    H. Wang et al., "CosFace: large margin cosine loss for deep face
    recognition", CVPR 2018 (https://arxiv.org/abs/1801.09414).

    Arguments
    ---------
    margin : float
        The constant; 0 changes nothing.
    """

    def __init__(self, margin=0.1):
        super().__init__()
        self.margin = margin

    def forward(self, positive, negative, norm, anchor):
        """Adjusts cosines; see the top of this file."""
        return Adjusted(positive - self.margin, negative, anchor)


class ArcFace(torch.nn.Module):
    """Adds a constant to the angle of the positive.

    J. Deng et al., "ArcFace: additive angular margin loss for deep face
    recognition", CVPR 2019 (https://arxiv.org/abs/1801.07698). An angle that
    would exceed pi loses ``margin * sin(margin)`` of its cosine instead.

    Arguments
    ---------
    margin : float
        The constant, in radians from 0 to pi.
    """

    def __init__(self, margin=0.1):
        super().__init__()
        _check_angle(margin)
        self.margin = margin

    def forward(self, positive, negative, norm, anchor):
        """Adjusts cosines; see the top of this file."""
        return Adjusted(_turn(positive, self.margin), negative, anchor)


class CurricularFace(torch.nn.Module):
    """ArcFace that also weighs hard negatives, more as training goes on.

    Y. Huang et al., "CurricularFace: adaptive curriculum learning loss for
    deep face recognition", CVPR 2020 (https://arxiv.org/abs/2004.00288). A
    negative cosine c above the positive's after the margin becomes
    c * (t + c); t follows the mean positive cosine. As the positive decides,
    there are as many rows of negatives as pairs.

    Arguments
    ---------
    margin : float
        Added to the angle of the positive, in radians from 0 to pi; 0.5 in
        the paper.
    momentum : float
        Share of the old t kept by each batch.
    """

    def __init__(self, margin=0.1, momentum=0.99):
        super().__init__()
        _check_angle(margin)
        _check_momentum(momentum)
        self.margin = margin
        self.momentum = momentum
        self.register_buffer("t", torch.zeros(()))

    def forward(self, positive, negative, norm, anchor):
        """Adjusts cosines, in training after t; see the top of this file."""
        with torch.no_grad():
            if self.training:
                mean = distributed.mean(positive.mean())
                self.t.lerp_(mean, 1.0 - self.momentum)
            limit = torch.cos(_angle(positive) + self.margin)
        negative = negative[anchor]
        hard = negative > limit[..., None]
        # the condition is on the factor: of a product that is not taken, the
        # gradient at -inf would be nan
        factor = torch.where(hard, self.t + negative, 1.0)
        return Adjusted(
            _turn(positive, self.margin), negative * factor, slice(None)
        )


class MagFace(torch.nn.Module):
    """ArcFace whose margin grows with the length of the projection.

    Q. Meng et al., "MagFace: a universal representation for face recognition
    and quality assessment", CVPR 2021 (https://arxiv.org/abs/2103.06627). A
    penalty makes projections long, so that those easy to recognise become so.

    Arguments
    ---------
    margins : list of float
        Margin of the shortest and of the longest projection, in radians.
    norms : list of float
        Their lengths; shorter and longer ones count as these.
    weight : float
        Weight of the penalty, the mean of norm / longest**2 + 1 / norm.
    """

    def __init__(self, margins=(0.45, 0.8), norms=(10.0, 110.0), weight=35.0):
        super().__init__()
        for margin in margins:
            _check_angle(margin)
        if margins[0] > margins[1] or not 0 < norms[0] < norms[1]:
            raise ValueError(
                "margins and norms must be the lower one and the upper one, "
                f"norms positive; got {margins} and {norms}"
            )
        self.margins = margins
        self.norms = norms
        self.weight = weight

    def forward(self, positive, negative, norm, anchor):
        """Adjusts cosines; see the top of this file."""
        (low, high), (short, long) = self.margins, self.norms
        norm = norm.clamp(short, long)
        margin = low + (high - low) * (norm - short) / (long - short)
        penalty = self.weight * (norm / long**2 + 1.0 / norm).mean()
        turned = _turn(positive, margin)
        return Adjusted(turned, negative, anchor, penalty)


class AdaFace(torch.nn.Module):
    """Angle for short projections, cosine for long ones, as quality has it.

    M. Kim, A. K. Jain and X. Liu, "AdaFace: quality adaptive margin for face
    recognition", CVPR 2022 (https://arxiv.org/abs/2204.00964). With q the
    normalised length, the positive becomes
    cos(angle - margin * q) - margin * (1 + q).

    Arguments
    ---------
    margin : float
        Margin of a projection of mean length, in cosine.
    concentration : float
        q of a projection one standard deviation longer than the mean; q is
        cut to -1..1.
    momentum : float
        Share of the old mean and deviation kept by each batch.
    """

    def __init__(self, margin=0.4, concentration=0.333, momentum=0.99):
        super().__init__()
        _check_angle(margin)
        _check_momentum(momentum)
        self.margin = margin
        self.concentration = concentration
        self.momentum = momentum
        # where the authors start: q stays near 0 until lengths are known
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def forward(self, positive, negative, norm, anchor):
        """Adjusts cosines, in training after the buffers; see the top."""
        norm = norm.detach()
        if self.training:
            everyone = distributed.gather(norm)
            self.mean.lerp_(everyone.mean(), 1.0 - self.momentum)
            # without Bessel's correction, which a single pair would not have
            self.deviation.lerp_(
                everyone.std(correction=0), 1.0 - self.momentum
            )
        quality = (norm - self.mean) / (self.deviation + 1e-3)
        quality = (self.concentration * quality).clamp(-1.0, 1.0)
        angle = (_angle(positive) - self.margin * quality).clamp(0, math.pi)
        return Adjusted(
            angle.cos() - self.margin * (1.0 + quality), negative, anchor
        )


def _angle(cosine):
    """Angle of a cosine, from 0 to pi."""
    return torch.acos(cosine.clamp(-1.0 + END, 1.0 - END))


def _turn(cosine, margin):
    """Cosine of the angle plus a margin, a number or one for each."""
    angle = _angle(cosine)
    margin = torch.as_tensor(margin, dtype=angle.dtype)
    return torch.where(
        angle < math.pi - margin,
        torch.cos(angle + margin),
        cosine - margin * torch.sin(margin),
    )


def _check_angle(margin):
    """Raises if a margin is no angle."""
    if not 0 <= margin <= math.pi:
        raise ValueError(
            f"An angular margin must be from 0 to pi radians, not {margin}"
        )


def _check_momentum(momentum):
    """Raises if a momentum is none."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in 0..1, not {momentum}")
