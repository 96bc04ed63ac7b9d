"""Annotations: CSV files of utterances, held in memory that workers share.

An annotation has the columns ``ID,duration,wav,start,stop``: seconds, a path
(``$data_root/...`` in files that may move) and the stretch of the file in
frames at the file's own rate. Further columns are ignored unless asked for by
name, so that no label reaches training by accident.
"""

import csv
import functools
import itertools
import os

import numpy as np
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DataPipeline

from speechbrain_ssl.dataio.audio import AudioError
from speechbrain_ssl.files import write_whole

COLUMNS = ("ID", "duration", "wav", "start", "stop")
ROOT = "$data_root"

# Rows parsed together: enough to amortize numpy's overhead, few enough for
# their Python strings to stay in the processor's cache (4096 take twice as long).
_CHUNK = 256

# rows tried in place of one that cannot be read, and their random stream
TRIES, REPLACEMENTS = 10, 1002


class Utterances:
    """The rows of an annotation, as columns in shared memory.

    Loader workers map the same memory, whether they are forked or spawned;
    a dict per row would be copied into each of them.

    Arguments
    ---------
    text : torch.Tensor
        Strings of all rows, UTF-8, one after the other [bytes]; those of a
        row are ID, wav and then the extra columns.
    offsets : torch.Tensor
        Where the strings start and, at last, end [rows * strings + 1].
    durations : torch.Tensor
        float32 seconds [rows].
    start : torch.Tensor
        First frame, at the file's own rate, int64 [rows].
    stop : torch.Tensor
        Frame after the last one, int64 [rows].
    data_root : str
        What ``$data_root`` stands for.
    extra : tuple of str
        Names of the extra columns.

    Example
    -------
    >>> path = getfixture("tmpdir") / "train.csv"
    >>> write_annotation(path, [("a", 1.5, "$data_root/a.wav", 0, 24000)])
    >>> read_annotation(path, data_root="/audio").row(0)["wav"]
    '/audio/a.wav'
    """

    def __init__(
        self, text, offsets, durations, start, stop, data_root=None, extra=()
    ):
        self.text = _share(text)
        self.offsets = _share(offsets)
        self.durations = _share(durations)
        self.start = _share(start)
        self.stop = _share(stop)
        self.data_root = data_root and os.path.abspath(data_root)
        self.extra = tuple(extra)

    def __len__(self):
        return len(self.durations)

    def row(self, index):
        """One row.

        Arguments
        ---------
        index : int
            Its number, from 0.

        Returns
        -------
        dict
            ID, duration (seconds), wav (``$data_root`` replaced), start, stop
            (frames) and the extra columns (strings).
        """
        index = range(len(self))[index]
        utterance, wav, *extra = self._strings(index)
        if wav.startswith(ROOT):
            wav = self.data_root + wav[len(ROOT) :]
        return {
            "ID": utterance,
            "duration": self.durations[index].item(),
            "wav": wav,
            "start": self.start[index].item(),
            "stop": self.stop[index].item(),
            **dict(zip(self.extra, extra)),
        }

    def ids(self):
        """The IDs in order, as an iterator."""
        return (self._strings(index)[0] for index in range(len(self)))

    def wavs(self):
        """The paths in order, as an iterator."""
        return (self.row(index)["wav"] for index in range(len(self)))

    def _strings(self, index):
        """ID, wav and extra columns of one row."""
        width = 2 + len(self.extra)
        ends = self.offsets[index * width : (index + 1) * width + 1].tolist()
        data = self.text[ends[0] : ends[-1]].numpy().tobytes()
        return [
            data[first - ends[0] : last - ends[0]].decode()
            for first, last in itertools.pairwise(ends)
        ]


def read_annotation(csv_path, data_root=None, extra=()):
    """Reads and checks an annotation.

    Arguments
    ---------
    csv_path : str
        The CSV file.
    data_root : str
        Folder that stands for ``$data_root`` in the column wav.
    extra : tuple of str
        Further columns to keep, as strings; all others are ignored.

    Returns
    -------
    Utterances
        The rows in the order of the file.

    Raises
    ------
    ValueError
        If a column is missing, a value is wrong, an ID is repeated or there
        is no row; the message names the file, the line and the value.
    """
    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        rows = _numbered_rows(file, csv_path)
        header = _read_header(rows, csv_path, extra)
        # One growing buffer per column, which leaves no holes in the heap.
        buffers = [bytearray() for _ in range(6)]
        while chunk := list(itertools.islice(rows, _CHUNK)):
            parsed = _parse_chunk(chunk, header, extra, data_root, csv_path)
            for buffer, column in zip(buffers, parsed):
                buffer += column.tobytes()
    text, lengths, hashes, durations, start, stop = buffers
    if not text:
        raise ValueError(
            f"{csv_path} has a header but no rows. Prepare the data again."
        )
    _check_unique(np.frombuffer(hashes, np.int64), csv_path)
    lengths = torch.frombuffer(lengths, dtype=torch.int64)
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return Utterances(
        torch.frombuffer(text, dtype=torch.uint8),
        offsets,
        torch.frombuffer(durations, dtype=torch.float32),
        torch.frombuffer(start, dtype=torch.int64),
        torch.frombuffer(stop, dtype=torch.int64),
        data_root,
        extra,
    )


