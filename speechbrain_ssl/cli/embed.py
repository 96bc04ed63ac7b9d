"""Embeddings of a folder or a list of audio, by an exported model::

    > speechbrain-ssl embed MODEL_FOLDER AUDIO [--output_folder OUT]

``AUDIO`` is a folder (with all folders in it), a text file with one path per
line (relative ones start from the file's folder), or an annotation (CSV with
ID, duration, wav, start, stop). ``OUT`` gets ``embeddings.npy``, a matrix to
be memory-mapped, ``ids.json`` with the name of each row, ``failed.csv`` with
the files that have no embedding and the reasons, ``meta.json`` and, for a
folder, ``skipped.csv`` with its files that are not taken as audio. After a
kill, the same command continues. ``AUDIO`` may also be a single file.

    > speechbrain-ssl embed MODEL_FOLDER meeting.wav --windows 1.5 0.75

embeds windows of 1.5 s, one every 0.75 s, as diarization needs them.
``times.csv`` has ``row, ID, start, stop``: row of the matrix, file, and times in
seconds. The last window ends at the end of the file; a shorter file is one
window. Windows of digital silence have no row.

A face encoder takes an annotation with a column ``face``.

A file longer than a minute is embedded in windows, whose embeddings are
averaged. Digital silence (below -80 dBFS for 0.2 s or longer) is left out.
"""

import concurrent.futures
import math
import os
from collections.abc import Sequence

