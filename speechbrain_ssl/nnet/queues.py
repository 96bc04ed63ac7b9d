"""Queues: buffers in which new rows replace the oldest ones."""

import torch


@torch.no_grad()
def next_slots(seen: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Returns the slots of new rows, and adds them to the number of rows seen.

    Arguments
    ---------
    seen : torch.Tensor
        Number of rows that were ever added, a buffer of the objective []; it
        grows by ``count``.
    count : int
        Number of new rows.
    size : int
        Length of the queue.

    Returns
    -------
    torch.Tensor
        Slots of the last rows that fit, the newest last [at most size].

    Example
    -------
    >>> seen = torch.tensor(4)
    >>> next_slots(seen, count=3, size=5).tolist(), seen.item()
    ([4, 0, 1], 7)
    """
    first = max(count - size, 0)
    steps = torch.arange(first, count, device=seen.device)
    slots = (seen + steps) % size
    seen += count
    return slots
