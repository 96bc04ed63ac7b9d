"""Work on many audio files in processes, each with threads."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import ThreadPool
from typing import Any

# Items that a process takes at a time, and its threads, which wait for disks.
CHUNK, THREADS = 256, 4


class _Worker:
    """What a forked process does with each item."""

    function: Callable


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def map_chunks(
    function: Callable,
    items: Iterable,
    processes: int | None = None,
    size: int | None = None,
) -> Iterator[list[tuple[Any, Any]]]:
    """Calls a function for each item, in processes and threads.

    The function need not be picklable; items and results must be. Each of
    ``processes`` (None: one per processor) has ``THREADS`` threads; fewer than
    two chunks are done in this process. ``size`` items are a chunk, by default
    ``CHUNK``. Yields lists of (item, result) in the order of the items. It is
    an OSError if a process is killed.

    Example
    -------
    >>> list(map_chunks(lambda item: 2 * item, [1, 2]))
    [[(1, 2), (2, 4)]]
    """
    items = iter(items)
    size = size or CHUNK
    chunks = iter(lambda: list(itertools.islice(items, size)), [])
    first = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(first, chunks)
    processes = processors() if processes is None else processes
    if processes < 2 or len(first) < 2:
        for chunk in chunks:
            yield list(zip(chunk, _in_threads(function, chunk)))
        return
    with ProcessPoolExecutor(
        processes,
        # others would import torch first, for some seconds
        mp_context=multiprocessing.get_context("fork"),
        initializer=_start,
        initargs=(function,),
    ) as pool:
        try:
            ahead: list = []
            while True:
                # a bounded number of chunks waits, whatever the number of all
                for chunk in itertools.islice(
                    chunks, 4 * processes - len(ahead)
                ):
                    ahead.append((chunk, pool.submit(_work, chunk)))
                if not ahead:
                    return
                chunk, result = ahead.pop(0)
                yield list(zip(chunk, result.result()))
        except BrokenProcessPool as error:
            raise OSError(
                "A process that examined audio was killed, perhaps for lack "
                "of memory. The same command goes on with the rest; fewer "
                "processes (num_workers) take less memory."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(function):
    """Prepares a forked process."""
    # a training handles signals; its handlers are inherited
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Worker.function = function


def _work(chunk):
    """Results of a chunk, in a forked process."""
    return _in_threads(_Worker.function, chunk)


def _in_threads(function, chunk):
    """Results of a chunk."""
    if len(chunk) == 1:
        return [function(chunk[0])]
    with ThreadPool(THREADS) as pool:
        return pool.map(function, chunk)
