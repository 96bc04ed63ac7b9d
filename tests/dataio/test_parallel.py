"""Work in processes and threads keeps its order, and ends if one is killed."""

import os
import signal
import time

import pytest

from speechbrain_ssl.dataio.parallel import map_chunks


@pytest.mark.parametrize("processes", [1, 3])
def test_results_are_in_the_order_of_the_items(processes):
    def work(item):
        time.sleep(0.02 * (item % 3 == 0))  # later ones end first
        return item, os.getpid()

    found = list(map_chunks(work, range(23), processes, size=4))
    assert [len(chunk) for chunk in found] == [4, 4, 4, 4, 4, 3]
    pairs = [pair for chunk in found for pair in chunk]
    assert [item for item, _ in pairs] == list(range(23))
    assert [result[0] for _, result in pairs] == list(range(23))
    here = {result[1] for _, result in pairs} == {os.getpid()}
    assert here == (processes == 1)


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    chunks = map_chunks(abs, items(), 2, size=1)
    next(chunks)
    assert len(taken) <= 4 * 2 + 1
    chunks.close()


def test_no_process_starts_for_a_single_chunk():
    found = list(map_chunks(lambda _: os.getpid(), "ab", 4, size=2))
    assert found == [[("a", os.getpid()), ("b", os.getpid())]]
    assert list(map_chunks(abs, [], 4)) == []


def test_an_error_of_the_function_is_raised():
    def work(item):
        return 1 / item

    with pytest.raises(ZeroDivisionError):
        list(map_chunks(work, [1, 2, 0, 3], 2, size=1))


def test_a_killed_process_ends_all():
    here = os.getpid()

    def work(item):
        if item == 2 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(OSError, match="was killed, perhaps for lack of memory"):
        list(map_chunks(work, range(6), 2, size=1))
