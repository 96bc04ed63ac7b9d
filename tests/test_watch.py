"""A lost process ends the others; one that is done, busy or late does not."""

import datetime
import os
import signal
import socket
import time

import pytest
import torch

from speechbrain_ssl import watch


class Group:
    """Forked processes that watch each other."""

    def __init__(self, size, monkeypatch):
        self.size = size
        self.store = torch.distributed.TCPStore(
            "127.0.0.1", 0, None, True, datetime.timedelta(seconds=20)
        )
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setattr(watch, "GRACE", 0.5)
        self.pids = {}

    def start(self, work, ranks=None):
        for rank in range(self.size) if ranks is None else ranks:
            pid = os.fork()
            if pid == 0:
                self._work(rank, work)
            self.pids[rank] = pid
        return self

    def _work(self, rank, work):
        """Joins, works, and leaves with exit code 0."""
        os.environ["RANK"] = str(rank)
        try:
            store = torch.distributed.TCPStore(
                "127.0.0.1",
                self.store.port,
                None,
                False,
                datetime.timedelta(seconds=20),
            )
            watch.meet(store, self.size, 20)
            watch.begin(store, self.size, 20)
            store.set(f"joined/{rank}", "yes")
            work(rank)
            watch.leave()
            os._exit(0)
        finally:
            os._exit(3)

    def joined(self):
        """Waits until all are connected."""
        names = [f"joined/{rank}" for rank in range(self.size)]
        self.store.wait(names, datetime.timedelta(seconds=20))

    def codes(self):
        """Exit code, or minus the signal, of each process."""
        found = {rank: os.waitpid(pid, 0)[1] for rank, pid in self.pids.items()}
        return [
            os.waitstatus_to_exitcode(found[rank]) for rank in sorted(found)
        ]


@pytest.mark.parametrize("victim, speaker", [(2, 0), (0, 1)])
def test_a_killed_process_ends_the_others_with_one_line(
    monkeypatch, capfd, victim, speaker
):
    began = time.monotonic()
    group = Group(3, monkeypatch).start(lambda rank: time.sleep(30))
    group.joined()
    os.kill(group.pids[victim], signal.SIGKILL)
    codes = group.codes()
    assert codes[victim] == -signal.SIGKILL
    assert {code for n, code in enumerate(codes) if n != victim} == {1}
    assert time.monotonic() - began < 15
    said = capfd.readouterr().err
    assert said.count("was lost") == 1
    assert said.startswith(f"process {victim} on ") and "goes on" in said


def test_processes_that_are_done_or_busy_are_not_lost(monkeypatch, capfd):
    def work(rank):
        end = time.monotonic() + rank  # they leave one after the other
        while time.monotonic() < end:
            sum(range(10_000))

    assert Group(3, monkeypatch).start(work).codes() == [0, 0, 0]
    assert capfd.readouterr().err == ""


def test_a_process_that_fails_has_time_for_its_own_message(monkeypatch):
    """All processes find the same error, some a little later."""

    def work(rank):
        time.sleep(0.2 * rank)
        os._exit(7)

    assert Group(3, monkeypatch).start(work).codes() == [7, 7, 7]


def test_missing_processes_are_named(monkeypatch):
    group = Group(4, monkeypatch)
    monkeypatch.setenv("RANK", "0")
    group.store.set("here/2", "host")
    with pytest.raises(
        ValueError, match="2 of 4 .* not started within 1 s: 1, 3"
    ):
        watch.meet(group.store, 4, 1)


def test_a_forked_worker_does_not_hold_the_connection(monkeypatch, capfd):
    def work(rank):
        if os.fork() == 0:  # a loader worker that outlives its process
            time.sleep(8)
            os._exit(0)
        time.sleep(30)

    began = time.monotonic()
    group = Group(2, monkeypatch).start(work)
    group.joined()
    time.sleep(1)
    os.kill(group.pids[1], signal.SIGKILL)
    assert group.codes() == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 7


def test_a_restart_is_not_misled_by_the_port_of_before(monkeypatch):
    group = Group(2, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stale = server.getsockname()[1]  # closed from here on
    group.store.set("watch", str(stale))
    group.store.set("here/0", "host")
    group.start(lambda rank: None, ranks=[1])
    time.sleep(1)
    group.start(lambda rank: None, ranks=[0])
    assert group.codes() == [0, 0]
