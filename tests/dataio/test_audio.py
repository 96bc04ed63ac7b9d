"""Tests of reading audio files."""

import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio import audio


def sine(seconds, rate, frequency=200.0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.fixture
def noise():
    return np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


def note_opened(monkeypatch):
    """A list of paths, which grows with every file that soundfile opens."""
    opened = []

    class Noted(soundfile.SoundFile):
        def __init__(self, path, *args, **settings):
            opened.append(path)
            super().__init__(path, *args, **settings)

    monkeypatch.setattr(soundfile, "SoundFile", Noted)
    return opened


def read_slowly(path, start, stop):
    """A stretch as mono, of a file opened for it alone."""
    samples, _ = soundfile.read(
        path, stop - start, start, dtype="float32", always_2d=True
    )
    return samples.mean(axis=1)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_stretch_equals_slice_of_whole_file(tmp_path, noise, extension):
    path = str(tmp_path / f"a.{extension}")
    soundfile.write(path, noise, 16000)
    whole, rate = audio.read(path)
    assert rate == 16000 and len(whole) == 8000
    for start, stop in [(0, 10), (1234, 5678), (7990, 8000)]:
        stretch, _ = audio.read(path, start, stop)
        assert np.array_equal(stretch, whole[start:stop])
    assert np.array_equal(audio.read(path, 7000)[0], whole[7000:])


def test_channels_are_averaged(tmp_path):
    path = str(tmp_path / "stereo.wav")
    left, right = sine(0.1, 16000), np.full(1600, 0.25, np.float32)
    soundfile.write(path, np.stack([left, right], 1), 16000, subtype="FLOAT")
    samples, _ = audio.read(path)
    assert samples.dtype == np.float32 and samples.flags["C_CONTIGUOUS"]
    assert np.allclose(samples, (left + right) / 2, atol=1e-7)
    assert audio.info(path) == (1600, 16000, 2)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_load_resamples_to_the_same_duration_and_pitch(tmp_path, rate):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, sine(1.0, rate), rate)
    samples = audio.load(path, 16000)
    assert samples.shape == (16000,)
    # 1 s, so that bin number and frequency are the same
    assert torch.fft.rfft(samples).abs().argmax() == 200


def test_length_after_resampling_is_rounded_up():
    assert audio.resample(torch.zeros(2, 4411), 44100, 16000).shape == (2, 1601)


@pytest.mark.parametrize(
    "extension, container, subtype",
    [
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("mp3", "MP3", None),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("WAV", "WAV", "PCM_24"),
    ],
)
def test_formats_survive_a_round_trip(tmp_path, extension, container, subtype):
    path = str(tmp_path / f"a.{extension}")
    original = sine(1.0, 16000)
    soundfile.write(path, original, 16000, format=container, subtype=subtype)
    frames, rate, channels = audio.info(path)
    samples, _ = audio.read(path)
    assert channels == 1 and len(samples) == frames
    assert frames / rate == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.fft.rfft(samples, rate)).argmax() == 200
    assert audio.read(path, 4000, 5000)[0].shape == (1000,)


@pytest.mark.parametrize("name", ["no audio.wav", "empty.flac", "missing.mp3"])
@pytest.mark.parametrize("function", [audio.info, audio.read])
def test_error_names_the_file(tmp_path, function, name):
    path = tmp_path / name
    if name == "no audio.wav":
        path.write_text("This is text.")
    elif name == "empty.flac":
        path.touch()
    with pytest.raises(OSError, match=name):
        function(str(path))


def test_missing_m4a_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="speech.m4a"):
        audio.info(str(tmp_path / "speech.m4a"))


