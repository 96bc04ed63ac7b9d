"""Audio files in tar shards, to be read in large pieces or from far away::

    > speechbrain-ssl pack AUDIO SHARDS

``AUDIO`` is a folder (with all folders in it) or a training CSV. ``SHARDS``
gets uncompressed tar files in the layout of WebDataset, ``000000.tar``, ...,
whose members are the files as they are, and ``train.csv`` with first byte and
size of each member. It is read like any training CSV, wherever the shards
are::

    > speechbrain-ssl train moco --data_folder SHARDS \\
        --train_annotation SHARDS/train.csv --skip_prep True

``data_folder`` may be a URL for fsspec (``s3://bucket/shards``). Shards in a
local folder need no CSV: ``--data_folder SHARDS`` prepares them like a folder
of files. The views of an utterance are the same as from files, bit by bit.

After a kill the same command goes on with the shard that is not complete.

With ``--hf``, ``AUDIO`` is a dataset of Hugging Face: its name on the hub, or a
folder that ``datasets.load_dataset`` reads. Its audio is streamed into the
shards as it is, without decoding; other columns, and so speakers, are not used.
There is no ``train.csv``, and an interrupted packing starts again elsewhere::

    > speechbrain-ssl pack USER/NAME SHARDS --hf --column audio --split train
    > speechbrain-ssl train moco --data_folder SHARDS
"""

import contextlib
import glob
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import numpy as np
import soundfile
from tqdm import tqdm

from speechbrain_ssl.checks import checked, number, optional, whole
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.extras import extra
from speechbrain_ssl.files import hash_of, same_or_refuse, write_whole
from speechbrain_ssl.help import command_parser, one_line

CSV_NAME, RECORD = "train.csv", "pack.json"
# Threads that each write a shard: small files keep a disk waiting.
WRITERS = 4
HEADER = 1024  # bytes of a member beside its data, about


@checked(shard_mb=number(above=0), shuffle=optional(whole(0)))
def pack(
    source: str,
    output_folder: str,
    shard_mb: float = 1000,
    shuffle: int | None = None,
    data_root: str | None = None,
    progress: bool = True,
) -> list[str]:
    """Packs audio into tar files; the module's docstring has the rules.

    A tar file is full at ``shard_mb`` 10^6 bytes; a larger audio file has one
    of its own. ``shuffle`` is the seed of a random order of the files, so that
    utterances that follow each other in a shard are not of one speaker; None:
    their order. ``data_root`` stands for ``$data_root`` in a CSV. Gives the tar
    files. A folder with shards of other files is an error.
    """
    if audio.is_url(output_folder):
        raise ValueError(
            f"{output_folder} is a URL: pack to a folder, and copy it there."
        )
    if source.lower().endswith(".csv"):
        rows = _rows_of(source, data_root)
        root = data_root and os.path.abspath(data_root)
    else:
        root = os.path.abspath(source)
        target = os.path.abspath(output_folder)
        if os.path.commonpath([root, target]) == root:
            raise ValueError(
                f"{output_folder} is in {source}, whose audio would be found "
                "twice then. Name a folder elsewhere."
            )
        rows = _rows_in(root, output_folder)
    # several rows may be segments of one file
    paths = list(dict.fromkeys(row[2] for row in rows))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(paths))
        paths = [paths[place] for place in order]
    names = _member_names(paths, root)
    shards = _plan(paths, shard_mb * 1e6, output_folder, names)
    with tqdm(total=len(paths), unit="file", disable=not progress) as bar:

        def write(shard):
            path, files = shard
            if not os.path.exists(path):
                _write_shard(path, files, names)
            bar.update(len(files))
            found = audio.members(path)
            return {file: "{}+{}".format(*found[names[file]]) for file in files}

        with ThreadPool(WRITERS) as pool:
            places = pool.map(write, shards.items(), chunksize=1)
    packed = {}
    for (path, _), found in zip(shards.items(), places):
        shard = f"$data_root/{os.path.basename(path)}"
        for file, place in found.items():
            packed[file] = f"{shard}::{place}::{names[file]}"
    if shuffle is not None:  # the rows follow the files
        rank = {path: place for place, path in enumerate(paths)}
        rows.sort(key=lambda row: rank[row[2]])
    write_annotation(
        os.path.join(output_folder, CSV_NAME),
        ((*row[:2], packed[row[2]], *row[3:]) for row in rows),
    )
    return list(shards)


def _rows_of(csv_path, data_root):
    """Rows of a CSV, with whole paths."""
    utterances = read_annotation(csv_path, data_root)
    rows = [
        tuple(row.values())
        for row in map(utterances.row, range(len(utterances)))
    ]
    for row in rows:
        if audio.is_url(row[2]):
            raise ValueError(
                f"{csv_path}: {row[2]} is a URL; pack reads local files. Copy "
                "them first."
            )
    return rows


def _rows_in(folder, output_folder):
    """Rows of the files in a folder that can be opened."""
    paths, left_out = audio.find(folder)
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(_header, paths))
    rows = []
    for name, path, header in zip(audio.names(paths, folder), paths, headers):
        if isinstance(header, str):
            left_out[path] = f"unreadable: {header}"
        elif header.frames:
            seconds = round(header.frames / header.sample_rate, 6)
            rows.append((name, seconds, path, 0, header.frames))
        else:
            left_out[path] = "empty: no frames"
    audio.write_left_out(
        os.path.join(output_folder, "skipped.csv"), left_out, folder
    )
    if not rows:
        raise ValueError(
            f"None of the {len(paths)} audio files in {folder} can be opened: "
            f"{audio.describe(left_out)}."
        )
    return rows


