"""A loader that reads the next batch during a step, across epochs, too."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader


class EpochLoader(SaveableDataLoader):
    """Batches of one epoch at each iteration; the next ones are read meanwhile.

    The workers of a usual loader have nothing to do from the last batch of an
    epoch until the first one of the next is asked for, and training waits for
    that one. Here they read the first batches of the next epoch during the last
    steps of this one, which is most of the time where an epoch has few steps.
    ``forget`` drops these batches, if what they are made of changes.

    ``sampler`` has ``set_epoch``, and whole batches only; nothing is read after
    ``last_epoch``. With ``ahead``, a thread reads the next batch during a step
    if there are no workers; then the dataset must not draw from global random
    generators, which the step uses at the same time. ``dataset`` and ``kwargs``
    are those of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Any,
        last_epoch: int,
        ahead: bool = False,
        **kwargs: Any,
    ):
        kwargs.setdefault("collate_fn", PaddedBatch)
        # the loader draws the seed of workers: not from the training's numbers
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        order = _Epochs(sampler, last_epoch)
        super().__init__(dataset, sampler=order, **kwargs)
        self._inner: Any = None
        self._next_epoch: int | None = None
        self._reader: ThreadPoolExecutor | None = None
        if ahead and self.num_workers == 0:
            self._reader = ThreadPoolExecutor(1, "reader")
        self._ahead: Future | None = None

    def __iter__(self) -> Iterator[Any]:
        epoch = self.sampler.epoch
        done = 0
        if self._inner is None or self._next_epoch != epoch:
            self._drop()
            self.sampler.first = epoch
            self._inner = super().__iter__()
            done = self._inner._num_yielded  # by the process that was resumed
        # SpeechBrain saves this number with a checkpoint
        self._speechbrain_iterator = progress = _Progress(done)
        self._next_epoch = None
        while progress._num_yielded < len(self):
            batch = self._take()
            progress._num_yielded += 1
            yield batch
        self._next_epoch = self.sampler.epoch = epoch + 1

    def _take(self):
        """The next batch; a thread begins with the one after it."""
        if self._reader is None:
            return next(self._inner)
        ahead = self._ahead or self._reader.submit(next, self._inner)
        batch = ahead.result()
        self._ahead = self._reader.submit(next, self._inner, None)
        return batch

    def _drop(self):
        """Waits for the thread, and drops its batch."""
        if self._ahead is not None:
            self._ahead.exception()
            self._ahead = None

    def forget(self) -> None:
        """Drops batches that were read for the next epoch."""
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
