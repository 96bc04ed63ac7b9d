"""Finding, opening, reading and resampling of audio files.

soundfile reads wav, flac, ogg, opus, mp3, aiff, au, caf, sph and w64. m4a,
webm, wma and other containers need ``torchcodec``
(``pip install speechbrain_ssl[m4a]``). Every function that takes the path of
an audio file also takes

* a member of an uncompressed tar file, ``shard.tar::name.flac``, with first
  byte and size if they are known, ``shard.tar::1536+20480::name.flac``;
* a URL that fsspec opens, such as ``s3://bucket/shard.tar::1536+20480::name.flac``
  or ``https://host/name.flac``. fsspec names the package that a protocol
  needs.
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
import re
import stat
import tarfile
import threading
import unicodedata
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import fsspec
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
# Subtypes of soundfile that decode to the same samples from any start.
EXACT = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# beginnings of the lines that libmpg123 prints
MPG123 = (b"Warning: ", b"Note: ", b"[src/libmpg123")
# Files of lossy codecs may decode to fewer frames than their header states.
SLACK_SECONDS = 0.1
# Segments are read together if the range from the first to the last one has
# at most this many times their frames.
ONE_GO = 1.5
# Valid sample rates in Hz.
RATES = (1_000, 768_000)
# Largest valid sample, relative to full scale.
LOUDEST = 1e3
# Largest valid number of frames: 596 hours at 16 kHz.
MOST_FRAMES = 2**35
# Largest number of filters in a resampler of torchaudio, and values that are
# computed at once where it would need more.
MOST_PHASES, BLOCK = 640, 2**21
SHARD = ".tar::"
# first byte and size of a member, before its name
PLACE = re.compile(r"(\d+)\+(\d+)::(.+)", re.DOTALL)
TAR_BLOCK = 512
# one protocol or several, such as simplecache::s3://
URL = re.compile(r"[A-Za-z][\w+.-]*(::[\w+.-]+)*://")


class AudioError(OSError):
    """An audio file that cannot be used; the message names it."""


class AudioInfo(NamedTuple):
    """Frames, sample rate in Hz and number of channels of an audio file."""

    frames: int
    sample_rate: int
    channels: int


def find(folder: str) -> tuple[list[str], dict[str, str]]:
    """Finds the audio files of a folder and its subfolders.

    Files are not opened, but uncompressed tar files are searched. Links are
    followed. A file or folder that has several names is listed once, under a
    name without links if it has one. Names that start with a dot, or that a CSV
    file cannot contain, are left out.

    Gives sorted paths, including ``folder``, of regular files that have one of
    ``EXTENSIONS`` in upper or lower case, and of such members of tar files,
    with first byte and size; and the reason for each other file or folder, by
    path. The text before the colon is the kind of reason. It is an error if
    there are no audio files.

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
        found = "is a file" if os.path.exists(folder) else "does not exist"
        raise FileNotFoundError(
            f"The folder {folder} {found}. Give the folder of the audio."
        )
    if problem := _name_problem(os.path.abspath(folder)):
        raise ValueError(f"The folder {folder!r} cannot be used: {problem}.")
    paths, left_out, seen = [], {}, {}
    waiting, links = [folder], []
    while waiting or links:
        # links come last, so that a name without links is preferred
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
            elif not stat.S_ISREG(status.st_mode):
                left_out[path] = "not a regular file: a pipe or a device"
            elif path.lower().endswith(".tar"):
                _search_tar(path, paths, left_out)
            else:
                paths.append(path)
        except OSError as error:
            kind = "broken link" if is_link else "unreadable"
            left_out[path] = f"{kind}: {error.strerror}"
    if folder in left_out:
        raise PermissionError(
            f"The folder {folder} cannot be searched: {left_out[folder]}."
        )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no audio files ({', '.join(EXTENSIONS)}). Left "
            f"out: {describe(left_out) or 'nothing'}. Give the folder of the "
            "audio."
        )
    if left_out:
        logger.info(
            "%s: %d audio files. Left out: %s.",
            folder,
            len(paths),
            describe(left_out),
        )
    return sorted(paths, key=_without_place), left_out


