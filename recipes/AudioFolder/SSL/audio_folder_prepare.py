"""Makes the annotation of a folder of unlabelled audio.

Run it as ``python audio_folder_prepare.py DATA_FOLDER OUT.csv``, or let the
training script call ``prepare_audio_folder``. Running it again is quick: only
new and changed files are looked at.
"""

import argparse
import functools
import json
import logging
import os
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import write_annotation
from speechbrain_ssl.files import write_whole
from tqdm import tqdm

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PROBE_SECONDS = 0.1
PROBE_PLACES = (1 / 6, 1 / 2, 5 / 6, 1)  # of the file; the end: is it cut?
BLOCK_SECONDS = 30  # read at once from a file that may be silent


class File(NamedTuple):
    """Size, length and rate of a file; the first four fields are cached.

    Arguments
    ---------
    size : int
        In bytes.
    mtime : int
        Time of the last change in nanoseconds.
    frames : int
        Length at the file's own rate.
    sample_rate : int
        The file's own rate in Hz.
    problem : str
        Why it cannot be used; empty if it can.
    """

    size: int
    mtime: int
    frames: int = 0
    sample_rate: int = 0
    problem: str = ""


def prepare_audio_folder(
    data_folder,
    save_csv,
    skipped_csv=None,
    min_seconds=1.0,
    silence_db=-60.0,
    num_workers=None,
    find=None,
    row=None,
):
    """Lists the usable audio files of a folder in an annotation.

    Files of any rate and number of channels, in subfolders of any depth, as
    ``audio.find`` finds them. IDs are paths relative to the folder. The
    output does not depend on the number of workers. Lengths and rates of
    usable files are kept next to the annotation, in
    ``<save_csv>.cache.json``.

    Arguments
    ---------
    data_folder : str
        The folder, ``$data_root`` in the annotation.
    save_csv : str
        The annotation to write.
    skipped_csv : str
        Where to list files that cannot be used, with columns ``wav,reason``;
        by default skipped.csv next to the annotation.
    min_seconds : float
        Shorter files are skipped.
    silence_db : float
        Files that stay below this level (dB relative to full scale, without
        DC offset) from start to end are skipped.
    num_workers : int
        Threads; by default four per processor, as they mostly wait for disks.
    find : callable
        Replaces ``audio.find`` in recipes that know the tree of their
        corpus.
    row : callable
        Replaces ``annotation_row``.

    Returns
    -------
    dict
        Number of files by outcome: "usable", "too short", "silent" ...

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
    cache_file = f"{save_csv}.cache.json"
    cache = read_cache(cache_file, settings)
    paths, left_out = (find or audio.find)(data_folder)
    look = functools.partial(
        examine, data_folder, cache, min_seconds, silence_db
    )
    with ThreadPool(num_workers or 4 * os.cpu_count()) as pool:
        files = tqdm(
            pool.imap(look, paths, chunksize=16),
            desc="Looking at audio files",
            total=len(paths),
            unit=" files",
        )
        files = dict(zip(paths, files))
    usable = {
        os.path.relpath(path, data_folder): file
        for path, file in files.items()
        if not file.problem
    }
    left_out = {
        **left_out,
        **{path: file.problem for path, file in files.items() if file.problem},
    }
    audio.write_left_out(skipped_csv, left_out, data_folder)
    if not usable:
        raise ValueError(
            f"None of the {len(paths)} audio files in {data_folder} can be "
            f"used: {audio.describe(left_out)}. The reasons are in "
            f"{skipped_csv}."
        )
    rows = map(row or annotation_row, usable, usable.values())
    write_annotation(save_csv, rows)
    write_cache(cache_file, settings, usable)
    hours = sum(file.frames / file.sample_rate for file in usable.values())
    logger.info(
        f"{save_csv}: {len(usable)} utterances, {hours / 3600:.1f} hours. "
        f"Left out: {audio.describe(left_out) or 'nothing'}."
    )
    return {"usable": len(usable), **audio.count_reasons(left_out)}


def examine(data_folder, cache, min_seconds, silence_db, path):
    """Decides whether a file can be used, reading as little as possible.

    Arguments
    ---------
    data_folder : str
        The folder.
    cache : dict
        Usable files of an earlier run, from ``read_cache``.
    min_seconds : float
        Shortest length.
    silence_db : float
        Level that has to be reached.
    path : str
        The file.

    Returns
    -------
    File
        With the problem, if there is one.
    """
    try:
        status = os.stat(path)
        size, mtime = status.st_size, status.st_mtime_ns
        known = cache.get(os.path.relpath(path, data_folder))
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
    """One row of the annotation.

    Arguments
    ---------
    path : str
        Relative to the data folder.
    file : File
        A usable one.

    Returns
    -------
    tuple
        ID, duration, wav, start, stop.
    """
    seconds = round(file.frames / file.sample_rate, 6)
    return path, seconds, f"$data_root/{path}", 0, file.frames


def read_cache(cache_file, settings):
    """Reads the usable files of an earlier run with the same settings.

    Arguments
    ---------
    cache_file : str
        The file; it need not exist.
    settings : dict
        Everything but the files that the outcome depends on.

    Returns
    -------
    dict
        Size, mtime, frames and rate of usable files by relative path.
    """
    try:
        with open(cache_file, encoding="utf-8") as file:
            cache = json.load(file)
        return cache["files"] if cache["settings"] == settings else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def write_cache(cache_file, settings, usable):
    """Writes the file that ``read_cache`` reads.

    Arguments
    ---------
    cache_file : str
        The file to write.
    settings : dict
        Everything but the files that the outcome depends on.
    usable : dict
        Each ``File`` by relative path.
    """
    files = {path: file[:4] for path, file in usable.items()}
    with write_whole(cache_file) as out:
        json.dump({"settings": settings, "files": files}, out, indent=0)


def _problem(file, min_seconds, silence_db):
    """Why an open file cannot be used, or an empty string."""
    frames, rate = file.frames, file.rate
    if frames < min_seconds * rate:
        return f"too short: {frames / rate:.2f} s of {min_seconds} s"
    length = max(1, min(frames, int(PROBE_SECONDS * rate)))
    starts = [int(place * (frames - length)) for place in PROBE_PLACES]
    enough = 10 ** (silence_db / 20)
    # all probes are read: each may find damage
    if max([_level(file, start, start + length) for start in starts]) >= enough:
        return ""
    # maybe only the probes are silent
    block = BLOCK_SECONDS * rate
    for start in range(0, frames, block):
        if _level(file, start, min(start + block, frames)) >= enough:
            return ""
    return f"silent: below {silence_db} dB"


def _level(file, start, stop):
    """Largest deviation from the middle, 1 at full scale."""
    return float(np.ptp(file.read(start, stop)) / 2)


def _parse_arguments():
    """The command line."""
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
    prepare_audio_folder(**vars(_parse_arguments()))
