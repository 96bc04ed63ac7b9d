#!/usr/bin/env python3
"""Makes a small corpus of synthetic voices, so that the demo needs no download.

espeak-ng speaks made-up English sentences. A voice is one of its timbres (a
"variant") with an accent, a pitch and a rate of its own; the voices of the
trials use timbres that training never hears. Training files are as spoken.
Every test file goes through a channel of its own (room, noise, microphone,
band, level), so that two files of one voice share the voice and little else.

The corpus::

    train/utt_000000.flac ...       unlabeled, in shuffled order
    test/<voice>/0.flac ...
    trials/wild.txt                 lines: label enrol test
    settings.json                   written last: says what was asked for

To run it (needs ``pip install speechbrain_ssl[demo]``):
> python synthesize_voices.py OUTPUT_FOLDER
"""

import argparse
import ctypes
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.signal
import soundfile
import tqdm

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
MIN_SECONDS, MAX_SECONDS = 3.0, 6.0
NONTARGETS_PER_TARGET = 8

# raise it when the same settings give another corpus
CORPUS_VERSION = 1

ACCENTS = (
    "en-us",
    "en",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)

# Variants of espeak-ng that are no voices: whispers, robots, echoes, a cartoon
# (zac), the default voice at another speed.
EFFECTS = frozenset(
    "Demonic RicishayMax RicishayMax2 RicishayMax3 UniRobot anikaRobot caleb "
    "croak fast robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 "
    "robosoft7 robosoft8 whisper whisperf zac".split()
)

# Variants that another one repeats: their mean log-mel spectra differ by less
# than a sixth of the median difference between two variants.
TWINS = frozenset(
    "Diogo Gene2 adam benjamin iven3 iven4 klatt2 klatt5 miguel steph2 "
    "steph3".split()
)

# speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POS_CHARACTER = 1
CHARS_UTF8 = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4

# Half of espeak-ng's usual volume, where no voice overflows 16 bits.
QUIET = 50

WORDS = {
    "adjective": "old small clever quiet yellow careful broken heavy gentle "
    "northern golden narrow hungry famous polite curious wooden frozen "
    "ordinary cheerful thirsty purple enormous silver".split(),
    "person": "farmer teacher sailor doctor neighbor painter captain "
    "grandmother student baker officer singer engineer traveler child "
    "lawyer gardener driver uncle queen".split(),
    "thing": "basket window letter bridge garden kettle mountain picture "
    "ladder shoe violin boat chair engine ticket blanket mirror orange "
    "hammer island bottle journal feather clock".split(),
    "verb": "carried noticed painted followed borrowed repaired measured "
    "remembered described ignored visited washed found brought finished "
    "changed promised watched opened covered".split(),
    "place": "market harbor kitchen village station forest river library "
    "valley church office museum tower desert airport".split(),
    "join": "because although before after while until whenever and but "
    "so".split(),
    "time": "today yesterday slowly together again tonight".split(),
    "number": "two three five seven eleven twelve twenty fifty".split(),
}

TEMPLATES = (
    "the {adjective} {person} {verb} the {thing} near the {place}",
    "{number} {thing}s and a {adjective} {thing} were in the {place}",
    "my {person} {verb} every {thing} that the {person} {verb}",
    "we {verb} the {place} behind the {adjective} {place} {time}",
    "a {person} from the {place} {verb} our {number} {adjective} {thing}s",
    "nobody {verb} how the {person} {verb} this {thing} {time}",
)


class Voice(NamedTuple):
    """Who speaks.

    Arguments
    ---------
    accent : str
        A language of espeak-ng.
    variant : str
        A timbre of espeak-ng, a file name in its ``voices/!v``.
    pitch : float
        Base pitch, 0 to 99; 50 leaves that of the variant.
    rate : float
        Words per minute.
    liveliness : float
        Range of the pitch, 0 to 99.
    """

    accent: str
    variant: str
    pitch: float
    rate: float
    liveliness: float


class Line(NamedTuple):
    """What one utterance says and how, in the units of ``Voice``."""

    text: str
    pitch: int
    rate: int
    liveliness: int


