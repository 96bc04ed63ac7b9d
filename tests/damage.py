"""A folder of good audio, odd but good audio, and damage of many kinds."""

import os

import numpy as np
import soundfile

RATE = 16000


def noise(seconds=2.0, rate=RATE, channels=1):
    """Noise [time, channels], the same for the same size."""
    shape = (round(seconds * rate), channels)
    return 0.1 * np.random.default_rng(0).uniform(-1, 1, shape)


def write_good(folder, count):
    """Writes plain files; returns their names."""
    names = [f"good{number:03d}.flac" for number in range(count)]
    for number, name in enumerate(names):
        samples = 0.1 * np.random.default_rng(number).standard_normal(24000)
        soundfile.write(folder / name, samples, RATE)
    return names


def write_odd(folder):
    """Writes files that are unusual and can be read; returns their names."""
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW"):
        soundfile.write(folder / f"{subtype}.wav", noise(), RATE, subtype)
    for channels in (2, 64):
        path = folder / f"channels{channels}.wav"
        soundfile.write(path, noise(1.2, channels=channels), RATE)
    for rate in (8001, 11025, 48000, 96001):
        soundfile.write(folder / f"rate{rate}.wav", noise(1.2, rate), rate)
    # the content says what it is, not the name
    soundfile.write(folder / "flac.wav", noise(), RATE, format="FLAC")
    soundfile.write(folder / "wav.ogg", noise(), RATE, format="WAV")
    # cut samples of a wav are a shorter wav
    soundfile.write(folder / "cut.wav", noise(3.0), RATE)
    os.truncate(folder / "cut.wav", 80_000)
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "folder.wav" / "inside.wav", noise(), RATE)
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
    ]


def write_damaged(folder):
    """Writes files that a preparation must leave out; returns their names."""
    wav, flac = folder / "source.wav", folder / "source.flac"
    soundfile.write(wav, noise(), RATE)
    soundfile.write(flac, noise(8.0), RATE)
    soundfile.write(folder / "source.mp3", noise(8.0), RATE)
    head = wav.read_bytes()[:44]
    content = {
        "empty.wav": b"",
        "empty.flac": b"",
        "header.wav": head,
        "riff.wav": b"RIFF",
        "zeros.wav": bytes(64_000),
        "zeros.mp3": bytes(64_000),
        "text.wav": b"This is text.\n" * 100,
        "text.flac": b"This is text.\n" * 100,
        "text.ogg": b"This is text.\n" * 100,
        "text.mp3": b"This is text.\n" * 100,
        "text.m4a": b"This is text.\n" * 100,
        "text.webm": b"This is text.\n" * 100,
        "random.wav": np.random.default_rng(1).bytes(64_000),
        "random.opus": np.random.default_rng(2).bytes(64_000),
        "notes.txt": b"no audio",
        ".hidden.wav": wav.read_bytes(),
        "line\rbreak.wav": wav.read_bytes(),
        "line\nbreak.wav": wav.read_bytes(),
    }
    for size in (12, 20, 36):
        content[f"cut{size}.wav"] = head[:size]
    for rate in (0, 1, 4_000_000_000):
        content[f"rate{rate}.wav"] = (
            head[:24] + rate.to_bytes(4, "little") + wav.read_bytes()[28:]
        )
    content["channels0.wav"] = head[:22] + bytes(2) + wav.read_bytes()[24:]
    for source in (flac, folder / "source.mp3"):
        whole = source.read_bytes()
        for share in (1, 30, 70, 95, 98):
            name = f"cut{share}{source.suffix}"
            content[name] = whole[: len(whole) * share // 100]
    # as ffmpeg writes FLAC into a pipe: without its length
    piped = bytearray(flac.read_bytes())
    piped[21], piped[22:26] = piped[21] & 0xF0, bytes(4)
    content["piped.flac"] = bytes(piped)
    for source in (wav, flac, folder / "source.mp3"):
        source.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for name, value in {"nan": np.nan, "inf": np.inf, "loud": 1e30}.items():
        samples = np.full(2 * RATE, value)
        soundfile.write(folder / f"{name}.wav", samples, RATE, "DOUBLE")
        content[f"{name}.wav"] = None
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(folder / "short.wav", noise(0.5), RATE)
    soundfile.write(folder / "no_frames.wav", noise(0.0), RATE)
    undecodable = os.path.join(os.fsencode(folder), b"byte\xff.wav")
    with open(undecodable, "wb") as file:
        file.write(head)
    os.mkfifo(folder / "pipe.wav")
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    (folder / "itself.wav").symlink_to(folder / "itself.wav")
    (folder / "above").symlink_to(folder)
    return [
        *content,
        *("silent.wav", "short.wav", "no_frames.wav", "byte\\udcff.wav"),
        *("pipe.wav", "nowhere.wav", "itself.wav", "above"),
    ]


def write_damaged_between_probes(folder):
    """Writes damage that a quick look does not find; returns the names."""
    samples = noise(6.0)
    for name, value in {"nan": np.nan, "inf": -np.inf, "loud": 1e20}.items():
        damaged = samples.copy()
        damaged[2 * RATE : 5 * RATE // 2] = value
        soundfile.write(folder / f"hole_{name}.wav", damaged, RATE, "FLOAT")
    for name in ("hole_zeros.flac", "hole_bytes.flac"):
        soundfile.write(folder / name, samples, RATE)
        data = bytearray((folder / name).read_bytes())
        hole = slice(len(data) * 22 // 100, len(data) * 43 // 100)
        size = hole.stop - hole.start
        junk = bytes(size), np.random.default_rng(3).bytes(size)
        data[hole] = junk["bytes" in name]
        (folder / name).write_bytes(data)
    return [path.name for path in folder.glob("hole_*")]
