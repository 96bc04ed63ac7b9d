"""Audio files: one walker that finds them, one door that opens them.

soundfile reads wav, flac, ogg, opus, mp3, aiff, au, caf, sph and w64; m4a,
webm, wma and other containers need ``torchcodec``
(``pip install speechbrain_ssl[m4a]``). ``shard.tar::name.flac`` names a member
of an uncompressed tar file and can stand wherever a path of audio can.
"""

import collections
import contextlib
import csv
import functools
import heapq
import io
import logging
import math
import os
import stat
import tarfile
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio

from speechbrain_ssl.files import write_whole

logger = logging.getLogger(__name__)

SOUNDFILE_EXTENSIONS = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph", ".w64"),
)
TORCHCODEC_EXTENSIONS = (".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr")
EXTENSIONS = SOUNDFILE_EXTENSIONS + TORCHCODEC_EXTENSIONS
# soundfile's subtypes that decode to the same samples from any start
EXACT = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# lossy codecs state lengths that differ from what they decode by a few frames
SLACK_SECONDS = 0.1
# several segments are read in one go if that takes at most so many times
# their frames
ONE_GO = 1.5
# sample rates outside these (Hz) are errors of the header
RATES = (1_000, 768_000)
# samples above this, in units of full scale, are errors of the file
LOUDEST = 1e3
# more frames than this (596 hours at 16 kHz) are errors of the header
MOST_FRAMES = 2**35
# filters that torchaudio's resampler may keep, and numbers to compute at once
# where it would keep more
MOST_PHASES, BLOCK = 640, 2**21
SHARD = ".tar::"


class AudioError(OSError):
    """An audio file that cannot be used; the message names it."""


class AudioInfo(NamedTuple):
    """What the header of an audio file says.

    Arguments
    ---------
    frames : int
        Length in samples per channel, at the file's own rate.
    sample_rate : int
        The file's own rate in Hz.
    channels : int
        Number of channels.
    """

    frames: int
    sample_rate: int
    channels: int


