"""Annotations: CSV files that list utterances, read into shared memory.

The columns are ``ID,duration,wav,start,stop``: the duration in seconds, the
path of the audio file (it may start with ``$data_root/``), and the first and
last frame of the utterance at the file's sample rate. A column ``face`` is for
audio-visual training (see ``speechbrain_ssl.dataio.faces``). Other columns are
ignored unless they are requested by name, so that no speaker label reaches
training by accident.

The columns of a large CSV file are kept in a file beside it, ``CSV.columns``,
which all ranks and loader workers of a machine map, so that they are in its
memory once.
"""

import csv
import io
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DataPipeline

from speechbrain_ssl.dataio import columns
from speechbrain_ssl.dataio.audio import AudioError, absolute
from speechbrain_ssl.devices import share
from speechbrain_ssl.files import write_whole

logger = logging.getLogger(__name__)

COLUMNS = ("ID", "duration", "wav", "start", "stop")
ROOT = "$data_root"
# in a message about shared memory
ANNOTATION = "The annotation"

# CSV files of at least this size have a file of columns: some 100,000 rows.
MAPPED_BYTES = 2**24

# Rows per call of the parser: enough to amortize numpy's overhead, few enough
# to keep their strings in the processor's cache (4096 take twice as long).
_CHUNK = 256

# Blocks of rows that are read at the same time, see EpochSampler.
STREAMS = 16

# Replacements that are tried for an unreadable row, and the number of the
# random stream that draws them.
TRIES, REPLACEMENTS = 10, 1002


class Utterances:
    """The rows of an annotation, as columns that processes share.

    Loader workers map the same memory, whether they are forked or spawned; a
    dict per row would be copied into each worker. Columns of a file are mapped
    by all ranks of a machine too.

    ``text`` has the UTF-8 strings of all rows, concatenated [bytes]: the ID,
    the wav and the ``extra`` columns of each row. ``offsets`` are the start of
    each string, and the end of the last one [rows * strings + 1]. Durations are
    float32 seconds; ``start`` and ``stop`` are the first frame, and one after
    the last frame, at the file's sample rate, int64 [rows]. ``data_root``
    replaces ``$data_root``.
    """

    def __init__(
        self,
        text: torch.Tensor,
        offsets: torch.Tensor,
        durations: torch.Tensor,
        start: torch.Tensor,
        stop: torch.Tensor,
        data_root: str | os.PathLike | None = None,
        extra: Sequence[str] = (),
    ):
        self.text = share(text, ANNOTATION)
        self.offsets = share(offsets, ANNOTATION)
        self.durations = share(durations, ANNOTATION)
        self.start = share(start, ANNOTATION)
        self.stop = share(stop, ANNOTATION)
        self.data_root = data_root and absolute(os.fspath(data_root))
        self.extra = tuple(extra)
        self.mapped: columns.Mapped | None = None

    @classmethod
    def of_file(
        cls, mapped: columns.Mapped, data_root: str | os.PathLike | None = None
    ) -> "Utterances":
        """Utterances with mapped columns, once in memory for all processes."""
        self = cls.__new__(cls)
        vars(self).update(mapped.columns)
        self.data_root = data_root and absolute(os.fspath(data_root))
        self.extra = tuple(mapped.header["key"]["extra"])
        self.mapped = mapped
        return self

    def __reduce__(self):
        """A spawned worker maps the file again."""
        if self.mapped is None:
            return super().__reduce__()
        path, header, _ = self.mapped
        return _map_again, (path, header["key"], self.data_root)

    def hash(self) -> str:
        """SHA-256 of the rows, with paths below ``$data_root``."""
        if self.mapped is not None:
            return self.mapped.header["hash"]
        return columns.hash_columns(vars(self))

    def __len__(self):
        return len(self.durations)

    def row(self, index: int) -> dict[str, Any]:
        """Returns one row as a dict: ID, duration, wav, start, stop and the
        extra columns (strings); ``$data_root`` is replaced.
        """
        index = range(len(self))[index]
        utterance, *paths = self._strings(index)
        wav, *extra = map(self._place, paths)
        return {
            "ID": utterance,
            "duration": self.durations[index].item(),
            "wav": wav,
            "start": self.start[index].item(),
            "stop": self.stop[index].item(),
            **dict(zip(self.extra, extra)),
        }

    def ids(self) -> Iterator[str]:
        """Iterates over the IDs in order."""
        return (self._strings(index)[0] for index in range(len(self)))

    def wavs(self) -> Iterator[str]:
        """Iterates over the paths in order."""
        return (self.row(index)["wav"] for index in range(len(self)))

    def having(self, column: str) -> "Utterances":
        """The rows that have a value in an extra column; there must be one."""
        width = 2 + len(self.extra)
        lengths = self.offsets.diff().view(-1, width)
        kept = lengths[:, 2 + self.extra.index(column)] > 0
        if not kept.any():
            raise ValueError(
                f"None of the {len(self)} utterances has a {column}."
            )
        return self.take(kept)

    def take(self, kept: np.ndarray | torch.Tensor) -> "Utterances":
        """The rows where ``kept`` is True [rows], in their order."""
        kept = torch.as_tensor(kept)
        width = 2 + len(self.extra)
        lengths = self.offsets.diff().view(-1, width)
        bytes_kept = kept.repeat_interleave(lengths.sum(1))
        offsets = torch.zeros(int(kept.sum()) * width + 1, dtype=torch.int64)
        torch.cumsum(lengths[kept].flatten(), 0, out=offsets[1:])
        return Utterances(
            self.text[bytes_kept],
            offsets,
            self.durations[kept],
            self.start[kept],
            self.stop[kept],
            self.data_root,
            self.extra,
        )

    def _place(self, path):
        """Replaces ``$data_root`` at the start of a path."""
        if self.data_root and path.startswith(ROOT + "/"):
            return self.data_root + path[len(ROOT) :]
        return path

    def _strings(self, index):
        """Returns ID, wav and extra columns of one row."""
        width = 2 + len(self.extra)
        ends = self.offsets[index * width : (index + 1) * width + 1].tolist()
        data = self.text[ends[0] : ends[-1]].numpy().tobytes()
        return [
            data[first - ends[0] : last - ends[0]].decode()
            for first, last in itertools.pairwise(ends)
        ]