def synthesize_voices(
    output_folder,
    train_voices=60,
    test_voices=20,
    train_utterances=10,
    test_utterances=8,
    seed=0,
):
    """Makes the corpus, or finds it made already.

    Arguments
    ---------
    output_folder : str
        The folder to make. If it holds a corpus with other settings, that one
        stays and the new one gets a folder beside it, named after its
        settings.
    train_voices : int
        Voices in the unlabeled part.
    test_voices : int
        Other voices, for the trials; at least 2.
    train_utterances : int
        Utterances of each training voice.
    test_utterances : int
        Utterances of each test voice; at least 2.
    seed : int
        Another seed makes other voices, sentences and channels.

    Returns
    -------
    str
        The folder that holds the corpus: ``output_folder`` or its neighbor.

    Raises
    ------
    ImportError
        If espeak-ng is not installed.
    FileExistsError
        If ``output_folder`` holds something else than a corpus.
    ValueError
        If there is nothing to make, or no trials could be.

    Example
    -------
    >>> folder = synthesize_voices("voices")  # doctest: +SKIP
    """
    settings = {
        "train_voices": train_voices,
        "test_voices": test_voices,
        "train_utterances": train_utterances,
        "test_utterances": test_utterances,
        "seed": seed,
        "corpus_version": CORPUS_VERSION,
    }
    _check(settings)
    folder = _choose_folder(os.path.abspath(output_folder), settings)
    if _settings_of(folder) == settings:
        logger.info("The corpus is there already: %s", folder)
        return folder
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    building = tempfile.mkdtemp(prefix=".voices.", dir=parent)
    try:
        os.chmod(building, 0o755)
        _build(building, settings)
        os.replace(building, folder)
    except OSError:
        # another process may have made the same corpus meanwhile
        if _settings_of(folder) != settings:
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    logger.info("Synthetic voices are in %s", folder)
    return folder


def random_channel(samples, rng):
    """Sends speech through a room, noise, a microphone and a line.

    It shares no code with the corruption that training adds: a test channel
    of its own kind is the better test.

    Arguments
    ---------
    samples : np.ndarray
        Speech at 16 kHz [time].
    rng : np.random.Generator
        Where all choices come from.

    Returns
    -------
    np.ndarray
        float32 [time], peak at most 0.9.
    """
    if rng.random() < 0.5:
        samples = _room(samples, rng)
    snr = rng.uniform(0, 15)
    gain = np.sqrt(np.mean(samples**2) / 10 ** (snr / 10))
    samples = samples + gain * _noise(len(samples), rng)
    samples = _microphone(samples, rng)
    high_pass, low_pass = rng.uniform(60, 400), rng.uniform(2800, 7500)
    band = scipy.signal.butter(
        3, (high_pass, low_pass), "bandpass", fs=SAMPLE_RATE, output="sos"
    )
    samples = scipy.signal.sosfilt(band, samples)
    peak = 10 ** (rng.uniform(-20, -1) / 20)
    return (samples * peak / np.abs(samples).max()).astype(np.float32)


