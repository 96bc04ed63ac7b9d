"""Augmentation: what makes two views of an utterance differ.

An effect is any object with two methods::

    draw(rng) -> dict[str, float]          the parameters of one view
    apply(wavs, parameters) -> tensor      waveforms [rows, time], the same shape

``draw`` is called in the loader with a generator that is seeded by
(seed, epoch, row, view). ``apply`` is called with the parameters of all rows,
float32 [rows] for each name, in a loader worker or on an accelerator, where it
should not wait for the device (no ``.item()``, no ``.nonzero()``). An effect
may also have ``prepare(sample_rate, utterances, rng)``, which is called once
before the first draw, and ``to(device)``.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ssl.dataio import audio

logger = logging.getLogger(__name__)

# shorter clips are repeated to this length, so that a view fits into a clip
CLIP_SECONDS = 10.0
# hours of training audio for babble, and how many numbers of voices it has
BABBLE_HOURS, BABBLE_CROWDS = 0.5, 4
# a file of an RIR is read up to here
RIR_SECONDS = 10.0
# a power below this counts as silence
SILENCE = 1e-10
# damaged files that a warning names one by one
NAMED_FILES = 20


class Augmentation:
    """Effects in a fixed order, each applied to a view with some chance.

    It is an effect itself. Parameters of all effects are always drawn, so that
    the chance of one effect does not change the parameters of another.

    Arguments
    ---------
    effects : dict of str to object
        Name -> effect, in the order in which they are applied. None instead
        of an effect leaves it out.
    chances : list of dict
        Each entry makes one choice for a view: it maps names of effects,
        joined by ``+`` where effects are applied together, to the
        probability of this alternative. What is left to one is the
        probability that none of them is applied. An effect that no entry
        names is applied to every view.
    seed : int
        Seeds the choice of files and the simulated RIRs, not the draws.

    Raises
    ------
    ValueError
        If chances are no probabilities, or name an effect that is not there
        or that another entry names.

    Example
    -------
    >>> augmentation = Augmentation(
    ...     effects={"rir": Reverberation(), "noise": Noise(), "gain": Gain()},
    ...     chances=[{"rir": 0.25, "noise": 0.25, "rir+noise": 0.5}],
    ... )
    >>> augmentation.prepare(sample_rate=16000)
    >>> draw = augmentation.draw(np.random.default_rng(0))
    >>> augmentation.apply(torch.randn(1, 8000), stack_draws([draw])).shape
    torch.Size([1, 8000])
    """

    def __init__(
        self,
        effects: Mapping[str, Any],
        chances: Sequence[Mapping[str, float]] = (),
        seed: int = 0,
    ):
        self.choices = [_read_choice(entry, effects) for entry in chances]
        named = [name for choice in self.choices for name in choice.names]
        twice = {name for name in named if named.count(name) > 1}
        if twice:
            raise ValueError(
                f"chances name {', '.join(sorted(twice))} in two entries; an "
                "effect may stand in one entry only"
            )
        self.effects = {
            name: effect
            for name, effect in effects.items()
            if effect is not None
        }
        for name, effect in self.effects.items():
            if not (hasattr(effect, "draw") and hasattr(effect, "apply")):
                raise ValueError(
                    f"The effect {name!r} is a {type(effect).__name__}, which "
                    "has no draw and apply. (SpeechBrain's augmentations need "
                    "the adapter SpeechBrainAugment.)"
                )
        self.seed = seed
        self.names = ()

    def prepare(self, sample_rate: int, utterances=None, rng=None) -> None:
        """Lets the effects read or make what they need; call it once.

        Afterwards ``names`` are the names of all parameters.

        Arguments
        ---------
        sample_rate : int
            Of the views, in Hz.
        utterances : Utterances
            The training set, for babble; None for no babble.
        rng : np.random.Generator
            Not used: ``seed`` makes the choices.
        """
        for effect in self.effects.values():
            if hasattr(effect, "prepare"):
                own = np.random.default_rng(self.seed)
                effect.prepare(sample_rate, utterances, own)
        self.names = tuple(self.draw(np.random.default_rng(self.seed)))

    def to(self, device: torch.device | str) -> "Augmentation":
        """Moves noise, RIRs and the like to the device of ``apply``.

        Arguments
        ---------
        device : torch.device
            Where ``apply`` will get its waveforms.

        Returns
        -------
        Augmentation
            This object.
        """
        for effect in self.effects.values():
            if hasattr(effect, "to"):
                effect.to(device)
        return self

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws which effects a view gets, and their parameters.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        dict of str to float
            ``NAME.on`` (1 or 0) for each effect that has a chance, and
            ``NAME.PARAMETER`` for each parameter of each effect.

        Raises
        ------
        ValueError
            If the names are not those of the draw before.
        """
        drawn = {}
        for choice in self.choices:
            applied = choice.draw(rng)
            for name in choice.names:
                if name in self.effects:
                    drawn[f"{name}.on"] = float(name in applied)
        for name, effect in self.effects.items():
            for key, value in effect.draw(rng).items():
                drawn[f"{name}.{key}"] = float(value)
        if self.names and self.names != tuple(drawn):
            raise ValueError(
                "Effects must draw the same parameters for each view; drawn "
                f"were {self.names} before and {tuple(drawn)} now"
            )
        return drawn

    @torch.no_grad()
    def apply(
        self, wavs: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Applies the effects to the rows that drew them.

        On a CPU an effect sees only the rows that drew it. On an accelerator
        it sees all rows: to count them would make the CPU wait.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        parameters : dict of str to torch.Tensor
            Draws of all rows, from ``stack_draws``, float32 [rows] each.

        Returns
        -------
        torch.Tensor
            Augmented views [rows, time]; the input stays as it is.

        Raises
        ------
        ValueError
            If an effect returns another shape.
        """
        wavs = wavs.clone()
        for name, effect in self.effects.items():
            start = f"{name}."
            own = {
                key.removeprefix(start): value
                for key, value in parameters.items()
                if key.startswith(start)
            }
            applied = own.pop("on", None)
            rows = slice(None)
            if applied is not None and wavs.device.type == "cpu":
                rows = applied.nonzero().flatten()
                if not len(rows):
                    continue
                own = {key: value[rows] for key, value in own.items()}
            before = wavs[rows]
            after = effect.apply(before, own)
            if after.shape != before.shape:
                raise ValueError(
                    f"The effect {name!r} ({type(effect).__name__}) turned "
                    f"waveforms of shape {list(before.shape)} into "
                    f"{list(after.shape)}; the shape must stay the same"
                )
            if applied is not None and wavs.device.type != "cpu":
                after = torch.where(applied[:, None] > 0, after, before)
            wavs[rows] = after
        return wavs


def stack_draws(draws: Sequence[Mapping[str, float]]) -> dict:
    """Makes parameters for ``apply`` of the draws of several rows.

    Arguments
    ---------
    draws : list of dict
        One draw of the same effect for each row.

    Returns
    -------
    dict of str to torch.Tensor
        float32 [rows] for each name.

    Example
    -------
    >>> stack_draws([{"snr": 1.0}, {"snr": 2.5}])
    {'snr': tensor([1.0000, 2.5000])}
    """
    return {
        name: torch.tensor([draw[name] for draw in draws], dtype=torch.float32)
        for name in draws[0]
    }


class _Choice(NamedTuple):
    """One entry of ``chances``: alternatives and cumulated probabilities."""

    names: set
    alternatives: list
    limits: np.ndarray

    def draw(self, rng):
        """The names that are applied together, drawn once."""
        place = np.searchsorted(self.limits, rng.random(), side="right")
        return ([*self.alternatives, ()])[place]


def _read_choice(entry, effects):
    """Checks one entry of ``chances``."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            "Each entry of chances must map names of effects to "
            f"probabilities, as in {{noise: 0.5}}; got {entry!r}"
        )
    alternatives = [str(names).split("+") for names in entry]
    names = {name for names in alternatives for name in names}
    unknown = names - set(effects)
    if unknown:
        raise ValueError(
            f"chances name {', '.join(sorted(unknown))}, but the effects are "
            f"{', '.join(effects)}"
        )
    values = np.array([float(value) for value in entry.values()])
    if not ((values >= 0).all() and values.sum() <= 1 + 1e-6):
        raise ValueError(
            "The chances of one entry must not be negative and sum to 1 or "
            f"less; got {dict(entry)}"
        )
    return _Choice(names, alternatives, values.cumsum())


