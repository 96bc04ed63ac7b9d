"""Tests of reading audio files."""

import csv
import os
import resource
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

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


@pytest.mark.parametrize("rate, new_rate", [(3001, 2999), (2003, 3001)])
def test_rates_without_common_divisor_are_resampled_as_by_torchaudio(
    rate, new_rate
):
    samples = torch.randn(2, 3, 5001, dtype=torch.double)
    wanted = torchaudio.functional.resample(samples, rate, new_rate)
    found = audio.resample(samples.float(), rate, new_rate)
    assert torch.allclose(found, wanted.float(), atol=1e-5)


@pytest.mark.parametrize("rate", [1009, 8001, 16001, 44101, 767_999])
def test_odd_rates_keep_length_and_pitch_in_little_memory(rate):
    samples = torch.from_numpy(sine(2.0, rate))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = audio.resample(samples, rate, 16000)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 500_000  # KiB
    assert len(found) == 32000
    time = np.arange(32000) / 16000
    wanted = torch.from_numpy(0.5 * np.sin(2 * np.pi * 200 * time)).float()
    middle = slice(1000, -1000)
    assert torch.allclose(found[middle], wanted[middle], atol=0.02)


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
    with pytest.raises(audio.AudioError, match="speech.m4a: No such file"):
        audio.info(str(tmp_path / "speech.m4a"))


NEAR = [(3000, 6000), (1000, 4000), (2000, 5000)]
FAR = [(7000, 7900), (100, 1000)]
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
    for spans in (NEAR, FAR, NEAR[:1]):
        with audio.open(path) as file:
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
    with audio.open(path) as file:
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
    with audio.open(str(path)) as file:
        found = file.read_spans(spans)
    assert all(map(np.array_equal, found, whole))


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_a_span_beyond_the_end_is_refused_by_name(tmp_path, noise, extension):
    path = str(tmp_path / f"a.{extension}")
    soundfile.write(path, noise, 16000)
    with audio.open(path) as file:
        with pytest.raises(OSError, match=f"a.{extension}"):
            file.read_spans([(7000, 8000), (8500, 9500)])


@pytest.mark.parametrize("spans, reads", [(NEAR, 1), (FAR, 2)])
def test_m4a_takes_one_decoder_and_near_spans_one_read(
    tmp_path, monkeypatch, noise, spans, reads
):
    made, done = [], []
    (tmp_path / "a.m4a").touch()
    path = str(tmp_path / "a.m4a")

    def decode(start, stop):
        done.append((start, stop))
        frames = slice(round(start * 16000), round(stop * 16000))
        data = torch.tensor(noise[None, frames])
        return types.SimpleNamespace(data=data, pts_seconds=start)

    def decoder(path, num_channels):
        made.append(path)
        return types.SimpleNamespace(
            metadata=types.SimpleNamespace(
                sample_rate=16000,
                num_channels=1,
                duration_seconds_from_header=0.5,
            ),
            get_samples_played_in_range=decode,
        )

    decoders = types.SimpleNamespace(AudioDecoder=decoder)
    monkeypatch.setattr(audio, "import_torchcodec", lambda: decoders)
    with audio.open(path) as file:
        found = file.read_spans(spans)
    wanted = [noise[start:stop] for start, stop in spans]
    assert all(map(np.array_equal, found, wanted))
    assert made == [path] and len(done) == reads


def test_stretches_of_a_real_m4a_are_where_they_were(tmp_path, encoder):
    wanted = sine(3.0, 16000) * np.linspace(0, 1, 48000, dtype=np.float32)
    path = str(tmp_path / "a.m4a")
    encoder(torch.tensor(wanted[None]), sample_rate=16000).to_file(path)
    # AAC fills its last frame
    assert 48000 <= audio.info(path).frames < 48000 + 2048
    assert audio.info(path)[1:] == (16000, 1)
    spans = [(1000, 9000), (20000, 30000)]
    with audio.open(path) as file:
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


