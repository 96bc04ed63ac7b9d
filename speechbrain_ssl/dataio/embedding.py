"""Embeddings of audio files, in batches of equal length.

Three rules bound the memory and make the embedding of a file independent of
all other files:

* Files share a batch only if padding cannot change their embeddings: they have
  the same number of samples or, if the encoder begins with SpeechBrain's STFT,
  the same number of frames.
* A file longer than ``WINDOW_SECONDS`` is split into equal windows. Its
  embedding is the mean of their embeddings, weighted by duration and without
  normalization: its norm stays comparable with that of other files.
* Digital silence is removed first: segments of at least ``SILENCE_SECONDS``
  below ``SILENCE_DBFS``.
"""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.processing.features import STFT
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speechbrain_ssl.checks import checked, number, whole
from speechbrain_ssl.dataio import audio

# Longest input of the encoder; memory of attention grows quadratically.
WINDOW_SECONDS = 60.0
# Shorter files are repeated: ECAPA-TDNN needs some frames for its padding.
MIN_SECONDS = 0.1
# In digital silence, samples differ by less than -80 dBFS from a constant of
# at most -60 dBFS (A-law has no code for zero). Blocks of 10 ms are tested.
SILENCE_DBFS, SILENCE_OFFSET = -80.0, 1e-3
SILENCE_BLOCK, SILENCE_SECONDS = 0.01, 0.2
# Threads that read audio, and batches that they read ahead of the encoder.
READERS = 4
BATCHES_AHEAD = 4


class EncoderError(RuntimeError):
    """The encoder failed on a file, for instance for lack of memory."""


class SilentError(ValueError):
    """A file or segment that has nothing but digital silence."""


class FileEmbeddings(NamedTuple):
    """Embeddings of files."""

    # float32 embeddings on the CPU; NaN if a file failed [files, emb_dim]
    rows: torch.Tensor
    # index of a file without embedding -> error
    failed: Mapping[int, Exception]
    windowed: list[int]  # indices of files that were split into windows
    # index of a file -> seconds of digital silence that were removed
    silence: Mapping[int, float]

    def notes(self) -> list[str]:
        """Lines about long files and digital silence, see ``describe``."""
        silence = self.silence.values()
        return describe(len(self.windowed), len(silence), sum(silence))


class _Segment(NamedTuple):
    """A file or a window of it, in frames at the file's sample rate."""

    file: int
    path: str
    start: int
    stop: int | None
    length: int  # samples at the encoder's rate, by the header


class _Loaded(NamedTuple):
    """Audio of a segment, empty if it is digital silence."""

    segment: _Segment
    wav: torch.Tensor
    silence: float


