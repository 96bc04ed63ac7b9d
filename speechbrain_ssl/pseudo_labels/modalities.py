"""Voice and face of one clip: whose gates count, and what both predict.

B. Han, Z. Chen and Y. Qian extend the dynamic loss-gate and label correction to
audio-visual data (https://arxiv.org/abs/2304.05754), whose code is not public.
The rules here are our choice.
"""

from collections.abc import Sequence

import torch

# both: each gate must select a clip; either: one of them; own: each modality
# learns what its own gate selects
SELECTIONS = ("both", "either", "own")


def select(
    gated: Sequence[torch.Tensor], present: Sequence[torch.Tensor], rule: str
) -> list[torch.Tensor]:
    """Combines the gates of modalities by one of ``SELECTIONS``.

    ``gated`` says which clips the gate of each modality selects, ``present``
    which clips have it, and the result which clips it learns, bool [batch]. The
    gate of a modality that a clip lacks has no vote.

    Example
    -------
    >>> yes, no = torch.tensor([True]), torch.tensor([False])
    >>> select([yes, no], [yes, yes], "both")
    [tensor([False]), tensor([False])]
    >>> select([yes, no], [yes, no], "both")
    [tensor([True]), tensor([False])]
    """
    own = [gate & here for gate, here in zip(gated, present)]
    if rule == "own":
        return own
    if rule == "either":
        together = torch.stack(own).any(0)
    else:
        votes = [gate | ~here for gate, here in zip(gated, present)]
        together = torch.stack(votes).all(0)
    return [together & here for here in present]


def fuse(
    posteriors: Sequence[torch.Tensor], present: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Mean of the probabilities of the modalities that a clip has.

    Posteriors of each modality are [batch, classes]; ``present`` says which
    clips have it, bool [batch]. Each clip has one or more.
    """
    weight = torch.stack(list(present)).unsqueeze(-1).to(posteriors[0].dtype)
    return (torch.stack(list(posteriors)) * weight).sum(0) / weight.sum(0)


def without_speeds(posterior: torch.Tensor, count: int) -> torch.Tensor:
    """Sums probabilities of classes over speeds [batch, speeds * count]."""
    return posterior.unflatten(1, (-1, count)).sum(1)


def at_speed(
    posterior: torch.Tensor, speed: torch.Tensor, speeds: int
) -> torch.Tensor:
    """Probabilities [batch, count] at the speed of each utterance.

    They are 0 at other speeds [batch, speeds * count]; ``speed`` is an int64
    index [batch].
    """
    # one_hot would wait for the device, to look at the largest index
    every = torch.arange(speeds, device=speed.device)
    chosen = (every == speed[:, None]).to(posterior.dtype)
    return (chosen[:, :, None] * posterior[:, None]).flatten(1)
