"""One utterance of a class in a batch, and not too many in an epoch."""

import collections

import numpy as np
import pytest

from speechbrain_ssl.dataio.class_sampler import ClassSampler

# sizes of classes: some larger than the limit, one of one
CLASSES = np.repeat([7, 1, 2, 9, 4, 5], [30, 12, 1, 8, 20, 9])


def batches(sampler, epoch=1):
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) and {key[0] for key in keys} == {epoch}
    rows = [row for _, row in keys]
    size = sampler.batch_size
    return [rows[at : at + size] for at in range(0, len(rows), size)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("limit", [1, 10, 500])
def test_no_class_is_twice_in_a_batch_nor_too_often(batch_size, limit):
    for epoch in range(5):
        sampler = ClassSampler(
            CLASSES, batch_size=batch_size, max_per_class=limit
        )
        found = batches(sampler, epoch)
        for batch in found:
            assert len(set(CLASSES[batch])) == batch_size
        rows = sum(found, [])
        assert len(set(rows)) == len(rows)
        counts = collections.Counter(CLASSES[rows].tolist())
        assert max(counts.values()) <= limit


def test_as_many_batches_as_can_be_filled():
    # at most 10 of each class: 10, 10, 1, 8, 10, 9
    assert (
        len(batches(ClassSampler(CLASSES, 0, batch_size=3, max_per_class=10)))
        == 48 // 3
    )
    # six classes in a batch: the class of one utterance allows one
    assert len(batches(ClassSampler(CLASSES, batch_size=6))) == 1
    # five: 1 + 8 + ... of 9 batches would need 45, and 1+8+9+9+9+9 = 45
    assert len(batches(ClassSampler(CLASSES, batch_size=5))) == 9


def test_no_utterance_is_dropped_that_another_batch_can_take():
    classes = np.arange(1000) % 50
    rows = sum(batches(ClassSampler(classes, batch_size=20)), [])
    assert sorted(rows) == list(range(1000))


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return batches(ClassSampler(CLASSES, seed, batch_size=3), epoch)

    assert order(1, 2) == order(1, 2)
    orders = [order(0, 1), order(1, 0), order(0, 0), order(1, 1)]
    assert len({str(o) for o in orders}) == 4


def test_large_classes_send_other_utterances_in_other_epochs():
    sampler = ClassSampler(CLASSES, batch_size=2, max_per_class=5)
    seen = set()
    for epoch in range(60):
        seen.update(sum(batches(sampler, epoch), []))
    assert seen == set(range(len(CLASSES)))


def test_processes_together_see_the_batches_of_one():
    one = batches(ClassSampler(CLASSES, 3, batch_size=4))
    parts = [
        batches(ClassSampler(CLASSES, 3, rank, 2, batch_size=2))
        for rank in range(2)
    ]
    assert [sum(batch, []) for batch in zip(*parts)] == one


def test_classes_meet_by_chance():
    """Two small classes share no more batches than chance has it."""
    classes = np.arange(400) % 40
    met = collections.Counter()
    sampler = ClassSampler(classes, batch_size=8)
    for epoch in range(40):
        for batch in batches(sampler, epoch):
            found = classes[batch].tolist()
            met.update((a, b) for a in found for b in found if a < b)
    # 40 epochs x 50 batches x 28 pairs, over 780 pairs: 72 each
    counts = np.array(list(met.values()))
    assert len(counts) == 780 and counts.min() > 30 and counts.max() < 120


def test_too_few_classes_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="8 utterances.*there are 6"):
        ClassSampler(CLASSES, world_size=2, batch_size=4)


def test_a_limit_of_no_utterance_is_refused():
    with pytest.raises(ValueError, match="max_per_class must be"):
        ClassSampler(CLASSES, max_per_class=0)