def read_annotation(
    csv_path: str | os.PathLike,
    data_root: str | os.PathLike | None = None,
    extra: Sequence[str] = (),
) -> Utterances:
    """Reads and checks an annotation, in the order of the file.

    ``data_root`` replaces ``$data_root`` in the column wav; ``extra`` are other
    columns to read, as strings. A missing column, a wrong value, a repeated ID
    and a file without rows are errors that name the file, the line and the
    value.
    """
    extra = tuple(extra)
    if not os.path.exists(csv_path):
        raise FileNotFoundError(
            f"There is no file {csv_path}; expected a CSV with the columns "
            f"{', '.join((*COLUMNS, *extra))}. Name one that is there; a "
            "training writes that of its audio with skip_prep: False."
        )
    if os.path.getsize(csv_path) < MAPPED_BYTES:
        return _in_memory(csv_path, data_root, extra)
    # the first process parses, the others wait and map what it has written
    with columns.only_one(csv_path):
        path = columns.place_of(csv_path, extra)
        key = columns.key_of(csv_path, extra)
        mapped = columns.open_columns(path, key)
        if mapped is None:
            try:
                _write_columns(path, key, csv_path, data_root, extra)
            except OSError as error:
                logger.warning(
                    "%s cannot be written (%s): each process keeps its own "
                    "copy of the annotation.",
                    path,
                    error.strerror or error,
                )
                return _in_memory(csv_path, data_root, extra)
            mapped = columns.open_columns(path, key)
    if mapped is None or (mapped.header["rooted"] and data_root is None):
        return _in_memory(csv_path, data_root, extra)
    return Utterances.of_file(mapped, data_root)


def _in_memory(csv_path, data_root, extra):
    """Reads an annotation into shared memory."""
    found, _ = _read_columns(csv_path, data_root, extra, io.BytesIO)
    tensors = {
        name: torch.frombuffer(
            file.getbuffer(), dtype=getattr(torch, columns.DTYPES[name])
        )
        for name, file in found.items()
    }
    return Utterances(**tensors, data_root=data_root, extra=extra)


