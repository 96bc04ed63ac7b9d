"""An order of utterances in which no class fills an epoch or a batch."""

import numpy as np
import torch


class ClassSampler(torch.utils.data.Sampler):
    """At most so many utterances of a class per epoch, one in each batch.

    As in the public code of WavLM SSL SV (https://arxiv.org/abs/2406.02285),
    where utterances that meet another one of their class are dropped; here
    they come in another batch. "Batch" is that of all processes together,
    which is the same for any number of them, as with EpochSampler.

    Every epoch draws other utterances of large classes, and has the same
    number of batches: as many as can be filled with different classes. What
    does not fill another one is left out of this epoch.

    Arguments
    ---------
    classes : np.ndarray
        int64 class of each row [rows].
    seed : int
        With the epoch it determines the order; at least 0.
    rank : int
        This process, from 0.
    world_size : int
        Number of processes.
    batch_size : int
        Rows per batch and process, the loader's ``batch_size``.
    max_per_class : int
        Utterances of a class in an epoch.

    Raises
    ------
    ValueError
        If a setting is impossible, or there are fewer classes than a batch of
        all processes has utterances.

    Example
    -------
    >>> sampler = ClassSampler([0, 0, 0, 1, 2], batch_size=2, max_per_class=2)
    >>> len(sampler), len({row for _, row in sampler})
    (4, 4)
    """

    def __init__(
        self,
        classes,
        seed=0,
        rank=0,
        world_size=1,
        batch_size=1,
        max_per_class=500,
    ):
        if not 0 <= rank < world_size or batch_size < 1 or max_per_class < 1:
            raise ValueError(
                "ClassSampler needs 0 <= rank < world_size, and a batch_size "
                f"and max_per_class of at least 1, but got rank {rank}, "
                f"world_size {world_size}, batch_size {batch_size}, "
                f"max_per_class {max_per_class}."
            )
        _, self.classes = np.unique(classes, return_inverse=True)
        sizes = np.bincount(self.classes)
        self.together = world_size * batch_size
        if len(sizes) < self.together:
            raise ValueError(
                f"A batch of {self.together} utterances ({world_size} "
                f"processes x batch_size {batch_size}) needs as many classes, "
                f"but there are {len(sizes)}. Lower batch_size, or train "
                "without this sampler."
            )
        sizes = np.minimum(sizes, max_per_class)
        self.batches = _most_batches(sizes, self.together)
        # a class cannot be in more batches than there are
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

    def set_epoch(self, epoch):
        """Chooses the order of the next iteration.

        Arguments
        ---------
        epoch : int
            Also the first half of all keys yielded from now on.
        """
        self.epoch = epoch

    def _order(self):
        """Rows of all batches of this epoch [batches, rows of a batch].

        Utterances, class after class, fill the columns of a table with one
        column per batch, line by line: those of a class are in different
        columns then, as it has at most as many as there are columns. Each
        line is shuffled, save that a class which goes on in the next line
        must not come into the same columns again.
        """
        generator = np.random.default_rng([self.seed, self.epoch])
        rows = self._draw(generator)
        table = rows.reshape(self.together, self.batches)
        classes = self.classes[table]
        above = None
        for line, entries in enumerate(classes):
            columns = generator.permutation(self.batches)
            if line:
                # argmin: how many entries go on with the class of the last
                goes_on = entries == classes[line - 1, -1]
                taken = above == classes[line - 1, -1]
                columns = _avoid(columns, int(goes_on.argmin()), taken)
            above = np.empty_like(entries)
            above[columns] = entries
            table[line, columns] = table[line].copy()
        # lines are neighbors in the order of classes: deal them out anew
        return generator.permuted(table, axis=0).T

    def _draw(self, generator):
        """Rows of this epoch, those of a class next to one another."""
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
    """The largest number of batches of ``together`` different classes."""
    low, high = 1, int(sizes.sum()) // together
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() >= middle * together:
            low = middle
        else:
            high = middle - 1
    return low


def _avoid(columns, head, taken):
    """Moves columns that are taken behind the first ``head`` of them."""
    first = np.flatnonzero(~taken[columns])[:head]
    return np.concatenate([columns[first], np.delete(columns, first)])