def write_annotation(csv_path, rows, extra=()):
    """Writes an annotation; the file appears whole or not at all.

    Arguments
    ---------
    csv_path : str
        The CSV file; its folder is made.
    rows : iterable of dict or tuple
        Values by column name (others are left out), or in the order ID,
        duration (seconds), wav, start, stop (frames), extra columns.
    extra : tuple of str
        Names of columns after the five of every annotation.

    Raises
    ------
    ValueError
        If a row lacks a value.
    """
    columns = (*COLUMNS, *extra)
    with write_whole(csv_path) as file:
        plain = csv.writer(file, lineterminator="\n")
        # SpeechBrain's reader, as ours, strips unquoted leading spaces.
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
            # csv.writer leaves a carriage return unquoted
            special = any(
                str(cell).startswith(" ") or "\r" in str(cell) for cell in row
            )
            (quoted if special else plain).writerow(row)


class UtteranceDataset(DynamicItemDataset):
    """SpeechBrain's dataset over shared columns instead of a dict of dicts.

    Indexed by a row, or by the (epoch, row) of an ``EpochSampler``. Dynamic
    items may take ID, id (the same), duration, wav, start, stop, the extra
    columns, ``index`` (the row) and ``key`` (epoch, row), from which random
    crops are seeded.

    With a seed, a row whose audio cannot be read is replaced by a random one,
    whose ``key`` is (epoch, row, random row). It depends on the seed and the
    first key alone, not on processes or workers. Samples then have the item
    ``unreadable``, a dict of reasons by ID.

    Arguments
    ---------
    utterances : Utterances
        The rows.
    dynamic_items : list
        As for DynamicItemDataset.
    output_keys : list or dict
        As for DynamicItemDataset.
    seed : int
        Of the random rows; None lets unreadable audio raise.

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

    # The parent's __init__ lists all IDs, which this class is here to avoid.
    def __init__(
        self, utterances, dynamic_items=None, output_keys=None, seed=None
    ):
        self.utterances = utterances
        self.seed = seed
        self.pipeline = DataPipeline(
            [*self._static_items((0, 0))], dynamic_items or []
        )
        self.set_output_keys(output_keys or [])

    @classmethod
    def from_csv(
        cls,
        csv_path,
        replacements=None,
        dynamic_items=None,
        output_keys=None,
        extra=(),
    ):
        """Reads an annotation, called as SpeechBrain's ``from_csv``.

        Arguments
        ---------
        csv_path : str
            The CSV file.
        replacements : dict
            ``{"data_root": folder}``.
        dynamic_items : list
            As for DynamicItemDataset.
        output_keys : list or dict
            As for DynamicItemDataset.
        extra : tuple of str
            Further columns to keep.

        Returns
        -------
        UtteranceDataset
            Over the rows of the file.
        """
        data_root = (replacements or {}).get("data_root")
        utterances = read_annotation(csv_path, data_root, extra)
        return cls(utterances, dynamic_items, output_keys)

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
                # the generators of this row must not go on with the next one
                for item in self.pipeline.dynamic_items:
                    item.reset()
        raise AudioError(
            f"None of {TRIES + 1} utterances, drawn one after the other, can "
            f"be read. Check data_folder. The last one: {[*unreadable.values()][-1]}"
        )

    @functools.cached_property
    def data(self):
        """Dict of dicts; only ``filtered_sorted`` and its like need it."""
        rows = (self._static_items((0, row)) for row in range(len(self)))
        return {row.pop("id"): row for row in rows}

    @property
    def data_ids(self):
        """List of all IDs, made anew."""
        return list(self.utterances.ids())

    def _static_items(self, key):
        """Input of the pipeline for one row, the last number of the key."""
        items = self.utterances.row(key[-1])
        return {**items, "id": items["ID"], "key": key, "index": key[-1]}


class EpochSampler(torch.utils.data.Sampler):
    """One order per epoch, dealt out to the processes batch by batch.

    The batches that the processes train on together are the batches of one
    process with ``world_size`` times the batch size, so that the number of
    processes does not change what is learned. Rows that do not fill a batch
    in all processes are left out of this epoch.

    Arguments
    ---------
    count : int
        Number of rows.
    seed : int
        With the epoch it determines the order; at least 0.
    rank : int
        This process, from 0.
    world_size : int
        Number of processes.
    shuffle : bool
        Whether to permute the rows.
    batch_size : int
        Rows per batch and process, the loader's ``batch_size``.

    Raises
    ------
    ValueError
        If there are fewer rows than one batch of all processes.

    Example
    -------
    >>> list(EpochSampler(5, rank=1, world_size=2, batch_size=2, shuffle=False))
    [(0, 2), (0, 3)]
    """

    def __init__(
        self,
        count,
        seed=0,
        rank=0,
        world_size=1,
        shuffle=True,
        batch_size=1,
    ):
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(
                "EpochSampler needs 0 <= rank < world_size and a batch_size "
                f"of at least 1, but got rank {rank}, world_size "
                f"{world_size}, batch_size {batch_size}."
            )
        self.batches = count // (world_size * batch_size)
        if self.batches == 0:
            raise ValueError(
                f"One batch needs {world_size * batch_size} utterances "
                f"({world_size} processes x batch_size {batch_size}), but "
                f"there are {count}. Lower batch_size or add audio."
            )
        self.count = count
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self):
        return self.batches * self.batch_size

    def __iter__(self):
        used = self.batches * self.world_size * self.batch_size
        batches = self._order()[:used].view(
            self.batches, self.world_size, self.batch_size
        )
        for batch in batches[:, self.rank]:
            for row in batch.tolist():
                yield self.epoch, row

    def set_epoch(self, epoch):
        """Chooses the order of the next iteration.

        Arguments
        ---------
        epoch : int
            Also the first half of all keys yielded from now on.
        """
        self.epoch = epoch

    def _order(self):
        """All rows in the order of this epoch."""
        if not self.shuffle:
            return torch.arange(self.count)
        # A sum would give (seed 0, epoch 1) and (1, 0) the same order.
        mixed = np.random.SeedSequence([self.seed, self.epoch])
        seed = int(mixed.generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(self.count, generator=generator)


def _share(column):
    """Moves a column to memory that other processes can map."""
    try:
        return column.share_memory_()
    except RuntimeError as error:
        raise RuntimeError(
            f"No shared memory for {column.nbytes / 2**20:.0f} MiB of the "
            "annotation. Enlarge /dev/shm (docker run --shm-size ...)."
        ) from error


def _numbered_rows(file, csv_path):
    """Rows that are not blank, with the number of their (last) line."""
    reader = csv.reader(file, skipinitialspace=True)
    try:
        for row in reader:
            if row:
                yield row, reader.line_num
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{csv_path} is no UTF-8 CSV after line {reader.line_num}: {error}"
        ) from error


def _read_header(rows, csv_path, extra):
    """Names of all columns, those we need being among them."""
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
    """``_parse``, with the file and the line in the error."""
    try:
        return _parse([row for row, _ in chunk], header, extra, data_root)
    except ValueError:
        # Row by row, to find the line; the fast path knows only the chunk.
        for row, line in chunk:
            try:
                _parse([row], header, extra, data_root)
            except ValueError as error:
                raise ValueError(f"{csv_path}, line {line}: {error}") from None
        raise


def _parse(rows, header, extra, data_root):
    """Some rows as arrays: text, lengths of its strings, hashes of the IDs,
    durations, starts and stops.

    The errors describe the first row: they are for rows parsed one by one.
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
    # A $ further on belongs to the name of a file or folder.
    for wav in wavs:
        if wav[0] != "$":
            continue
        if not wav.startswith(ROOT + "/"):
            raise ValueError(
                f"wav is {wav!r}, but only {ROOT}/ can stand at the start of "
                f"a path. Replace the name before the first slash by {ROOT}."
            )
        if data_root is None:
            raise ValueError(
                f"wav is {wav!r}, but no data_root was given. Pass the folder "
                "of the audio as data_root."
            )


def _numbers(cells, name, convert, dtype):
    """A column of strings as an array."""
    values = cells[name]
    try:
        return np.fromiter(map(convert, values), dtype, len(values))
    except (ValueError, OverflowError):
        kind = "a number of seconds" if convert is float else "a whole number"
        raise ValueError(
            f"{name} must be {kind}, found {values[0]!r}."
        ) from None


def _check_unique(hashes, csv_path):
    """Raises if an ID stands in two rows; sorts the hashes in place."""
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    # Equal hashes are almost surely equal IDs; the file is read again to tell.
    lines = {}
    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        rows = _numbered_rows(file, csv_path)
        place = next(rows)[0].index("ID")
        for row, line in rows:
            utterance = row[place]
            if hash(utterance) not in suspects:
                continue
            if utterance in lines:
                raise ValueError(
                    f"{csv_path}: lines {lines[utterance]} and {line} have "
                    f"the same ID {utterance!r}. Make the IDs unique."
                )
            lines[utterance] = line