@checked(sample_rate=whole(1), batch_seconds=number(above=0))
def try_files(
    embed: Callable,
    paths: Sequence[str],
    sample_rate: int = 16000,
    batch_seconds: float = 120.0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    spans: Sequence[tuple[int, int | None]] | None = None,
    strict: bool = False,
) -> FileEmbeddings:
    """Embeds audio files, or a segment of each, and collects their errors.

    See the docstring of the module for batches, long files and silence. Files
    shorter than 0.1 s are repeated to this length.

    ``embed`` is the encoder in evaluation mode: waveforms [batch, time] and
    relative lengths [batch] -> embeddings [batch, emb_dim] or [batch, 1,
    emb_dim]. Files have any sample rate and number of channels; ``sample_rate``
    is that of the encoder in Hz. ``batch_seconds`` is the largest sum of
    durations in a batch; a longer segment is a batch of its own. ``spans`` has
    the first frame, and one after the last frame, of each segment, at the
    file's sample rate (None: whole files). ``strict`` raises the first error of
    a file: it cannot be read, is empty or silent, has an embedding that is not
    finite, or the encoder fails on it (EncoderError).
    """
    paths = list(paths)
    if not paths:
        raise ValueError("Expected audio files to embed, found none.")
    spans = [(0, None)] * len(paths) if spans is None else spans
    sums, weights = None, torch.zeros(len(paths), 1, dtype=torch.float64)
    failed, silence = {}, collections.Counter()

    def note(file, error):
        if strict:
            raise error
        failed.setdefault(file, error)

    pool = concurrent.futures.ThreadPoolExecutor(READERS)
    bar = tqdm(total=len(paths), unit="file", disable=not progress)
    try:
        plan = functools.partial(_segments, sample_rate=sample_rate)
        files = range(len(paths)), paths, spans
        segments = []
        for file, found in enumerate(_map(pool, plan, *files)):
            if isinstance(found, Exception):
                note(file, found)
            else:
                segments += found
        left = collections.Counter(segment.file for segment in segments)
        windowed = [file for file, count in left.items() if count > 1]
        hop = _hop(embed)
        batches = _batches(segments, batch_seconds * sample_rate, hop)
        loaded = _read_ahead(pool, batches, sample_rate)
        for part, row in _embed_batches(embed, loaded, hop, device):
            file = part.segment.file
            silence[file] += part.silence
            if isinstance(row, Exception):
                note(file, row)
            elif row is not None:
                if sums is None:
                    sums = torch.zeros(len(paths), len(row)).double()
                sums[file] += len(part.wav) * row.double()
                weights[file] += len(part.wav)
            left[file] -= 1
            if left[file] == 0:
                bar.update()
                if weights[file] == 0 and file not in failed:
                    error = SilentError(
                        f"{paths[file]} is digital silence: all of its "
                        f"{silence[file]:.1f} s are below "
                        f"{SILENCE_DBFS:g} dBFS. Leave the file out."
                    )
                    note(file, error)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    if sums is None:
        sums = torch.zeros(len(paths), 0).double()
    # a long file may fail after some of its windows
    weights[list(failed)] = 0
    rows = torch.where(weights > 0, sums / weights, torch.nan).float()
    silence = {file: seconds for file, seconds in silence.items() if seconds}
    return FileEmbeddings(rows, failed, windowed, silence)


def describe(windowed: int, with_silence: int, seconds: float) -> list[str]:
    """Up to two log lines about windowed files and digital silence."""
    lines = []
    if windowed:
        lines.append(
            f"Split {windowed} files longer than {WINDOW_SECONDS:g} s into "
            "windows."
        )
    if with_silence:
        lines.append(
            f"Removed {seconds:.1f} s of digital silence from "
            f"{with_silence} files."
        )
    return lines


