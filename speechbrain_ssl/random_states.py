"""Random numbers of all processes, as part of a checkpoint."""

import functools
import logging
import random
from typing import Any

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from speechbrain_ssl import distributed

logger = logging.getLogger(__name__)


@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomStates:
    """The random states of all processes, as one recoverable.

    Python's ``random``, NumPy's global, torch's CPU and current CUDA
    generators. Loading only remembers them, because what comes between loading
    and training draws random numbers; ``restore_pending`` puts them back.
    """

    def __init__(self):
        self._pending = None
        self._end_of_epoch = False

    @mark_as_saver
    def save(self, path: str) -> None:
        """Writes the states of all processes; called in all of them."""
        states = distributed.gather_objects(_random_state())
        if if_main_process():
            torch.save({"processes": states}, path)

    @mark_as_loader
    def load(self, path: str, end_of_epoch: bool) -> None:
        """Remembers the states of this process."""
        states = torch.load(path, map_location="cpu", weights_only=True)
        states = states["processes"]
        rank, processes = distributed.rank(), distributed.world_size()
        self._end_of_epoch = end_of_epoch
        self._pending = None
        if len(states) == processes:
            self._pending = states[rank]
        elif rank == 0:
            logger.warning(
                f"The checkpoint was written by {len(states)} processes and is "
                f"read by {processes}: random numbers do not continue where "
                "they were, all else does."
            )

    def restore_pending(self, starting_epoch: bool = False) -> bool:
        """Puts remembered states back, once.

        Call it with ``starting_epoch=True`` in ``on_stage_start(TRAIN)`` and
        without at each ``on_fit_batch_start``. The uninterrupted run drew the
        loader's random numbers after an end-of-epoch checkpoint but before an
        intra-epoch one, so the former is put back before the loader is
        iterated, the latter after. Says whether states were put back now.
        """
        if self._pending is None:
            return False
        if starting_epoch and not self._end_of_epoch:
            return False
        _set_random_state(self._pending)
        self._pending = None
        return True


def _random_state():
    """Of tensors and plain values only, which torch.load accepts safely."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [
            name,
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": (
            torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        ),
    }


def _set_random_state(state):
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
