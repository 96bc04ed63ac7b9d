"""Augmentation: what makes two views of an utterance differ.

An effect is any object with two methods::

    draw(rng) -> dict[str, float]          the parameters of one view
    apply(wavs, parameters) -> tensor      waveforms [rows, time], the same shape

``draw`` is called in the loader with a generator that is seeded by
(seed, epoch, row, view). ``apply`` is called with the parameters of all rows,
float32 [rows] for each name, in a loader worker or on an accelerator, where it
should not wait for the device (no ``.item()``, no ``.nonzero()``).

An effect may have two more methods: ``prepare(sample_rate, utterances, rng)``
is called once before the first draw, with the training set (or None) and a
generator for what is made or chosen once; ``to(device)`` before ``apply`` gets
waveforms of that device.
"""

import contextlib
import copy
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchaudio
from speechbrain.augment.time_domain import Resample
from speechbrain.utils.callchains import lengths_arg_exists
from torch.utils.data.dataloader import _BaseDataLoaderIter

from speechbrain_ssl.checks import checked, interval, number, whole
from speechbrain_ssl.dataio import banks

Parameters = Mapping[str, torch.Tensor]


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
    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
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
    probability. Recordings are kept as 16-bit samples: of noise and of music
    at most 2 bytes x ``max_hours`` x the sample rate (576 MB each for 5 hours
    at 16 kHz), of babble 2 hours (230 MB); twice the sum while they are read.

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
    ArgumentError
        If a value is out of range.
    """

    @checked(
        noise_snr=interval(number()),
        music_snr=interval(number()),
        babble_snr=interval(number()),
        babble_voices=interval(whole(1)),
        max_hours=number(above=0),
    )
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
            "noise": noise_snr,
            "music": music_snr,
            "babble": babble_snr,
        }
        self.babble_voices = babble_voices
        self.max_hours = max_hours
        self.sources = []
        self.bank = self.spans = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Reads the folders and mixes the babble."""
        clips = {}
        for kind, folder in self.folders.items():
            if folder:
                with _naming(f"{kind}_folder"):
                    clips[kind] = banks.clips_of_folder(
                        folder, sample_rate, self.max_hours, rng
                    )
        if "noise" not in clips:
            clips["noise"] = banks.colored_noise(60, sample_rate, rng)
        if utterances is not None:
            clips["babble"] = banks.clips_of_babble(
                utterances, sample_rate, self.babble_voices, rng
            )
        self.sources = [kind for kind in self.snr if kind in clips]
        sizes = [sum(map(len, clips[kind])) for kind in self.sources]
        stops = np.cumsum(sizes)
        # first sample and number of samples of each source
        self.spans = torch.tensor(np.stack([stops - sizes, sizes]))
        self.bank = banks.AudioBank.of_clips(
            [clip for kind in self.sources for clip in clips[kind]]
        )

    def to(self, device: torch.device | str) -> None:
        """Moves the recordings to a device."""
        self.bank = self.bank.to(device)
        self.spans = self.spans.to(device)

    def __getstate__(self):
        """Leaves recordings on an accelerator out: workers only draw then."""
        moved = self.spans is not None and self.spans.device.type != "cpu"
        gone = {"bank": None, "spans": None} if moved else {}
        return {**vars(self), **gone}

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a source, a place in it (0 to 1) and a ratio in dB."""
        source = int(rng.random() * len(self.sources))
        return {
            "source": source,
            "position": rng.random(),
            "snr": rng.uniform(*self.snr[self.sources[source]]),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Adds the noise."""
        first, size = self.spans[:, parameters["source"].long()]
        place = (parameters["position"] * size).long()
        place = first + torch.minimum(place, size - 1)
        noise = self.bank.read(place, wavs.shape[1])
        ratio = banks.power(wavs) / banks.power(noise)
        scale = ratio.sqrt() * _from_db(-parameters["snr"])
        return wavs + noise * scale[:, None]


