#!/usr/bin/env python3
"""Makes a small corpus of synthetic voices, so that the demo needs no download.

espeak-ng speaks made-up sentences. A voice is one of its timbres (a "variant")
with its own accent, pitch and rate. The voices of the trials use timbres that
no training voice has. Training files are clean; each test file has its own
channel (reverberation, noise, equaliser, band, level), so that two files of one
voice share little else.

The corpus::

    train/000000.flac ...           unlabeled, in shuffled order
    test/<voice>/<utterance>.flac
    trials/wild.txt                 lines: label enrol test

To run it (needs ``pip install speechbrain_ssl[demo]``):
> python synthesize_voices.py OUTPUT_FOLDER
"""

import ctypes
import itertools
import os
import sys
import tempfile

import numpy as np
import soundfile
import tqdm
from scipy import signal

RATE = 16000
NONTARGETS_PER_TARGET = 8
ACCENTS = "en-us en en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-029".split()
# variants of espeak-ng that are effects, or that repeat another variant
SKIPPED = frozenset(
    "Demonic RicishayMax RicishayMax2 RicishayMax3 UniRobot anikaRobot caleb "
    "croak fast robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 "
    "robosoft7 robosoft8 whisper whisperf zac Diogo Gene2 adam benjamin iven3 "
    "iven4 klatt2 klatt5 miguel steph2 steph3".split()
)
WORDS = (
    "old small clever quiet yellow careful broken heavy golden narrow hungry "
    "farmer teacher sailor doctor neighbor painter captain student engineer "
    "basket window letter bridge garden mountain picture shoe engine ticket "
    "carried noticed painted followed borrowed repaired measured remembered "
    "market harbor kitchen village station forest river church museum tower "
    "because although before after while until and but near behind under "
    "yesterday slowly together two three seven eleven twenty fifty".split()
)


def synthesize_voices(
    output_folder: str,
    train_voices: int = 60,
    test_voices: int = 20,
    train_utterances: int = 10,
    test_utterances: int = 8,
    seed: int = 0,
) -> str:
    """Makes the corpus, unless the folder is there already.

    Arguments
    ---------
    output_folder : str
        The folder to make; it appears when the corpus is complete.
    train_voices, test_voices : int
        Number of voices in the unlabeled part and in the trials.
    train_utterances, test_utterances : int
        Utterances of each voice, of about four seconds.
    seed : int
        Another seed makes other voices, sentences and channels.

    Returns
    -------
    str
        ``output_folder``.

    Raises
    ------
    ImportError
        If espeak-ng is not installed.
    """
    if os.path.isdir(output_folder):
        return output_folder
    say = _espeak()
    rng = np.random.default_rng(seed)
    parent = os.path.dirname(os.path.abspath(output_folder))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".voices.") as building:
        folder = os.path.join(building, "corpus")
        timbres = rng.permutation(say.variants).tolist()
        held_out = len(timbres) // 3
        numbers = rng.permutation(train_voices * train_utterances)
        os.makedirs(os.path.join(folder, "train"))
        train = _speak(
            say, timbres[held_out:], train_voices, train_utterances, rng
        )
        for number, (_, speech) in zip(numbers, train):
            path = os.path.join(folder, "train", f"{number:06d}.flac")
            soundfile.write(path, speech, RATE)
        files: dict[int, list[str]] = {}
        for voice, speech in _speak(
            say, timbres[:held_out], test_voices, test_utterances, rng
        ):
            own = files.setdefault(voice, [])
            own.append(f"test/{voice:02d}/{len(own)}.flac")
            path = os.path.join(folder, own[-1])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            soundfile.write(path, random_channel(speech, rng), RATE)
        os.makedirs(os.path.join(folder, "trials"))
        with open(os.path.join(folder, "trials", "wild.txt"), "w") as file:
            for trial in make_trials(files, rng):
                print(*trial, file=file)
        os.rename(folder, output_folder)
    return output_folder


def make_trials(files, rng):
    """All target pairs, and a random choice of non-target pairs.

    ``files`` has the files of each voice. Gives (label, enrol, test); label 1
    is a target.
    """
    pairs = list(itertools.combinations(sorted(sum(files.values(), [])), 2))
    owner = {path: voice for voice, own in files.items() for path in own}
    same = [owner[a] == owner[b] for a, b in pairs]
    targets = [(1, *pair) for pair, label in zip(pairs, same) if label]
    others = [(0, *pair) for pair, label in zip(pairs, same) if not label]
    count = min(len(others), NONTARGETS_PER_TARGET * len(targets))
    drawn = rng.choice(len(others), count, replace=False)
    return targets + [others[i] for i in sorted(drawn)]


