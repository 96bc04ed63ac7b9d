"""Queues: buffers in which new rows replace the oldest ones."""

import torch


@torch.no_grad()
def next_slots(seen: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Slots of new rows in a queue [at most size], the newest last.

    ``seen`` is the number of rows that were ever added, a buffer of the
    objective []; it grows by ``count``.

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