class Noise:
    """Adds noise, music or babble at a drawn signal-to-noise ratio.

    Each view draws one of the sources that there are, all with the same
    probability. Recordings are kept as 16-bit samples: for noise and for
    music at most 2 bytes x ``max_hours`` x the sample rate (576 MB each for
    5 hours at 16 kHz), for babble 2 hours of it (230 MB); twice the sum while
    they are read.

    Arguments
    ---------
    noise_folder : str
        Folder of noise; None: noise is made, of random color and level.
    music_folder : str
        Folder of music; None: no music.
    noise_snr, music_snr, babble_snr : list of float
        Lowest and highest signal-to-noise ratio in dB.
    babble_voices : list of int
        Smallest and largest number of training utterances that are mixed.
    max_hours : float
        Hours to keep of each folder, taken from random files.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    def __init__(
        self,
        noise_folder: str | None = None,
        music_folder: str | None = None,
        noise_snr: Sequence[float] = (0.0, 15.0),
        music_snr: Sequence[float] = (5.0, 15.0),
        babble_snr: Sequence[float] = (10.0, 20.0),
        babble_voices: Sequence[int] = (3, 8),
        max_hours: float = 5.0,
    ):
        self.folders = {"noise": noise_folder, "music": music_folder}
        self.snr = {
            "noise": _range("noise_snr", noise_snr),
            "music": _range("music_snr", music_snr),
            "babble": _range("babble_snr", babble_snr),
        }
        self.babble_voices = _range("babble_voices", babble_voices, lowest=1)
        self.max_hours = _positive("max_hours", max_hours)
        self.sources = []
        self.bank = self.spans = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Reads the folders and mixes the babble.

        Arguments
        ---------
        sample_rate : int
            In Hz.
        utterances : Utterances
            The training set; None for no babble.
        rng : np.random.Generator
            Chooses files and utterances.
        """
        clips = {
            kind: clips_of_folder(folder, sample_rate, self.max_hours, rng)
            for kind, folder in self.folders.items()
            if folder
        }
        if "noise" not in clips:
            frames = int(CLIP_SECONDS * sample_rate)
            clips["noise"] = colored_noise(60, frames, sample_rate, rng)
        if utterances is not None:
            clips["babble"] = clips_of_babble(
                utterances, sample_rate, self.babble_voices, rng
            )
        self.sources = [kind for kind in self.snr if kind in clips]
        sizes = [sum(map(len, clips[kind])) for kind in self.sources]
        stops = np.cumsum(sizes)
        # first sample and number of samples of each source
        self.spans = torch.tensor(np.stack([stops - sizes, sizes]))
        self.bank = AudioBank.of_clips(
            [clip for kind in self.sources for clip in clips.pop(kind)]
        )

    def to(self, device: torch.device | str) -> None:
        """Moves the recordings to a device.

        Arguments
        ---------
        device : torch.device
            Where ``apply`` will get its waveforms.
        """
        self.bank = self.bank.to(device)
        self.spans = self.spans.to(device)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a source, a place in it and a ratio.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        dict of str to float
            ``source`` (its number), ``position`` (in [0, 1]), ``snr`` (dB).
        """
        source = int(rng.random() * len(self.sources))
        return {
            "source": source,
            "position": rng.random(),
            "snr": rng.uniform(*self.snr[self.sources[source]]),
        }

    def apply(
        self, wavs: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Adds the noise.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        parameters : dict of str to torch.Tensor
            Those of ``draw`` [rows].

        Returns
        -------
        torch.Tensor
            Noisy views [rows, time].
        """
        first, size = self.spans[:, parameters["source"].long()]
        place = (parameters["position"] * size).long()
        place = first + torch.minimum(place, size - 1)
        noise = self.bank.read(place, wavs.shape[1])
        ratio = _power(wavs) / _power(noise)
        scale = ratio.sqrt() * _from_db(-parameters["snr"])
        return wavs + noise * scale[:, None]


