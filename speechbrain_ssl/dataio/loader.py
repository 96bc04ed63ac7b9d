"""A loader whose workers do not stop at the end of an epoch."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader


class EpochLoader(SaveableDataLoader):
    """Batches of one epoch at each iteration; workers read on meanwhile.

    The workers of a usual loader have nothing to do from the last batch of an
    epoch until the first one of the next is asked for, and training waits for
    that one. Here they read the first batches of the next epoch during the last
    steps of this one, which is most of the time where an epoch has few steps.
    ``forget`` drops these batches, if what they are made of changes.

    The sampler has ``set_epoch``, and whole batches only. Nothing is read after
    ``last_epoch``. ``kwargs`` are those of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self, dataset: Any, sampler: Any, last_epoch: int, **kwargs: Any
    ):
        kwargs.setdefault("collate_fn", PaddedBatch)
        # the loader draws the seed of workers: not from the training's numbers
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        order = _Epochs(sampler, last_epoch)
        super().__init__(dataset, sampler=order, **kwargs)
        self._inner: Any = None
        self._next_epoch: int | None = None
        self._before = 0  # batches of earlier epochs of this iterator

    def __iter__(self) -> Iterator[Any]:
        epoch = self.sampler.epoch
        if self._inner is None or self._next_epoch != epoch:
            self.sampler.first = epoch
            self._inner, self._before = super().__iter__(), 0
        # SpeechBrain saves this number with a checkpoint
        progress = _Progress(self._inner._num_yielded - self._before)
        self._speechbrain_iterator = progress
        self._next_epoch = None
        while progress._num_yielded < len(self):
            batch = next(self._inner)
            progress._num_yielded += 1
            yield batch
        self._before += len(self)
        self._next_epoch = self.sampler.epoch = epoch + 1

    def forget(self) -> None:
        """Drops batches that workers have read for the next epoch."""
        self._next_epoch = None


class _Progress:
    """Number of batches of an epoch that were given out."""

    def __init__(self, count):
        self._num_yielded = count


class _Epochs(torch.utils.data.Sampler):
    """The keys of epoch after epoch, of a sampler of one."""

    def __init__(self, sampler, last):
        self.inner, self.last = sampler, last
        self.epoch = self.first = sampler.epoch

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        for epoch in itertools.count(self.first):
            self.inner.set_epoch(epoch)
            yield from self.inner
            if epoch >= self.last:
                return

    def set_epoch(self, epoch):
        """Says which epoch is asked for next."""
        self.epoch = epoch