def make_trials(files, pitches, rng):
    """All target pairs and some non-target pairs of the test files.

    Half of the non-target pairs are of voices alike in pitch (the closest
    quarter of all pairs of voices), so that pitch alone does not decide.

    Arguments
    ---------
    files : dict of str to list of str
        The files of each voice.
    pitches : dict of str to float
        Pitch of each voice in Hz.
    rng : np.random.Generator
        Draws the non-target pairs.

    Returns
    -------
    list of tuple
        (label, enrol, test), sorted by files; label 1 is a target.
    """
    trials = [
        (1, *pair)
        for own in files.values()
        for pair in itertools.combinations(own, 2)
    ]
    wanted = NONTARGETS_PER_TARGET * len(trials)
    couples = sorted(
        itertools.combinations(files, 2),
        key=lambda couple: abs(np.log(pitches[couple[0]] / pitches[couple[1]])),
    )
    near = -(-len(couples) // 4)
    for part, share in ((couples[:near], wanted // 2), (couples, wanted)):
        pairs = [
            (0, *pair)
            for one, other in part
            for pair in itertools.product(files[one], files[other])
        ]
        left = sorted(set(pairs) - set(trials))
        missing = share - sum(label == 0 for label, *_ in trials)
        chosen = rng.permutation(len(left))[:missing]
        trials += [left[i] for i in chosen]
    return sorted(trials, key=lambda trial: trial[1:])


class Espeak:
    """The few functions of espeak-ng that make speech.

    espeak-ng carries a state from one utterance to the next (flutter, noise),
    so its output repeats only in a new process that says the same in the same
    order. It has one callback: make one of these per process.

    Raises
    ------
    ImportError
        If espeak-ng is not installed.
    RuntimeError
        If espeak-ng does not start.
    """

    def __init__(self):
        loader = _loader()
        self.library = ctypes.CDLL(loader.get_library_path())
        self.sample_rate = self.library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS,
            0,
            str(loader.get_data_path()).encode(),
            INITIALIZE_DONT_EXIT,
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                "espeak-ng does not start with its data in "
                f"{loader.get_data_path()}; reinstall espeakng-loader"
            )
        # espeak-ng seeds its breath noise with the time of day
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        self.chunks = []
        # ctypes keeps no reference: without ours the callback would be freed
        self.callback = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_short),
            ctypes.c_int,
            ctypes.c_void_p,
        )(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, voice, line):
        """Speaks one line.

        Arguments
        ---------
        voice : str
            Name for espeak-ng, ``accent+variant``.
        line : Line
            What to say and how.

        Returns
        -------
        np.ndarray
            int16 [time] at ``sample_rate``.
        """
        self.chunks.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in (
            (RATE, line.rate),
            (PITCH, line.pitch),
            (RANGE, line.liveliness),
            (VOLUME, QUIET),
        ):
            self.library.espeak_SetParameter(parameter, value, 0)
        text = line.text.encode() + b"\0"
        error = self.library.espeak_Synth(
            text,
            ctypes.c_size_t(len(text)),
            0,
            POS_CHARACTER,
            0,
            CHARS_UTF8,
            None,
            None,
        )
        self.library.espeak_Synchronize()
        if error != 0 or not self.chunks:
            raise RuntimeError(f"espeak-ng cannot say {line.text!r} ({voice})")
        return np.concatenate(self.chunks)

    def _receive(self, samples, count, _events):
        """Called by espeak-ng with each piece of speech; 0 means go on."""
        if samples and count > 0:
            piece = np.ctypeslib.as_array(samples, (count,))
            self.chunks.append(piece.copy())
        return 0


def variants():
    """Timbres of the installed espeak-ng that make different voices.

    Returns
    -------
    list of str
        File names in ``voices/!v`` of its data, sorted.
    """
    folder = os.path.join(_loader().get_data_path(), "voices", "!v")
    # espeak-ng takes an unknown variant for none, without a word: hence a list
    return sorted(set(os.listdir(folder)) - EFFECTS - TWINS)