class Reverberation:
    """Convolves views with room impulse responses (RIRs).

    The convolution is circular: the reverberation at the start of a view is
    that of its end, as if the speech had begun before. RIRs are kept as
    float32 of half a second (32 kB each at 16 kHz): those that are simulated,
    and ``max_hours`` of those of the folder (1.2 GB for 5 hours, twice as
    much while they are read).

    Arguments
    ---------
    rir_folder : str
        Folder of measured RIRs; None for none.
    simulated : int
        Number of RIRs that are simulated beside them.
    max_hours : float
        Hours to keep of the folder, taken from random files.

    Raises
    ------
    ValueError
        If there would be no RIR.
    """

    seconds = 0.5

    def __init__(
        self,
        rir_folder: str | None = None,
        simulated: int = 500,
        max_hours: float = 5.0,
    ):
        if simulated < 0 or (not simulated and not rir_folder):
            raise ValueError(
                f"simulated is {simulated} and rir_folder is {rir_folder}: "
                "Reverberation needs RIRs of one kind or the other"
            )
        self.rir_folder = rir_folder
        self.simulated = simulated
        self.max_hours = _positive("max_hours", max_hours)
        self.count = 0
        self.rirs = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Simulates and reads the RIRs.

        Arguments
        ---------
        sample_rate : int
            In Hz.
        utterances : Utterances
            Not needed.
        rng : np.random.Generator
            Simulates, and chooses files.
        """
        rirs = simulate_rirs(self.simulated, sample_rate, rng, self.seconds)
        if self.rir_folder:
            measured = read_rirs(
                self.rir_folder, sample_rate, self.seconds, self.max_hours, rng
            )
            rirs = torch.cat([measured, rirs])
        self.count = len(rirs)
        self.rirs = rirs.share_memory_()

    def to(self, device: torch.device | str) -> None:
        """Moves the RIRs to a device.

        Arguments
        ---------
        device : torch.device
            Where ``apply`` will get its waveforms.
        """
        self.rirs = self.rirs.to(device)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws an RIR.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        dict of str to float
            ``rir``, its number.
        """
        return {"rir": int(rng.random() * self.count)}

    def apply(
        self, wavs: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Convolves.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        parameters : dict of str to torch.Tensor
            Those of ``draw`` [rows].

        Returns
        -------
        torch.Tensor
            Reverberated views [rows, time].
        """
        frames = wavs.shape[1]
        rirs = self.rirs[parameters["rir"].long(), :frames]
        return _filter(wavs, torch.fft.rfft(rirs, frames))


class Channel:
    """Gives views the frequency response of a microphone and a line.

    The response has a lower and an upper band limit (18 dB per octave
    beyond), a tilt, and a peak or dip one octave wide somewhere from 200 Hz
    to 4.5 kHz.

    Arguments
    ---------
    low_cut : list of float
        Lowest and highest lower band limit in Hz; low ones are more frequent.
    high_cut : list of float
        Lowest and highest upper band limit, relative to half the sample rate.
    tilt : list of float
        Lowest and highest slope in dB per octave.
    peak : list of float
        Lowest and highest gain of the peak in dB.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    def __init__(
        self,
        low_cut: Sequence[float] = (20.0, 400.0),
        high_cut: Sequence[float] = (0.4, 1.0),
        tilt: Sequence[float] = (-4.0, 4.0),
        peak: Sequence[float] = (-8.0, 8.0),
    ):
        self.low_cut = _range("low_cut", low_cut, lowest=1)
        self.high_cut = _range("high_cut", high_cut, lowest=0.01)
        self.tilt = _range("tilt", tilt)
        self.peak = _range("peak", peak)
        self.nyquist = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Takes the sample rate.

        Arguments
        ---------
        sample_rate : int
            In Hz.
        utterances, rng : object
            Not needed.
        """
        self.nyquist = sample_rate / 2

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a response.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        dict of str to float
            ``low_cut``, ``high_cut`` and ``peak`` in Hz, ``tilt`` in dB per
            octave, ``peak_gain`` in dB.
        """
        lowest, highest = self.low_cut
        return {
            "low_cut": lowest + (highest - lowest) * rng.random() ** 2,
            "high_cut": self.nyquist * rng.uniform(*self.high_cut),
            "tilt": rng.uniform(*self.tilt),
            "peak": 200.0 * 2 ** rng.uniform(0.0, 4.5),
            "peak_gain": rng.uniform(*self.peak),
        }

    def apply(
        self, wavs: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Filters.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        parameters : dict of str to torch.Tensor
            Those of ``draw`` [rows].

        Returns
        -------
        torch.Tensor
            Filtered views [rows, time].
        """
        response = torch.nn.functional.interpolate(
            self._response(parameters)[:, None],
            wavs.shape[1] // 2 + 1,
            mode="linear",
            align_corners=True,
        )
        return _filter(wavs, response[:, 0])

    def _response(self, parameters, points=513):
        """Amplitude response on a coarse grid of frequencies [rows, points]."""
        device = parameters["tilt"].device
        hertz = torch.linspace(0, self.nyquist, points, device=device)
        octave = hertz.clamp(min=20.0).log2()
        low, high, peak = (
            parameters[name][:, None].log2()
            for name in ("low_cut", "high_cut", "peak")
        )
        # 18 dB per octave outside the band
        db = -18.0 * ((low - octave).relu() + (octave - high).relu())
        db += parameters["tilt"][:, None] * (octave - math.log2(1000.0))
        bump = (-2 * (octave - peak) ** 2).exp()
        db += parameters["peak_gain"][:, None] * bump
        return _from_db(db.clamp(min=-60.0))


class Gain:
    """Changes the level of views.

    Arguments
    ---------
    db : list of float
        Lowest and highest change in dB.
    """

    def __init__(self, db: Sequence[float] = (-10.0, 10.0)):
        self.db = _range("db", db)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a change of level.

        Arguments
        ---------
        rng : np.random.Generator
            Seeded for this view.

        Returns
        -------
        dict of str to float
            ``db``.
        """
        return {"db": rng.uniform(*self.db)}

    def apply(
        self, wavs: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Multiplies.

        Arguments
        ---------
        wavs : torch.Tensor
            Views [rows, time].
        parameters : dict of str to torch.Tensor
            Those of ``draw`` [rows].

        Returns
        -------
        torch.Tensor
            Louder or softer views [rows, time].
        """
        return wavs * _from_db(parameters["db"])[:, None]


class AudioBank(NamedTuple):
    """Many clips in one tensor, to be read by index on any device.

    Arguments
    ---------
    samples : torch.Tensor
        All clips one after another, int16 [time].
    starts : torch.Tensor
        First sample of each clip, int64 [clips].
    lengths : torch.Tensor
        Number of samples of each clip, int64 [clips].
    """

    samples: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of_clips(cls, clips: Sequence[torch.Tensor]) -> "AudioBank":
        """Joins clips in memory that loader workers share.

        Arguments
        ---------
        clips : list of torch.Tensor
            int16 [time] each.

        Returns
        -------
        AudioBank
            All of them.
        """
        lengths = torch.tensor([len(clip) for clip in clips])
        starts = lengths.cumsum(0) - lengths
        bank = cls(torch.cat(list(clips)), starts, lengths)
        for tensor in bank:
            tensor.share_memory_()
        return bank

    def read(self, position: torch.Tensor, frames: int) -> torch.Tensor:
        """Reads segments that start anywhere, each from one clip.

        Arguments
        ---------
        position : torch.Tensor
            First sample of each segment, int64 [rows]; moved back where the
            clip would end before the segment.
        frames : int
            Length of the segments; no clip may be shorter.

        Returns
        -------
        torch.Tensor
            float32 in [-1, 1) [rows, frames].
        """
        clip = torch.searchsorted(self.starts, position, right=True) - 1
        last = self.starts[clip] + self.lengths[clip] - frames
        # a view of all segments: indexing it copies whole segments
        segments = self.samples.unfold(0, frames, 1)
        return segments[torch.minimum(position, last)].float() / 32768

    def to(self, device: torch.device | str) -> "AudioBank":
        """Copies the bank to another device.

        Arguments
        ---------
        device : torch.device
            Where to read.

        Returns
        -------
        AudioBank
            The same clips.
        """
        return AudioBank(*(tensor.to(device) for tensor in self))


def clips_of_folder(
    folder: str, sample_rate: int, max_hours: float, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Reads the audio files of a folder, in random order.

    Files that cannot be read, that hold samples that are not finite, or only
    silence, are left out and named in a warning.

    Arguments
    ---------
    folder : str
        Searched with all its subfolders.
    sample_rate : int
        Wanted rate in Hz.
    max_hours : float
        Stops reading after so much audio.
    rng : np.random.Generator
        Chooses the order of the files.

    Returns
    -------
    list of torch.Tensor
        Clips of ``CLIP_SECONDS`` or more, scaled to a peak of one, int16.

    Raises
    ------
    FileNotFoundError
        If there is no audio in the folder.
    ValueError
        If no file of it can be used.
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
    utterances,
    sample_rate: int,
    voices: Sequence[int],
    rng: np.random.Generator,
) -> list[torch.Tensor]:
    """Mixes random utterances of a training set.

    Arguments
    ---------
    utterances : Utterances
        Rows with ``wav``, ``start`` and ``stop``.
    sample_rate : int
        Wanted rate in Hz.
    voices : list of int
        Smallest and largest number of utterances that are mixed.
    rng : np.random.Generator
        Chooses the utterances.

    Returns
    -------
    list of torch.Tensor
        ``BABBLE_CROWDS`` clips of at most ``BABBLE_HOURS``, with different
        numbers of voices between the two, int16 [time].

    Raises
    ------
    ValueError
        If no utterance can be used.
    """
    frames = int(3600 * BABBLE_HOURS * sample_rate)
    rows = (
        (row["wav"], row["start"], row["stop"])
        for row in map(
            utterances.row, rng.permutation(len(utterances)).tolist()
        )
    )
    equally_loud = [
        clip * _power(clip).rsqrt()
        for clip in _read_clips(rows, sample_rate, frames, "babble")
    ]
    speech = _repeat(torch.cat(equally_loud), int(CLIP_SECONDS * sample_rate))
    crowds = np.linspace(*voices, BABBLE_CROWDS).round().astype(int)
    return [
        _to_int16(sum(speech.roll(int(shift)) for shift in shifts))
        for shifts in (rng.integers(0, len(speech), n) for n in crowds)
    ]


def colored_noise(
    count: int, frames: int, sample_rate: int, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Makes noise whose power falls with frequency and whose level varies.

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
        Clips from white to brown noise, int16 [frames].
    """
    hertz = np.arange(1, frames // 2 + 1) * sample_rate / frames
    # flat below 50 Hz: else most of the power would be inaudible
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
    count: int,
    sample_rate: int,
    rng: np.random.Generator,
    seconds: float = 0.5,
) -> torch.Tensor:
    """Simulates room impulse responses.

    Polack's statistical model: a direct sound, some early reflections, and
    noise that decays exponentially, faster at high frequencies (J.-D. Polack,
    "La transmission de l'énergie sonore dans les salles", 1988).

    Arguments
    ---------
    count : int
        Number of RIRs.
    sample_rate : int
        In Hz.
    rng : np.random.Generator
        Source of randomness.
    seconds : float
        Length of the RIRs.

    Returns
    -------
    torch.Tensor
        RIRs of unit energy [count, seconds * sample_rate].
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
) -> torch.Tensor:
    """Reads measured RIRs.

    Files that cannot be read, that hold samples that are not finite, or only
    silence, are left out and named in a warning.

    Arguments
    ---------
    folder : str
        Searched with all its subfolders.
    sample_rate : int
        Wanted rate in Hz.
    seconds : float
        RIRs are cut or padded to this length, from the direct sound on.
    max_hours : float
        Of RIRs to keep, taken from random files.
    rng : np.random.Generator
        Chooses the files when there are too many.

    Returns
    -------
    torch.Tensor
        RIRs of unit energy [files, seconds * sample_rate].

    Raises
    ------
    FileNotFoundError
        If there is no audio in the folder.
    ValueError
        If no file of it can be used.
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
    return torch.stack(rirs)


def _read_clips(rows, sample_rate, frames, what):
    """Reads usable clips, names the others in a warning.

    ``rows`` are (path, start, stop). At most ``frames`` are read of all clips
    together or, if None, ``RIR_SECONDS`` of each.
    """
    left, bad, count = frames, {}, 0
    for row in tqdm(rows, f"Reading {what}", unit=" clips", disable=None):
        most = RIR_SECONDS if frames is None else left / sample_rate
        try:
            clip = _read_clip(*row, sample_rate, most)
        except audio.AudioError as error:
            bad[row[0]] = str(error)
            continue
        count += 1
        yield clip
        if frames is not None:
            left -= len(clip)
            if left <= 0:
                break
    reasons = [reason for _, reason in zip(range(NAMED_FILES), bad.values())]
    if not count:
        raise ValueError(
            f"Augmentation cannot use any of the {len(bad)} audio files of "
            f"{what}: " + "; ".join(reasons)
        )
    if bad:
        more = len(bad) - len(reasons)
        logger.warning(
            f"Augmentation leaves out {len(bad)} audio files of {what}: "
            + "; ".join(reasons)
            + (f"; and {more} more" if more else "")
        )


def _read_clip(path, start, stop, sample_rate, seconds):
    """One clip, if it can be used; else an error that names it."""
    with audio.open(path) as file:
        stop = file.frames if stop is None else stop
        most = start + math.ceil(seconds * file.rate)
        samples = torch.from_numpy(file.read(start, min(stop, most)))
    clip = audio.resample(samples, file.rate, sample_rate)
    if _power(clip) <= SILENCE:
        raise audio.AudioError(f"{path} holds only silence")
    return clip


def _filter(wavs, response):
    """Multiplies the spectra of waveforms [rows, time]."""
    return torch.fft.irfft(torch.fft.rfft(wavs) * response, wavs.shape[1])


def _power(wavs):
    """Mean square of waveforms [..., time]."""
    return wavs.square().mean(-1).clamp(min=SILENCE)


def _from_db(db):
    """Decibels to amplitude."""
    return 10 ** (db / 20)


def _repeat(clip, min_frames):
    """Repeats a clip until it has the length."""
    return clip.repeat(max(1, -(-min_frames // len(clip))))


def _to_int16(clip):
    """Scales a clip to full range."""
    peak = clip.abs().max().clamp(min=1e-6)
    return (clip / peak * 32767).round().to(torch.int16)


def _range(name, limits, lowest=-math.inf):
    """Checks a pair of numbers, the smaller one first."""
    try:
        first, second = limits
        fits = lowest <= first <= second < math.inf
    except (TypeError, ValueError):
        fits = False
    if not fits:
        above = "" if lowest == -math.inf else f" from {lowest} on"
        raise ValueError(
            f"{name} must be two numbers{above}, the smaller one first; got "
            f"{limits!r}"
        )
    return first, second


def _positive(name, value):
    """Checks a positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number; got {value!r}")
    return value
