"""Audio files: what they are, and stretches of them, without reading the rest.

soundfile reads wav, flac, ogg, opus and mp3; m4a and other containers need
``torchcodec`` (``pip install speechbrain_ssl[m4a]``).
"""

import contextlib
import functools
import os
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio

SOUNDFILE_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
TORCHCODEC_EXTENSIONS = (".m4a", ".mp4", ".aac", ".webm")
EXTENSIONS = SOUNDFILE_EXTENSIONS + TORCHCODEC_EXTENSIONS
# soundfile's codings whose samples are the same wherever reading begins
EXACT = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# stretches are read in one go if that takes at most so many times their frames
ONE_GO = 1.5


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


def needs_torchcodec(path):
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
            "m4a needs torchcodec (pip install speechbrain_ssl[m4a]) and "
            "FFmpeg's libraries"
        ) from error
    return decoders


def info(path):
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
    OSError
        If the file cannot be opened or is no audio; the message names it.
    """
    if needs_torchcodec(path):
        meta = _decoder(path).metadata
        frames = round(meta.duration_seconds_from_header * meta.sample_rate)
        return AudioInfo(frames, meta.sample_rate, meta.num_channels)
    with _naming(path):
        header = soundfile.info(path)
    return AudioInfo(header.frames, header.samplerate, header.channels)


@functools.lru_cache(maxsize=4096)
def sample_rate(path):
    """The rate of a file in Hz, remembered for files seen lately."""
    return info(path).sample_rate


def read(path, start=0, stop=None):
    """Reads a stretch of a file as mono, seeking to it.

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
    OSError
        If the file cannot be read; the message names it.
    """
    with Reader(path) as file:
        return file.read(start, stop), file.rate


class Reader:
    """A file that is opened once, for several reads, in a ``with`` block.

    Its ``rate`` in Hz is that of the file; all frames count at it.

    Arguments
    ---------
    path : str
        The file.

    Raises
    ------
    OSError
        If the file cannot be opened; the message names it.
    """

    def __init__(self, path):
        self.path = path
        self.decoder = _decoder(path) if needs_torchcodec(path) else None
        if self.decoder:
            self.rate = self.decoder.metadata.sample_rate
            return
        with _naming(path):
            self.file = soundfile.SoundFile(path)
        self.rate = self.file.samplerate

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # torchcodec's decoder has nothing to close
        if not self.decoder:
            self.file.close()

    def read(self, start=0, stop=None):
        """Reads a stretch as mono, seeking to it.

        Arguments
        ---------
        start : int
            First frame.
        stop : int
            Frame after the last one; None reads to the end.

        Returns
        -------
        np.ndarray
            float32 [frames]; channels are averaged.

        Raises
        ------
        OSError
            If the file cannot be read; the message names it.
        """
        if self.decoder:
            until = None if stop is None else stop / self.rate
            decode = self.decoder.get_samples_played_in_range
            return decode(start / self.rate, until).data[0].numpy()
        with _naming(self.path):
            self.file.seek(start)
            frames = -1 if stop is None else stop - start
            samples = self.file.read(frames, dtype="float32", always_2d=True)
        mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
        return np.ascontiguousarray(mono)

    def read_spans(self, spans):
        """Reads several stretches as mono, in one go where that is cheaper.

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
        OSError
            If the file cannot be read; the message names it.
        """
        starts, stops = zip(*spans)
        first, last = min(starts), max(stops)
        if self.decoder or self.file.subtype.startswith(EXACT):
            if last - first > ONE_GO * (sum(stops) - sum(starts)):
                return [self.read(*span) for span in spans]
            # damage may lie between the stretches
            with contextlib.suppress(OSError):
                whole = self.read(first, last)
                if len(whole) == last - first:
                    return [whole[a - first : b - first] for a, b in spans]
        # mp3 and ogg depend on what was read before, even after a seek
        return [read(self.path, *span)[0] for span in spans]


def resample(samples, rate, new_rate):
    """Resamples along the last axis.

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
    return _resampler(rate, new_rate)(samples)


def load(path, sample_rate, start=0, stop=None):
    """Reads a file, or a stretch of it, as mono at the given rate.

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
    """
    samples, rate = read(path, start, stop)
    return resample(torch.from_numpy(samples), rate, sample_rate)


def find_files(folder):
    """Lists the audio files of a folder and its subfolders.

    Arguments
    ---------
    folder : str
        Where to look; links to folders are not followed.

    Returns
    -------
    list of str
        Paths of files with a known extension, sorted.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no audio in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"No such folder of audio: {folder}")
    paths = sorted(
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )
    if not paths:
        raise FileNotFoundError(
            f"No audio files ({', '.join(EXTENSIONS)}) in {folder}"
        )
    return paths


@functools.lru_cache(maxsize=64)
def _resampler(rate, new_rate):
    """One filter bank per pair of rates."""
    return torchaudio.transforms.Resample(rate, new_rate)


@contextlib.contextmanager
def _naming(path):
    """Lets soundfile's errors name the file."""
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        raise OSError(f"Cannot read {path}: {error}") from error


def _decoder(path):
    """torchcodec's decoder, with one error for all that can go wrong."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such file: {path}")
    try:
        return import_torchcodec().AudioDecoder(path, num_channels=1)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(f"Cannot read {path}: {error}") from error
