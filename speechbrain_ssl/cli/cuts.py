"""A training CSV of the cuts of a Lhotse manifest::

    > speechbrain-ssl cuts CUTS.jsonl.gz OUT.csv [--data_root AUDIO]

``CUTS`` has a cut on each line, as ``CutSet.to_file`` writes it (``.jsonl`` or
``.jsonl.gz``); Lhotse need not be installed. Cuts of one recording (``MonoCut``,
``MultiCut``) whose source is a file or a URL become rows; paths below
``--data_root`` begin with ``$data_root``. Supervisions, and so speakers, are
not read. A cut that Lhotse would resample or change otherwise, or one of some
channels of a file, is an error. Then train with ``--train_annotation OUT.csv --skip_prep True``.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import IO, cast

from speechbrain_ssl.dataio.annotations import portable, write_annotation
from speechbrain_ssl.dataio.audio import absolute
from speechbrain_ssl.help import command_parser, one_line

TYPES = ("MonoCut", "MultiCut")
SOURCES = ("file", "url")


def write_cuts(
    cuts_path: str, csv_path: str, data_root: str | None = None
) -> int:
    """Writes a training CSV of cuts, and counts the rows.

    The module's docstring has the rules; with ``data_root`` None, paths are
    whole.
    """
    try:
        rows = list(_rows(cuts_path, data_root and absolute(data_root)))
    except (EOFError, zlib.error) as error:
        raise ValueError(
            f"{cuts_path} is cut off or damaged: {error}"
        ) from error
    if not rows:
        raise ValueError(f"{cuts_path} has no cuts.")
    write_annotation(csv_path, rows)
    return len(rows)


def _rows(cuts_path: str, root: str | None) -> Iterator[tuple]:
    """Yields the row of each cut."""
    opener = gzip.open if cuts_path.endswith(".gz") else open
    with opener(cuts_path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(cast(IO[str], file), 1):
            if not line.strip():
                continue
            where = f"{cuts_path}, line {number}"
            try:
                yield _row(json.loads(line), root)
            except (
                *(AttributeError, KeyError, TypeError),
                json.JSONDecodeError,
            ) as error:
                raise ValueError(
                    f"{where}: expected a cut of Lhotse with id, start, "
                    f"duration and recording ({type(error).__name__}: {error})."
                ) from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


def _row(cut: dict, root: str | None) -> tuple:
    """Row of a cut: ID, duration, wav, start, stop."""
    if cut.get("type", TYPES[0]) not in TYPES:
        raise ValueError(
            f"the cut {cut['id']} is a {cut['type']}; expected "
            f"{' or '.join(TYPES)}, of one recording. Save mixed cuts as audio "
            "first (CutSet.save_audios)."
        )
    recording = cut["recording"]
    (source, *others) = recording["sources"]
    if others or source["type"] not in SOURCES:
        raise ValueError(
            f"the cut {cut['id']} has {1 + len(others)} sources of type "
            f"{source['type']}; expected one of type {' or '.join(SOURCES)}"
        )
    channels = cut.get("channel", 0)
    channels = channels if isinstance(channels, list) else [channels]
    if recording.get("transforms") or {*channels} != {*source["channels"]}:
        raise ValueError(
            f"the cut {cut['id']} is not the audio of its source, all channels "
            "as they are: Lhotse would choose among the channels "
            f"{source['channels']}, or transform them. Save such cuts as audio "
            "first (CutSet.save_audios)."
        )
    rate = recording["sampling_rate"]
    start = round(cut["start"] * rate)
    stop = start + round(cut["duration"] * rate)
    stop = min(stop, recording.get("num_samples", stop))
    wav = absolute(source["source"])
    return (
        cut["id"],
        round((stop - start) / rate, 6),
        portable(wav, root),
        start,
        stop,
    )


def main(argv: list[str] | None = None) -> None:
    """The command line of ``cuts``."""
    parser = command_parser(__doc__)
    parser.add_argument("cuts_path", metavar="CUTS")
    parser.add_argument("csv_path", metavar="OUT.csv")
    parser.add_argument("--data_root")
    args = parser.parse_args(argv)
    with one_line("cuts"):
        count = write_cuts(**vars(args))
    print(f"{os.path.abspath(args.csv_path)}: {count} utterances")