def remove_silence(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Removes digital silence of ``SILENCE_SECONDS`` or more from a wav [time].

    Example
    -------
    >>> wav = torch.cat([torch.ones(1600), torch.zeros(16000)])
    >>> len(remove_silence(wav, 16000))
    1600
    """
    block = max(1, round(SILENCE_BLOCK * sample_rate))
    count = -(-len(wav) // block)
    padding = wav[-1:].expand(count * block - len(wav))
    blocks = torch.cat([wav, padding]).view(count, block)
    high, low = blocks.amax(1), blocks.amin(1)
    silent = (high - low < 2 * 10 ** (SILENCE_DBFS / 20)) & (
        torch.maximum(high, -low) < SILENCE_OFFSET
    )
    edges = np.diff(np.r_[0, silent.numpy().astype(np.int8), 0])
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    # shorter audio may be silent as a whole
    shortest = min(round(SILENCE_SECONDS / SILENCE_BLOCK), count)
    heard = np.ones(len(wav), dtype=bool)
    for start, end in zip(starts, ends):
        if end - start >= shortest:
            heard[start * block : end * block] = False
    return wav if heard.all() else wav[torch.from_numpy(heard)]


def _hop(embed):
    """Hop length of an encoder that begins with SpeechBrain's STFT, else 1.

    This STFT pads with zeros, so zeros up to the next frame change nothing.
    """
    encoder = getattr(embed, "__self__", embed)
    if isinstance(encoder, torch.nn.Module):
        found = [part for part in encoder.modules() if isinstance(part, STFT)]
        if len(found) == 1 and found[0].center:
            if found[0].pad_mode == "constant":
                return found[0].hop_length
    return 1


def _attempt(function, *arguments):
    """Returns the value of a function, or its error if a file may cause it."""
    try:
        return function(*arguments)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        return error


def _map(pool, function, *columns):
    """Applies ``_attempt`` to each row in threads; keeps the order."""
    return pool.map(functools.partial(_attempt, function), *columns)


def _segments(file, path, span, sample_rate):
    """Splits a file into one segment, or into equal windows if it is long."""
    start, stop = span
    if stop is None:
        end, rate, _ = audio.info(path)
    else:
        # this rate is cached, and often known from choosing the span
        end, rate = stop, audio.sample_rate(path)
    if end <= start:
        raise ValueError(f"{path} has no audio samples.")
    windows = -(-(end - start) // round(WINDOW_SECONDS * rate))
    step = -(-(end - start) // windows)
    starts = [start + number * step for number in range(windows)]
    stops = [*starts[1:], end]
    lengths = [-(-(b - a) * sample_rate // rate) for a, b in zip(starts, stops)]
    if windows == 1:
        stops = [stop]  # None reads to the end, whatever the header says
    return [
        _Segment(file, path, *numbers)
        for numbers in zip(starts, stops, lengths)
    ]


def _batches(segments, budget, hop):
    """Yields batches of segments of equal length, the longest ones first, so
    that a lack of memory shows in the first batch.
    """
    batch = []
    for segment in sorted(segments, key=lambda segment: -segment.length):
        if batch:
            longest = batch[0].length
            is_equal = segment.length // hop == longest // hop
            if not is_equal or longest * (len(batch) + 1) > budget:
                yield batch
                batch = []
        batch.append(segment)
    if batch:
        yield batch


def _read_ahead(pool, batches, sample_rate):
    """Yields batches of segments with the audio or error of each segment."""
    load = functools.partial(_load, sample_rate=sample_rate)
    pending = collections.deque()
    for batch in batches:
        pending.append((batch, _map(pool, load, batch)))
        if len(pending) > BATCHES_AHEAD:
            yield pending.popleft()
    yield from pending


def _load(segment, sample_rate):
    """Reads a segment, removes digital silence, repeats it if it is short."""
    span = segment.start, segment.stop
    whole = audio.load(segment.path, sample_rate, *span)
    wav = remove_silence(whole, sample_rate)
    silence = (len(whole) - len(wav)) / sample_rate
    shortest = round(MIN_SECONDS * sample_rate)
    if 0 < len(wav) < shortest:
        wav = wav.repeat(-(-shortest // len(wav)))[:shortest]
    return _Loaded(segment, wav, silence)


def _embed_batches(embed, batches, hop, device):
    """Yields loaded segments with an embedding, an error or, for silence,
    None.
    """
    for batch, found in batches:
        # removing silence makes segments shorter than planned
        groups = collections.defaultdict(list)
        for segment, part in zip(batch, found):
            if isinstance(part, Exception):
                yield _Loaded(segment, torch.zeros(0), 0.0), part
            elif not len(part.wav):
                yield part, None
            else:
                groups[len(part.wav) // hop].append(part)
        for group in groups.values():
            yield from _embed_group(embed, group, device)


def _embed_group(embed, group, device):
    """Embeds segments of equal length together or, after an error, one by one."""
    wavs = pad_sequence([part.wav for part in group], batch_first=True)
    try:
        with torch.no_grad():
            lengths = torch.ones(len(wavs), device=device)
            rows = embed(wavs.to(device), lengths).flatten(1).float().cpu()
    except (MemoryError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.AcceleratorError):
            raise  # after this error the device fails on every file
        if len(group) > 1:
            for part in group:
                yield from _embed_group(embed, [part], device)
            return
        failure = EncoderError(
            f"The encoder fails on {group[0].segment.path} "
            f"({wavs.shape[1]} samples at once): {error}"
        )
        failure.__cause__ = error
        yield group[0], failure
        return
    if len(rows) != len(group):
        raise ValueError(
            f"The encoder returned embeddings of shape {list(rows.shape)} for "
            f"{len(group)} files; expected [files, emb_dim]."
        )
    for part, row in zip(group, rows):
        if torch.isfinite(row).all():
            yield part, row
            continue
        yield (
            part,
            ValueError(
                f"The embedding of {part.segment.path} is NaN or infinite. "
                "Check this file and the weights of the encoder (training "
                "may have diverged)."
            ),
        )