import numpy as np
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl.dataio import audio, faces, kaldi
from speechbrain_ssl.dataio.annotations import (
    Utterances,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.embedding import MIN_SECONDS, EncoderError, describe
from speechbrain_ssl.dataio.listing import find_utterances
from speechbrain_ssl.files import write_csv, write_whole
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, face_size_of, load_encoder
from speechbrain_ssl.pseudo_labels.extract import (
    Embeddings,
    encoder_hash,
    extract,
)

# more formats of the output
ALSO = ("kaldi", "npz")


def embed(
    model_folder: str,
    source: str,
    output_folder: str = "embeddings",
    data_root: str | None = None,
    max_seconds: float | None = None,
    batch_seconds: float = 120.0,
    device: str | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
    windows: tuple[float, float] | None = None,
    also: Sequence[str] = (),
) -> Embeddings:
    """Embeds audio to disk; the module's docstring has the rules.

    ``data_root`` stands for ``$data_root`` in an annotation. Audio is cut to
    its first ``max_seconds`` (None: never); ``batch_seconds`` is the upper
    bound of the audio in a batch. ``windows`` are length and hop in seconds
    (None: whole utterances). ``also`` names other formats of the output:
    "kaldi" writes xvector.ark and xvector.scp, "npz" embeddings.npz with the
    arrays ``ids`` and ``embeddings``. ``device`` and ``trust`` are as for
    ``cli.score.verify``.

    Gives IDs and the matrix, not read yet. IDs are paths below the folder,
    lines of the list, or those of the annotation; of windows ``ID@start-stop``
    in seconds.
    """
    if windows is not None:
        _check_windows(*windows)
    if unknown := set(also) - set(ALSO):
        raise ValueError(
            f"Expected formats of {', '.join(ALSO)}, found {min(unknown)!r}."
        )
    device = device or infer_device()
    model = load_encoder(model_folder, device, trust)
    face_size = face_size_of(model)
    if face_size is not None and windows is not None:
        raise ValueError("Windows are of audio, but this model embeds faces.")
    if face_size is None:
        utterances = find_utterances(source, output_folder, data_root)
    else:
        utterances = read_annotation(source, data_root, extra=(faces.COLUMN,))
    times = {}
    if windows is not None:
        utterances, times = cut_windows(utterances, output_folder, *windows)
    if "kaldi" in also:
        kaldi.check_keys(list(utterances.ids()))
    found = extract(
        model.encode_batch,
        utterances,
        output_folder,
        sample_rate=model.audio_normalizer.sample_rate,
        encoder=encoder_hash(model_folder),
        max_seconds=max_seconds,
        batch_seconds=batch_seconds,
        device=device,
        progress=progress,
        face_size=face_size,
    )
    if windows is not None:
        write_csv(
            os.path.join(output_folder, "times.csv"),
            ("row", "ID", "start", "stop"),
            ([row, *times[name]] for row, name in enumerate(found.ids)),
        )
    if "kaldi" in also:
        kaldi.write_vectors(output_folder, found.ids, found.matrix)
    if "npz" in also:
        path = os.path.join(output_folder, "embeddings.npz")
        with write_whole(path, "wb") as file:
            np.savez(file, ids=np.array(found.ids), embeddings=found.matrix)
    return found


def cut_windows(
    utterances: Utterances, output_folder: str, length: float, hop: float
) -> tuple[Utterances, dict[str, tuple[str, str, str]]]:
    """Cuts utterances into windows.

    ``output_folder`` gets ``windows.csv``, the annotation of the windows, whose
    IDs are ``ID@start-stop``; ``length`` of a window and ``hop`` from one start
    to the next are seconds. Gives the windows and, by their IDs, the ID of the
    utterance, start and stop in seconds from the beginning of the file.
    """
    items = [utterances.row(row) for row in range(len(utterances))]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        rates = list(pool.map(_rate, (item["wav"] for item in items)))
    rows, times = [], {}
    for item, rate in zip(items, rates):
        spans = [(item["start"], item["stop"])]
        if rate is not None:
            spans = _spans(*spans[0], round(length * rate), round(hop * rate))
        for start, stop in spans:
            seconds = [f"{at / (rate or 16000):.3f}" for at in (start, stop)]
            name = f"{item['ID']}@{'-'.join(seconds)}"
            duration = (stop - start) / (rate or 16000)
            rows.append((name, duration, item["wav"], start, stop))
            times[name] = item["ID"], *seconds
    path = os.path.join(output_folder, "windows.csv")
    write_annotation(path, rows)
    return read_annotation(path), times


def _check_windows(length, hop):
    """Refuses windows that are too short or leave gaps."""
    if not (MIN_SECONDS <= length < math.inf and 0.01 <= hop <= length):
        raise ValueError(
            f"Windows need a length of {MIN_SECONDS} s or more and a hop from "
            f"0.01 s to the length, found {length} and {hop}."
        )


def _spans(start, stop, length, hop):
    """First and last frame of the windows of an utterance."""
    if stop - start <= length:
        return [(start, stop)]
    starts = list(range(start, stop - length + 1, hop))
    # a remainder below a hundredth of a window is no window of its own
    if stop - (starts[-1] + length) > length // 100:
        starts.append(stop - length)
    return [(first, first + length) for first in starts]


def _rate(path):
    """Sample rate of a file; None if it cannot be read."""
    try:
        return audio.sample_rate(path)
    except OSError:
        return None  # the extraction will find out why, and note it


def main(argv: list[str] | None = None) -> None:
    """The command line of ``embed``."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folder")
    parser.add_argument("source", metavar="AUDIO")
    parser.add_argument("--output_folder", default="embeddings")
    parser.add_argument("--data_root", help="for $data_root in a CSV")
    parser.add_argument("--max_seconds", type=float)
    parser.add_argument("--batch_seconds", type=float, default=120.0)
    parser.add_argument(
        "--windows",
        nargs=2,
        type=float,
        metavar=("LENGTH", "HOP"),
        help="embed windows; both in seconds",
    )
    parser.add_argument(
        "--also",
        nargs="+",
        choices=ALSO,
        default=[],
        help="also write xvector.ark and .scp (kaldi), or embeddings.npz",
    )
    parser.add_argument("--device")
    add_trust(parser)
    args = parser.parse_args(argv)
    with one_line("embed", EncoderError):
        found = embed(**vars(args))
    count, dim = found.matrix.shape
    print(f"{count} embeddings of {dim} dimensions in {args.output_folder}")
    made = found.meta["made"]
    lines = describe(
        made["windowed"], made["with_silence"], made["silence_seconds"]
    )
    print("\n".join(lines), end="\n" if lines else "")
    if found.failed:
        print(
            f"{len(found.failed)} files without an embedding: see failed.csv "
            "there"
        )