NEAR = [(3000, 6000), (1000, 4000), (2000, 5000)]
FAR = [(7000, 7900), (100, 1000)]
ACROSS_THE_END = [(5000, 7500), (6000, 9000)]
AS_WAV = ["PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM"]


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    "extension, subtype",
    [("wav", subtype) for subtype in AS_WAV]
    + [("flac", "PCM_16"), ("mp3", None), ("ogg", "VORBIS"), ("ogg", "OPUS")],
)
def test_spans_equal_stretches_read_one_by_one(
    tmp_path, noise, extension, subtype, channels
):
    path = str(tmp_path / f"a.{extension}")
    try:
        samples = np.stack([np.roll(noise, n) for n in range(channels)], 1)
        soundfile.write(path, samples, 16000, subtype=subtype)
    except soundfile.SoundFileError:
        pytest.skip(f"{subtype or extension} has no {channels} channels")
    for spans in (NEAR, FAR, ACROSS_THE_END, NEAR[:1]):
        with audio.Reader(path) as file:
            # twice: what was read before must not matter
            for found in (file.read_spans(spans), file.read_spans(spans)):
                wanted = [read_slowly(path, *span) for span in spans]
                assert all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("extension", ["wav", "flac"])
@pytest.mark.parametrize("spans", [NEAR, FAR])
def test_spans_open_a_file_once(tmp_path, noise, monkeypatch, extension, spans):
    path = str(tmp_path / f"a.{extension}")
    soundfile.write(path, noise, 16000)
    opened = note_opened(monkeypatch)
    with audio.Reader(path) as file:
        assert file.rate == 16000
        file.read_spans(spans)
        assert opened == [path] and not file.file.closed
    assert file.file.closed


def test_damage_between_spans_does_not_matter(tmp_path):
    path = tmp_path / "a.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 64000)
    soundfile.write(path, noise, 16000)
    spans = [(0, 24000), (40000, 64000)]
    whole = [audio.read(str(path), *span)[0] for span in spans]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(OSError, match="a.flac"):
        audio.read(str(path))
    with audio.Reader(str(path)) as file:
        found = file.read_spans(spans)
    assert all(map(np.array_equal, found, whole))


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_a_span_beyond_the_end_is_refused_by_name(tmp_path, noise, extension):
    path = str(tmp_path / f"a.{extension}")
    soundfile.write(path, noise, 16000)
    with audio.Reader(path) as file:
        with pytest.raises(OSError, match=f"a.{extension}"):
            file.read_spans([(7000, 8000), (8500, 9500)])


@pytest.mark.parametrize("spans, reads", [(NEAR, 1), (FAR, 2)])
def test_m4a_takes_one_decoder_and_near_spans_one_read(
    monkeypatch, noise, spans, reads
):
    made, done = [], []

    def decode(start, stop):
        done.append((start, stop))
        frames = slice(round(start * 16000), round(stop * 16000))
        return types.SimpleNamespace(data=torch.tensor(noise[None, frames]))

    def decoder(path):
        made.append(path)
        return types.SimpleNamespace(
            metadata=types.SimpleNamespace(sample_rate=16000),
            get_samples_played_in_range=decode,
        )

    monkeypatch.setattr(audio, "_decoder", decoder)
    with audio.Reader("a.m4a") as file:
        found = file.read_spans(spans)
    wanted = [noise[start:stop] for start, stop in spans]
    assert all(map(np.array_equal, found, wanted))
    assert made == ["a.m4a"] and len(done) == reads


def test_stretches_of_a_real_m4a_are_where_they_were(tmp_path, encoder):
    wanted = sine(3.0, 16000) * np.linspace(0, 1, 48000, dtype=np.float32)
    path = str(tmp_path / "a.m4a")
    encoder(torch.tensor(wanted[None]), sample_rate=16000).to_file(path)
    # AAC fills its last frame
    assert 48000 <= audio.info(path).frames < 48000 + 2048
    assert audio.info(path)[1:] == (16000, 1)
    spans = [(1000, 9000), (20000, 30000)]
    with audio.Reader(path) as file:
        for (start, stop), found in zip(spans, file.read_spans(spans)):
            assert np.abs(found - wanted[start:stop]).max() < 0.02
    found, rate = audio.read(path, 16000, 32000)
    assert rate == 16000 and len(found) == 16000
    assert np.abs(found - wanted[16000:32000]).max() < 0.02


def test_m4a_without_torchcodec_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"never opened")
    with pytest.raises(OSError, match=r"a.m4a.*speechbrain_ssl\[m4a\]"):
        audio.info(str(path))
