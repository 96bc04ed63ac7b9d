"""A training CSV of the speech in long recordings::

    > speechbrain-ssl segment AUDIO OUT.csv [--vad silero]

``AUDIO`` is a folder (with all folders in it), a file or a CSV with ID,
duration, wav, start, stop. Each row of ``OUT.csv`` is a piece of speech with
start and stop in its recording, which is neither copied nor cut::

    > speechbrain-ssl train moco --data_folder AUDIO \\
        --train_annotation OUT.csv --skip_prep True

``energy`` finds what is louder than the background, and needs no package;
``silero`` finds speech by a network (``pip install speechbrain_ssl[vad]``).

Neither tells speakers apart. A piece with two speakers gives positives of two
speakers: keep ``--max_seconds`` short, or let all views of a row come from
within some seconds (``--view_sampler "{within_seconds: 6}"``).
"""

import os

from tqdm import tqdm

from speechbrain_ssl.checks import checked, number, one_of
from speechbrain_ssl.dataio import speech
from speechbrain_ssl.dataio.annotations import portable, write_annotation
from speechbrain_ssl.dataio.audio import absolute
from speechbrain_ssl.dataio.listing import find_utterances
from speechbrain_ssl.dataio.parallel import map_chunks
from speechbrain_ssl.files import write_csv
from speechbrain_ssl.help import command_parser, one_line


@checked(
    vad=one_of(*speech.DETECTORS),
    min_seconds=number(above=0),
    max_seconds=number(above=0),
)
def segment(
    source: str,
    csv_path: str,
    vad: str = "energy",
    min_seconds: float = 2.0,
    max_seconds: float = 20.0,
    data_root: str | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Finds the speech in recordings; the module's docstring has the rules.

    Pieces shorter than ``min_seconds`` are left out, those longer than
    ``max_seconds`` are cut into equal parts. ``data_root`` stands for
    ``$data_root`` in a CSV; of a folder it is the folder. ``processes`` None is
    one per processor.

    Gives ``recordings``, ``pieces``, ``hours`` of the recordings,
    ``speech_hours`` of the pieces, and ``failed`` recordings. Beside the CSV,
    ``failed.csv`` has their reasons, and the other files are those of
    ``speechbrain-ssl embed``.
    """
    if max_seconds < 2 * min_seconds:
        raise ValueError(
            f"max_seconds is {max_seconds:g}; it must be at least twice "
            f"min_seconds ({min_seconds:g}), or parts would be too short."
        )
    if vad == "silero":
        speech._silero()  # before any process starts
    if os.path.isdir(source):
        data_root = source
    root = data_root and absolute(data_root)
    folder = os.path.dirname(os.path.abspath(csv_path))
    utterances = find_utterances(source, folder, data_root)
    detect = speech.DETECTORS[vad]

    def look(row):
        try:
            found, rate = speech.find_speech(
                row["wav"], detect, row["start"], row["stop"]
            )
        except OSError as error:
            return str(error), 0
        return speech.cut(found, min_seconds, max_seconds), rate

    items = map(utterances.row, range(len(utterances)))
    rows, failed, seconds = [], {}, 0.0
    with tqdm(total=len(utterances), unit="file", disable=not progress) as bar:
        # recordings are long: one at a time for each process
        for chunk in map_chunks(look, items, processes, size=1):
            for row, (pieces, rate) in chunk:
                if isinstance(pieces, str):
                    failed[row["ID"]] = pieces
                    continue
                seconds += row["duration"]
                rows += _rows(row, pieces, rate, root)
            bar.update(len(chunk))
    path = os.path.join(folder, "failed.csv")
    write_csv(path, ("ID", "reason"), failed.items())
    if not rows:
        raise ValueError(
            f"{source}: no speech of {min_seconds:g} s or more in "
            f"{len(utterances)} recordings, {len(failed)} of which cannot be "
            f"read. {next(iter(failed.values()), 'Try the other --vad.')}"
        )
    write_annotation(csv_path, rows)
    return {
        "recordings": len(utterances),
        "pieces": len(rows),
        "hours": seconds / 3600,
        "speech_hours": sum(row[1] for row in rows) / 3600,
        "failed": len(failed),
    }


def _rows(row, pieces, rate, root):
    """Rows of the pieces of a recording."""
    for first, last in pieces:
        start = row["start"] + round(first * rate)
        stop = min(row["start"] + round(last * rate), row["stop"])
        seconds = f"{start / rate:.3f}-{stop / rate:.3f}"
        yield (
            f"{row['ID']}@{seconds}",
            round((stop - start) / rate, 6),
            portable(row["wav"], root),
            start,
            stop,
        )


def main(argv: list[str] | None = None) -> None:
    """The command line of ``segment``."""
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="AUDIO")
    parser.add_argument("csv_path", metavar="OUT.csv")
    parser.add_argument("--vad", choices=[*speech.DETECTORS], default="energy")
    parser.add_argument("--min_seconds", type=float, default=2.0)
    parser.add_argument("--max_seconds", type=float, default=20.0)
    parser.add_argument("--data_root", help="for $data_root in a CSV")
    parser.add_argument("--processes", type=int)
    args = parser.parse_args(argv)
    with one_line("segment"):
        found = segment(**vars(args))
    print(
        f"{args.csv_path}: {found['pieces']} pieces, "
        f"{found['speech_hours']:.2f} hours of speech in "
        f"{found['hours']:.2f} hours of {found['recordings']} recordings; "
        f"{found['failed']} cannot be read."
    )
