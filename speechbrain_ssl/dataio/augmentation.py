"""Augmentation of views.

An effect is any object with two methods::

    draw(rng) -> dict[str, float]          parameters of one view
    apply(wavs, parameters) -> tensor      augmented waveforms [rows, time]

The loader calls ``draw`` with a generator that is seeded by (seed, epoch, row,
view). ``apply`` is called with waveforms [rows, time] and a float32 tensor
[rows] for each parameter, in a loader worker or on an accelerator. There it
should not wait for the device (no ``.item()``, no ``.nonzero()``).

Two more methods are optional. ``prepare(sample_rate, utterances, rng)`` is
called once before the first draw, with the training set (or None) and a
generator for everything that is generated or chosen once. ``to(device)`` is
called before ``apply`` receives waveforms on that device.
"""

import contextlib
import copy
import logging
import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchaudio
from speechbrain.augment.time_domain import Resample
from speechbrain.utils.callchains import lengths_arg_exists
from torch.utils.data.dataloader import _BaseDataLoaderIter

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import (
    Rule,
    checked,
    interval,
    number,
    optional,
    whole,
)
from speechbrain_ssl.dataio import banks
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.devices import share

logger = logging.getLogger(__name__)
Parameters = Mapping[str, torch.Tensor]

# now, not when a large data folder is prepared
FOLDER = optional(Rule(os.path.isdir, "a folder that exists"))


class Augmentation:
    """Applies effects in a fixed order, each with a given probability.

    An Augmentation is itself an effect. Parameters of all effects are always
    drawn, so that the probability of one effect does not change the
    parameters of another.

    Arguments
    ---------
    effects : dict of str to object
        Name -> effect, in the order of application. The value None removes
        an effect.
    chances : list of dict
        Each entry is one random choice between alternatives:
        alternative -> probability. An alternative is the name of an effect,
        or several names joined by ``+``. The remaining probability is that of
        applying none of them. An effect that is in no entry is applied to
        every view.
    seed : int
        Seed of simulated RIRs and of the choice of files, not of the draws.

    Raises
    ------
    ValueError
        If ``chances`` contains an invalid probability, an unknown effect, or
        an effect in two entries.

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
                f"chances name {', '.join(sorted(twice))} in two entries; "
                "name each effect in one entry only"
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
                    "has no methods draw and apply. (Wrap an augmentation of "
                    "SpeechBrain in SpeechBrainAugment.)"
                )
        self.seed = seed
        self.names: tuple[str, ...] = ()

    def prepare(
        self,
        sample_rate: int,
        utterances: Utterances | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Prepares the effects and sets ``names``, the names of all parameters.

        Without ``utterances``, the training set, there is no babble. ``rng`` is
        ignored; ``seed`` is used instead.
        """
        for effect in self.effects.values():
            if hasattr(effect, "prepare"):
                own = np.random.default_rng(self.seed)
                effect.prepare(sample_rate, utterances, own)
        self.names = tuple(self.draw(np.random.default_rng(self.seed)))

    def to(self, device: torch.device | str) -> "Augmentation":
        """Moves noise and RIRs to a device; returns this object."""
        for effect in self.effects.values():
            if hasattr(effect, "to"):
                effect.to(device)
        return self

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws the effects of a view and their parameters.

        Gives ``NAME.on`` (1 or 0) for each effect in ``chances``, and
        ``NAME.PARAMETER`` for each parameter of each effect.
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
                "Effects must draw the same parameters for each view, but "
                f"drew {self.names} before and {tuple(drawn)} now"
            )
        return drawn

    @torch.no_grad()
    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Applies each effect to the rows for which it was drawn.

        Views [rows, time] are not changed; parameters are those of
        ``stack_draws``. On a CPU an effect receives only these rows. On an
        accelerator it receives all rows, because selecting rows would wait for
        the device.
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
    """Stacks the draws of several rows into the parameters of ``apply``.

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
    """One entry of ``chances``: alternatives and cumulative probabilities."""

    names: tuple
    alternatives: list
    limits: np.ndarray

    def draw(self, rng):
        """Draws one alternative, the names of the effects to apply."""
        place = np.searchsorted(self.limits, rng.random(), side="right")
        return ([*self.alternatives, ()])[place]


def _read_choice(entry, effects):
    """Converts one entry of ``chances`` and checks it."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            "Each entry of chances must map names of effects to "
            f"probabilities, as in {{noise: 0.5}}; got {entry!r}"
        )
    alternatives = [str(names).split("+") for names in entry]
    # in the order of the entry, which is the same in all processes
    names = tuple(dict.fromkeys(name for a in alternatives for name in a))
    unknown = set(names) - set(effects)
    if unknown:
        raise ValueError(
            f"chances name {', '.join(sorted(unknown))}, but the effects are "
            f"{', '.join(effects)}"
        )
    values = np.array([float(value) for value in entry.values()])
    if not ((values >= 0).all() and values.sum() <= 1 + 1e-6):
        raise ValueError(
            "The probabilities in an entry of chances must be 0 or more, and "
            f"their sum 1 or less; got {dict(entry)}"
        )
    return _Choice(names, alternatives, values.cumsum())


