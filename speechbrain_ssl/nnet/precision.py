"""Precision of losses."""

import torch


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Converts half precision to float32, in which losses are computed.

    float64 stays, for tests and ``torch.autograd.gradcheck``.

    Example
    -------
    >>> [full_precision(torch.ones(1).to(t)).dtype for t in (torch.half, float)]
    [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
