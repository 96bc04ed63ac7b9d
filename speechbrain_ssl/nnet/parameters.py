"""Groups of parameters for the optimizer, and clipping of gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

# options of parameters and their defaults
OPTIONS = {"decay": True, "clip": True, "sum": False}


def parameters_with(entries: Sequence, option: str) -> list[torch.nn.Parameter]:
    """Lists the parameters for which an option differs from its default.

    ``entries`` are modules and their options: ``decay: False`` (no weight
    decay), ``clip: False`` (gradients are not clipped) or ``sum: True``
    (gradients are summed over processes instead of averaged).
    """
    found = []
    for module, options in entries:
        for name, value in options.items():
            if name not in OPTIONS or value not in (True, False):
                raise ValueError(
                    "parameter_options must be a list of [module, {decay, "
                    f"clip, sum: True or False}}]; got {name}: {value!r}"
                )
        if options.get(option, OPTIONS[option]) != OPTIONS[option]:
            found += module.parameters()
    return found


def parameter_groups(
    module: torch.nn.Module,
    learning_rates: Sequence = (),
    decay_vectors: bool = False,
    undecayed: Sequence[torch.nn.Parameter] = (),
) -> list[dict]:
    """Splits parameters by learning rate, and by whether they are decayed.

    Biases, gains and other vectors are not decayed, as in DINO, unless
    ``decay_vectors`` asks for it; ``undecayed`` ones never are.
    ``learning_rates`` are parts with a rate of their own; the first one that
    has a parameter counts. Frozen parameters are left out. Gives groups for a
    torch optimizer.

    Example
    -------
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> groups = parameter_groups(net, [[net[0], 0.1]])
    >>> [(len(group["params"]), group.get("lr")) for group in groups]
    [(1, 0.1), (1, 0.1), (1, None), (1, None)]
    """
    left = {id(p): p for p in module.parameters() if p.requires_grad}
    known = {id(p) for p in module.parameters()}
    skipped = {id(p) for p in undecayed}

    def is_decayed(parameter):
        by_shape = decay_vectors or parameter.ndim > 1
        return by_shape and id(parameter) not in skipped

    groups = []
    for part, rate in learning_rates:
        names = {id(p) for p in part.parameters()}
        if not names & known or not rate >= 0:
            raise ValueError(
                "learning_rates must be a list of [module, rate from 0] with "
                f"modules that are trained; {type(part).__name__} with rate "
                f"{rate} is not."
            )
        mine = [left.pop(name) for name in list(left) if name in names]
        groups += [{**g, "lr": rate} for g in _by_decay(mine, is_decayed)]
    return groups + _by_decay(left.values(), is_decayed)


def layerwise_rates(
    transformer: torch.nn.Module, rate: float, decay: float = 1.0
) -> Sequence:
    """Learning rates that fall from the top layer of a transformer down.

    The top one of its ``layers`` has ``rate``, and each layer the share
    ``decay`` of the one above it; what comes before the layers has the rate of
    one more. Gives layers from the top down, then all the rest, for
    ``learning_rates``.

    Example
    -------
    >>> net = torch.nn.Module()
    >>> net.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in "ab")
    >>> [rate for _, rate in layerwise_rates(net, 0.8, decay=0.5)]
    [0.8, 0.4, 0.2]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, not {decay}")
    layers: Any = transformer.layers
    parts = [*reversed(layers), transformer]
    return [[part, rate * decay**depth] for depth, part in enumerate(parts)]


def _by_decay(parameters, is_decayed):
    """Groups of decayed parameters and of others, if there are any."""
    parameters = list(parameters)
    groups: list[dict] = [
        {"params": [p for p in parameters if is_decayed(p)]},
        {
            "params": [p for p in parameters if not is_decayed(p)],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter],
    max_norm: float,
    each: bool = False,
    unclipped: Sequence[torch.nn.Parameter] = (),
) -> torch.Tensor:
    """Scales gradients down to a norm; gives that of all together, before.

    ``each`` clips every tensor alone, as in DINO. Gradients of ``unclipped``
    stay as they are.
    """
    having = [(id(p), p.grad) for p in parameters if p.grad is not None]
    if not having:
        return torch.zeros(())
    total = norm = torch.nn.utils.get_total_norm([g for _, g in having])
    skipped = {id(p) for p in unclipped}
    gradients = [g for name, g in having if name not in skipped]
    if skipped and gradients:
        norm = torch.nn.utils.get_total_norm(gradients)
    if not gradients:
        return total
    if each:
        norms = torch.stack(torch._foreach_norm(gradients))
        scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scales.unbind())
    else:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
    return total