def _uniform(rng, limits):
    """Draws a number between a lowest and a highest one."""
    low, high = limits
    return rng.uniform(low, high)


class Noise:
    """Adds noise, music or babble at a drawn signal-to-noise ratio.

    Each view draws one of the available sources; all have the same
    probability. Recordings are stored as 16-bit samples: for 5 hours at 16 kHz
    576 MB of noise and of music each, and 230 MB (2 hours) of babble. Reading
    them takes up to twice this memory.

    Arguments
    ---------
    noise_folder : str
        Folder of noise recordings. None: noise of random color and level is
        generated.
    music_folder : str
        Folder of music recordings. None: no music.
    noise_snr, music_snr, babble_snr : list of float
        Lowest and highest signal-to-noise ratio in dB.
    babble_voices : list of int
        Smallest and largest number of training utterances in a mixture.
    max_hours : float
        Hours of audio to use from each folder, from randomly chosen files.
    """

    @checked(
        noise_folder=FOLDER,
        music_folder=FOLDER,
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
        self.bank: Any = None
        self.spans: Any = None

    def prepare(
        self, sample_rate: int, utterances: Utterances, rng: np.random.Generator
    ) -> None:
        """Reads the recordings and mixes the babble."""
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
        hours = ", ".join(
            f"{size / sample_rate / 3600:.3g} h of {kind}"
            for kind, size in zip(self.sources, sizes)
        )
        _say_memory(hours, self.bank.samples)

    def to(self, device: torch.device | str) -> None:
        """Moves recordings to a device."""
        self.bank = self.bank.to(device)
        self.spans = self.spans.to(device)

    def __getstate__(self):
        """Omits recordings on an accelerator: then workers only draw."""
        moved = self.spans is not None and self.spans.device.type != "cpu"
        gone = {"bank": None, "spans": None} if moved else {}
        return {**vars(self), **gone}

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a source, a position in it (0 to 1) and an SNR in dB."""
        source = int(rng.random() * len(self.sources))
        return {
            "source": source,
            "position": rng.random(),
            "snr": _uniform(rng, self.snr[self.sources[source]]),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Adds noise."""
        first, size = self.spans[:, parameters["source"].long()]
        place = (parameters["position"] * size).long()
        place = first + torch.minimum(place, size - 1)
        noise = self.bank.read(place, wavs.shape[1])
        ratio = banks.power(wavs) / banks.power(noise)
        scale = ratio.sqrt() * _from_db(-parameters["snr"])
        return wavs + noise * scale[:, None]


class Reverberation:
    """Convolves views with room impulse responses (RIRs).

    The convolution is circular: the reverberation of the end of a view is
    added to its start, as if speech preceded the view. RIRs are stored as
    half a second of float32 (32 kB each at 16 kHz; 1.2 GB for 5 hours in
    ``rir_folder``). Reading them takes up to twice this memory.

    Arguments
    ---------
    rir_folder : str
        Folder of measured RIRs. None: only simulated RIRs.
    simulated : int
        Number of simulated RIRs.
    max_hours : float
        Hours of measured RIRs to use, from randomly chosen files.

    Raises
    ------
    ValueError
        If there is no RIR.
    """

    seconds = 0.5

    @checked(rir_folder=FOLDER, simulated=whole(0), max_hours=number(above=0))
    def __init__(
        self,
        rir_folder: str | None = None,
        simulated: int = 500,
        max_hours: float = 5.0,
    ):
        if not simulated and not rir_folder:
            raise ValueError(
                "Reverberation needs RIRs: set rir_folder, or simulated to 1 "
                f"or more (they are {rir_folder} and {simulated})"
            )
        self.rir_folder = rir_folder
        self.simulated = simulated
        self.max_hours = max_hours
        self.count = 0
        self.rirs: Any = None

    def prepare(
        self, sample_rate: int, utterances: Utterances, rng: np.random.Generator
    ) -> None:
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
        self.rirs = share(rirs, "Reverberation")
        _say_memory(f"{self.count} RIRs", self.rirs)

    def to(self, device: torch.device | str) -> None:
        """Moves RIRs to a device."""
        self.rirs = self.rirs.to(device)

    def __getstate__(self):
        """Omits RIRs on an accelerator: then workers only draw."""
        moved = self.rirs is not None and self.rirs.device.type != "cpu"
        return {**vars(self), **({"rirs": None} if moved else {})}

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws the index of an RIR."""
        return {"rir": int(rng.random() * self.count)}

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Convolves waveforms with RIRs."""
        frames = wavs.shape[1]
        rirs = self.rirs[parameters["rir"].long(), :frames]
        return _filter(wavs, torch.fft.rfft(rirs, frames))


class Channel:
    """Applies a random frequency response, as of a microphone and a line.

    The response has a lower and an upper cutoff frequency (18 dB per octave
    outside the band), a tilt, and a peak or dip about one octave wide, at
    200 Hz to 4.5 kHz.

    Arguments
    ---------
    low_cut : list of float
        Range of the lower cutoff in Hz; low values are more frequent.
    high_cut : list of float
        Range of the upper cutoff, relative to half the sample rate.
    tilt : list of float
        Range of the slope in dB per octave.
    peak : list of float
        Range of the gain of the peak in dB.
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
        self.nyquist: Any = None

    def prepare(
        self, sample_rate: int, utterances: Utterances, rng: np.random.Generator
    ) -> None:
        """Takes the sample rate."""
        self.nyquist = sample_rate / 2

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws cutoffs and peak in Hz, tilt and gain of the peak in dB."""
        lowest, highest = self.low_cut
        return {
            "low_cut": lowest + (highest - lowest) * rng.random() ** 2,
            "high_cut": self.nyquist * _uniform(rng, self.high_cut),
            "tilt": _uniform(rng, self.tilt),
            "peak": 200.0 * 2 ** rng.uniform(0.0, 4.5),
            "peak_gain": _uniform(rng, self.peak),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Filters waveforms."""
        response = torch.nn.functional.interpolate(
            self._response(parameters)[:, None],
            wavs.shape[1] // 2 + 1,
            mode="linear",
            align_corners=True,
        )
        return _filter(wavs, response[:, 0])

    def _response(self, parameters):
        """Returns amplitudes on a coarse frequency grid [rows, 513]."""
        device = parameters["tilt"].device
        hertz = torch.linspace(0, self.nyquist, 513, device=device)
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
    """Applies a random gain.

    Arguments
    ---------
    db : list of float
        Lowest and highest gain in dB.
    """

    @checked(db=interval(number()))
    def __init__(self, db: Sequence[float] = (-10.0, 10.0)):
        self.db = db

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a gain in dB."""
        return {"db": _uniform(rng, self.db)}

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Applies the gain."""
        return wavs * _from_db(parameters["db"])[:, None]


class Telephone:
    """Simulates a telephone line: band-pass filter, 8 kHz, clipping, mu-law.

    Samples are clipped at full scale and coded in eight bits with the mu-law
    of ITU-T G.711. The result has the sample rate and level of the input.

    Arguments
    ---------
    low_cut, high_cut : list of float
        Ranges of the cutoff frequencies in Hz.
    level : list of float
        Range of the peak level on the line, in dB relative to full scale.
        Low levels are coded coarsely, levels above 0 are clipped.
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
        self.sample_rate: Any = None

    def prepare(
        self, sample_rate: int, utterances: Utterances, rng: np.random.Generator
    ) -> None:
        """Takes the sample rate."""
        self.sample_rate = sample_rate

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws cutoffs in Hz and a level in dB."""
        return {
            "low_cut": _uniform(rng, self.low_cut),
            "high_cut": _uniform(rng, self.high_cut),
            "level": _uniform(rng, self.level),
        }

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Filters, resamples, clips and codes waveforms."""
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
    """Uses a module of ``speechbrain.augment`` as an effect.

    Any module that takes waveforms [rows, time] can be used: ``DropFreq``,
    ``AddNoise``, ``CodecAugment`` and others, or an ``Augmenter``.

    Most of these modules draw once for a whole batch, from global random
    generators, and read noise files in the same order in each epoch.
    Therefore each row is processed separately, with its own seed: a view
    depends on (seed, epoch, row, view), as with other effects. This takes
    time for each row, and waits for an accelerator: set ``augment_on:
    workers``.

    * If the output is longer than the input, it is cut; if it is shorter, it
      is repeated (``SpeedPerturb``).
    * An ``Augmenter`` must not enlarge the batch: no ``concat_original``,
      ``parallel_augment`` or ``repeat_augment`` above 1.
    * ``AddNoise`` reads whole files. With files shorter than a view, set
      ``pad_noise: True``; otherwise the rest of the view gets no noise.

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
        self.readers: Any = None

    def prepare(
        self, sample_rate: int, utterances: Utterances, rng: np.random.Generator
    ) -> None:
        """Runs the module once; raises ValueError if its sample rate differs."""
        for module in _parts(self.module):
            for name in ("sample_rate", "clean_sample_rate", "orig_freq"):
                rate = getattr(module, name, sample_rate)
                # a Resample inside converts files of another rate
                if rate != sample_rate and not isinstance(module, Resample):
                    raise ValueError(
                        f"{type(module).__name__} has {name}={rate}, but the "
                        f"views have {sample_rate} Hz"
                    )
        # a copy, because files that the first call opens cannot be pickled
        trial = SpeechBrainAugment(copy.deepcopy(self.module))
        trial.apply(torch.randn(1, sample_rate), {"seed": torch.zeros(1)})

    def to(self, device: torch.device | str) -> None:
        """Moves the module to a device."""
        for module in _parts(self.module):
            module.to(device)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draws a seed that float32 represents exactly."""
        return {"seed": int(rng.integers(2**24))}

    def apply(self, wavs: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Applies the module to each row, with the seed of the row."""
        seeds = parameters["seed"].long().tolist()
        return torch.cat(
            [self._row(wavs[i : i + 1], seed) for i, seed in enumerate(seeds)]
        )

    def _row(self, wav, seed):
        """Applies the module to one row [1, time]."""
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
                # a new iterator, in the order of this seed
                reader.data_loader.sampler.set_epoch(seed)
                setattr(reader, name, iter(reader.data_loader))
            # some modules store what they drew: restore their attributes
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
                f"{list(wav.shape)} into {list(out.shape)}; expected one "
                "waveform [1, time] (in an Augmenter: no concat_original, no "
                "parallel_augment)"
            )
        frames = wav.shape[1]
        return out.repeat(1, -(-frames // out.shape[1]))[:, :frames]

    def _call(self, wav):
        """Calls the module and returns its waveforms."""
        lengths = torch.ones(1, device=wav.device)
        arguments = (wav, lengths) if self.takes_lengths else (wav,)
        out = self.module(*arguments)
        return out[0] if isinstance(out, tuple) else out


def _parts(module):
    """Yields a module and its submodules; an Augmenter registers none."""
    for part in module.modules():
        yield part
        inside = getattr(part, "augmentations", None)
        if isinstance(inside, Mapping):
            for inner in inside.values():
                yield from _parts(inner)


def _readers(module):
    """Yields modules that read files, and the name of their iterator."""
    for part in _parts(module):
        for name, value in vars(part).items():
            if isinstance(value, _BaseDataLoaderIter):
                yield part, name


def _say_memory(what, samples):
    """Logs the memory of recordings in each process."""
    if distributed.rank() == 0:
        logger.info(
            "Augmentation stores %s in memory: %.3g GB in each process.",
            what,
            samples.numel() * samples.element_size() / 1e9,
        )


@contextlib.contextmanager
def _naming(key):
    """Adds the YAML key of a folder to errors."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def _filter(wavs, response):
    """Multiplies the spectra of waveforms [rows, time]."""
    return torch.fft.irfft(torch.fft.rfft(wavs) * response, wavs.shape[1])


def _from_db(db):
    """Converts decibels to an amplitude ratio."""
    return 10 ** (db / 20)