def _search_tar(path, paths, left_out):
    """Adds the audio files of a tar file to ``paths``, others to ``left_out``."""
    try:
        found = members(path)
    except tarfile.TarError as error:
        left_out[path] = f"unreadable: {error}"
        return
    for name, (first, size) in found.items():
        problem = _entry_problem(name, False) or _name_problem(name)
        if name.lower().endswith(".tar"):
            problem = "unsupported tar in a tar file"
        if problem:
            left_out[f"{path}::{name}"] = problem
        else:
            paths.append(f"{path}::{first}+{size}::{name}")


def members(path: str) -> dict[str, tuple[int, int]]:
    """First byte and size of each regular file in an uncompressed tar file.

    Of equal names the last one counts, as in tar.
    """
    with tarfile.open(path, "r:") as shard:
        return {
            member.name: (member.offset_data, member.size)
            for member in shard
            if member.isreg()
        }


def names(paths: list[str], folder: str) -> list[str]:
    """Names for IDs of the audio files that ``find`` found in a folder.

    They are paths relative to the folder. Members of tar files have their names
    in the tar file, as before packing, or ``shard.tar::name`` if two of all
    files would have the same name.

    Example
    -------
    >>> names(["/a/0.tar::512+9::b/c.wav", "/a/d.wav"], "/a")
    ['b/c.wav', 'd.wav']
    """
    whole = [_without_place(os.path.relpath(path, folder)) for path in paths]
    short = [name.rpartition(SHARD)[2] for name in whole]
    return short if len({*short}) == len(short) else whole


def _without_place(path):
    """``shard.tar::name`` without first byte and size of the member."""
    shard, mark, member = path.rpartition(SHARD)
    found = mark and PLACE.fullmatch(member)
    return f"{shard}{mark}{found[3]}" if found else path


def count_reasons(left_out: dict[str, str]) -> collections.Counter:
    """Counts files by kind of reason, the text before the colon."""
    return collections.Counter(
        reason.partition(":")[0] for reason in left_out.values()
    )


def describe(left_out: dict[str, str]) -> str:
    """Summarizes reasons from ``find``, e.g. "2 too short, 1 silent"."""
    kinds = count_reasons(left_out).most_common(10)
    return ", ".join(f"{count} {kind}" for kind, count in kinds)


def write_left_out(
    csv_path: str | os.PathLike, left_out: dict[str, str], folder: str
) -> None:
    """Writes what ``find`` has left out as a CSV ``wav,reason``.

    ``$data_root`` replaces the folder that was searched.
    """
    with write_whole(csv_path) as file:
        # quoted, because a name may contain a carriage return
        writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        writer.writerow(["wav", "reason"])
        for path, reason in sorted(left_out.items()):
            name = os.path.relpath(path, folder)
            writer.writerow([f"$data_root/{name}", reason])


def place(folder: str, name: str) -> str | None:
    """Path of a file by its name in a folder; None if it is not there.

    The name may be in another Unicode form than in a list: macOS writes an
    accented letter as two characters, others write one.
    """
    forms = [name, *(unicodedata.normalize(f, name) for f in ("NFC", "NFD"))]
    paths = (os.path.join(folder, form) for form in dict.fromkeys(forms))
    return next(filter(is_file, paths), None)


def is_file(path: str) -> bool:
    """Whether a regular file, or the tar file of a member, exists."""
    file, _ = _split(path)
    if is_url(file):
        system, name = fsspec.url_to_fs(file)
        return system.isfile(name)
    return os.path.isfile(file)


def is_url(path: str) -> bool:
    """Whether fsspec has to open a path: ``protocol://...``."""
    return URL.match(path) is not None


def absolute(path: str) -> str:
    """An absolute path; a URL as it is."""
    return path if is_url(path) else os.path.abspath(path)


def stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file or a member.

    The size of a member without its place, and the time of any member, are
    those of the tar file.
    """
    file, member = _split(path)
    status = os.stat(file)
    found = member and PLACE.fullmatch(member)
    return int(found[2]) if found else status.st_size, status.st_mtime_ns


def _split(path):
    """File of a path, and the member in it or None."""
    shard, mark, member = path.rpartition(SHARD)
    return (shard + ".tar", member) if mark else (path, None)


def needs_torchcodec(path: str) -> bool:
    """Whether torchcodec has to read a file with this extension."""
    return path.lower().endswith(TORCHCODEC_EXTENSIONS)


def import_torchcodec() -> Any:
    """Imports ``torchcodec.decoders``; raises OSError if it or FFmpeg is
    missing.
    """
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError) as error:
        raise OSError(
            f"{', '.join(TORCHCODEC_EXTENSIONS)} need torchcodec (pip install "
            "speechbrain_ssl[m4a]) and FFmpeg's libraries"
        ) from error
    return decoders


def open(path: str) -> "Reader":
    """Opens an audio file, or a member of a tar file, for a ``with`` block.

    An AudioError names a file that is missing, is not a regular file, cannot be
    decoded, or states an invalid rate or length in its header.

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
    """An open audio file, made by ``open``.

    ``rate`` is its sample rate in Hz, to which all frame numbers refer,
    ``frames`` its length in samples of a channel, ``channels`` their number.
    """

    def __init__(self, path: str):
        self.path = path = os.fspath(path)
        self.decoder: Any = None
        with (
            contextlib.ExitStack() as stack,
            _naming(path),
            _without_mpg123(path),
        ):
            source = stack.enter_context(_source(path))
            if needs_torchcodec(path):
                decoders = import_torchcodec()
                if isinstance(source, str):  # a:b.m4a looks like a URL
                    source = os.path.abspath(source)
                self.decoder = decoders.AudioDecoder(source, num_channels=1)
                meta = self.decoder.metadata
                self.rate, self.channels = meta.sample_rate, meta.num_channels
                # webm states the duration in the container only
                seconds = getattr(meta, "duration_seconds", None)
                seconds = seconds or meta.duration_seconds_from_header
                # browsers write webm without it, and that of aac is a guess
                if not seconds or path.lower().endswith(".aac"):
                    version = () if is_url(path) else stamp(path)
                    seconds = _decoded_seconds(path, *version)
                self.frames = round(seconds * self.rate)
                exact = False
            else:
                self.file = stack.enter_context(_soundfile(source))
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
                    f"its header states {self.frames} frames, which is not a "
                    "valid length; write the file again, e.g. with sox"
                )
            self.slack = 0 if exact else round(SLACK_SECONDS * self.rate)
            self.close = stack.pop_all().close

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads a segment as mono, after seeking to it.

        ``stop`` is the frame after the last one; None reads to the end. Gives
        the mean of the channels, float32 [frames]; with a lossy codec up to 0.1
        s may be missing at the end of the file. A segment that cannot be
        decoded, is too short, or contains NaN, infinity or samples far above
        full scale is an AudioError.
        """
        with _naming(self.path), _without_mpg123(self.path):
            stop = self.frames if stop is None else stop
            if not self.frames:
                raise ValueError("its header states no samples")
            if self.decoder:
                samples = self._decode(start, stop)
            else:
                self.file.seek(start)
                samples = self.file.read(
                    stop - start, dtype="float32", always_2d=True
                )
                samples = (
                    samples.mean(1) if self.channels > 1 else samples[:, 0]
                )
            if len(samples) < max(stop - start - self.slack, 1):
                raise ValueError(
                    f"it ends at frame {start + len(samples)}; expected "
                    f"frames {start} to {stop} (its header states "
                    f"{self.frames})"
                )
            peak = max(samples.max(), -samples.min())
            if not peak <= LOUDEST:
                raise ValueError(
                    f"frames {start} to {stop} contain NaN, infinity or "
                    f"samples above {LOUDEST:g} times full scale (peak "
                    f"{peak:.3g})"
                )
        return np.ascontiguousarray(samples)

    def read_spans(self, spans: list[tuple[int, int]]) -> list[np.ndarray]:
        """Reads several segments as mono, together where this is faster.

        A segment is its first frame and the one after its last. Each is what
        ``read`` gives after opening the file again (in m4a, the noise that AAC
        adds may differ).
        """
        starts, stops = zip(*spans)
        first, last = min(starts), max(stops)
        if self.decoder or not self.slack:
            if last - first > ONE_GO * (sum(stops) - sum(starts)):
                return [self.read(*span) for span in spans]
            # a damaged part between the segments does not matter
            with contextlib.suppress(AudioError):
                whole = self.read(first, last)
                if len(whole) == last - first:
                    return [whole[a - first : b - first] for a, b in spans]
        # samples of mp3 and ogg depend on earlier reads, even after a seek
        return [read(self.path, *span)[0] for span in spans]

    def _decode(self, start, stop):
        """Decodes with torchcodec; pads with zeros if the first frame is late."""
        decode = self.decoder.get_samples_played_in_range
        found = decode(start / self.rate, stop / self.rate)
        late = round(found.pts_seconds * self.rate) - start
        samples = found.data[0].numpy()
        return np.pad(samples, (max(late, 0), 0))[: stop - start]


def _soundfile(source):
    """Opens a file; libsndfile has no words for what the system refuses."""
    try:
        return soundfile.SoundFile(source)
    except soundfile.LibsndfileError:
        if isinstance(source, str):
            os.close(os.open(source, os.O_RDONLY))
        raise


@functools.lru_cache(maxsize=4096)
def _decoded_seconds(path, *version):
    """Duration of a file that does not state it: all of it is decoded."""
    with _source(path) as source:
        if isinstance(source, str):
            source = os.path.abspath(source)
        # at a low rate, which takes little memory
        decoder = import_torchcodec().AudioDecoder(
            source, num_channels=1, sample_rate=RATES[0]
        )
        found = decoder.get_all_samples()
    return found.pts_seconds + found.data.shape[1] / RATES[0]


# only one thread at a time may redirect the stderr of the process
_redirecting = threading.Lock()


def _new_lock():
    """A forked process must not wait for a thread that it does not have."""
    global _redirecting
    _redirecting = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


@contextlib.contextmanager
def _without_mpg123(path):
    """Drops what libmpg123 prints about an mp3 file; libsndfile cannot.

    Lines that other threads print in the meantime are passed on.
    """
    if not path.lower().endswith(".mp3"):
        yield
        return
    with _redirecting, os.fdopen(os.memfd_create("stderr"), "r+b") as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if line.strip() and not line.startswith(MPG123):
                    os.write(2, line)


def info(path: str) -> AudioInfo:
    """Reads the header of a file; raises the errors of ``open``."""
    with open(path) as file:
        return AudioInfo(file.frames, file.rate, file.channels)


@functools.lru_cache(maxsize=4096)
def sample_rate(path: str) -> int:
    """Sample rate of a file in Hz; recent results are cached."""
    return info(path).sample_rate


def read(
    path: str, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, int]:
    """Opens a file and reads a segment; also gives its sample rate in Hz.

    See ``Reader.read``.
    """
    with open(path) as file:
        return file.read(start, stop), file.rate


def load(
    path: str, sample_rate: int, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Reads a segment, see ``Reader.read``, and resamples it [time]."""
    samples, rate = read(path, start, stop)
    return resample(torch.from_numpy(samples), rate, sample_rate)