def find(folder: str) -> tuple[list[str], dict[str, str]]:
    """Finds the audio files of a folder and all its subfolders.

    Only regular files are taken, and nothing is opened. Links are followed;
    a file or folder with several names is taken once, under the name that
    needs no link, or else the first one. Names that start with a dot are
    left out, as are names that a CSV or a list of paths cannot hold.

    Arguments
    ---------
    folder : str
        Where to look.

    Returns
    -------
    paths : list of str
        Files with one of ``EXTENSIONS``, in any case, sorted; ``folder`` is
        part of them.
    left_out : dict of str to str
        Why each of the other files, or a whole folder, was left out, by path.
        The first words, up to a colon, are the kind of reason.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no audio in it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a.wav", ".b.wav", "c.txt"):
    ...     (folder / name).touch()
    >>> paths, left_out = find(folder)
    >>> [os.path.basename(path) for path in paths], describe(left_out)
    (['a.wav'], '1 hidden, 1 unsupported .txt')
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"There is no folder {folder}. Name the folder of the audio."
        )
    if problem := _name_problem(os.path.abspath(folder)):
        raise ValueError(f"The folder {folder!r} cannot be used: {problem}.")
    paths, left_out, seen = [], {}, {}
    waiting, links = [folder], []
    while waiting or links:
        # links come last: a file is known by the name that needs none
        is_link = not waiting
        path = heapq.heappop(links) if is_link else waiting.pop()
        try:
            status = os.stat(path)
            is_folder = stat.S_ISDIR(status.st_mode)
            first = seen.setdefault((status.st_dev, status.st_ino), path)
            problem = is_link and _entry_problem(path, is_folder)
            if problem:
                left_out[path] = problem
            elif first != path:
                left_out[path] = f"duplicate: the same as {first}"
            elif is_folder:
                inside = []
                for entry in os.scandir(path):
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if entry.is_symlink():
                        heapq.heappush(links, entry.path)
                    elif problem := _entry_problem(entry.path, is_folder):
                        left_out[entry.path] = problem
                    else:
                        inside.append(entry.path)
                waiting.extend(sorted(inside, reverse=True))
            elif stat.S_ISREG(status.st_mode):
                paths.append(path)
            else:
                left_out[path] = "not a regular file: a pipe or a device"
        except OSError as error:
            kind = "broken link" if is_link else "unreadable"
            left_out[path] = f"{kind}: {error.strerror}"
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no audio files ({', '.join(EXTENSIONS)}), but "
            f"{describe(left_out) or 'no files at all'}. Name the folder of "
            "the audio."
        )
    if left_out:
        logger.info(
            "%s: %d audio files. Left out: %s.",
            folder,
            len(paths),
            describe(left_out),
        )
    return sorted(paths), left_out


def count_reasons(left_out: dict[str, str]) -> collections.Counter:
    """Number of files by the kind of reason, the text before the colon."""
    return collections.Counter(
        reason.partition(":")[0] for reason in left_out.values()
    )


def describe(left_out: dict[str, str]) -> str:
    """Counts the kinds of reasons why files were left out.

    Arguments
    ---------
    left_out : dict of str to str
        Reasons by path, as from ``find``.

    Returns
    -------
    str
        Such as "2 too short, 1 silent"; empty if there is nothing.
    """
    kinds = count_reasons(left_out).most_common(10)
    return ", ".join(f"{count} {kind}" for kind, count in kinds)


def write_left_out(
    csv_path: str | os.PathLike, left_out: dict[str, str], folder: str
) -> None:
    """Lists files that are not used, with the columns ``wav,reason``.

    Arguments
    ---------
    csv_path : str
        The file to write.
    left_out : dict of str to str
        Reasons by path, as from ``find``.
    folder : str
        The folder that was searched, ``$data_root`` in the list.
    """
    with write_whole(csv_path) as file:
        # quoted: a name may hold a carriage return
        writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        writer.writerow(["wav", "reason"])
        for path, reason in sorted(left_out.items()):
            name = os.path.relpath(path, folder)
            writer.writerow([f"$data_root/{name}", reason])


def is_file(path: str) -> bool:
    """Whether a file is there, or the tar file that should hold it.

    Arguments
    ---------
    path : str
        A file, or ``shard.tar::name.flac``.

    Returns
    -------
    bool
        False for folders, pipes and devices, too.
    """
    shard, is_member, _ = path.rpartition(SHARD)
    return os.path.isfile(shard + ".tar" if is_member else path)


def needs_torchcodec(path: str) -> bool:
    """Whether soundfile cannot read files of this name."""
    return path.lower().endswith(TORCHCODEC_EXTENSIONS)


def import_torchcodec():
    """Imports ``torchcodec.decoders``, which loads FFmpeg's libraries.

    Raises
    ------
    OSError
        If one of the two is missing.
    """
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError) as error:
        raise OSError(
            "m4a and the like need torchcodec (pip install "
            "speechbrain_ssl[m4a]) and FFmpeg's libraries"
        ) from error
    return decoders


def open(path: str) -> "Reader":
    """Opens an audio file, or a member of a tar file, for reading.

    Arguments
    ---------
    path : str
        The file, or ``shard.tar::name.flac``.

    Returns
    -------
    Reader
        To be used in a ``with`` block, or closed.

    Raises
    ------
    AudioError
        If it is missing, no regular file or no audio, or its header states an
        impossible rate or length; the message names it.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "a.wav")
    >>> soundfile.write(path, np.zeros(16000), 16000)
    >>> with open(path) as file:
    ...     file.rate, file.frames, file.read(100, 300).shape
    (16000, 16000, (200,))
    """
    return Reader(path)


class Reader:
    """An open audio file; see ``open``.

    All frames count at the file's own rate.

    Arguments
    ---------
    path : str
        The file, or ``shard.tar::name.flac``.

    Attributes
    ----------
    rate : int
        Sample rate in Hz.
    frames : int
        Length.
    channels : int
        Number of channels.
    """

    def __init__(self, path):
        self.path = path = os.fspath(path)
        self.decoder = None
        with contextlib.ExitStack() as stack, _naming(path):
            source = stack.enter_context(_source(path))
            if needs_torchcodec(path):
                decoders = import_torchcodec()
                self.decoder = decoders.AudioDecoder(source, num_channels=1)
                meta = self.decoder.metadata
                self.rate, self.channels = meta.sample_rate, meta.num_channels
                # that of webm stands in the container only
                seconds = getattr(meta, "duration_seconds", None)
                seconds = seconds or meta.duration_seconds_from_header
                self.frames = round(seconds * self.rate)
                exact = False
            else:
                self.file = stack.enter_context(soundfile.SoundFile(source))
                self.rate, self.channels = (
                    self.file.samplerate,
                    self.file.channels,
                )
                self.frames = self.file.frames
                exact = self.file.subtype.startswith(EXACT)
            if not RATES[0] <= self.rate <= RATES[1]:
                raise ValueError(
                    f"its header states {self.rate} Hz; expected "
                    f"{RATES[0]} to {RATES[1]} Hz"
                )
            if not 0 <= self.frames <= MOST_FRAMES:
                raise ValueError(
                    "its header does not state how long it is; write the "
                    "file again, e.g. by sox"
                )
            self.slack = 0 if exact else round(SLACK_SECONDS * self.rate)
            self.close = stack.pop_all().close

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads a segment as mono, seeking to it.

        Arguments
        ---------
        start : int
            First frame.
        stop : int
            Frame after the last one; None reads to the end.

        Returns
        -------
        np.ndarray
            float32 [frames]; channels are averaged. Up to 0.1 s may be
            missing where a lossy codec states its length too long.

        Raises
        ------
        AudioError
            If the segment cannot be decoded, is shorter than asked for, or
            holds NaN, infinity or samples far above full scale.
        """
        with _naming(self.path):
            stop = self.frames if stop is None else stop
            if self.decoder:
                samples = self._decode(start, stop)
            else:
                self.file.seek(start)
                samples = self.file.read(
                    stop - start, dtype="float32", always_2d=True
                )
                # a single column needs no mean
                samples = (
                    samples.mean(1) if self.channels > 1 else samples[:, 0]
                )
            if len(samples) < max(stop - start - self.slack, 1):
                raise ValueError(
                    f"it ends at frame {start + len(samples)}, but frames "
                    f"{start} to {stop} were asked for (its header states "
                    f"{self.frames})"
                )
            # NaN stays NaN
            peak = max(samples.max(), -samples.min())
            if not peak <= LOUDEST:
                raise ValueError(
                    f"between frames {start} and {stop} are NaN, infinite or "
                    f"absurd samples (peak {peak:.3g}; full scale is 1)"
                )
        return np.ascontiguousarray(samples)

    def read_spans(self, spans: list[tuple[int, int]]) -> list[np.ndarray]:
        """Reads several segments as mono, in one go where that is cheaper.

        Arguments
        ---------
        spans : list of tuple of int
            First frame of each and the one after its last.

        Returns
        -------
        list of np.ndarray
            float32 [frames] each; what ``read`` of a file opened anew gives,
            save that m4a may differ by the noise that AAC fills in.

        Raises
        ------
        AudioError
            If a segment cannot be read.
        """
        starts, stops = zip(*spans)
        first, last = min(starts), max(stops)
        if self.decoder or not self.slack:
            if last - first > ONE_GO * (sum(stops) - sum(starts)):
                return [self.read(*span) for span in spans]
            # damage may lie between the segments
            with contextlib.suppress(AudioError):
                whole = self.read(first, last)
                if len(whole) == last - first:
                    return [whole[a - first : b - first] for a, b in spans]
        # mp3 and ogg depend on what was read before, even after a seek
        return [read(self.path, *span)[0] for span in spans]

    def _decode(self, start, stop):
        """A segment by torchcodec, with silence before a late first frame."""
        decode = self.decoder.get_samples_played_in_range
        found = decode(start / self.rate, stop / self.rate)
        late = round(found.pts_seconds * self.rate) - start
        samples = found.data[0].numpy()
        return np.pad(samples, (max(late, 0), 0))[: stop - start]


