"""Workers read on over the end of an epoch, and nothing else changes."""

import multiprocessing
import time

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ssl.dataio.annotations import EpochSampler
from speechbrain_ssl.dataio.loader import EpochLoader

COUNT = 7


class Keys:
    """Items that are their keys; counts what is read of an epoch."""

    def __init__(self):
        self.read = multiprocessing.Array("i", 5)
        self.value = multiprocessing.Value("i", 0)

    def __getitem__(self, key):
        with self.read.get_lock():
            self.read[key[0]] += 1
        return (*key, self.value.value)

    def __len__(self):
        return COUNT


def loader(dataset, last=3, workers=0, ahead=False):
    sampler = EpochSampler(COUNT, seed=1, batch_size=2)
    return EpochLoader(
        dataset,
        sampler,
        last,
        batch_size=2,
        collate_fn=list,
        num_workers=workers,
        persistent_workers=workers > 0,
        ahead=ahead,
    )


def epoch_of(batches, epoch):
    batches.sampler.set_epoch(epoch)
    return list(batches)


def expected(epoch):
    sampler = EpochSampler(COUNT, seed=1, batch_size=2)
    sampler.set_epoch(epoch)
    keys = [(*key, 0) for key in sampler]
    return [keys[i : i + 2] for i in range(0, len(keys), 2)]


READERS = [{"workers": 0}, {"workers": 1}, {"ahead": True}]


@pytest.mark.parametrize("readers", READERS)
def test_epochs_are_those_of_the_sampler(readers):
    batches = loader(Keys(), **readers)
    for epoch in (1, 2, 3):
        assert epoch_of(batches, epoch) == expected(epoch)


def test_workers_read_the_next_epoch_and_nothing_after_the_last():
    dataset = Keys()
    batches = loader(dataset, last=2, workers=1)
    batches.sampler.set_epoch(1)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    assert list(iterator) == []
    # two batches are read ahead by a worker
    for _ in range(200):
        if dataset.read[2] >= 2:
            break
        time.sleep(0.02)
    assert dataset.read[2] >= 2
    assert epoch_of(batches, 2) == expected(2)
    assert dataset.read[3] == 0


def test_a_thread_reads_the_next_batch_during_a_step():
    dataset = Keys()
    batches = loader(dataset, last=1, ahead=True)
    batches.sampler.set_epoch(1)
    iterator = iter(batches)
    next(iterator)
    for _ in range(200):
        if dataset.read[1] == 4:
            break
        time.sleep(0.02)
    assert dataset.read[1] == 4


def test_an_error_of_the_thread_reaches_training():
    class Broken(Keys):
        def __getitem__(self, key):
            raise OSError("no such disk")

    batches = loader(Broken(), ahead=True)
    with pytest.raises(OSError, match="no such disk"):
        epoch_of(batches, 1)


@pytest.mark.parametrize("readers", READERS[1:])
def test_batches_are_read_again_if_what_they_are_made_of_changes(readers):
    dataset = Keys()
    batches = loader(dataset, **readers)
    assert epoch_of(batches, 1) == expected(1)
    dataset.value.value = 5
    batches.forget()
    assert {item[-1] for batch in epoch_of(batches, 2) for item in batch} == {5}


@pytest.mark.parametrize("readers", READERS)
def test_an_epoch_that_is_left_begins_anew(readers):
    batches = loader(Keys(), **readers)
    batches.sampler.set_epoch(1)
    next(iter(batches))
    assert epoch_of(batches, 2) == expected(2)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_checkpoint_has_the_place_in_the_epoch(done, ahead, tmp_path):
    first = loader(Keys(), ahead=ahead)
    assert epoch_of(first, 1) == expected(1)
    first.sampler.set_epoch(2)
    iterator = iter(first)
    for _ in range(done):
        next(iterator)
    if done:
        saved = Checkpointer(tmp_path, {"loader": first})
        saved.save_checkpoint(end_of_epoch=False)
    second = loader(Keys(), ahead=ahead)
    Checkpointer(tmp_path, {"loader": second}).recover_if_possible()
    assert epoch_of(second, 2) == expected(2)[done:]
    assert epoch_of(second, 3) == expected(3)


def test_no_random_number_of_training_is_used():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    batches = loader(Keys())
    for epoch in (1, 2):
        epoch_of(batches, epoch)
    assert torch.equal(torch.rand(2), wanted)
