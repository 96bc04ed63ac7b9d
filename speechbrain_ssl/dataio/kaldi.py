"""Files of Kaldi: ``wav.scp``, ``segments``, ``utt2spk``; ark and scp of vectors.

Only plain files are read: commands (lines that end with a pipe) are not run.
"""

import os
import struct
from collections.abc import Sequence

import numpy as np

from speechbrain_ssl.files import read_text, write_whole


def read_map(path: str, values: int = 1) -> dict[str, tuple[str, ...]]:
    """Reads a file with lines ``key value ...``, such as wav.scp or segments.

    There are ``values`` values on a line; a single one may contain spaces.
    Another number of values, a repeated key and a command are errors, which
    name file and line.
    """
    found: dict[str, tuple[str, ...]] = {}
    lines = read_text(path, "file of Kaldi").split("\n")
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        place = f"{path}, line {number}"
        key, *rest = line.split(None, 1 if values == 1 else -1)
        if len(rest) != values:
            raise ValueError(
                f"{place}: expected a key and {values} values, found {line!r}."
            )
        add_line(found, key, rest, place)
    if not found:
        raise ValueError(f"{path} has no lines.")
    return found


def add_line(
    found: dict[str, tuple[str, ...]], key: str, values: list[str], place: str
) -> None:
    """Adds a line of a map; commands and repeated keys are errors."""
    if values[-1].endswith("|"):
        raise ValueError(
            f"{place}: commands are not run; write the audio of {key!r} to a "
            "file and name that file."
        )
    if key in found:
        raise ValueError(f"{place}: {key!r} is on an earlier line.")
    found[key] = tuple(values)


def write_vectors(
    folder: str | os.PathLike, ids: Sequence[str], matrix: np.ndarray
) -> None:
    """Writes ``xvector.ark`` (binary float vectors) and ``xvector.scp``.

    ``ids`` are the keys of the rows of ``matrix`` [rows, dim].
    """
    check_keys(ids)
    ark = os.path.abspath(os.path.join(folder, "xvector.ark"))
    lines = []
    with write_whole(ark, "wb") as file:
        for key, row in zip(ids, matrix):
            row = np.ascontiguousarray(row, "<f4")
            start = f"{key} ".encode()
            file.write(start)
            # the scp points behind the key
            lines.append(f"{key} {ark}:{file.tell()}\n")
            file.write(b"\0BFV \4" + struct.pack("<i", len(row)))
            file.write(row.tobytes())
    with write_whole(os.path.join(folder, "xvector.scp")) as file:
        file.writelines(lines)


def check_keys(ids: Sequence[str]) -> None:
    """Refuses keys with spaces; see ``write_vectors``."""
    wrong = next((key for key in ids if len(key.split()) != 1), None)
    if wrong is not None:
        raise ValueError(
            f"Kaldi's keys have no spaces, found {wrong!r}. Rename the file, "
            "or give an annotation with other IDs."
        )