def _write_columns(path, key, csv_path, data_root, extra):
    """Reads an annotation into a file of columns, with little memory."""
    folder = os.path.dirname(path) or "."
    found, rooted = _read_columns(
        csv_path, data_root, extra, lambda: tempfile.TemporaryFile(dir=folder)
    )
    columns.write_columns(path, key, rooted, found)
    for file in found.values():
        file.close()


def _map_again(path, key, data_root):
    """Utterances in a worker that was not forked."""
    mapped = columns.open_columns(path, key)
    if mapped is None:
        raise ValueError(
            f"{path} has changed while its utterances were in use. Start the "
            "command again."
        )
    return Utterances.of_file(mapped, data_root)


def _read_columns(csv_path, data_root, extra, new_file):
    """Parses an annotation into a file of ``new_file`` for each column.

    Also says whether a path may start with ``$data_root``.
    """
    rows = numbered_rows(csv_path)
    header = _read_header(rows, csv_path, extra)
    names = ("text", "lengths", "hashes", "durations", "start", "stop")
    # one growing file per column does not fragment the heap
    files: dict[str, IO] = {name: new_file() for name in names}
    root, rooted = f"{ROOT}/".encode(), False
    while chunk := list(itertools.islice(rows, _CHUNK)):
        parsed = _parse_chunk(chunk, header, extra, data_root, csv_path)
        for file, column in zip(files.values(), parsed):
            file.write(column)
        rooted = rooted or root in parsed[0].tobytes()
    if not files["text"].tell():
        raise ValueError(
            f"{csv_path} has a header but no rows. Prepare the data again."
        )
    _check_unique(_array(files.pop("hashes")), csv_path)
    offsets = new_file()
    offsets.write(np.zeros(1, np.int64))
    offsets.write(np.cumsum(_array(files.pop("lengths"))))
    return {
        name: offsets if name == "offsets" else files[name]
        for name in columns.DTYPES
    }, rooted


