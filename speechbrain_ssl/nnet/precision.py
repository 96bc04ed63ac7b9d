"""Number formats: what losses are computed in."""

import torch


def full_precision(x):
    """Lifts half precision to float32, in which losses are computed.

    float64 stays: tests and ``torch.autograd.gradcheck`` need its digits.

    Arguments
    ---------
    x : torch.Tensor
        Points or scores of any precision.

    Returns
    -------
    torch.Tensor
        The same, float32 or better; itself where it already is.

    Example
    -------
    >>> [full_precision(torch.ones(1).to(t)).dtype for t in (torch.half, float)]
    [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
