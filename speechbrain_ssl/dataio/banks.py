"""Recordings and RIRs for augmentation, read or generated into memory."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ssl import distributed
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.devices import share

logger = logging.getLogger(__name__)

# Shorter clips are repeated to this length; views must not be longer.
CLIP_SECONDS = 10.0
# Hours of training audio for babble, and number of mixtures of it.
BABBLE_HOURS, BABBLE_CROWDS = 0.5, 4
# Part of an RIR file that is read.
RIR_SECONDS = 10.0
# Lower limit of a power, for ratios.
SILENCE = 1e-10
# A clip with a lower peak (-120 dB) is silent.
FAINTEST = 1e-6
# Largest number of files that a warning names.
NAMED_FILES = 20


class AudioBank(NamedTuple):
    """Many clips in one tensor, which can be indexed on any device."""

    samples: torch.Tensor  # concatenated clips, int16 [time]
    starts: torch.Tensor  # first sample of each clip, int64 [clips]
    lengths: torch.Tensor  # number of samples of each clip, int64 [clips]

    @classmethod
    def of_clips(cls, clips: Sequence[torch.Tensor]) -> "AudioBank":
        """Joins clips, int16 [time] each, in memory that workers share."""
        lengths = torch.tensor([len(clip) for clip in clips])
        starts = lengths.cumsum(0) - lengths
        bank = cls(torch.cat(list(clips)), starts, lengths)
        for tensor in bank:
            share(tensor, "Noise, music and babble")
        return bank

    def read(self, position: torch.Tensor, frames: int) -> torch.Tensor:
        """Reads segments, each from one clip, in [-1, 1) [rows, frames].

        ``position`` is the first sample of each segment, int64 [rows]; it is
        lowered if the clip ends before the segment. No clip may be shorter than
        a segment.
        """
        clip = torch.searchsorted(self.starts, position, right=True) - 1
        last = self.starts[clip] + self.lengths[clip] - frames
        # indexing this view of all segments copies whole segments
        segments = self.samples.unfold(0, frames, 1)
        return segments[torch.minimum(position, last)].float() / 32768

    def to(self, device: torch.device | str) -> "AudioBank":
        """Returns a copy of the bank on a device."""
        return AudioBank(*(tensor.to(device) for tensor in self))


def clips_of_folder(
    folder: str, sample_rate: int, max_hours: float, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Reads audio files of a folder and its subfolders, in random order.

    Files that cannot be read or are silent are left out; a warning names them.
    ``max_hours`` of audio are read. Gives clips of ``CLIP_SECONDS`` or more,
    with a peak of one, int16 [time].
    """
    paths, _ = audio.find(folder)
    rows = [(paths[choice], 0, None) for choice in rng.permutation(len(paths))]
    frames = int(3600 * max_hours * sample_rate)
    shortest = int(CLIP_SECONDS * sample_rate)
    return [
        _to_int16(_repeat(clip, shortest))
        for clip in _read_clips(rows, sample_rate, frames, folder)
    ]


def clips_of_babble(
    utterances: Utterances,
    sample_rate: int,
    voices: Sequence[int],
    rng: np.random.Generator,
) -> list[torch.Tensor]:
    """Mixes random utterances of a training set.

    ``voices`` has the smallest and largest number of utterances in a mixture.
    Gives ``BABBLE_CROWDS`` clips of at most ``BABBLE_HOURS``, with different
    numbers of voices, int16 [time].
    """
    frames = int(3600 * BABBLE_HOURS * sample_rate)
    rows = (
        (row["wav"], row["start"], row["stop"])
        for row in map(
            utterances.row, rng.permutation(len(utterances)).tolist()
        )
    )
    equally_loud = [
        clip * power(clip).rsqrt()
        for clip in _read_clips(rows, sample_rate, frames, "babble")
    ]
    speech = _repeat(torch.cat(equally_loud), int(CLIP_SECONDS * sample_rate))
    crowds = (
        np.linspace(voices[0], voices[1], BABBLE_CROWDS).round().astype(int)
    )
    return [
        _to_int16(sum(speech.roll(int(shift)) for shift in shifts))
        for shifts in (rng.integers(0, len(speech), n) for n in crowds)
    ]


