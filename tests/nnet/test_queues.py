"""Slots of queues."""

import pytest
import torch

from speechbrain_ssl.nnet.queues import next_slots


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_queue_holds_the_newest_rows(size):
    queue, seen = torch.full((size,), -1), torch.zeros((), dtype=torch.long)
    history = []
    for count in (2, 1, 5, 3, 9):
        rows = torch.arange(count) + 100 * count
        slots = next_slots(seen, count, size)
        queue[slots] = rows[-len(slots) :]
        history += rows.tolist()
        assert seen.item() == len(history)
        newest = history[-size:]
        assert sorted(queue[queue >= 0].tolist()) == sorted(newest)
        if len(history) >= size:
            in_order = queue.roll(-(len(history) % size))
            assert in_order.tolist() == newest
