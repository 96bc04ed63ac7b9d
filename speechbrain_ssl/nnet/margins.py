"""Margins on angles, from their cosines."""

import math

import torch

# the sine of an angle has no gradient where the cosine is 1 or -1
END = 1e-7


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