def resample(samples: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resamples audio along the last axis, on any device.

    torchaudio stores one filter for each phase, at most 640 between common
    sample rates. For rates that would need more filters, the same filter is
    computed for each output sample, so the cost does not depend on the common
    divisor of the rates. Rates are in Hz; the result has ceil(time * new_rate /
    rate) samples.

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
    """Returns the resampler of torchaudio for two rates and a device."""
    return torchaudio.transforms.Resample(rate, new_rate).to(device)


def _resample_directly(samples, rate, new_rate):
    """Computes torchaudio's windowed sinc interpolation sample by sample."""
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
    """Returns why a file or folder is left out, or an empty string."""
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden: its name starts with a dot"
    if not is_folder and extension not in (*EXTENSIONS, ".tar"):
        return (
            f"unsupported {extension or 'name without extension'}: not an "
            "extension of audio files"
        )
    return _name_problem(name)


def _name_problem(name):
    """Returns why a CSV file cannot contain a name, or an empty string."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "name not UTF-8: rename it"
    if "\n" in name or "\r" in name:
        return "line break in the name: rename it"
    return ""


@contextlib.contextmanager
def _naming(path):
    """Converts errors of decoders to AudioError."""
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
def _source(path: str) -> Iterator[Any]:
    """Yields a path or an open file for the decoders."""
    file, member = _split(path)
    if is_url(file):
        yield io.BytesIO(_download(file, member))
        return
    status = os.stat(file)
    # opening a pipe would wait forever
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if member is None:
        yield path
        return
    found = PLACE.fullmatch(member)
    if found:
        first, size, name = int(found[1]), int(found[2]), found[3]
    else:
        known = _members(file, status.st_size, status.st_mtime_ns)
        if member not in known:
            raise ValueError(f"the tar file has no member {member}")
        (first, size), name = known[member], member
    with _Member(file, first, size) as opened:
        if found:
            _check_header(opened.header(), size, name)
        yield opened


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[IO]:
    """Opens an audio file, member of a tar file or URL as bytes.

    Nothing is decoded; the file can seek.
    """
    with _naming(path), _source(path) as source:
        if not isinstance(source, str):
            yield source
            return
        with os.fdopen(os.open(source, os.O_RDONLY), "rb") as file:
            yield file


@functools.lru_cache(maxsize=64)
def _members(path, size, mtime):
    """``members`` of a tar file as it is now."""
    return members(path)


def _download(url, member):
    """Bytes of a remote file, or of a member whose place is known."""
    if member is None:
        return _fetch(url)
    found = PLACE.fullmatch(member)
    if not found:
        raise ValueError(
            "members of remote tar files need their first byte and size, "
            "shard.tar::1536+20480::name.flac; `speechbrain-ssl pack` writes "
            "them"
        )
    first, size = int(found[1]), int(found[2])
    data = _fetch(url, first - TAR_BLOCK, first + size)
    _check_header(data[:TAR_BLOCK], size, found[3])
    return data[TAR_BLOCK:]


def _fetch(url, start=None, end=None):
    """Bytes of a remote file."""
    try:
        # not kept: a forked worker needs connections of its own
        system, name = fsspec.url_to_fs(url)
        return system.cat_file(name, start, end)
    except Exception as error:  # each protocol has its own
        reason = f"{type(error).__name__}: {error}"
        raise OSError(f"fsspec cannot fetch it ({reason})") from error


def _check_header(header, size, name):
    """Raises if a member is not where its path says."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        # long names are cut here (maybe within a letter), those of pax may
        # have ? for other letters than ASCII; blocks before this one have more
        start = found.name.encode("utf-8", "surrogateescape")[:90]
        plain = name.encode("ascii", "replace")
        is_same = name.encode().startswith(start) or plain.startswith(start)
        if found.size == size and is_same:
            return
        other = f"{found.name} with {found.size} bytes is there"
    except tarfile.HeaderError as error:
        other = error
    raise ValueError(
        f"the tar file has no member {name} with {size} bytes at this place "
        f"({other}). It was written again: prepare or pack the data again"
    )


class _Member(io.RawIOBase):
    """A part of a file as a file with its own position."""

    def __init__(self, path, first, size):
        self.descriptor = os.open(path, os.O_RDONLY)
        self.first, self.size, self.place = first, size, 0

    def header(self):
        """The block of the tar file in front of the member."""
        return os.pread(
            self.descriptor, TAR_BLOCK, max(self.first - TAR_BLOCK, 0)
        )

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
