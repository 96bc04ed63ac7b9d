"""Ends all processes of a group soon after one of them is lost.

A process that waits for a lost one waits for hours: NCCL notices it late, and
gloo only while it waits for that process. Therefore each process keeps a TCP
connection to the first one. The operating system closes it when a process ends
in any way, and gives it up when the machine or network behind it is gone. That
does not depend on what the process computes: a busy process is never taken for
a lost one, and neither is one that hangs.
"""

import datetime
import multiprocessing
import os
import selectors
import socket
import sys
import threading
import time
from typing import cast

import torch

# Seconds until a silent connection is given up: the first test, then tests.
IDLE, INTERVAL, TESTS = 10, 5, 4
# Seconds in which a process may end by itself after another one is lost.
GRACE = 10.0


class _Watch:
    """State of this process."""

    links: dict[socket.socket, str] = {}
    lost: str | None = None
    is_over = False


def meet(
    store: torch.distributed.Store, world_size: int, seconds: float
) -> None:
    """Waits until all processes have started; an error names missing ones."""
    rank = int(os.environ["RANK"])
    store.set(f"here/{rank}", socket.gethostname())
    end = time.monotonic() + seconds
    missing = list(range(world_size))
    try:
        while missing:
            left = max(end - time.monotonic(), 0.001)
            wait = datetime.timedelta(seconds=left)
            store.wait([f"here/{missing[0]}"], wait)
            missing.pop(0)
    except torch.distributed.DistError as error:
        gone = [n for n in missing if not store.check([f"here/{n}"])]
        raise ValueError(
            f"{len(gone)} of {world_size} processes have not started within "
            f"{seconds:g} s: {', '.join(map(str, gone[:8]))}. See their "
            "output, and start all of them again."
        ) from error


def begin(
    store: torch.distributed.Store, world_size: int, seconds: float
) -> None:
    """Connects this process with the first one, and watches from a thread."""
    rank, links = int(os.environ["RANK"]), {}
    if rank == 0:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(
            ("", 0), family=family, backlog=world_size, dualstack_ipv6=dual
        ) as server:
            server.settimeout(seconds)
            store.set("watch", str(server.getsockname()[1]))
            while len(links) < world_size - 1:
                link, _ = server.accept()
                link.settimeout(seconds)
                links[link] = link.recv(256).decode()
    else:
        link = _connect(store, seconds)
        link.sendall(f"{rank} on {socket.gethostname()}".encode())
        first = store.get("here/0").decode()
        links[link] = f"0 on {first}"
    for link in links:
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TESTS)
    _Watch.links, _Watch.lost, _Watch.is_over = links, None, False
    threading.Thread(target=_listen, daemon=True).start()


def _connect(store, seconds):
    """Connects with the first process."""
    end = time.monotonic() + seconds
    while True:
        # an elastic launcher keeps the store when it restarts processes: the
        # port may still be that of the first process before
        place = os.environ["MASTER_ADDR"], int(store.get("watch"))
        try:
            return socket.create_connection(place, timeout=seconds)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def lost(seconds: float = 5.0) -> str | None:
    """Says which process was lost; None if none is known to be.

    Waits some seconds until the thread has noticed it.
    """
    end = time.monotonic() + seconds
    while _Watch.links and _Watch.lost is None and time.monotonic() < end:
        time.sleep(0.1)
    if _Watch.lost is None:
        return None
    return (
        f"process {_Watch.lost} was lost: it has ended, or its machine cannot "
        "be reached. All processes end; the same command goes on from the "
        "last checkpoint."
    )


def leave() -> None:
    """Tells the others that this process ends because its work is done."""
    _Watch.is_over = True
    for link in _Watch.links:
        try:
            link.sendall(b"bye")
        except OSError:
            pass  # it has left already
    _Watch.links = {}


def speaks() -> bool:
    """Whether this process says what was lost: the first, or its follower."""
    first = (_Watch.lost or "").startswith("0 ")
    return os.environ.get("RANK", "0") == ("1" if first else "0")


def _listen():
    """Waits until a connection ends without a word."""
    with selectors.DefaultSelector() as selector:
        for link in _Watch.links:
            selector.register(link, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                link = cast(socket.socket, key.fileobj)
                try:
                    said = link.recv(256)
                except OSError:
                    said = b""
                if said == b"bye":
                    selector.unregister(link)
                elif not _Watch.is_over:
                    name = _Watch.links.get(link, "")
                    _end(said.decode().removeprefix("lost ") or name)


def _end(name):
    """Tells the others, and ends this process if it does not end itself."""
    _Watch.lost = name
    for link in _Watch.links:
        try:
            link.sendall(f"lost {name}".encode())
        except OSError:
            pass  # it is the lost one
    time.sleep(GRACE)
    if _Watch.is_over:
        return
    if speaks():
        print(lost(0.0), file=sys.stderr, flush=True)
    end_now()


def end_now() -> None:
    """Ends this process and its loader workers, whatever they wait for."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(1)


def _close_in_child():
    """A loader worker must not hold the connection of its process."""
    for link in _Watch.links:
        link.close()
    _Watch.links = {}


os.register_at_fork(after_in_child=_close_in_child)
