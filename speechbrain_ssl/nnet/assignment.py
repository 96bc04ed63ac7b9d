"""Soft assignments of utterances to prototypes, and how evenly they are used."""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.nnet.precision import full_precision


@torch.no_grad()
def sinkhorn(log_assignment: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Makes soft assignments use all prototypes equally (Sinkhorn-Knopp).

    M. Cuturi, "Sinkhorn distances", NeurIPS 2013
    (https://arxiv.org/abs/1306.0895), as used by SwAV and SDPN. It works on
    logarithms, so that no temperature is too small. ``log_assignment`` has
    logarithms, up to a constant, for the utterances of this process [batch,
    ..., prototypes]; axes in between hold separate assignments. The result has
    the same shape, float32 or better; rows sum to one.

    Example
    -------
    >>> sinkhorn(torch.zeros(2, 4)).tolist()[0]
    [0.25, 0.25, 0.25, 0.25]
    """
    log_assignment = full_precision(log_assignment)
    for _ in range(iterations):
        mass = log_assignment.logsumexp(0, keepdim=True)
        mass = distributed.gather(mass).logsumexp(0)
        log_assignment = F.log_softmax(log_assignment - mass, dim=-1)
    return log_assignment.exp()


@torch.no_grad()
def prototypes_used(assignment: torch.Tensor) -> torch.Tensor:
    """Effective number of prototypes: exp of the entropy of their use.

    Rows of an assignment sum to one [..., prototypes]. The result, over all
    processes, is from 1 (collapse onto one prototype) to the number of
    prototypes.

    Example
    -------
    >>> round(prototypes_used(torch.eye(4)).item(), 3)
    4.0
    """
    mean = distributed.mean(full_precision(assignment).flatten(0, -2).mean(0))
    return torch.special.entr(mean).sum().exp()