def draw_voices(train_voices, test_voices, rng):
    """Makes up the voices; no timbre serves on both sides.

    Arguments
    ---------
    train_voices : int
        How many for training.
    test_voices : int
        How many for the trials.
    rng : np.random.Generator
        Where all choices come from.

    Returns
    -------
    train, test : list of Voice
        If there are more voices than timbres, some share one and differ in
        accent, pitch and rate.
    """
    timbres = [str(name) for name in rng.permutation(variants())]
    cut = min(test_voices, len(timbres) // 3)
    return (
        [_draw_voice(timbres[cut:], i, rng) for i in range(train_voices)],
        [_draw_voice(timbres[:cut], i, rng) for i in range(test_voices)],
    )


def draw_line(voice, rng):
    """Makes up a sentence and a way of saying it that fits the voice.

    Arguments
    ---------
    voice : Voice
        Who will say it.
    rng : np.random.Generator
        Where all choices come from.

    Returns
    -------
    Line
        Three to six seconds of speech.
    """
    # A lively reader: wider than this, and pitch would say nothing at all.
    pitch = voice.pitch + rng.uniform(-15, 15)
    rate = voice.rate * rng.uniform(0.85, 1.15)
    liveliness = voice.liveliness + rng.uniform(-25, 25)
    count = round(rng.uniform(4.4, 6.2) * rate / 60)
    words = []
    while len(words) < count:
        if words:
            words.append(str(rng.choice(WORDS["join"])))
        words += _fill(str(rng.choice(TEMPLATES)), rng).split()
    text = " ".join(words[:count]).capitalize() + "."
    return Line(text, round(pitch), round(rate), round(liveliness))


def _check(settings):
    """Says what cannot work before anything is made."""
    lowest = {
        "train_voices": 1,
        "train_utterances": 1,
        "test_voices": 2,
        "test_utterances": 2,
        "seed": 0,
    }
    for name, least in lowest.items():
        if settings[name] < least:
            raise ValueError(
                f"{name} must be at least {least}, found {settings[name]}"
            )


def _settings_of(folder):
    """Settings of a complete corpus, None if there is none."""
    try:
        with open(os.path.join(folder, "settings.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def _choose_folder(folder, settings):
    """``folder`` if it is free or ours, its neighbor if other settings hold it.

    Arguments
    ---------
    folder : str
        Absolute path asked for.
    settings : dict
        The corpus wanted.

    Returns
    -------
    str
        Absolute path of the folder to use.
    """
    if not os.path.exists(folder) or _settings_of(folder) == settings:
        return folder
    if _settings_of(folder) is None:
        if not os.path.isdir(folder) or os.listdir(folder):
            raise FileExistsError(
                f"{folder} holds something else than synthetic voices (it has "
                "no settings.json); name a new or an empty folder"
            )
        return folder
    text = json.dumps(settings, sort_keys=True)
    neighbor = f"{folder}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    logger.warning(
        "%s holds a corpus with other settings; using %s", folder, neighbor
    )
    return neighbor


def _build(folder, settings):
    """Writes the whole corpus into an empty folder."""
    seed = settings["seed"]
    train, test = draw_voices(
        settings["train_voices"],
        settings["test_voices"],
        np.random.default_rng([seed, 0]),
    )
    counts = [settings["train_utterances"]] * len(train)
    counts += [settings["test_utterances"]] * len(test)
    jobs = [
        (
            f"{voice.accent}+{voice.variant}",
            [
                draw_line(voice, np.random.default_rng([seed, 1, i, n]))
                for n in range(count)
            ],
        )
        for i, (voice, count) in enumerate(zip(train + test, counts))
    ]
    # One new process does all the talking, in order: see Espeak. This one
    # resamples, distorts and writes meanwhile.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        bar = tqdm.tqdm(
            pool.map(_speak, jobs),
            total=len(jobs),
            desc="Synthesizing voices",
            unit="voice",
        )
        # one iterator for both parts: each new one would restart the bar
        spoken = (
            [_finish(speech, rate) for speech in speeches]
            for speeches, rate in bar
        )
        _write_train(folder, itertools.islice(spoken, len(train)), settings)
        _write_test(folder, zip(spoken, test), seed)
    with open(os.path.join(folder, "settings.json"), "w") as file:
        json.dump(settings, file, indent=2)


def _write_train(folder, spoken, settings):
    """Training files: as spoken, under numbers that say nothing."""
    os.makedirs(os.path.join(folder, "train"))
    total = settings["train_voices"] * settings["train_utterances"]
    numbers = np.random.default_rng([settings["seed"], 2]).permutation(total)
    for number, speech in zip(numbers, itertools.chain.from_iterable(spoken)):
        path = os.path.join(folder, "train", f"utt_{number:06d}.flac")
        soundfile.write(path, speech, SAMPLE_RATE, subtype="PCM_16")


def _write_test(folder, spoken, seed):
    """Test files, each through a channel of its own, and their trials."""
    files, pitches = {}, {}
    for i, (utterances, voice) in enumerate(spoken):
        accent_and_variant = f"{voice.accent}_{voice.variant}".replace(" ", "_")
        name = f"{i:02d}_{accent_and_variant}"
        os.makedirs(os.path.join(folder, "test", name))
        files[name] = []
        pitches[name] = np.median([median_pitch(x) for x in utterances])
        for n, speech in enumerate(utterances):
            # "/" on all systems: the list is text that others may read
            files[name].append(f"test/{name}/{n}.flac")
            heard = random_channel(
                speech, np.random.default_rng([seed, 3, i, n])
            )
            path = os.path.join(folder, files[name][-1])
            soundfile.write(path, heard, SAMPLE_RATE, subtype="PCM_16")
    rng = np.random.default_rng([seed, 4])
    os.makedirs(os.path.join(folder, "trials"))
    with open(os.path.join(folder, "trials", "wild.txt"), "w") as file:
        for trial in make_trials(files, pitches, rng):
            print(*trial, file=file)


def median_pitch(samples):
    """Fundamental frequency by autocorrelation.

    Arguments
    ---------
    samples : np.ndarray
        Clean speech at 16 kHz [time], at least 64 ms.

    Returns
    -------
    float
        Median over the louder half of the frames, in Hz (60 to 400).
    """
    size = 1024
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::512]
    power = np.mean(frames**2, axis=1)
    spectra = np.fft.rfft(frames[power >= np.median(power)], 2 * size)
    correlation = np.fft.irfft(np.abs(spectra) ** 2)
    lags = np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
    # the longer the lag, the fewer samples overlap
    best = (correlation[:, lags] / (size - lags)).argmax(axis=1)
    return SAMPLE_RATE / float(np.median(lags[best]))