def _array(file):
    """Whole content of a file as int64 numbers, which may be changed."""
    size = file.tell()
    file.seek(0)
    array = np.empty(size // 8, np.int64)
    file.readinto(array)
    file.close()
    return array


def write_annotation(
    csv_path: str | os.PathLike, rows: Iterable, extra: Sequence[str] = ()
) -> None:
    """Writes an annotation. An interrupted call leaves no partial file.

    Rows are dicts by column name (other keys are ignored), or tuples (ID,
    duration, wav, start, stop, extra columns).
    """
    columns = (*COLUMNS, *extra)
    with write_whole(csv_path) as file:
        plain = csv.writer(file, lineterminator="\n")
        # CSV readers strip leading spaces that are not quoted
        quoted = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        plain.writerow(columns)
        for number, row in enumerate(rows):
            if isinstance(row, dict):
                row = [row[name] for name in columns if name in row]
            if len(row) != len(columns):
                raise ValueError(
                    f"Row {number} of {csv_path} needs a value for each of "
                    f"{', '.join(columns)}, but it is {tuple(row)}."
                )
            # csv.writer does not quote a carriage return
            special = any(
                str(cell).startswith(" ") or "\r" in str(cell) for cell in row
            )
            (quoted if special else plain).writerow(row)


def size_of(csv_path: str | os.PathLike) -> tuple[int, float]:
    """Number of utterances and hours of an annotation, from its durations."""
    with open(
        csv_path, newline="", encoding="utf-8-sig", errors="replace"
    ) as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        try:
            seconds = [float(row["duration"]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{csv_path}: expected a column of numbers 'duration', found "
                f"something else in line {rows.line_num}"
            ) from error
    return len(seconds), math.fsum(seconds) / 3600


def read_by_id(
    csv_path: str | os.PathLike, column: str
) -> Iterator[tuple[str, str, int]]:
    """Yields ID, a column and the line of each row of a CSV file."""
    rows = numbered_rows(csv_path)
    names = next(rows, ([], 0))[0]
    if not {"ID", column} <= set(names):
        raise ValueError(
            f"{csv_path} has the columns {', '.join(names)}; expected ID and "
            f"{column}."
        )
    for row, line in rows:
        if len(row) != len(names):
            raise ValueError(
                f"{csv_path}, line {line}: expected {len(names)} values "
                f"({','.join(names)}), found {len(row)}. Quote values that "
                "contain commas."
            )
        yield row[names.index("ID")], row[names.index(column)], line


def portable(path: str, data_root: str | os.PathLike | None) -> str:
    """Replaces the folder of the audio in a path by ``$data_root``.

    The folder None changes nothing.

    Example
    -------
    >>> portable("/audio/a.wav", "/audio")
    '$data_root/a.wav'
    """
    start = os.fspath(data_root or "").rstrip("/") + "/"
    if data_root and path.startswith(start):
        return f"{ROOT}/{path[len(start) :]}"
    return path


class UtteranceDataset(DynamicItemDataset):
    """SpeechBrain's DynamicItemDataset over shared columns.

    The index is a row, or the (epoch, row) of an ``EpochSampler``. Dynamic
    items may take ID, id (the same), duration, wav, start, stop, the extra
    columns, ``index`` (the row) and ``key``, which seeds random crops:
    (epoch, row).

    With a seed, an utterance whose audio cannot be read is replaced by a
    random one with the ``key`` (epoch, row, random row). The replacement
    depends only on the seed and the first key, not on the number of
    processes or workers. Each sample then has the item ``unreadable``, a dict
    of ID -> reason. Without a seed, unreadable audio is an error.

    ``in_thread`` says whether a thread may read during a training step, because
    no item draws from global random generators.

    Example
    -------
    >>> path = getfixture("tmpdir") / "train.csv"
    >>> write_annotation(path, [("a", 1.5, "a.wav", 0, 24000)])
    >>> dataset = UtteranceDataset(read_annotation(path))
    >>> dataset.add_dynamic_item(lambda a, b: b - a, ["start", "stop"], "size")
    >>> dataset.set_output_keys(["id", "size", "key"])
    >>> dataset[3, 0]
    {'id': 'a', 'size': 24000, 'key': (3, 0)}
    """

    # without the parent's __init__, which would list all IDs; what needs them,
    # such as filtered_sorted, is not here
    def __init__(
        self,
        utterances: Utterances,
        dynamic_items: Any = None,
        output_keys: Any = None,
        seed: int | None = None,
        in_thread: bool = False,
    ):
        self.utterances = utterances
        self.seed = seed
        self.in_thread = in_thread
        self.pipeline = DataPipeline(
            [*self._static_items((0, 0))], dynamic_items or []
        )
        self.set_output_keys(output_keys or [])

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (0, key)
        if self.seed is None:
            return self.pipeline.compute_outputs(self._static_items(key))
        unreadable = {}
        rng = np.random.default_rng((self.seed, *key, REPLACEMENTS))
        others = rng.integers(len(self), size=TRIES).tolist()
        for found in (key, *((*key, other) for other in others)):
            items = self._static_items(found)
            try:
                outputs = self.pipeline.compute_outputs(items)
                return {**outputs, "unreadable": unreadable}
            except AudioError as error:
                unreadable[items["ID"]] = str(error)
                # generators of this row must not continue with the next one
                for item in self.pipeline.dynamic_items:
                    item.reset()
        raise AudioError(
            f"{TRIES + 1} utterances, drawn at random, cannot be read. Check "
            f"data_folder. The last error: {[*unreadable.values()][-1]}"
        )

    def _static_items(self, key):
        """Static items of a row; its number is the last one of the key."""
        items = self.utterances.row(key[-1])
        return {**items, "id": items["ID"], "key": key, "index": key[-1]}


class EpochSampler(torch.utils.data.Sampler):
    """A random order of the rows for each epoch, split over processes.

    The processes together train on the batches that one process with
    ``world_size`` times the batch size would use, so the number of processes
    does not change the result of training. Rows that do not fill a batch of
    all processes are left out of the epoch.

    There are ``count`` rows; ``batch_size`` is that of one process, and
    ``rank`` the number of this process, from 0. Fewer rows than one batch of all
    processes are a ValueError.

    ``sequential_rows`` are read one after another, for shards on disks that are
    slow to seek: the rows in blocks of this size, ``STREAMS`` blocks at a time
    in a random order of blocks, and each block from its first row to its last.
    Neighbors should not be of one speaker (``speechbrain-ssl pack --shuffle``).

    With ``groups``, the int64 group of each row, at least 0 [count], the rows of
    a batch of all processes are of one group, but for the batches in which one
    group ends and the next one begins. Only one of the two can be given.

    Example
    -------
    >>> sampler = EpochSampler(5, rank=1, world_size=2, batch_size=2)
    >>> len(list(sampler))
    2
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
        sequential_rows: int | None = None,
        groups: np.ndarray | None = None,
    ):
        self.batches = count // (world_size * batch_size)
        if self.batches == 0:
            raise ValueError(
                f"One batch needs {world_size * batch_size} utterances "
                f"({world_size} processes x batch_size {batch_size}), but "
                f"there are {count}. Lower batch_size or add audio."
            )
        if groups is not None and sequential_rows is not None:
            raise ValueError(
                "channel_groups and sequential_rows both say in which order "
                "utterances come: set channel_groups to 0 or sequential_rows "
                "to null."
            )
        self.count = count
        self.groups = groups
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        self.sequential_rows = sequential_rows
        self.epoch = 0

    def __len__(self):
        return self.batches * self.batch_size

    def __iter__(self):
        used = self.batches * self.world_size * self.batch_size
        batches = self._order()[:used].view(
            self.batches, self.world_size, self.batch_size
        )
        # the rows of other processes take no memory for the whole epoch
        mine = batches[:, self.rank].clone()
        del batches
        for batch in mine:
            for row in batch.tolist():
                yield self.epoch, row

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which seeds the order and is part of the keys."""
        self.epoch = epoch

    def _order(self):
        """Returns all rows in the order of this epoch."""
        # rows are counted in 31 bits: 10^7 of them take 40 MB
        dtype = torch.int32 if self.count < 2**31 else torch.int64
        # the sum seed + epoch would give (0, 1) and (1, 0) the same order
        mixed = np.random.SeedSequence([self.seed, self.epoch])
        seed = int(mixed.generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        if self.sequential_rows is None:
            order = torch.randperm(self.count, generator=generator, dtype=dtype)
            if self.groups is None:
                return order
            return self._grouped(order, generator)
        size = self.sequential_rows
        firsts = torch.randperm(-(-self.count // size), generator=generator)
        order = []
        for group in (firsts * size).split(STREAMS):
            rows = [
                torch.arange(first, min(first + size, self.count), dtype=dtype)
                for first in group.tolist()
            ]
            sizes = torch.tensor([len(block) for block in rows])
            block_of = torch.arange(len(rows)).repeat_interleave(sizes)
            mixed = torch.randperm(len(block_of), generator=generator)
            # where each block comes up: its rows go there in their order
            places = block_of[mixed].argsort(stable=True)
            order.append(torch.empty(len(mixed), dtype=dtype))
            order[-1][places] = torch.cat(rows)
        return torch.cat(order)

    def _grouped(self, order, generator):
        """Rows sorted by group, in batches that come in any order."""
        size = self.world_size * self.batch_size
        groups = torch.from_numpy(self.groups)[order.long()]
        order = order[groups.argsort(stable=True)]
        # batches start elsewhere, and other rows are left out, in each epoch
        first = torch.randint(self.count, (1,), generator=generator)
        batches = order.roll(int(first))[: self.batches * size].view(-1, size)
        mixed = torch.randperm(self.batches, generator=generator)
        return batches[mixed].flatten()


def numbered_rows(
    csv_path: str | os.PathLike,
) -> Iterator[tuple[list[str], int]]:
    """Yields the rows of a CSV file, and the number of their last line.

    Blank rows are skipped. Raises ValueError if the file is damaged.
    """
    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        try:
            for row in reader:
                if row:
                    yield row, reader.line_num
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{csv_path} is not a UTF-8 CSV file after line "
                f"{reader.line_num}: {error}. Save it as CSV in UTF-8."
            ) from error


def _read_header(rows, csv_path, extra):
    """Returns the names of all columns; checks that none is missing."""
    header, _ = next(rows, (None, 0))
    if header is None:
        raise ValueError(f"{csv_path} is empty. Prepare the data again.")
    missing = [name for name in (*COLUMNS, *extra) if name not in header]
    if missing:
        raise ValueError(
            f"{csv_path} has no column {', '.join(missing)}; its first line "
            f"is {','.join(header)!r}. Expected {','.join(COLUMNS)}."
        )
    return header


def _parse_chunk(chunk, header, extra, data_root, csv_path):
    """Calls ``_parse`` and adds file and line to its errors."""
    try:
        return _parse([row for row, _ in chunk], header, extra, data_root)
    except ValueError:
        # parse row by row to find the line
        for row, line in chunk:
            try:
                _parse([row], header, extra, data_root)
            except ValueError as error:
                raise ValueError(f"{csv_path}, line {line}: {error}") from None
        raise


def _parse(rows, header, extra, data_root):
    """Converts rows to arrays: text, lengths of its strings, hashes of the
    IDs, durations, starts and stops. Errors describe the first row.
    """
    if set(map(len, rows)) != {len(header)}:
        raise ValueError(
            f"expected {len(header)} values ({','.join(header)}), found "
            f"{len(rows[0])}: {','.join(rows[0])!r}."
        )
    cells = dict(zip(header, zip(*rows)))
    if not all(cells["ID"]):
        raise ValueError("the ID is empty. Give every row its own ID.")
    _check_wavs(cells["wav"], data_root)
    durations = _numbers(cells, "duration", float, np.float32)
    if not np.all((durations > 0) & np.isfinite(durations)):
        raise ValueError(
            "duration must be a positive number of seconds, found "
            f"{cells['duration'][0]!r}."
        )
    start = _numbers(cells, "start", int, np.int64)
    stop = _numbers(cells, "stop", int, np.int64)
    if not np.all((start >= 0) & (start < stop)):
        raise ValueError(
            "expected frames 0 <= start < stop, found start "
            f"{cells['start'][0]} and stop {cells['stop'][0]}."
        )
    hashes = np.fromiter(map(hash, cells["ID"]), np.int64, len(rows))
    strings = zip(*(cells[name] for name in ("ID", "wav", *extra)))
    encoded = [*map(str.encode, itertools.chain.from_iterable(strings))]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return text, lengths, hashes, durations, start, stop


def _check_wavs(wavs, data_root):
    """Raises if a path is empty or its ``$name`` cannot be replaced."""
    if not all(wavs):
        raise ValueError("the path in column wav is empty.")
    # a $ after the start belongs to the name of a file or folder
    for wav in wavs:
        if wav[0] != "$":
            continue
        if not wav.startswith(ROOT + "/"):
            raise ValueError(
                f"wav is {wav!r}, but a path may start with no other variable "
                f"than {ROOT}/. Replace the name before the first slash."
            )
        if data_root is None:
            raise ValueError(
                f"wav is {wav!r}, but data_root was not given. Pass the "
                "folder of the audio as data_root."
            )


def _numbers(cells, name, convert, dtype):
    """Converts a column of strings to an array."""
    values = cells[name]
    try:
        return np.fromiter(map(convert, values), dtype, len(values))
    except (ValueError, OverflowError):
        kind = "a number of seconds" if convert is float else "a whole number"
        raise ValueError(
            f"{name} must be {kind}, found {values[0]!r}."
        ) from None


def _check_unique(hashes, csv_path):
    """Raises if two rows have the same ID; sorts the hashes in place."""
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    # equal hashes are almost certainly equal IDs: compare the IDs themselves
    lines = {}
    rows = numbered_rows(csv_path)
    place = next(rows)[0].index("ID")
    for row, line in rows:
        utterance = row[place]
        if hash(utterance) not in suspects:
            continue
        if utterance in lines:
            raise ValueError(
                f"{csv_path}: lines {lines[utterance]} and {line} have the "
                f"same ID {utterance!r}. Make the IDs unique."
            )
        lines[utterance] = line
