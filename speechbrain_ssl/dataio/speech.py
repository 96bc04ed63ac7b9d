"""Voice activity detection: where there is speech in a long recording.

Both detectors work on blocks of some minutes, so that the memory does not
depend on the length of a recording.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.extras import extra

# Silero's sample rate; the energy does not need more either.
RATE = 16000
BLOCK_SECONDS = 300.0
# Energy: a frame is speech if its level is above the noise of its block by
# this many dB, and not this many below the loud frames.
FRAME_SECONDS, ABOVE_NOISE, BELOW_SPEECH = 0.02, 9.0, 30.0
NOISE_PERCENTILE, SPEECH_PERCENTILE, SILENCE_DBFS = 10, 95, -60.0
# Pauses up to this length belong to the speech around them, shorter speech is
# left out, and speech is extended by this much on both sides, in seconds.
PAUSE, SHORTEST, MARGIN = 0.5, 0.25, 0.1


def energy(wav: np.ndarray, rate: int = RATE) -> list[tuple[float, float]]:
    """Finds speech by its level above the noise of the block.

    It takes everything that is as loud as speech, music and noise included.
    ``wav`` is a block [time]. Gives start and stop of frames with speech in
    seconds, not joined yet.

    Example
    -------
    >>> noise = np.random.default_rng(0).normal(size=3 * 16000)
    >>> noise[:16000] *= 1e-3
    >>> noise[32000:] *= 1e-3
    >>> join(energy(noise), 3.0)
    [(0.9, 2.1)]
    """
    size = round(FRAME_SECONDS * rate)
    frames = wav[: len(wav) // size * size].reshape(-1, size)
    if not len(frames):
        return []
    # a constant offset is no sound
    power = np.square(frames - frames.mean(dtype=np.float64)).mean(1)
    level = 10 * np.log10(power + 1e-12)
    noise, loud = np.percentile(level, [NOISE_PERCENTILE, SPEECH_PERCENTILE])
    least = max(SILENCE_DBFS, loud - BELOW_SPEECH)
    if loud - noise > ABOVE_NOISE:  # else speech or noise all the time
        least = max(least, noise + ABOVE_NOISE)
    edges = np.diff(np.r_[0, (level > least).astype(np.int8), 0])
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [
        (float(a), float(b))
        for a, b in zip(starts * FRAME_SECONDS, stops * FRAME_SECONDS)
    ]


def silero(wav: np.ndarray, rate: int = RATE) -> list[tuple[float, float]]:
    """Finds speech in a block [time] at 16 kHz by the network of silero-vad."""
    model, timestamps = _silero()
    found = timestamps(
        torch.from_numpy(wav), model, sampling_rate=rate, speech_pad_ms=0
    )
    return [(span["start"] / rate, span["end"] / rate) for span in found]


@functools.cache
def _silero():
    """Network and function of silero-vad."""
    silero_vad = extra("silero-vad")
    # silero_vad sets the number of threads of the whole process to one
    threads = torch.get_num_threads()
    model = silero_vad.load_silero_vad()
    torch.set_num_threads(threads)
    return model, silero_vad.get_speech_timestamps


DETECTORS: dict[str, Callable] = {"energy": energy, "silero": silero}


def join(
    spans: list[tuple[float, float]], length: float
) -> list[tuple[float, float]]:
    """Joins speech over short pauses, and extends it.

    ``spans`` are start and stop in seconds, in order; the recording has
    ``length`` seconds.
    """
    joined: list[list[float]] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] <= PAUSE:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return [
        (
            round(max(start - MARGIN, 0.0), 3),
            round(min(stop + MARGIN, length), 3),
        )
        for start, stop in joined
        if stop - start >= SHORTEST
    ]


def find_speech(
    path: str, detect: Callable, start: int = 0, stop: int | None = None
) -> tuple[list[tuple[float, float]], int]:
    """Finds speech in a recording, block by block.

    ``start`` and ``stop`` are the first frame to look at and the one after the
    last, at the file's rate. Gives spans in seconds from ``start``, and the
    sample rate of the file in Hz.
    """
    with audio.open(path) as file:
        stop = file.frames if stop is None else stop
        spans = []
        for place, wav in _blocks(file, start, stop):
            found = detect(wav.numpy(), RATE)
            spans += [(place + first, place + last) for first, last in found]
        return join(spans, (stop - start) / file.rate), file.rate


def _blocks(
    file: audio.Reader, start: int, stop: int
) -> Iterator[tuple[float, torch.Tensor]]:
    """Yields the first second of each block, and its samples at ``RATE``."""
    size = round(BLOCK_SECONDS * file.rate)
    for first in range(start, stop, size):
        samples = file.read(first, min(first + size, stop))
        wav = audio.resample(torch.from_numpy(samples), file.rate, RATE)
        yield (first - start) / file.rate, wav


def cut(
    spans: list[tuple[float, float]], shortest: float, longest: float
) -> list[tuple[float, float]]:
    """Cuts long speech into equal parts, and leaves short speech out.

    ``spans`` and the limits of a part are seconds.

    Example
    -------
    >>> cut([(0.0, 25.0), (26.0, 27.0)], 2.0, 10.0)
    [(0.0, 8.333), (8.333, 16.667), (16.667, 25.0)]
    """
    parts = []
    for start, stop in spans:
        count = int(np.ceil((stop - start) / longest))
        edges = np.linspace(start, stop, count + 1).round(3).tolist()
        parts += [(a, b) for a, b in zip(edges, edges[1:]) if b - a >= shortest]
    return parts
