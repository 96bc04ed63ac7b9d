"""What keeps points apart and their dimensions in use."""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed

# keeps the root's gradient finite where a dimension is constant (VICReg)
VARIANCE_EPS = 1e-4


def variance_hinge(x):
    """Mean shortfall of the standard deviations of the dimensions from one.

    A. Bardes, J. Ponce and Y. LeCun, "VICReg: variance-invariance-covariance
    regularization", ICLR 2022 (https://arxiv.org/abs/2105.04906).

    Arguments
    ---------
    x : torch.Tensor
        Points of all processes [batch, dim].

    Returns
    -------
    torch.Tensor
        Scalar from 0 to 1.

    Example
    -------
    >>> round(variance_hinge(torch.ones(4, 2)).item(), 4)
    0.99
    """
    deviation = torch.sqrt(x.var(0) + VARIANCE_EPS)
    return F.relu(1.0 - deviation).mean()


def covariance(x):
    """Covariance of dimensions, normalised by batch - 1.

    Arguments
    ---------
    x : torch.Tensor
        Points of all processes [batch, dim].

    Returns
    -------
    torch.Tensor
        [dim, dim].
    """
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)


def squared_off_diagonal(matrix):
    """Sum of the squares beside the diagonal.

    Arguments
    ---------
    matrix : torch.Tensor
        [dim, dim].

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> squared_off_diagonal(torch.ones(3, 3)).item()
    6.0
    """
    # not the difference of two large sums, which would lose a small rest
    return matrix.square().fill_diagonal_(0.0).sum()


def koleo(x):
    """Kozachenko-Leonenko regulariser: spreads points over the sphere.

    A. Sablayrolles et al., "Spreading vectors for similarity search", ICLR
    2019 (https://arxiv.org/abs/1806.03198).

    Arguments
    ---------
    x : torch.Tensor
        Points [batch, dim], at least two in all processes together.

    Returns
    -------
    torch.Tensor
        Scalar: mean of -log(distance to the nearest other point of any
        process).

    Raises
    ------
    ValueError
        If there is only one point.

    Example
    -------
    >>> round(koleo(torch.eye(4)).item(), 4)
    -0.3466
    """
    mine = F.normalize(x, dim=-1)
    everyone = distributed.gather_with_gradient(mine)
    if len(everyone) < 2:
        raise ValueError(f"koleo needs two points or more, got {len(everyone)}")
    with torch.no_grad():
        cosine = mine @ everyone.T
        rows = torch.arange(len(mine), device=x.device)
        # -inf, as -1 would tie with an antipodal neighbour
        cosine[rows, distributed.rank() * len(mine) + rows] = -torch.inf
        nearest = cosine.argmax(dim=1)
    distance = torch.linalg.vector_norm(mine - everyone[nearest], dim=-1)
    return -(distance + 1e-8).log().mean()
