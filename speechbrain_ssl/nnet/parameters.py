"""What the optimiser sees: groups of parameters, clipping, freezing."""

import torch


def parameter_groups(module):
    """Splits parameters into those with and those without weight decay.

    Biases, gains and other vectors are not decayed, as in DINO.

    Arguments
    ---------
    module : torch.nn.Module
        Anything with parameters; frozen ones are left out.

    Returns
    -------
    list of dict
        Groups for a torch optimiser; empty groups are left out.

    Example
    -------
    >>> [len(g["params"]) for g in parameter_groups(torch.nn.Linear(2, 2))]
    [1, 1]
    """
    moving = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim > 1]},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clip_gradients(parameters, max_norm, each=False):
    """Scales gradients down to a norm.

    Arguments
    ---------
    parameters : iterable of torch.nn.Parameter
        Those without a gradient are passed over.
    max_norm : float
        Largest norm allowed.
    each : bool
        Whether every tensor is clipped alone, as in DINO, or all together.

    Returns
    -------
    torch.Tensor
        The norm of all gradients together, before.

    Raises
    ------
    ValueError
        If ``max_norm`` is not positive: scaling to a negative norm would
        climb the loss.

    Example
    -------
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], max_norm=1.0).item()
    5.0
    >>> round(weight.grad.norm().item(), 4)
    1.0
    """
    if not max_norm > 0:
        raise ValueError(
            f"max_grad_norm must be positive, not {max_norm}. To switch "
            "clipping off leave it at inf (.inf in YAML)."
        )
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    total = torch.nn.utils.get_total_norm(gradients)
    if each:
        norms = torch._foreach_norm(gradients)
        scales = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
        torch._foreach_mul_(gradients, scales)
    else:
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
    return total