class Reverberation:
    """Convolves views with room impulse responses (RIRs).

    The convolution is circular: the reverberation at the start of a view is
    that of its end, as if the speech had begun before. RIRs are kept as
    float32 of half a second (32 kB each at 16 kHz): those that are simulated,
    and at most ``max_hours`` of the folder (1.2 GB for 5 hours at 16 kHz, up
    to twice as much while they are read).

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
    ArgumentError
        If a value is out of range.
    ValueError
        If there would be no RIR.
    """

    seconds = 0.5

    @checked(simulated=whole(0), max_hours=number(above=0))
    def __init__(
        self,
        rir_folder: str | None = None,
        simulated: int = 500,
        max_hours: float = 5.0,
    ):
        if not simulated and not rir_folder:
            raise ValueError(
                f"simulated is {simulated} and rir_folder is {rir_folder}: "
                "Reverberation needs RIRs of one kind or the other"
            )
        self.rir_folder = rir_folder
        self.simulated = simulated
        self.max_hours = max_hours
        self.count = 0
        self.rirs = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Simulates and reads the RIRs."""
        rirs = []
        if self.rir_folder:
            limits = (self.seconds, self.max_hours)
            with _naming("rir_folder"):
                rirs += banks.read_rirs(
                    self.rir_folder, sample_rate, *limits, rng
                )
        rirs += banks.simulate_rirs(
            self.simulated, sample_rate, rng, self.seconds
        )
        rirs = torch.stack(rirs)
        self.count = len(rirs)
        self.rirs = rirs.share_memory_()

    def to(self, device: torch.device | str) -> None:
        """Moves the RIRs to a device."""
        self.rirs = self.rirs.to(device)

    def __getstate__(self):
        """Leaves RIRs on an accelerator out: workers only draw then."""
        moved = self.rirs is not None and self.rirs.device.type != "cpu"
        return {**vars(self), **({"rirs": None} if moved else {})}

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws the number of an RIR."""
        return {"rir": int(rng.random() * self.count)}

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Convolves."""
        frames = wavs.shape[1]
        rirs = self.rirs[parameters["rir"].long(), :frames]
        return _filter(wavs, torch.fft.rfft(rirs, frames))


class Channel:
    """Gives views the frequency response of a microphone and a line.

    The response has a lower and an upper band limit (18 dB per octave
    beyond), a tilt, and a peak or dip about one octave wide, at 200 Hz to
    4.5 kHz.

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
    ArgumentError
        If a value is out of range.
    """

    @checked(
        low_cut=interval(number(1)),
        high_cut=interval(number(0.01, 1)),
        tilt=interval(number()),
        peak=interval(number()),
    )
    def __init__(
        self,
        low_cut: Sequence[float] = (20.0, 400.0),
        high_cut: Sequence[float] = (0.4, 1.0),
        tilt: Sequence[float] = (-4.0, 4.0),
        peak: Sequence[float] = (-8.0, 8.0),
    ):
        self.low_cut = low_cut
        self.high_cut = high_cut
        self.tilt = tilt
        self.peak = peak
        self.nyquist = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Takes the sample rate."""
        self.nyquist = sample_rate / 2

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws limits and peak in Hz, tilt and gain of the peak in dB."""
        lowest, highest = self.low_cut
        return {
            "low_cut": lowest + (highest - lowest) * rng.random() ** 2,
            "high_cut": self.nyquist * rng.uniform(*self.high_cut),
            "tilt": rng.uniform(*self.tilt),
            "peak": 200.0 * 2 ** rng.uniform(0.0, 4.5),
            "peak_gain": rng.uniform(*self.peak),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Filters."""
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

    Raises
    ------
    ArgumentError
        If a value is out of range.
    """

    @checked(db=interval(number()))
    def __init__(self, db: Sequence[float] = (-10.0, 10.0)):
        self.db = db

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a change in dB."""
        return {"db": rng.uniform(*self.db)}

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Multiplies."""
        return wavs * _from_db(parameters["db"])[:, None]


class Telephone:
    """Sends views over a telephone line, and back to their sample rate.

    The line has a band limit, a sample rate of 8 kHz and a level; it clips
    what is beyond full scale and codes samples in eight bits by the mu-law of
    ITU-T G.711. Views keep their level.

    Arguments
    ---------
    low_cut, high_cut : list of float
        Lowest and highest band limits in Hz.
    level : list of float
        Lowest and highest peak of a view in dB relative to full scale: low
        ones are coded coarsely, those above 0 are clipped.

    Raises
    ------
    ArgumentError
        If a value is out of range.
    """

    rate = 8000

    @checked(
        low_cut=interval(number(1, 4000)),
        high_cut=interval(number(1, 4000)),
        level=interval(number()),
    )
    def __init__(
        self,
        low_cut: Sequence[float] = (50.0, 350.0),
        high_cut: Sequence[float] = (3000.0, 3800.0),
        level: Sequence[float] = (-35.0, 6.0),
    ):
        self.low_cut = low_cut
        self.high_cut = high_cut
        self.level = level
        self.sample_rate = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Takes the sample rate."""
        self.sample_rate = sample_rate

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws band limits in Hz and a level in dB."""
        return {
            "low_cut": rng.uniform(*self.low_cut),
            "high_cut": rng.uniform(*self.high_cut),
            "level": rng.uniform(*self.level),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Limits the band, resamples, clips and codes."""
        frames = wavs.shape[1]
        narrow = min(frames, round(frames * self.rate / self.sample_rate))
        bins = torch.arange(narrow // 2 + 1, device=wavs.device)
        hertz = bins * self.sample_rate / frames
        low, high = (parameters[n][:, None] for n in ("low_cut", "high_cut"))
        # Butterworth filters of order 4 and 12
        band = (1 + (low / hertz.clamp(min=1)) ** 8).rsqrt()
        band = band * (1 + (hertz / high) ** 24).rsqrt()
        spectrum = torch.fft.rfft(wavs)[:, : len(bins)] * band
        line = torch.fft.irfft(spectrum, narrow) * (narrow / frames)
        peak = line.abs().amax(1, keepdim=True).clamp(min=1e-6)
        gain = _from_db(parameters["level"])[:, None] / peak
        code = torchaudio.functional.mu_law_encoding(
            (line * gain).clamp(-1, 1), 256
        )
        line = torchaudio.functional.mu_law_decoding(code, 256) / gain
        return torch.fft.irfft(torch.fft.rfft(line), frames) * (frames / narrow)


class SpeechBrainAugment:
    """Makes an effect of a module of ``speechbrain.augment``.

    Any module that takes waveforms [rows, time] fits: ``DropFreq``,
    ``AddNoise``, ``CodecAugment`` and so on, or an ``Augmenter`` of them.

    Most of these modules draw once for a whole batch, from the global random
    generators, and read noise in the same order on each pass. Therefore each
    row goes through the module alone, under a seed that is the only parameter
    drawn: a view depends on (seed, epoch, row, view) as with other effects.
    That costs time for each row, and waits on an accelerator: use
    ``augment_on: workers``. What else to know:

    * A result of another length (``SpeedPerturb``) is cut, or repeated from
      its start.
    * An ``Augmenter`` must not enlarge the batch: no ``concat_original``,
      ``parallel_augment`` or ``repeat_augment`` above 1.
    * ``AddNoise`` reads whole files. Shorter ones than the view need
      ``pad_noise: True``; without it the rest of the view stays clean.

    Arguments
    ---------
    module : torch.nn.Module
        The module.

    Example
    -------
    >>> from speechbrain.augment.time_domain import DropFreq
    >>> effect = SpeechBrainAugment(DropFreq())
    >>> draw = effect.draw(np.random.default_rng(0))
    >>> effect.apply(torch.randn(1, 8000), stack_draws([draw])).shape
    torch.Size([1, 8000])
    """

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.takes_lengths = lengths_arg_exists(module.forward)
        self.readers = None

    def prepare(self, sample_rate: int, utterances, rng) -> None:
        """Checks the module's sample rate, and tries it on noise.

        Arguments
        ---------
        sample_rate : int
            In Hz.
        utterances : Utterances
            Not needed.
        rng : np.random.Generator
            Not needed.

        Raises
        ------
        ValueError
            If the module was made for another rate.
        """
        for module in _parts(self.module):
            for name in ("sample_rate", "clean_sample_rate", "orig_freq"):
                rate = getattr(module, name, sample_rate)
                # resamplers inside belong to files of another rate
                if rate != sample_rate and not isinstance(module, Resample):
                    raise ValueError(
                        f"{type(module).__name__} has {name}={rate}, but the "
                        f"views have {sample_rate} Hz"
                    )
        # a copy: what a module opens at its first call cannot be pickled
        trial = SpeechBrainAugment(copy.deepcopy(self.module))
        trial.apply(torch.randn(1, sample_rate), {"seed": torch.zeros(1)})

    def to(self, device: torch.device | str) -> None:
        """Moves the module to a device."""
        for module in _parts(self.module):
            module.to(device)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a seed that float32 holds exactly."""
        return {"seed": int(rng.integers(2**24))}

    def apply(self, wavs: torch.Tensor, parameters: Parameters):
        """Sends each row through the module under its seed."""
        seeds = parameters["seed"].long().tolist()
        return torch.cat(
            [self._row(wavs[i : i + 1], seed) for i, seed in enumerate(seeds)]
        )

    def _row(self, wav, seed):
        """One row [1, time] through the module."""
        devices = [wav.device] if wav.device.type == "cuda" else []
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices):
            if self.readers is None:
                self._call(wav)
                self.readers = list(_readers(self.module))
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            for reader, name in self.readers:
                # a new pass over the files, in the order of this seed
                reader.data_loader.sampler.set_epoch(seed)
                setattr(reader, name, iter(reader.data_loader))
            # some modules remember what they drew
            before = [(m, dict(vars(m))) for m in _parts(self.module)]
            out = self._call(wav)
            for module, attributes in before:
                vars(module).clear()
                vars(module).update(attributes)
        random.setstate(states[0])
        np.random.set_state(states[1])
        if out.dim() != 2 or len(out) != 1:
            raise ValueError(
                f"{type(self.module).__name__} turned one waveform of shape "
                f"{list(wav.shape)} into {list(out.shape)}; it must give one "
                "waveform [1, time] (an Augmenter: without concat_original "
                "and parallel_augment)"
            )
        frames = wav.shape[1]
        return out.repeat(1, -(-frames // out.shape[1]))[:, :frames]

    def _call(self, wav):
        """The module's waveforms."""
        lengths = torch.ones(1, device=wav.device)
        arguments = (wav, lengths) if self.takes_lengths else (wav,)
        out = self.module(*arguments)
        return out[0] if isinstance(out, tuple) else out


def _parts(module):
    """A module and those inside; an Augmenter does not register its own."""
    for part in module.modules():
        yield part
        inside = getattr(part, "augmentations", None)
        if isinstance(inside, Mapping):
            for inner in inside.values():
                yield from _parts(inner)


def _readers(module):
    """Modules that read files, and the attribute with their iterator."""
    for part in _parts(module):
        for name, value in vars(part).items():
            if isinstance(value, _BaseDataLoaderIter):
                yield part, name


@contextlib.contextmanager
def _naming(key):
    """Puts the key of a folder in front of what is wrong with it."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def _filter(wavs, response):
    """Multiplies the spectra of waveforms [rows, time]."""
    return torch.fft.irfft(torch.fft.rfft(wavs) * response, wavs.shape[1])


def _from_db(db):
    """Decibels to amplitude."""
    return 10 ** (db / 20)
