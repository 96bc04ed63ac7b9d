"""Lists audio of a folder, a file or a text file as utterances."""

import concurrent.futures
import os

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import (
    Utterances,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.files import read_text


def find_utterances(
    source: str, output_folder: str, data_root: str | None = None
) -> Utterances:
    """Lists audio as an annotation, one row for each file.

    ``source`` is a folder or file of audio, a list of paths, or an annotation
    with ``data_root`` for ``$data_root``. ``output_folder`` gets
    ``utterances.csv``, unless there is an annotation, and ``skipped.csv`` with
    the files of a folder that are left out.
    """
    if source.lower().endswith(".csv"):
        return read_annotation(source, data_root)
    if os.path.isdir(source):
        paths, left_out = audio.find(source)
        names = audio.names(paths, source)
        audio.write_left_out(
            os.path.join(output_folder, "skipped.csv"), left_out, source
        )
    elif source.lower().endswith(audio.EXTENSIONS) and audio.is_file(source):
        names, paths = [os.path.basename(source)], [source]
    else:
        root, names = os.path.dirname(source), _read_list(source)
        paths = [
            name if audio.is_url(name) else _place(root, name) for name in names
        ]
    paths = [audio.absolute(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        lengths = list(pool.map(_length, paths))
    path = os.path.join(output_folder, "utterances.csv")
    write_annotation(
        path,
        (
            (name, seconds, path, 0, frames)
            for name, path, (seconds, frames) in zip(names, paths, lengths)
        ),
    )
    return read_annotation(path)


def _place(root, name):
    """Path of a line of a list; the extraction notes a missing one."""
    return audio.place(root, name) or os.path.join(root, name)


def _read_list(path):
    """The different lines of a list that are not blank."""
    lines = read_text(path, "list of paths").split("\n")
    # a file that the list names twice is one utterance
    names = [*dict.fromkeys(line.strip() for line in lines if line.strip())]
    if not names:
        raise ValueError(f"{path} names no audio. Write one path per line.")
    return names


def _length(path):
    """Seconds and frames of a file."""
    try:
        header = audio.info(path)
    except OSError:
        # something: the extraction will find out why, and note it
        return 1.0, 1
    frames = max(header.frames, 1)
    return frames / header.sample_rate, frames
