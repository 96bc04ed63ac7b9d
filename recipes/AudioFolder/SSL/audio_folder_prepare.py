"""Writes the annotation of a folder of unlabelled audio.

The training scripts call ``prepare_audio_folder``. It can also be run by
itself: ``python audio_folder_prepare.py DATA_FOLDER OUT.csv``. A second run is
fast, because it examines only new and changed files; one after a kill examines
only the rest.
"""

import argparse
import json
import logging
import os
from typing import NamedTuple

import numpy as np
from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.dataio.annotations import portable, write_annotation
from speechbrain_ssl.dataio.parallel import map_chunks
from speechbrain_ssl.files import read_jsonl, write_whole
from speechbrain_ssl.help import one_line
from tqdm import tqdm

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PROBE_SECONDS = 0.1
# relative positions of the probes; the last one detects a truncated file
PROBE_PLACES = (1 / 6, 1 / 2, 5 / 6, 1)
BLOCK_SECONDS = 30  # part that is read at once if all probes are silent


class File(NamedTuple):
    """Properties of a file; the first four fields are cached."""

    size: int  # size in bytes
    mtime: int  # time of the last change in nanoseconds
    frames: int = 0  # length in samples per channel
    sample_rate: int = 0  # sample rate of the file in Hz
    problem: str = ""  # reason why the file cannot be used, or an empty string


def prepare_audio_folder(
    data_folder,
    save_csv,
    skipped_csv=None,
    min_seconds=1.0,
    silence_db=-60.0,
    num_workers=None,
    find=None,
    row=None,
    find_faces=None,
):
    """Writes an annotation of the usable audio files in a folder.

    Files may have any sample rate and number of channels, and be in
    subfolders or tar files (see ``audio.find``). IDs are paths relative to the
    folder, or the names of members of tar files (see ``audio.names``). The
    number of workers does not change the output. Lengths and sample rates of
    usable files are noted in ``<save_csv>.cache.jsonl`` as soon as they are
    known.

    Arguments
    ---------
    data_folder : str
        The folder, ``$data_root`` in the annotation.
    save_csv : str
        The annotation to write.
    skipped_csv : str
        List of the other files, with columns ``wav,reason``. None:
        skipped.csv in the folder of the annotation.
    min_seconds : float
        Shorter files are left out.
    silence_db : float
        Files with a lower peak level (dB relative to full scale, without DC
        offset) are left out.
    num_workers : int
        Number of processes, each with four threads that wait for disks. None:
        one per processor.
    find : callable
        Replacement of ``audio.find``, for corpora with a known layout.
    row : callable
        Replacement of ``annotation_row``.
    find_faces : callable
        Paths of audio files to a dict of path -> face, such as
        ``speechbrain_ssl.dataio.faces.find_faces``: adds a column ``face``,
        which is empty for utterances without a readable face. Faces that
        cannot be read are listed in ``skipped_csv``. None: no faces.

    Returns
    -------
    dict
        Number of files by outcome: "usable", "too short", "silent", ...

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or has no audio files.
    ValueError
        If none of its audio files is usable; the message counts the reasons.

    Example
    -------
    >>> import soundfile, torch
    >>> folder = getfixture("tmpdir")
    >>> soundfile.write(folder / "a.wav", torch.rand(16000).numpy(), 16000)
    >>> prepare_audio_folder(folder, folder / "train.csv")
    {'usable': 1}
    """
    data_folder, save_csv = os.path.abspath(data_folder), os.fspath(save_csv)
    if skipped_csv is None:
        skipped_csv = os.path.join(os.path.dirname(save_csv), "skipped.csv")
    settings = {
        "data_folder": data_folder,
        "min_seconds": min_seconds,
        "silence_db": silence_db,
    }
    cache_file = f"{save_csv}.cache.jsonl"
    cache = read_cache(cache_file, settings)
    paths, left_out = (find or audio.find)(data_folder)
    if find_faces is not None:
        paths, videos = without_videos(paths)
        left_out = {**left_out, **videos}
    if not cache or _is_torn(cache_file):
        known = {name: File(*rest) for name, rest in cache.items()}
        write_cache(cache_file, settings, known)
    usable = {}
    with (
        open(cache_file, "a", encoding="utf-8") as notes,
        tqdm(
            desc="Examining audio files", total=len(paths), unit=" files"
        ) as bar,
    ):
        names = (os.path.relpath(path, data_folder) for path in paths)
        items = (
            (path, name, cache.get(name)) for path, name in zip(paths, names)
        )

        def look(item):  # a plain tuple: processes may not know File by name
            return tuple(examine(min_seconds, silence_db, item))

        for chunk in map_chunks(look, items, num_workers):
            for (path, name, known), found in chunk:
                file = File(*found)
                if file.problem:
                    left_out[path] = file.problem
                    continue
                usable[name] = file
                if known != list(file[:4]):
                    notes.write(_note(name, file))
            notes.flush()
            bar.update(len(chunk))
    seen, damaged = None, {}
    if find_faces is not None:
        usable_paths = [os.path.join(data_folder, name) for name in usable]
        seen, damaged = check_faces(find_faces(usable_paths), num_workers)
    audio.write_left_out(skipped_csv, {**left_out, **damaged}, data_folder)
    if not usable:
        raise ValueError(
            f"None of the {len(paths)} audio files in {data_folder} can be "
            f"used: {audio.describe(left_out)}. See {skipped_csv}."
        )
    rows = list(map(row or annotation_row, usable, usable.values()))
    if row is None:
        names = audio.names(list(usable), ".")
        rows = ((name, *row[1:]) for name, row in zip(names, rows))
    extra = ()
    if seen is not None:
        found = [
            seen.get(os.path.join(data_folder, name), "") for name in usable
        ]
        cells = [portable(face, data_folder) for face in found]
        rows = ((*own, cell) for own, cell in zip(rows, cells))
        extra = (faces.COLUMN,)
        logger.info(
            f"{len(seen)} of {len(usable)} utterances have a face; "
            f"{len(damaged)} faces cannot be read."
        )
    write_annotation(save_csv, rows, extra)
    write_cache(cache_file, settings, usable)
    hours = sum(file.frames / file.sample_rate for file in usable.values())
    logger.info(
        f"{save_csv}: {len(usable)} utterances, {hours / 3600:.1f} hours. "
        f"Left out: {audio.describe(left_out) or 'nothing'}."
    )
    return {"usable": len(usable), **audio.count_reasons(left_out)}


