"""Columns of a large annotation in one file, which all processes map.

The file lies beside the CSV file and is made from it when that is read for
the first time, or has changed. Pages of a mapped file are in the memory of a
machine once, whatever number of ranks and loader workers read them. Layout: a
line of JSON, padded with spaces, that says where each column is; the columns.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from speechbrain_ssl.files import hash_of, write_whole

logger = logging.getLogger(__name__)

VERSION = 1
DTYPES = {
    "text": "uint8",
    "offsets": "int64",
    "durations": "float32",
    "start": "int64",
    "stop": "int64",
}
# what tells utterances from others; durations follow from start and stop
HASHED = ("text", "offsets", "start", "stop")
HEADER = 4096  # bytes of the first line
ALIGNED = 64


class Mapped(NamedTuple):
    """Columns that are mapped from a file."""

    path: str  # the file
    # its first line: ``key``, ``hash`` (SHA-256 of ``HASHED``) and the first
    # byte and length of each column
    header: dict[str, Any]
    # copies of pages that a process changes are its own
    columns: dict[str, torch.Tensor]


def key_of(csv_path: str | os.PathLike, extra: tuple[str, ...]) -> dict:
    """What columns are made from: the CSV as it is now, and extra columns."""
    status = os.stat(csv_path)
    return {
        "version": VERSION,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "extra": list(extra),
    }


def place_of(csv_path: str | os.PathLike, extra: tuple[str, ...]) -> str:
    """File for the columns of a CSV; another one with extra columns."""
    mark = hashlib.sha256("\n".join(extra).encode()).hexdigest()[:8]
    return f"{os.fspath(csv_path)}.{mark + '.' if extra else ''}columns"


@contextlib.contextmanager
def only_one(csv_path: str | os.PathLike) -> Iterator[None]:
    """Locks a CSV: one process of a machine at a time works on it."""
    with open(csv_path, "rb") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_columns(path: str, key: Mapping) -> Mapped | None:
    """Maps columns; None if they are missing or have another key."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline(HEADER))
        if header["key"] != key or os.path.getsize(path) != header["bytes"]:
            return None
        columns = {
            name: torch.from_numpy(
                # copy on write: read access is enough, and torch warns of
                # arrays that cannot be written
                np.memmap(path, DTYPES[name], "c", first, (count,))
            )
            for name, (first, count) in header["columns"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Mapped(path, header, columns)


def write_columns(
    path: str, key: Mapping, rooted: bool, columns: Mapping[str, IO]
) -> None:
    """Writes columns from an open file each, whole or not at all.

    ``rooted`` says whether a path starts with ``$data_root``.
    """
    header: dict[str, Any] = {"key": key, "rooted": rooted, "columns": {}}
    place = HEADER
    for name, file in columns.items():
        size = file.seek(0, os.SEEK_END)
        item = np.dtype(DTYPES[name]).itemsize
        header["columns"][name] = [place, size // item]
        place += -(-size // ALIGNED) * ALIGNED
    header["bytes"] = place
    header["hash"] = hash_of(*(columns[name] for name in HASHED))
    with write_whole(path, "wb") as out:
        out.write(json.dumps(header).ljust(HEADER - 1).encode() + b"\n")
        for name, file in columns.items():
            out.seek(header["columns"][name][0])
            file.seek(0)
            shutil.copyfileobj(file, out, 1 << 20)
        out.truncate(place)
    logger.info("%s: %.0f MB of columns for all processes", path, place / 1e6)


def hash_columns(columns: Mapping[str, torch.Tensor]) -> str:
    """The hash that ``write_columns`` writes, of columns in memory."""
    digest = hashlib.sha256()
    for name in HASHED:
        digest.update(columns[name].numpy().data)
    return digest.hexdigest()