@pytest.mark.parametrize(
    "name, options",
    [("a.webm", "-c:a libopus"), ("a.wma", ""), ("a.aac", ""), ("a.mp4", "")],
)
def test_containers_give_their_length_and_their_samples(
    tmp_path, encoder, name, options
):
    """Their durations stand in the container, and may start late."""
    soundfile.write(tmp_path / "a.wav", sine(3.0, 16000), 16000)
    done = subprocess.run(
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", tmp_path / "a.wav"]
        + [*options.split(), tmp_path / name]
    )
    if done.returncode:
        pytest.skip("ffmpeg has no such encoder")
    path = str(tmp_path / name)
    with audio.open(path) as file:
        assert file.frames / file.rate == pytest.approx(3.0, abs=0.1)
        for start, stop in [(0, 1), (1, 2), (2, 3)]:
            part = file.read(start * file.rate, stop * file.rate)
            assert len(part) >= 0.9 * file.rate
            pitch = np.abs(np.fft.rfft(part)).argmax() * file.rate / len(part)
            assert pitch == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    "name, options", [("10:30.webm", "-c:a libopus -f webm"), ("a.aac", "")]
)
def test_a_length_that_no_header_states_is_that_of_the_samples(
    tmp_path, monkeypatch, encoder, name, options
):
    """Webm of a browser has no duration; that of aac is guessed from the bits,
    and the tone has many. A relative path with a colon is no URL.
    """
    samples = np.r_[sine(1.0, 16000), np.zeros(159_000, np.float32)]
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    monkeypatch.chdir(tmp_path)
    with open(name, "wb") as file:  # a pipe, in which ffmpeg cannot go back
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", "a.wav"]
        pipe = [*(options or "-f adts").split(), "pipe:1"]
        done = subprocess.run([*command, *pipe], stdout=subprocess.PIPE)
        file.write(done.stdout)
    if done.returncode:
        pytest.skip("ffmpeg has no such encoder")
    found = audio.info(name)
    assert found.frames / found.sample_rate == pytest.approx(10.94, abs=0.1)
    assert len(audio.load(name, 16000)) == pytest.approx(175_000, abs=1600)


@pytest.mark.parametrize(
    "name", ["a.aiff", "a.aif", "a.au", "a.caf", "a.w64", "a.sph"]
)
def test_further_formats_of_soundfile_are_found_and_read(tmp_path, name):
    container = {"aif": "AIFF", "sph": "NIST"}.get(name[2:], name[2:].upper())
    samples = sine(0.5, 16000)
    soundfile.write(tmp_path / name, samples, 16000, "PCM_16", format=container)
    assert audio.find(tmp_path)[0] == [str(tmp_path / name)]
    found, rate = audio.read(str(tmp_path / name), 1000, 3000)
    assert rate == 16000
    assert np.allclose(found, samples[1000:3000], atol=1e-4)


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg", "d.m4a"])
def test_a_member_of_a_tar_file_equals_the_file(tmp_path, name, encoder):
    path = str(tmp_path / name)
    if name == "d.m4a":
        tone = torch.tensor(sine(3.0, 16000)[None])
        encoder(tone, sample_rate=16000).to_file(path)
    else:
        soundfile.write(path, sine(3.0, 16000), 16000)
    shard = str(tmp_path / "shard.tar")
    with tarfile.open(shard, "w") as file:
        for number in range(3):
            file.add(__file__, f"{number}.txt")
        file.add(path, f"x/{name}")
    with audio.open(path) as file, audio.open(f"{shard}::x/{name}") as member:
        assert member.rate == file.rate and member.frames == file.frames
        for span in [(0, 100), (20000, 30000), (file.frames - 100, None)]:
            assert np.array_equal(member.read(*span), file.read(*span))
    with pytest.raises(audio.AudioError, match="no member y.wav"):
        audio.open(f"{shard}::y.wav")
    with pytest.raises(audio.AudioError, match="gone.tar"):
        audio.open(str(tmp_path / "gone.tar::y.wav"))


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_may_have_long_names_in_any_script(tmp_path, layout):
    soundfile.write(tmp_path / "a.wav", sine(0.5, 16000), 16000)
    names = ["é.wav", f"xy{'録音' * 30}.wav"]  # the header cuts a letter
    with tarfile.open(tmp_path / "0.tar", "w", format=layout) as shard:
        for name in names:
            shard.add(tmp_path / "a.wav", name)
    (tmp_path / "a.wav").unlink()
    paths, _ = audio.find(str(tmp_path))
    assert audio.names(paths, str(tmp_path)) == sorted(names)
    assert [audio.info(path).frames for path in paths] == [8000, 8000]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    for name in ("pipe.wav", "folder.wav"):
        with pytest.raises(audio.AudioError, match=f"{name}.*regular file"):
            audio.open(str(tmp_path / name))