def _header(path):
    """Header of a file, or why it cannot be read."""
    try:
        return audio.info(path)
    except audio.AudioError as error:
        return str(error)


def _member_names(paths: Sequence[str], root: str | None) -> dict[str, str]:
    """Names in the tar files: paths below the folder, or whole ones."""
    names = dict(zip(paths, audio.names(list(paths), os.sep)))
    if root:
        inside = [path for path in paths if path.startswith(root + os.sep)]
        names.update(zip(inside, audio.names(inside, root)))
    places: dict[str, str] = {}
    for path, name in names.items():
        # a path must not seem to have a shard inside of a shard
        names[path] = name = name.replace(audio.SHARD, ".tar/")
        if places.setdefault(name, path) != path:
            raise ValueError(
                f"{places[name]} and {path} would both be called {name} in the "
                "shards. Rename one of them."
            )
    return names


def _plan(paths, full, output_folder, names):
    """Files of each shard, in order; refuses a folder with other shards."""
    shards, size = [], full
    stamps = [audio.stamp(path) for path in paths]
    for path, (length, _) in zip(paths, stamps):
        if size + length > full:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += length + HEADER
    listed = zip(map(names.get, paths), stamps)
    same_or_refuse(
        os.path.join(output_folder, RECORD),
        {
            "files": hash_of(*(repr(file).encode() for file in listed)),
            "shard_bytes": full,
        },
        what=f"The packing to {output_folder}",
        advice="Name another folder, or delete this one.",
    )
    return {
        os.path.join(output_folder, f"{number:06d}.tar"): files
        for number, files in enumerate(shards)
    }


def _write_shard(path, files, names):
    """Writes a tar file; equal audio gives equal bytes."""
    with (
        write_whole(path, "wb") as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as shard,
    ):
        for file in files:
            member = tarfile.TarInfo(names[file])
            with audio.open_bytes(file) as data:
                member.size = data.seek(0, os.SEEK_END)
                data.seek(0)
                shard.addfile(member, data)


@checked(shard_mb=number(above=0))
def pack_dataset(
    source: str, folder: str, column: str, split: str, shard_mb: float = 1000
) -> int:
    """Packs a dataset of Hugging Face, see above; gives the number of files."""
    if glob.glob(os.path.join(folder, "*.tar")):
        raise ValueError(f"{folder} has tar files. Name another folder.")
    left = enumerate(_encoded(source, column, split))
    file, shard, count = next(left, None), 0, -1
    while file is not None:
        with (
            write_whole(f"{folder}/{shard:06d}.tar", "wb") as out,
            tarfile.open(fileobj=out, mode="w") as tar,
        ):
            while file is not None and out.tell() < shard_mb * 1e6:
                count, (name, data) = file
                member = tarfile.TarInfo(f"{count:09d}_{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                file = next(left, None)
        shard += 1
    return count + 1


def _encoded(source, column, split) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of the audio of each row."""
    datasets = extra("datasets")
    rows = datasets.load_dataset(source, split=split, streaming=True)
    names = rows.column_names or [column]
    if column not in names:
        raise ValueError(f"{source} has no column {column!r}, only {names}.")
    rows = rows.select_columns([column])
    for row in rows.cast_column(column, datasets.Audio(decode=False)):
        path, data = row[column]["path"] or "", row[column]["bytes"]
        if data is None:
            with audio.open_bytes(path) as file:
                data = file.read()
        name = os.path.basename(path)
        if not name.lower().endswith(audio.EXTENSIONS):
            # without a name of audio, preparation would leave it out
            with contextlib.suppress(soundfile.LibsndfileError):
                kind = soundfile.info(io.BytesIO(data)).format
                name += f".{kind.lower()}"
        yield name, data


def main(argv: list[str] | None = None) -> None:
    """The command line of ``pack``."""
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="AUDIO")
    parser.add_argument("output_folder", metavar="SHARDS")
    parser.add_argument("--shard_mb", type=float, default=1000)
    parser.add_argument("--shuffle", type=int, metavar="SEED")
    parser.add_argument("--data_root", help="for $data_root in a CSV")
    parser.add_argument("--hf", action="store_true", help="AUDIO is a dataset")
    parser.add_argument("--column", help="for --hf; default: audio")
    parser.add_argument("--split", help="for --hf; default: train")
    args = parser.parse_args(argv)
    only = ("shuffle", "data_root") if args.hf else ("column", "split")
    if given := [f"--{x}" for x in only if getattr(args, x) is not None]:
        without = "cannot be used with" if args.hf else "needs"
        parser.error(f"{given[0]} {without} --hf")
    of_hf = {name: vars(args).pop(name) for name in ("hf", "column", "split")}
    with one_line("pack"):
        if of_hf.pop("hf"):
            where = args.source, args.output_folder
            of_hf["column"] = of_hf["column"] or "audio"
            of_hf["split"] = of_hf["split"] or "train"
            count = pack_dataset(*where, **of_hf, shard_mb=args.shard_mb)
            print(f"{count} files. Train with --data_folder {where[1]}")
            return
        shards = pack(**vars(args))
    print(
        f"{len(shards)} shards and {CSV_NAME} in {args.output_folder}. Train "
        f"with --data_folder {args.output_folder} --train_annotation "
        f"{os.path.join(args.output_folder, CSV_NAME)} --skip_prep True"
    )
