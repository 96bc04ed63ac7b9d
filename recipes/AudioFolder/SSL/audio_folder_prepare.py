"""Makes the annotation of a folder of unlabelled audio.

Run it as ``python audio_folder_prepare.py DATA_FOLDER OUT.csv``, or let the
training script call ``prepare_audio_folder``. Running it again is quick: only
new and changed files are looked at.
"""

import argparse
import collections
import csv
import functools
import json
import logging
import math
import os
import stat
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
PROBE_PLACES = (1 / 6, 1 / 2, 5 / 6)  # of the file
BLOCK_SECONDS = 30  # read at once from a file that may be silent


class File(NamedTuple):
    """What is known of one file; the first four fields are cached.

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

    Files of any rate and number of channels, in subfolders of any depth;
    hidden folders are left out. IDs are paths relative to the folder. The
    output does not depend on the number of workers. What was learned about
    usable files is kept next to the annotation, in ``<save_csv>.cache.json``.

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
        What is called instead of ``find_audio``, by recipes that know the
        tree of their corpus.
    row : callable
        What is called instead of ``annotation_row``.

    Returns
    -------
    dict
        Number of files by outcome: "usable", "too short", "silent" ...

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it has no usable audio; the message says what it has.

    Example
    -------
    >>> import soundfile, torch
    >>> folder = getfixture("tmpdir")
    >>> soundfile.write(folder / "a.wav", torch.rand(16000).numpy(), 16000)
    >>> prepare_audio_folder(folder, folder / "train.csv")
    {'usable': 1}
    """
    data_folder, save_csv = os.path.abspath(data_folder), os.fspath(save_csv)
    if not os.path.isdir(data_folder):
        raise FileNotFoundError(
            f"There is no folder {data_folder}. Set data_folder to the folder "
            "of the audio."
        )
    if skipped_csv is None:
        skipped_csv = os.path.join(os.path.dirname(save_csv), "skipped.csv")
    settings = {
        "data_folder": data_folder,
        "min_seconds": min_seconds,
        "silence_db": silence_db,
    }
    cache_file = f"{save_csv}.cache.json"
    cache = read_cache(cache_file, settings)
    paths, problems = (find or find_audio)(data_folder)
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
    usable = {path: file for path, file in files.items() if not file.problem}
    problems.update(
        (path, file.problem) for path, file in files.items() if file.problem
    )
    write_skipped(skipped_csv, problems)
    counts = collections.Counter(
        problem.partition(":")[0] for problem in problems.values()
    )
    if not usable:
        raise ValueError(
            f"None of the {len(paths)} audio files in {data_folder} can be "
            f"used: {describe(counts)}. The reasons are in {skipped_csv}."
        )
    rows = map(row or annotation_row, usable, usable.values())
    write_annotation(save_csv, rows)
    write_cache(cache_file, settings, usable)
    hours = sum(file.frames / file.sample_rate for file in usable.values())
    logger.info(
        f"{save_csv}: {len(usable)} utterances, {hours / 3600:.1f} hours. "
        f"Skipped: {describe(counts) or 'nothing'}."
    )
    return {"usable": len(usable), **counts}


def find_audio(data_folder):
    """Finds files by their extension.

    Arguments
    ---------
    data_folder : str
        Where to look.

    Returns
    -------
    paths : list of str
        Sorted, relative to the folder.
    problems : dict
        Reasons by relative path, for subfolders that cannot be opened.

    Raises
    ------
    ValueError
        If there is none.
    """
    paths, others, problems, seen = [], collections.Counter(), {}, set()

    def relative(path):
        return os.path.relpath(path, data_folder)

    def note(error):
        problems[relative(error.filename)] = f"unreadable: {error.strerror}"

    for parent, folders, names in os.walk(
        data_folder, followlinks=True, onerror=note
    ):
        # A link to a folder above would never end.
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        prefix = "" if parent == data_folder else relative(parent) + os.sep
        for name in names:
            if name.lower().endswith(audio.EXTENSIONS):
                paths.append(prefix + name)
            else:
                others[os.path.splitext(name)[1] or "no extension"] += 1
    if not paths:
        raise ValueError(
            f"{data_folder} has no audio files "
            f"({', '.join(audio.EXTENSIONS)}), but "
            f"{describe(others) or 'no files at all'}. Set data_folder to "
            "the folder of the audio."
        )
    return sorted(paths), problems