def with_header(path, rate=16000, samples=None):
    """A wav file whose header states any rate."""
    soundfile.write(path, sine(1.0, 16000) if samples is None else samples, 1)
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1])
def test_an_impossible_rate_is_named(tmp_path, rate):
    path = with_header(tmp_path / "a.wav", rate)
    with pytest.raises(audio.AudioError, match="a.wav"):
        audio.open(path)


def test_a_flac_that_states_no_length_is_named(tmp_path):
    """As ffmpeg writes it into a pipe: soundfile cannot seek in it."""
    path = tmp_path / "a.flac"
    soundfile.write(path, sine(1.0, 16000), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # 36 bits of STREAMINFO: number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(audio.AudioError, match="a.flac: its header states"):
        audio.open(str(path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -2e3])
def test_samples_that_are_no_sound_are_refused_where_they_are(tmp_path, value):
    path = str(tmp_path / "a.wav")
    samples = sine(1.0, 16000)
    samples[5000] = value
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    with audio.open(path) as file:
        assert np.array_equal(file.read(0, 5000), samples[:5000])
        with pytest.raises(audio.AudioError, match="a.wav: frames 4000"):
            file.read(4000, 6000)


def test_a_short_read_is_refused_by_name(tmp_path):
    for name in ("a.wav", "a.mp3"):
        path = tmp_path / name
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
        soundfile.write(path, noise, 16000)
        with audio.open(str(path)) as file:
            with pytest.raises(audio.AudioError, match=name):
                file.read(16000, 40000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(audio.AudioError, match=name):
            audio.read(str(path), 8000, 32000)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_find_names_every_file_that_it_leaves_out(tmp_path):
    folder = tmp_path / "audio"
    touch(folder, "b.WAV", "d/a.mp3", "notes.TXT", "README", ".hidden.wav")
    touch(folder, ".git/c.wav", "line\rbreak.wav", "line\nbreak.wav")
    touch(folder, "dir.wav/e.flac", "tool.py")
    undecodable = os.path.join(os.fsencode(folder), b"b\xff.wav")
    os.close(os.open(undecodable, os.O_CREAT))
    os.mkfifo(folder / "pipe.wav")
    (folder / "nowhere.wav").symlink_to(folder / "gone")
    (folder / "itself.wav").symlink_to(folder / "itself.wav")
    paths, left_out = audio.find(folder)
    names = [os.path.relpath(path, folder) for path in paths]
    assert names == ["b.WAV", "d/a.mp3", "dir.wav/e.flac"]
    assert {
        os.path.relpath(path, folder): reason.partition(":")[0]
        for path, reason in left_out.items()
    } == {
        "notes.TXT": "unsupported .txt",
        "README": "unsupported name without extension",
        "tool.py": "unsupported .py",
        ".hidden.wav": "hidden",
        ".git": "hidden",
        "line\rbreak.wav": "line break in the name",
        "line\nbreak.wav": "line break in the name",
        "b\udcff.wav": "name not UTF-8",
        "pipe.wav": "not a regular file",
        "nowhere.wav": "broken link",
        "itself.wav": "broken link",
    }
    audio.write_left_out(tmp_path / "out.csv", left_out, folder)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(left_out)
    assert "$data_root/line\rbreak.wav" in [row["wav"] for row in rows]


def test_find_takes_a_file_with_several_names_once(tmp_path):
    folder, elsewhere = tmp_path / "audio", tmp_path / "elsewhere"
    touch(folder, "d/b.wav", "x/y/z.wav")
    touch(elsewhere, "c.wav", "f/g.wav")
    (folder / "a_link.wav").symlink_to(folder / "d/b.wav")
    os.link(folder / "d/b.wav", folder / "d/hard.wav")
    (folder / "e").symlink_to(elsewhere)
    (folder / "e2").symlink_to(elsewhere)
    (folder / "d/loop").symlink_to(folder)
    (folder / "own").symlink_to(folder / "x")
    (elsewhere / "f/back").symlink_to(folder)
    paths, left_out = audio.find(str(folder))
    names = [os.path.relpath(path, folder) for path in paths]
    assert names == ["d/b.wav", "e/c.wav", "e/f/g.wav", "x/y/z.wav"]
    doubled = [os.path.relpath(path, folder) for path in left_out]
    assert sorted(doubled) == [
        *("a_link.wav", "d/hard.wav", "d/loop", "e/f/back", "e2", "own")
    ]
    assert set(audio.count_reasons(left_out)) == {"duplicate"}
    # a link as the folder itself
    (tmp_path / "link").symlink_to(folder)
    assert len(audio.find(tmp_path / "link")[0]) == 4


def test_a_name_is_found_in_another_unicode_form(tmp_path):
    one, two = "Zo\u00eb.wav", "Zoe\u0308.wav"
    touch(tmp_path, two)
    assert audio.place(tmp_path, one) == audio.place(tmp_path, two)
    assert audio.place(tmp_path, "Zoe.wav") is None
    touch(tmp_path, one)  # now there are two files
    assert audio.place(tmp_path, one) == str(tmp_path / one)
    assert audio.place(tmp_path, two) == str(tmp_path / two)


def test_files_and_folders_that_may_not_be_read_are_named(
    tmp_path, monkeypatch
):
    (tmp_path / "a.wav").write_text("text")

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(audio.AudioError, match="a.wav: Permission denied"):
        audio.info(str(tmp_path / "a.wav"))
    monkeypatch.setattr("os.scandir", refuse)
    message = f"{tmp_path} cannot be searched: unreadable: Permission denied"
    with pytest.raises(PermissionError, match=message):
        audio.find(tmp_path)


def test_a_file_without_samples_is_named(tmp_path):
    path = str(tmp_path / "none.wav")
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(audio.AudioError, match="none.wav: .* no samples"):
        audio.read(path)


def test_a_folder_without_audio_says_what_it_has(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        audio.find(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Left out: nothing"):
        audio.find(tmp_path)
    touch(tmp_path, "a.txt", "b.txt", "README")
    with pytest.raises(FileNotFoundError, match="a.txt is a file"):
        audio.find(tmp_path / "a.txt")
    wanted = "2 unsupported .txt, 1 unsupported name without extension"
    with pytest.raises(FileNotFoundError, match=wanted):
        audio.find(tmp_path)


def test_libmpg123_prints_nothing_and_others_do(tmp_path, capfd):
    path = tmp_path / "cut.mp3"
    soundfile.write(path, 0.1 * np.sin(np.arange(64000) / 9), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with audio.open(path) as file, pytest.raises(audio.AudioError):
        file.read()
    assert capfd.readouterr().err == ""
    with audio._without_mpg123("a.mp3"):
        os.write(2, b"Note: resync\nan error of another thread\n")
    assert capfd.readouterr().err == "an error of another thread\n"