def random_channel(speech, rng):
    """Adds reverberation, noise, an equaliser, a band and a level.

    It shares no code with the augmentation of training: a channel of another
    kind is the better test. ``speech`` [time] is at 16 kHz; the result has a
    peak of at most 0.9.
    """
    count = len(speech)
    if rng.random() < 0.5:  # noise that decays: an RT60 of 0.2 to 1 s
        time = np.arange(RATE) / RATE
        rir = rng.standard_normal(RATE) * 10 ** (
            -3 * time / rng.uniform(0.2, 1)
        )
        rir *= 10 ** (rng.uniform(-6, 4) / 20) / np.linalg.norm(rir)
        rir[0] = 1.0
        speech = signal.fftconvolve(speech, rir)[:count]
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 50)
    noise = np.fft.irfft(spectrum / frequency ** rng.uniform(0, 1), count)
    snr = rng.uniform(0, 15)
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2) / 10 ** (snr / 10))
    octaves = np.log2(frequency / 1000)
    knots = np.linspace(octaves[0], octaves[-1], 8)
    decibels = rng.uniform(-6, 6) * octaves  # a tilt, humps and dips
    decibels += np.interp(octaves, knots, rng.uniform(-12, 12, 8))
    heard = np.fft.rfft(speech + noise) * 10 ** (decibels / 20)
    band = rng.uniform(60, 400), rng.uniform(2800, 7500)
    filters = signal.butter(3, band, "bandpass", fs=RATE, output="sos")
    heard = signal.sosfilt(filters, np.fft.irfft(heard, count))
    peak = 10 ** (rng.uniform(-20, -1) / 20)
    return (heard * peak / np.abs(heard).max()).astype(np.float32)


def _speak(say, timbres, voices, utterances, rng):
    """Yields (voice, speech) of some voices."""
    for voice in tqdm.trange(voices, desc="Voices", unit="voice"):
        # a second round over the timbres has other accents
        accent = ACCENTS[(voice + voice // len(timbres)) % len(ACCENTS)]
        name = f"{accent}+{timbres[voice % len(timbres)]}"
        pitch, rate = rng.uniform(35, 65), rng.uniform(150, 195)
        for _ in range(utterances):
            words = " ".join(rng.choice(WORDS, 12))
            variation = rng.uniform(-15, 15), rng.uniform(0.85, 1.15)
            speech = say(words, name, pitch + variation[0], rate * variation[1])
            yield voice, speech


def _espeak():
    """A function that speaks, with the timbres of espeak-ng as ``variants``."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "The synthetic voices need espeak-ng, which the package "
            "espeakng-loader brings: pip install speechbrain_ssl[demo]"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = str(espeakng_loader.get_data_path())
    synchronous, do_not_exit, utf8 = 2, 0x8000, 1  # speak_lib.h
    found = library.espeak_Initialize(
        synchronous, 0, data.encode(), do_not_exit
    )
    if found <= 0:
        raise ImportError(
            f"espeak-ng does not start with its data in {data}: reinstall "
            "espeakng-loader"
        )
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # its breath noise
    pieces = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_short),
        ctypes.c_int,
        ctypes.c_void_p,
    )
    def receive(samples, count, _events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    library.espeak_SetSynthCallback(receive)

    def say(text, voice, pitch, rate):
        pieces.clear()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        # rate, volume (half of the usual one, which overflows), pitch
        for parameter, value in (1, rate), (2, 50), (3, pitch):
            library.espeak_SetParameter(parameter, round(value), 0)
        data = text.encode() + b"\0"
        library.espeak_Synth(
            data, ctypes.c_size_t(len(data)), 0, 1, 0, utf8, None, None
        )
        library.espeak_Synchronize()
        speech = np.concatenate(pieces) / 32768
        speech = signal.resample_poly(speech, RATE, found)
        loud = np.flatnonzero(np.abs(speech) > 0.02 * np.abs(speech).max())
        speech = speech[loud[0] : loud[-1] + 1]
        return speech * (0.7 / np.abs(speech).max())

    say.receive = receive  # ctypes keeps no reference
    names = set(os.listdir(os.path.join(data, "voices", "!v")))
    say.variants = sorted(names - SKIPPED)
    return say


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(synthesize_voices(sys.argv[1]))