def without_videos(paths):
    """Leaves out the videos that lie beside their sound in another file.

    Gives the other paths, and the reason of each video by its path.
    """
    videos = {
        path
        for path in paths
        if os.path.splitext(path)[1].lower() in faces.VIDEOS
    }
    sounds = {os.path.splitext(path)[0] for path in paths if path not in videos}
    left_out = {
        path: "face: the sound is in another file of this name"
        for path in videos
        if os.path.splitext(path)[0] in sounds
    }
    return [path for path in paths if path not in left_out], left_out


def check_faces(found, num_workers=None):
    """Tries to read the face of each audio file.

    Gives the faces that can be read, by audio file, and the reason of each
    other one by its path.
    """
    problems = {}
    with tqdm(desc="Examining faces", total=len(found), unit=" faces") as bar:
        for chunk in map_chunks(
            lambda item: faces.problem_of(item[1]), found.items(), num_workers
        ):
            problems.update((path, problem) for (path, _), problem in chunk)
            bar.update(len(chunk))
    readable = {path: found[path] for path in found if not problems[path]}
    damaged = {
        found[path]: f"damaged face: {problem}"
        for path, problem in problems.items()
        if problem
    }
    return readable, damaged


def examine(min_seconds, silence_db, item):
    """The ``File`` of a path; reads as little as possible.

    ``item`` has the path, its name relative to the data folder, and size,
    mtime, frames and sample rate of an earlier run, or None.
    """
    path, _, known = item
    try:
        size, mtime = audio.stamp(path)
        if known and known[:2] == [size, mtime]:
            return File(*known)
        if size == 0:
            return File(size, mtime, problem="empty: 0 bytes")
        with audio.open(path) as file:
            problem = _problem(file, min_seconds, silence_db)
            return File(size, mtime, file.frames, file.rate, problem)
    except OSError as error:
        return File(0, 0, problem=f"unreadable: {error}")


def annotation_row(path, file):
    """Row of the annotation: ID, duration, wav, start, stop."""
    seconds = round(file.frames / file.sample_rate, 6)
    return path, seconds, f"$data_root/{path}", 0, file.frames


def read_cache(cache_file, settings):
    """Reads the usable files of an earlier run with the same settings.

    Values are size, mtime, frames and sample rate, by the relative path. The
    file may be missing.
    """
    lines = read_jsonl(cache_file)
    if not lines or lines[0] != settings:
        return {}
    return {name: rest for name, *rest in lines[1:]}


def _is_torn(cache_file):
    """Whether a killed run has left half a line."""
    with open(cache_file, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def write_cache(cache_file, settings, usable):
    """Writes the cache; ``usable`` is a dict of relative path -> ``File``."""
    with write_whole(cache_file) as out:
        out.write(json.dumps(settings) + "\n")
        out.writelines(map(_note, usable, usable.values()))


def _note(name, file):
    """Line of the cache about a usable file."""
    return json.dumps([name, *file[:4]]) + "\n"


def _problem(file, min_seconds, silence_db):
    """Returns why an open file cannot be used, or an empty string."""
    frames, rate = file.frames, file.rate
    if frames < min_seconds * rate:
        return f"too short: {frames / rate:.2f} s, less than {min_seconds} s"
    length = max(1, min(frames, int(PROBE_SECONDS * rate)))
    starts = [int(place * (frames - length)) for place in PROBE_PLACES]
    enough = 10 ** (silence_db / 20)
    # read all probes, because each may find a damaged part
    if max([_level(file, start, start + length) for start in starts]) >= enough:
        return ""
    # all probes are silent: read the whole file
    block = BLOCK_SECONDS * rate
    for start in range(0, frames, block):
        if _level(file, start, min(start + block, frames)) >= enough:
            return ""
    return f"silent: below {silence_db} dB"


def _level(file, start, stop):
    """Peak level without DC offset, relative to full scale."""
    return float(np.ptp(file.read(start, stop)) / 2)


def _parse_arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_folder")
    parser.add_argument("save_csv")
    parser.add_argument("--skipped_csv")
    parser.add_argument("--min_seconds", type=float, default=1.0)
    parser.add_argument("--silence_db", type=float, default=-60.0)
    parser.add_argument("--num_workers", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = vars(_parse_arguments())
    with one_line("audio_folder_prepare.py"):
        prepare_audio_folder(**arguments)
