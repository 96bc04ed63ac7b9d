"""A sampler that limits the utterances of a class in an epoch and a batch."""

import numpy as np
import torch

from speechbrain_ssl.checks import checked, whole


class ClassSampler(torch.utils.data.Sampler):
    """Draws few utterances of a class in an epoch, and one in a batch.

    The public code of WavLM SSL SV (https://arxiv.org/abs/2406.02285) drops an
    utterance if its class is in the batch already; this sampler moves it to
    another batch. A batch here is that of all processes together, so the number
    of processes does not change it, as with EpochSampler, whose arguments are
    the same. An epoch has at most ``max_per_class`` utterances of a class;
    ``classes`` are int64 [rows].

    Each epoch draws new utterances of the large classes. All epochs have the
    same number of batches, the largest one for which each batch can be filled
    with different classes. The remaining utterances are left out.

    Example
    -------
    >>> sampler = ClassSampler([0, 0, 0, 1, 2], batch_size=2, max_per_class=2)
    >>> len(sampler), len({row for _, row in sampler})
    (4, 4)
    """

    @checked(max_per_class=whole(1))
    def __init__(
        self,
        classes: np.ndarray,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
        max_per_class: int = 500,
    ):
        _, self.classes = np.unique(classes, return_inverse=True)
        sizes = np.bincount(self.classes)
        self.together = world_size * batch_size
        if len(sizes) < self.together:
            raise ValueError(
                f"A batch of {self.together} utterances ({world_size} "
                f"processes x batch_size {batch_size}) needs {self.together} "
                f"classes, but there are {len(sizes)}. Lower batch_size, or "
                "train without this sampler."
            )
        sizes = np.minimum(sizes, max_per_class)
        self.batches = _most_batches(sizes, self.together)
        # a class is in each batch at most once
        self.sizes = np.minimum(sizes, self.batches)
        self.seed, self.rank, self.batch_size = seed, rank, batch_size
        self.epoch = 0

    def __len__(self):
        return self.batches * self.batch_size

    def __iter__(self):
        first = self.rank * self.batch_size
        mine = self._order()[:, first : first + self.batch_size]
        for row in mine.ravel().tolist():
            yield self.epoch, row

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which seeds the order and is part of the keys."""
        self.epoch = epoch

    def _order(self):
        """Rows of all batches of this epoch [batches, rows of a batch].

        A table has a column for each batch. Utterances, sorted by class, fill
        it line by line. A class has at most as many utterances as the table
        has columns, so they are in different columns. Then the columns of
        each line are permuted. If a class continues in the next line, it must
        not enter the same columns again.
        """
        generator = np.random.default_rng([self.seed, self.epoch])
        rows = self._draw(generator)
        table = rows.reshape(self.together, self.batches)
        classes = self.classes[table]
        above = None
        for line, entries in enumerate(classes):
            columns = generator.permutation(self.batches)
            if line:
                # argmin counts the entries that continue the last class
                goes_on = entries == classes[line - 1, -1]
                taken = above == classes[line - 1, -1]
                columns = _avoid(columns, int(goes_on.argmin()), taken)
            above = np.empty_like(entries)
            above[columns] = entries
            table[line, columns] = table[line].copy()
        # neighboring lines have neighboring classes: shuffle within batches
        return generator.permuted(table, axis=0).T

    def _draw(self, generator):
        """Draws the rows of this epoch, sorted by class."""
        count = len(self.classes)
        rows = generator.permutation(count)
        place = generator.permutation(len(self.sizes))[self.classes]
        rows = rows[np.argsort(place[rows], kind="stable")]
        classes = self.classes[rows]
        starts = np.flatnonzero(np.diff(classes, prepend=-1))
        number = np.arange(count)
        number -= np.repeat(starts, np.diff(starts, append=count))
        rows = rows[number < self.sizes[classes]]
        used = self.together * self.batches
        kept = generator.permutation(len(rows))[:used]
        return rows[np.sort(kept)]


def _most_batches(sizes, together):
    """Largest number of batches with ``together`` different classes each."""
    low, high = 1, int(sizes.sum()) // together
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() >= middle * together:
            low = middle
        else:
            high = middle - 1
    return low


def _avoid(columns, head, taken):
    """Puts ``head`` columns that are not taken first."""
    first = np.flatnonzero(~taken[columns])[:head]
    return np.concatenate([columns[first], np.delete(columns, first)])