def _loader():
    """The package that brings espeak-ng, or a message that says how."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "The synthetic voices need espeak-ng, which the package "
            "espeakng-loader brings: pip install speechbrain_ssl[demo]"
        ) from error
    return espeakng_loader


@functools.lru_cache(maxsize=1)
def _espeak():
    """espeak-ng, started once in this process."""
    return Espeak()


def _speak(job):
    """All utterances of a voice as int16, and their rate."""
    voice, lines = job
    return [_utter(voice, line) for line in lines], _espeak().sample_rate


def _utter(voice, line):
    """One line, said twice where a fast voice is too soon done."""
    espeak = _espeak()
    speech = _trim(espeak.say(voice, line), espeak.sample_rate)
    if len(speech) >= MIN_SECONDS * espeak.sample_rate:
        return speech
    twice = line._replace(text=f"{line.text} {line.text}")
    return _trim(espeak.say(voice, twice), espeak.sample_rate)


def _trim(speech, rate):
    """Cuts the silence around the speech, and what is too long."""
    loudness = np.abs(speech.astype(np.int32))
    loud = np.flatnonzero(loudness > 0.02 * loudness.max())
    start = max(0, loud[0] - rate // 10)
    stop = min(loud[-1] + rate // 10, start + int(MAX_SECONDS * rate))
    return speech[start:stop]


def _finish(speech, rate):
    """float32 at 16 kHz, peak 0.7."""
    # imported here, so that the process that talks starts without torch
    import torch
    from speechbrain_ssl.dataio.audio import resample

    samples = torch.from_numpy(speech.astype(np.float32))
    samples = resample(samples, rate, SAMPLE_RATE).numpy()
    return samples * np.float32(0.7 / np.abs(samples).max())


def _draw_voice(timbres, index, rng):
    """Voice number ``index`` of one side."""
    # The second round over the timbres meets other accents than the first.
    accent = ACCENTS[(index + index // len(timbres)) % len(ACCENTS)]
    return Voice(
        accent=accent,
        variant=timbres[index % len(timbres)],
        pitch=rng.uniform(35, 65),
        rate=rng.uniform(150, 195),
        liveliness=rng.uniform(30, 70),
    )


def _fill(template, rng):
    """Puts a random word into each gap of a template."""
    parts = template.replace("}", "{").split("{")
    # text and names of gaps take turns
    parts[1::2] = [str(rng.choice(WORDS[name])) for name in parts[1::2]]
    return "".join(parts)


def _room(samples, rng):
    """Reverberation by noise that dies away (RT60 0.2 to 1 s)."""
    rt60 = rng.uniform(0.2, 1.0)
    time = np.arange(int(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    direct_to_tail = rng.uniform(-4, 6)
    tail *= 10 ** (-direct_to_tail / 20) / np.linalg.norm(tail)
    # the tail starts after 5 ms, the way to the nearest wall and back
    response = np.concatenate([[1.0], np.zeros(SAMPLE_RATE // 200), tail])
    return scipy.signal.fftconvolve(samples, response)[: len(samples)]


def _noise(count, rng):
    """Noise of unit power, from white to brown, that comes and goes."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 50)
    noise = np.fft.irfft(spectrum / frequency ** rng.uniform(0, 1), count)
    # a new level four times a second
    knots = np.linspace(0, count, 4 * count // SAMPLE_RATE + 2)
    decibels = rng.uniform(-10, 10, len(knots))
    noise *= 10 ** (np.interp(np.arange(count), knots, decibels) / 20)
    return noise / np.sqrt(np.mean(noise**2))


def _microphone(samples, rng):
    """A spectral tilt (in dB per octave) and some humps and dips."""
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    octaves = np.log2(np.clip(frequency, 100, None) / 1000)
    knots = np.linspace(octaves[0], octaves[-1], 8)
    decibels = rng.uniform(-6, 6) * octaves
    decibels += np.interp(octaves, knots, rng.uniform(-12, 12, len(knots)))
    return np.fft.irfft(spectrum * 10 ** (decibels / 20), len(samples))


def _arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Makes a corpus of synthetic voices."
    )
    parser.add_argument("output_folder")
    parser.add_argument("--train_voices", type=int, default=60)
    parser.add_argument("--test_voices", type=int, default=20)
    parser.add_argument("--train_utterances", type=int, default=10)
    parser.add_argument("--test_utterances", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    synthesize_voices(**vars(_arguments()))