def info(path: str) -> AudioInfo:
    """Reads the header of a file.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    AudioInfo
        Length, rate and channels.

    Raises
    ------
    AudioError
        As ``open``.
    """
    with open(path) as file:
        return AudioInfo(file.frames, file.rate, file.channels)


@functools.lru_cache(maxsize=4096)
def sample_rate(path: str) -> int:
    """The rate of a file in Hz, remembered for files seen lately."""
    return info(path).sample_rate


def read(
    path: str, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, int]:
    """Reads a segment of a file as mono.

    Arguments
    ---------
    path : str
        The file.
    start : int
        First frame, at the file's own rate.
    stop : int
        Frame after the last one; None reads to the end.

    Returns
    -------
    samples : np.ndarray
        float32 [frames]; channels are averaged.
    sample_rate : int
        The file's own rate in Hz.

    Raises
    ------
    AudioError
        If the file or the segment cannot be read.
    """
    with open(path) as file:
        return file.read(start, stop), file.rate


def load(
    path: str, sample_rate: int, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Reads a file, or a segment of it, as mono at the given rate.

    Arguments
    ---------
    path : str
        The file.
    sample_rate : int
        Wanted rate in Hz.
    start : int
        First frame, at the file's own rate.
    stop : int
        Frame after the last one; None reads to the end.

    Returns
    -------
    torch.Tensor
        Samples [time].

    Raises
    ------
    AudioError
        If the file or the segment cannot be read.
    """
    samples, rate = read(path, start, stop)
    return resample(torch.from_numpy(samples), rate, sample_rate)


def resample(samples: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resamples along the last axis, on any device.

    The cost does not depend on the common divisor of the rates: torchaudio
    keeps a filter for each phase, of which there are 640 or fewer between
    all common rates; for other rates the same filter is computed for each
    output sample.

    Arguments
    ---------
    samples : torch.Tensor
        Audio [..., time].
    rate : int
        Present rate in Hz.
    new_rate : int
        Wanted rate in Hz.

    Returns
    -------
    torch.Tensor
        Audio [..., ceil(time * new_rate / rate)].

    Example
    -------
    >>> resample(torch.zeros(2, 8000), 8000, 16000).shape
    torch.Size([2, 16000])
    """
    if rate == new_rate:
        return samples
    if new_rate // math.gcd(rate, new_rate) <= MOST_PHASES:
        return _resampler(rate, new_rate, samples.device)(samples)
    return _resample_directly(samples, rate, new_rate)


@functools.lru_cache(maxsize=64)
def _resampler(rate, new_rate, device):
    """One filter bank per pair of rates and device."""
    return torchaudio.transforms.Resample(rate, new_rate).to(device)


def _resample_directly(samples, rate, new_rate):
    """Windowed sinc interpolation as torchaudio's, between any two rates."""
    cutoff = 0.99 * min(rate, new_rate)
    width = math.ceil(6 * rate / cutoff)
    taps = torch.arange(-width, width + 2, device=samples.device)
    count = -(-samples.shape[-1] * new_rate // rate)
    padded = F.pad(samples, (width, width + 2))
    windows = padded.unfold(-1, len(taps), 1)
    parts = []
    places = torch.arange(count, device=samples.device) * rate
    for place in places.split(BLOCK // len(taps)):
        phase = (place % new_rate / new_rate)[:, None]
        time = ((taps - phase) * (cutoff / rate)).clamp(-6, 6)
        kernel = time.sinc() * (time * (math.pi / 12)).cos() ** 2
        found = windows[..., place // new_rate, :] * kernel
        parts.append(found.sum(-1) * (cutoff / rate))
    return torch.cat(parts, -1)


def _entry_problem(path, is_folder):
    """Why the name of a file or folder rules it out, or an empty string."""
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden: its name starts with a dot"
    if not is_folder and extension not in EXTENSIONS:
        return (
            f"unsupported {extension or 'name without extension'}: audio is "
            "known by its extension"
        )
    return _name_problem(name)


def _name_problem(name):
    """Why a CSV or a list cannot hold a name, or an empty string."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "name not UTF-8: rename it"
    if "\n" in name or "\r" in name:
        return "line break in the name: rename it"
    return ""


@contextlib.contextmanager
def _naming(path):
    """Turns what decoders raise at damaged files into an AudioError."""
    try:
        yield
    except AudioError:
        raise
    except (
        *(OSError, RuntimeError, ValueError, TypeError, AssertionError),
        *(OverflowError, MemoryError, tarfile.TarError),
    ) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"Cannot read {path}: {reason}") from error


@contextlib.contextmanager
def _source(path):
    """What soundfile and torchcodec open: a path, or a member of a tar."""
    shard, mark, member = path.rpartition(SHARD)
    file = shard + SHARD[:-2] if mark else path
    status = os.stat(file)
    # opening a pipe would wait for ever
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if not mark:
        yield path
        return
    members = _members(file, status.st_size, status.st_mtime_ns)
    if member not in members:
        raise ValueError(f"the tar file has no member {member}")
    with _Member(file, *members[member]) as opened:
        yield opened


@functools.lru_cache(maxsize=64)
def _members(path, size, mtime):
    """First byte and size of each file in a tar file, by name."""
    with tarfile.open(path, "r:") as shard:
        return {
            member.name: (member.offset_data, member.size)
            for member in shard
            if member.isreg()
        }


class _Member(io.RawIOBase):
    """A part of a file as a file of its own, with a position of its own."""

    def __init__(self, path, first, size):
        self.descriptor = os.open(path, os.O_RDONLY)
        self.first, self.size, self.place = first, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place}.get(whence, self.size)
        self.place = start + offset
        return self.place

    def tell(self):
        return self.place

    def readinto(self, buffer):
        left = max(self.size - self.place, 0)
        view = memoryview(buffer)[:left]
        count = os.preadv(self.descriptor, [view], self.first + self.place)
        self.place += count
        return count

    def close(self):
        if not self.closed:
            os.close(self.descriptor)
        super().close()