def colored_noise(
    count: int, sample_rate: int, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Generates white to brown noise of varying level.

    Gives ``count`` clips of ``CLIP_SECONDS``, int16 [time].
    """
    frames = int(CLIP_SECONDS * sample_rate)
    hertz = np.arange(1, frames // 2 + 1) * sample_rate / frames
    # flat below 50 Hz; otherwise most of the power would be inaudible
    frequency = np.maximum(hertz, 50.0)
    clips = []
    for slope in rng.uniform(0.0, 2.0, count):
        phase = rng.uniform(0, 2 * np.pi, len(frequency))
        spectrum = frequency ** (-slope / 2) * np.exp(1j * phase)
        noise = np.fft.irfft(np.r_[0, spectrum], frames)
        knots = rng.uniform(0.3, 1.0, 8)
        level = np.interp(np.linspace(0, 7, frames), np.arange(8), knots)
        noise = torch.from_numpy((noise * level).astype(np.float32))
        clips.append(_to_int16(noise))
    return clips


def simulate_rirs(
    count: int, sample_rate: int, rng: np.random.Generator, seconds: float = 0.5
) -> torch.Tensor:
    """Simulates room impulse responses.

    Polack's statistical model: direct sound, early reflections, and noise that
    decays exponentially, faster at high frequencies (J.-D. Polack, "La
    transmission de l'énergie sonore dans les salles", 1988). Gives RIRs of unit
    energy [count, seconds * sample_rate].
    """
    frames = int(seconds * sample_rate)
    time = np.arange(frames) / sample_rate
    decay = np.exp(rng.uniform(np.log(0.1), np.log(0.9), (count, 1)))
    noise = rng.standard_normal((count, frames))
    bright = np.diff(noise, axis=1, prepend=0.0) / 2
    # -60 dB after the reverberation time; high frequencies decay faster
    damping = rng.uniform(0.3, 0.9, (count, 1))
    late = (noise - bright) * 10 ** (-3 * time / decay)
    late += bright * 10 ** (-3 * time / (decay * damping))
    early = noise * (rng.random((count, frames)) < 60 / sample_rate)
    early = early * (time < 0.05) * 10 ** (-3 * time / decay)
    late /= np.sqrt((late**2).sum(1, keepdims=True))
    early /= np.sqrt((early**2).sum(1, keepdims=True)) + 1e-6
    direct_db, early_db = rng.uniform(-3, 12, (2, count, 1))
    rirs = late + early * 10 ** ((early_db - 6) / 20)
    rirs[:, 0] = 10 ** (direct_db[:, 0] / 20)
    rirs /= np.sqrt((rirs**2).sum(1, keepdims=True))
    return torch.from_numpy(rirs.astype(np.float32))


def read_rirs(
    folder: str,
    sample_rate: int,
    seconds: float,
    max_hours: float,
    rng: np.random.Generator,
) -> list[torch.Tensor]:
    """Reads measured RIRs from a folder and its subfolders.

    Files that cannot be read or are silent are left out; a warning names them.
    At most ``max_hours`` of RIRs are kept, from randomly chosen files. They
    have unit energy and ``seconds`` from the direct sound on; they are cut or
    padded.
    """
    frames = int(seconds * sample_rate)
    paths, _ = audio.find(folder)
    most = max(1, int(3600 * max_hours * sample_rate / frames))
    if len(paths) > most:
        chosen = np.sort(rng.choice(len(paths), most, replace=False))
        paths = [paths[choice] for choice in chosen]
    rirs = []
    rows = [(path, 0, None) for path in paths]
    for rir in _read_clips(rows, sample_rate, None, folder):
        rir = rir[rir.abs().argmax() :][:frames]
        rir = torch.nn.functional.pad(rir, (0, frames - len(rir)))
        rirs.append(rir / rir.norm())
    return rirs


def _read_clips(rows, sample_rate, frames, what):
    """Yields usable clips of ``rows`` (path, start, stop); warns of others.

    It reads ``frames`` of all clips together or, if this is None, at most
    ``RIR_SECONDS`` of each.
    """
    left, bad, count = frames, {}, 0
    bar = tqdm(rows, f"Reading {what}", unit=" clips", disable=None)
    for path, start, stop in bar:
        most = RIR_SECONDS if frames is None else left / sample_rate
        try:
            clip = _read_clip(path, start, stop, sample_rate, most)
        except audio.AudioError as error:
            bad[path] = str(error)
            continue
        count += 1
        yield clip
        if frames is not None:
            left -= len(clip)
            if left <= 0:
                break
    reasons = "; ".join(list(bad.values())[:NAMED_FILES])
    if len(bad) > NAMED_FILES:
        reasons += f"; and {len(bad) - NAMED_FILES} more"
    if not count:
        raise ValueError(
            f"none of the {len(bad)} audio files of {what} can be used: "
            f"{reasons}. Give readable audio."
        )
    if bad and distributed.rank() == 0:
        logger.warning(
            "Augmentation cannot use %d audio files of %s: %s",
            len(bad),
            what,
            reasons,
        )


def _read_clip(path, start, stop, sample_rate, seconds):
    """Reads one clip; raises AudioError if it is silent."""
    with audio.open(path) as file:
        stop = file.frames if stop is None else stop
        most = start + math.ceil(seconds * file.rate)
        samples = torch.from_numpy(file.read(start, min(stop, most)))
    clip = audio.resample(samples, file.rate, sample_rate)
    if clip.abs().max() < FAINTEST:
        raise audio.AudioError(f"{path} is silent")
    return clip


def power(wavs: torch.Tensor) -> torch.Tensor:
    """Mean square of waveforms [..., time], at least ``SILENCE`` [...]."""
    return wavs.square().mean(-1).clamp(min=SILENCE)


def _repeat(clip, min_frames):
    """Repeats a clip until it has at least ``min_frames``."""
    return clip.repeat(max(1, -(-min_frames // len(clip))))


def _to_int16(clip):
    """Scales a clip to full range."""
    peak = clip.abs().max().clamp(min=1e-6)
    return (clip / peak * 32767).round().to(torch.int16)
