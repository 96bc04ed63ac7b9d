"""Corruption: the noise, rooms and channels that tell two views apart.

Every view of every utterance gets its own draw. What is drawn is a short
vector of numbers, made in the loader from the seed of that view; what is done
with it is one batched function of tensors, which gives the same result in a
loader worker and on an accelerator.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ssl.dataio import audio

# where each number of a draw stands
SOURCE, OFFSET, SNR, ROOM = 0, 1, 2, 3
LOW_CUT, HIGH_CUT, TILT, PEAK, PEAK_GAIN, GAIN = 4, 5, 6, 7, 8, 9
DRAW_SIZE = 10

# shorter clips are repeated to this, so that a view never leaves its clip
CLIP_SECONDS = 10.0
# of training audio behind the babble, and of voices that babble at once
BABBLE_HOURS, BABBLE_CROWDS = 0.5, 4

# powers below this count as silence
SILENCE = 1e-10


class AudioBank(NamedTuple):
    """Many clips end to end, to be read by index from any device.

    Arguments
    ---------
    samples : torch.Tensor
        All clips, int16 [time].
    starts : torch.Tensor
        First sample of each clip, int64 [clips].
    lengths : torch.Tensor
        Samples of each clip, int64 [clips].
    """

    samples: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor

    def read(self, fraction, frames):
        """Reads stretches that start anywhere, each from one clip.

        Arguments
        ---------
        fraction : torch.Tensor
            Where to start, as a share of the bank in [0, 1) [rows].
        frames : int
            How much to read; no clip may be shorter.

        Returns
        -------
        torch.Tensor
            float32 in [-1, 1) [rows, frames].
        """
        position = (fraction * len(self.samples)).long()
        clip = torch.searchsorted(self.starts, position, right=True) - 1
        last = self.starts[clip] + self.lengths[clip] - frames
        steps = torch.arange(frames, device=position.device)
        index = torch.minimum(position, last)[:, None] + steps
        return self.samples[index].float() / 32768

    def share(self):
        """Moves the samples to memory that loader workers share."""
        for tensor in self:
            tensor.share_memory_()
        return self

    def to(self, device):
        """The same bank on another device."""
        return AudioBank(*(tensor.to(device) for tensor in self))


def bank_of_clips(clips, min_frames=1):
    """Makes a bank.

    Arguments
    ---------
    clips : iterable of torch.Tensor
        Audio, each [time].
    min_frames : int
        Shorter clips are repeated to this length.

    Returns
    -------
    AudioBank
        The clips, each scaled to a peak of one so that 16 bits suffice.
    """
    clips = [_to_int16(_repeat(clip, min_frames)) for clip in clips]
    lengths = torch.tensor([len(clip) for clip in clips])
    starts = lengths.cumsum(0) - lengths
    return AudioBank(torch.cat(clips), starts, lengths).share()


def bank_of_folder(folder, sample_rate, max_hours, rng):
    """Reads the audio files of a folder into a bank.

    Arguments
    ---------
    folder : str
        Searched with all its subfolders.
    sample_rate : int
        Rate of the bank in Hz.
    max_hours : float
        Stops reading after so much audio, taken from random files.
    rng : np.random.Generator
        Chooses the files when there are too many.

    Returns
    -------
    AudioBank
        The clips.

    Raises
    ------
    FileNotFoundError
        If there is no audio in the folder.
    """
    paths, _ = audio.find(folder)
    order = rng.permutation(len(paths))
    clips = (audio.load(paths[choice], sample_rate) for choice in order)
    seconds = 3600 * max_hours
    return bank_of_clips(
        _up_to(clips, seconds * sample_rate, folder),
        int(CLIP_SECONDS * sample_rate),
    )


def bank_of_babble(utterances, sample_rate, voices, rng):
    """Mixes random utterances of a training set.

    Arguments
    ---------
    utterances : Utterances
        Rows with ``wav``, ``start`` and ``stop``.
    sample_rate : int
        Rate of the bank in Hz.
    voices : tuple of int
        Fewest and most utterances that are heard at once.
    rng : np.random.Generator
        Chooses the utterances.

    Returns
    -------
    AudioBank
        One long clip for each of several numbers of voices between the two.
    """
    frames = int(3600 * BABBLE_HOURS * sample_rate)
    clips = (
        _load_row(utterances.row(int(choice)), sample_rate)
        for choice in rng.permutation(len(utterances))
    )
    loud = (
        clip * clip.square().mean().clamp(min=SILENCE).rsqrt()
        for clip in _up_to(clips, frames, "babble")
    )
    speech = _repeat(torch.cat(list(loud)), int(CLIP_SECONDS * sample_rate))
    crowds = np.linspace(*voices, BABBLE_CROWDS).round().astype(int)
    return bank_of_clips(
        sum(speech.roll(int(shift)) for shift in shifts)
        for shifts in (rng.integers(0, len(speech), n) for n in crowds)
    )


def coloured_noise(count, frames, sample_rate, rng):
    """Noises whose power falls with frequency and whose level wanders.

    Arguments
    ---------
    count : int
        Number of clips.
    frames : int
        Samples of each.
    sample_rate : int
        In Hz.
    rng : np.random.Generator
        Source of randomness.

    Returns
    -------
    list of torch.Tensor
        Clips [frames], from white to brown.
    """
    hertz = np.arange(1, frames // 2 + 1) * sample_rate / frames
    # flat where nobody hears it: else all power would go there
    frequency = np.maximum(hertz, 50.0)
    clips = []
    for slope in rng.uniform(0.0, 2.0, count):
        phase = rng.uniform(0, 2 * np.pi, len(frequency))
        spectrum = frequency ** (-slope / 2) * np.exp(1j * phase)
        noise = np.fft.irfft(np.r_[0, spectrum], frames)
        knots = rng.uniform(0.3, 1.0, 8)
        level = np.interp(np.linspace(0, 7, frames), np.arange(8), knots)
        clips.append(torch.from_numpy((noise * level).astype(np.float32)))
    return clips


def simulate_rooms(count, sample_rate, rng, seconds=0.5):
    """Impulse responses of rooms that do not exist.

    Polack's statistical model: a direct sound, some early reflections, and
    noise that decays exponentially, faster at high frequencies (J.-D. Polack,
    "La transmission de l'énergie sonore dans les salles", 1988).

    Arguments
    ---------
    count : int
        Number of rooms.
    sample_rate : int
        In Hz.
    rng : np.random.Generator
        Source of randomness.
    seconds : float
        Length of the responses.

    Returns
    -------
    torch.Tensor
        Impulse responses of unit energy [count, seconds * sample_rate].
    """
    frames = int(seconds * sample_rate)
    time = np.arange(frames) / sample_rate
    decay = np.exp(rng.uniform(np.log(0.1), np.log(0.9), (count, 1)))
    noise = rng.standard_normal((count, frames))
    bright = np.diff(noise, axis=1, prepend=0.0) / 2
    # -60 dB after the reverberation time; high frequencies die sooner
    damping = rng.uniform(0.3, 0.9, (count, 1))
    late = (noise - bright) * 10 ** (-3 * time / decay)
    late += bright * 10 ** (-3 * time / (decay * damping))
    early = noise * (rng.random((count, frames)) < 60 / sample_rate)
    early = early * (time < 0.05) * 10 ** (-3 * time / decay)
    late /= np.sqrt((late**2).sum(1, keepdims=True))
    early /= np.sqrt((early**2).sum(1, keepdims=True)) + 1e-6
    direct_db, early_db = rng.uniform(-3, 12, (2, count, 1))
    rooms = late + early * 10 ** ((early_db - 6) / 20)
    rooms[:, 0] = 10 ** (direct_db[:, 0] / 20)
    rooms /= np.sqrt((rooms**2).sum(1, keepdims=True))
    return torch.from_numpy(rooms.astype(np.float32))


def read_rooms(folder, sample_rate, frames, max_hours, rng):
    """Reads measured impulse responses.

    Arguments
    ---------
    folder : str
        Searched with all its subfolders.
    sample_rate : int
        Rate of the result in Hz.
    frames : int
        Cut or padded to so many samples, from the direct sound on.
    max_hours : float
        Of responses to keep, taken from random files.
    rng : np.random.Generator
        Chooses the files when there are too many.

    Returns
    -------
    torch.Tensor
        Impulse responses of unit energy [files, frames].
    """
    paths, _ = audio.find(folder)
    most = max(1, int(3600 * max_hours * sample_rate / frames))
    if len(paths) > most:
        chosen = np.sort(rng.choice(len(paths), most, replace=False))
        paths = [paths[choice] for choice in chosen]
    rooms = []
    for path in tqdm(paths, "Reading rooms", unit=" rooms", disable=None):
        room = audio.load(path, sample_rate)
        room = room[room.abs().argmax() :][:frames]
        room = torch.nn.functional.pad(room, (0, frames - len(room)))
        rooms.append(room / room.norm().clamp(min=1e-6))
    return torch.stack(rooms)


class Corruption:
    """Noise, babble, rooms and channels, drawn for each view alone.

    Without folders it makes do with what there is: coloured noise, simulated
    rooms, and babble of the training utterances. Call ``prepare`` once before
    use, and ``to`` to work on an accelerator.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    noise_folder, music_folder, room_folder : str
        Folders of audio; empty or None for none.
    chances : list of float
        Of a view with neither room nor noise, with a room, with noise, with
        both. They sum to one.
    noise_snr, music_snr, babble_snr : list of float
        Lowest and highest signal-to-noise ratio in dB.
    babble_voices : list of int
        Fewest and most utterances that babble together.
    equalize : float
        Chance of a channel: band limits, a tilt and a peak.
    gain : list of float
        Lowest and highest change of level in dB.
    simulated_rooms : int
        Number of rooms to simulate beside those of the folder.
    max_hours : float
        Of audio to keep of each kind, and of measured rooms.
    seed : int
        Seeds the simulated rooms and the choice of files, not the draws.

    Example
    -------
    >>> corruption = Corruption(sample_rate=16000, simulated_rooms=4)
    >>> corruption.prepare()
    >>> draw = corruption.draw(np.random.default_rng(0))
    >>> wavs = torch.randn(1, 8000)
    >>> corruption(wavs, torch.from_numpy(draw)[None]).shape
    torch.Size([1, 8000])
    """

    def __init__(
        self,
        sample_rate,
        noise_folder=None,
        music_folder=None,
        room_folder=None,
        chances=(0.0, 0.25, 0.25, 0.5),
        noise_snr=(0.0, 15.0),
        music_snr=(5.0, 15.0),
        babble_snr=(10.0, 20.0),
        babble_voices=(3, 8),
        equalize=0.8,
        gain=(-10.0, 10.0),
        simulated_rooms=500,
        max_hours=5.0,
        seed=0,
    ):
        if len(chances) != 4 or not math.isclose(sum(chances), 1.0):
            raise ValueError(
                "chances are those of none, room, noise and both, and must "
                f"sum to 1; got {list(chances)}"
            )
        if not 1 <= babble_voices[0] <= babble_voices[1]:
            raise ValueError(
                "babble_voices must be two numbers from 1 on, the smaller "
                f"first; got {list(babble_voices)}"
            )
        self.sample_rate = sample_rate
        self.folders = {"noise": noise_folder, "music": music_folder}
        self.room_folder = room_folder
        self.chances = np.cumsum(chances)
        self.snr = {
            "noise": noise_snr,
            "music": music_snr,
            "babble": babble_snr,
        }
        self.babble_voices = babble_voices
        self.equalize = equalize
        self.gain = gain
        self.simulated_rooms = simulated_rooms
        self.max_hours = max_hours
        self.seed = seed
        self.banks = {}
        self.rooms = None

    def prepare(self, utterances=None):
        """Reads and makes what the corruption is made of.

        Arguments
        ---------
        utterances : Utterances
            Training audio, some of which serves as babble; None for no
            babble.
        """
        rng = np.random.default_rng(self.seed)
        banks = {
            kind: bank_of_folder(folder, self.sample_rate, self.max_hours, rng)
            for kind, folder in self.folders.items()
            if folder
        }
        if "noise" not in banks:
            frames = int(CLIP_SECONDS * self.sample_rate)
            clips = coloured_noise(60, frames, self.sample_rate, rng)
            banks["noise"] = bank_of_clips(clips)
        if utterances is not None:
            banks["babble"] = bank_of_babble(
                utterances, self.sample_rate, self.babble_voices, rng
            )
        rooms = simulate_rooms(self.simulated_rooms, self.sample_rate, rng)
        if self.room_folder:
            measured = read_rooms(
                self.room_folder,
                self.sample_rate,
                rooms.shape[1],
                self.max_hours,
                rng,
            )
            rooms = torch.cat([measured, rooms])
        self.banks = {kind: banks[kind] for kind in self.snr if kind in banks}
        self.rooms = rooms.share_memory_()

    def to(self, device):
        """Moves noise and rooms to a device.

        Arguments
        ---------
        device : torch.device
            Where ``__call__`` is going to work.

        Returns
        -------
        Corruption
            This object.
        """
        self.banks = {k: bank.to(device) for k, bank in self.banks.items()}
        self.rooms = self.rooms.to(device)
        return self

    def draw(self, rng):
        """Draws what happens to one view.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        np.ndarray
            float64 [DRAW_SIZE]; -1 stands for no source, no room.
        """
        draw = np.zeros(DRAW_SIZE)
        # numbers are drawn whether used or not: one chance does not shift
        # the meaning of those after it
        u = rng.random(12)
        outcome = int(np.searchsorted(self.chances, u[0], side="right"))
        has_room, has_noise = outcome in (1, 3), outcome >= 2
        kind = int(u[1] * len(self.banks))
        name = list(self.banks)[kind]
        draw[SOURCE] = kind if has_noise else -1
        draw[OFFSET] = u[2]
        draw[SNR] = _between(self.snr[name], u[3])
        draw[ROOM] = int(u[4] * len(self.rooms)) if has_room else -1
        if u[5] < self.equalize:
            draw[LOW_CUT] = _between((20.0, 400.0), u[6] ** 2)
            draw[HIGH_CUT] = self.sample_rate / 2 * _between((0.4, 1.0), u[7])
            draw[TILT] = _between((-4.0, 4.0), u[8])
            draw[PEAK] = 200.0 * 2 ** (4.5 * u[9])
            draw[PEAK_GAIN] = _between((-8.0, 8.0), u[10])
        draw[GAIN] = _between(self.gain, u[11])
        return draw

    @torch.no_grad()
    def __call__(self, wavs, draws):
        """Corrupts views.

        Rooms and channels work in the frequency domain on the view as if it
        went round in a circle: what reverberates at its start is its end,
        as if speech had gone on before.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        draws : torch.Tensor
            What happens to each, from ``draw`` [rows, DRAW_SIZE].

        Returns
        -------
        torch.Tensor
            Corrupted views [rows, time].
        """
        draws = draws.to(wavs.device)
        spectrum = torch.fft.rfft(wavs)
        self._reverberate(spectrum, draws, wavs.shape[1])
        self._add_noise(spectrum, draws, wavs.shape[1])
        self._equalize(spectrum, draws)
        spectrum *= _from_db(draws[:, GAIN, None])
        return torch.fft.irfft(spectrum, wavs.shape[1])

    def _reverberate(self, spectrum, draws, frames):
        """Multiplies rows that are in a room by its response, in place."""
        rows = (draws[:, ROOM] >= 0).nonzero().flatten()
        if len(rows):
            rooms = self.rooms[draws[rows, ROOM].long(), :frames]
            spectrum[rows] *= torch.fft.rfft(rooms, frames)

    def _add_noise(self, spectrum, draws, frames):
        """Adds noise at the drawn ratio to rows that have some, in place."""
        for kind, bank in enumerate(self.banks.values()):
            rows = (draws[:, SOURCE] == kind).nonzero().flatten()
            if not len(rows):
                continue
            noise = torch.fft.rfft(bank.read(draws[rows, OFFSET], frames))
            ratio = _power(spectrum[rows]) / _power(noise)
            scale = ratio.sqrt() * _from_db(-draws[rows, SNR])
            spectrum[rows] += noise * scale[:, None]

    def _equalize(self, spectrum, draws):
        """Applies band limits, tilt and peak to rows with a channel."""
        rows = (draws[:, HIGH_CUT] > 0).nonzero().flatten()
        if len(rows):
            bins = spectrum.shape[1]
            response = self._response(draws[rows]).float()
            response = torch.nn.functional.interpolate(
                response[:, None], bins, mode="linear", align_corners=True
            )
            spectrum[rows] *= response[:, 0]

    def _response(self, draws, points=513):
        """Amplitude response of channels on a coarse grid [rows, points]."""
        nyquist = self.sample_rate / 2
        hertz = torch.linspace(0, nyquist, points, device=draws.device)
        octave = hertz.clamp(min=20.0).log2()
        low, high, peak = (
            draws[:, [LOW_CUT, HIGH_CUT, PEAK], None].log2().unbind(1)
        )
        # 18 dB per octave outside the band
        db = -18.0 * ((low - octave).relu() + (octave - high).relu())
        db += draws[:, TILT, None] * (octave - math.log2(1000.0))
        db += draws[:, PEAK_GAIN, None] * (-2 * (octave - peak) ** 2).exp()
        return _from_db(db.clamp(min=-60.0))


def _power(spectrum):
    """Power of rows from their one-sided spectra, up to a common factor."""
    bins = torch.view_as_real(spectrum).flatten(1)
    # all bins but the first stand for two (the last one, too, by and large)
    power = 2 * torch.linalg.vector_norm(bins, dim=1).square()
    return (power - spectrum[:, 0].abs().square()).clamp(min=SILENCE)


def _between(limits, share):
    """The point that lies at ``share`` of the way between two limits."""
    return limits[0] + (limits[1] - limits[0]) * share


def _from_db(db):
    """Decibels to amplitude, float32."""
    return (10 ** (db / 20)).float()


def _repeat(clip, min_frames):
    """Repeats a clip until it is long enough."""
    return clip.repeat(-(-min_frames // max(len(clip), 1)) or 1)


def _to_int16(clip):
    """Scales a clip to full range."""
    peak = clip.abs().max().clamp(min=1e-6)
    return (clip / peak * 32767).round().to(torch.int16)


def _load_row(row, sample_rate):
    """The audio of one row of an annotation."""
    samples, rate = audio.read(row["wav"], row["start"], row["stop"])
    return audio.resample(torch.from_numpy(samples), rate, sample_rate)


def _up_to(clips, frames, name):
    """Clips until there are enough frames of them."""
    for clip in tqdm(clips, f"Reading {name}", unit=" clips", disable=None):
        yield clip
        frames -= len(clip)
        if frames <= 0:
            break