def examine(data_folder, cache, min_seconds, silence_db, path):
    """Says whether a file can be used, reading as little as possible.

    Arguments
    ---------
    data_folder : str
        The folder.
    cache : dict
        What earlier runs knew of usable files, by relative path.
    min_seconds : float
        Shortest length.
    silence_db : float
        Level that has to be reached.
    path : str
        The file, relative to the folder.

    Returns
    -------
    File
        With the problem, if there is one.
    """
    absolute = os.path.join(data_folder, path)
    try:
        path.encode()
        status = os.stat(absolute)
        known = cache.get(path)
        if known and known[:2] == [status.st_size, status.st_mtime_ns]:
            return File(*known)
        file = File(status.st_size, status.st_mtime_ns)
        # Opening a pipe would wait forever.
        if not stat.S_ISREG(status.st_mode):
            return file._replace(problem="unreadable: not a regular file")
        if file.size == 0:
            return file._replace(problem="empty: 0 bytes")
        frames, rate, _ = audio.info(absolute)
        problem = _problem(absolute, frames, rate, min_seconds, silence_db)
        return File(file.size, file.mtime, frames, rate, problem)
    except UnicodeEncodeError:
        return File(0, 0, problem="name not UTF-8: rename the file")
    # What decoders throw at broken files; one of them must not end the scan.
    except (OSError, RuntimeError, TypeError, ValueError) as error:
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


def write_skipped(skipped_csv, problems):
    """Lists the files that are not used.

    Arguments
    ---------
    skipped_csv : str
        The file to write, with columns ``wav,reason``.
    problems : dict
        Reasons by path relative to the data folder.
    """
    with write_whole(skipped_csv) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wav", "reason"])
        for path, problem in sorted(problems.items()):
            writer.writerow([f"$data_root/{path}", problem])


def read_cache(cache_file, settings):
    """What an earlier run with the same settings knew.

    Arguments
    ---------
    cache_file : str
        The file; it need not exist.
    settings : dict
        All that the outcome depends on beside the files.

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
    """Keeps what ``read_cache`` reads.

    Arguments
    ---------
    cache_file : str
        The file to write.
    settings : dict
        All that the outcome depends on beside the files.
    usable : dict
        Each ``File`` by relative path.
    """
    files = {path: file[:4] for path, file in usable.items()}
    with write_whole(cache_file) as out:
        json.dump({"settings": settings, "files": files}, out, indent=0)


def describe(counts):
    """Text for a count of things, e.g. "2 too short, 1 silent".

    Arguments
    ---------
    counts : collections.Counter
        How many of each.

    Returns
    -------
    str
        The ten most frequent; empty if there are none.
    """
    return ", ".join(
        f"{count} {name}" for name, count in counts.most_common(10)
    )


def _problem(path, frames, rate, min_seconds, silence_db):
    """Why a file with this header cannot be used, or an empty string."""
    if frames < min_seconds * rate:
        return f"too short: {frames / rate:.2f} s of {min_seconds} s"
    length = max(1, min(frames, int(PROBE_SECONDS * rate)))
    starts = [int(place * (frames - length)) for place in PROBE_PLACES]
    levels = [_level(path, start, start + length) for start in starts]
    if not all(map(math.isfinite, levels)):
        return "NaN: samples that are no finite numbers"
    enough = 10 ** (silence_db / 20)
    if max(levels) >= enough:
        return ""
    # Maybe only the probes are silent.
    block = BLOCK_SECONDS * rate
    for start in range(0, frames, block):
        level = _level(path, start, min(start + block, frames))
        if not math.isfinite(level):
            return "NaN: samples that are no finite numbers"
        if level >= enough:
            return ""
    return f"silent: below {silence_db} dB"


def _level(path, start, stop):
    """Largest deviation from the middle, 1 at full scale; NaN if any is."""
    samples, _ = audio.read(path, start, stop)
    if samples.size == 0:
        raise OSError(
            f"{path} ends before frame {start}, although its header says more"
        )
    return float(np.ptp(samples) / 2)


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
