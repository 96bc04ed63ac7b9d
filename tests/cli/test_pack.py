"""Tar shards: the same audio, IDs and views as from files."""

import os
import sys

import fsspec
import pytest
import torch

from speechbrain_ssl.cli import pack as module
from speechbrain_ssl.cli.pack import main, pack
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.views import ViewSampler
from tests.models import write_noise

NAMES = ["a b/one.wav", "a b/two.flac", f"{'long' * 40}/x.wav", "z.ogg"]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(NAMES):
        write_noise(tmp_path / "audio" / name, 0.4 + 0.1 * seed, seed=seed)
    (tmp_path / "audio/broken.wav").write_bytes(b"RIFF")
    (tmp_path / "audio/notes.txt").write_text("no audio")
    return tmp_path


def views_of(utterances):
    sampler = ViewSampler(16000, 2, 0.2, speeds=[0.9, 1.0, 1.1], seed=4)
    rows = [utterances.row(index) for index in range(len(utterances))]
    return [
        (row["ID"], sampler((3, n), row["wav"], row["start"], row["stop"])[0])
        for n, row in enumerate(rows)
    ]


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, mine), (_, theirs) in zip(found, expected):
        assert torch.equal(mine, theirs)


def test_shards_give_the_ids_and_views_of_files(folder, capsys):
    main([f"{folder}/audio", f"{folder}/shards", "--shard_mb=0.04"])
    shards = sorted((folder / "shards").glob("*.tar"))
    assert len(shards) > 1 and "--skip_prep True" in capsys.readouterr().out
    rows = [
        (name, 0.4, str(folder / "audio" / name), 0, 6400) for name in NAMES
    ]
    packed = read_annotation(folder / "shards/train.csv", folder / "shards")
    for n, row in enumerate(rows):
        rows[n] = (*row[:4], packed.row(n)["stop"])
    write_annotation(folder / "files.csv", rows)
    expected = views_of(read_annotation(folder / "files.csv"))
    assert_same(views_of(packed), expected)
    skipped = (folder / "shards/skipped.csv").read_text()
    assert "broken.wav" in skipped and "notes.txt" in skipped
    # the walker finds them in the same order, under the same IDs
    paths, left_out = audio.find(f"{folder}/shards")
    assert audio.names(paths, f"{folder}/shards") == NAMES
    assert paths == list(packed.wavs())
    # a URL in place of the folder
    system = fsspec.filesystem("memory")
    for path in shards:
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    remote = read_annotation(folder / "shards/train.csv", "memory://bucket")
    assert remote.row(0)["wav"].startswith("memory://bucket/000000.tar::")
    assert_same(views_of(remote), expected)
    assert audio.is_file(remote.row(0)["wav"])
    with pytest.raises(audio.AudioError, match="gone.tar.*FileNotFoundError"):
        audio.open("memory://bucket/gone.tar::512+9::a.wav")
    with pytest.raises(audio.AudioError, match="need their first byte"):
        audio.open("memory://bucket/000000.tar::z.ogg")


def test_packing_goes_on_where_it_was_killed(folder, monkeypatch):
    arguments = f"{folder}/audio", f"{folder}/shards", 0.04
    write, written = module._write_shard, []

    def fail_late(path, *others):
        if path.endswith("1.tar"):
            raise RuntimeError("killed")
        written.append(path)
        write(path, *others)

    monkeypatch.setattr(module, "WRITERS", 1)
    monkeypatch.setattr(module, "_write_shard", fail_late)
    with pytest.raises(RuntimeError):
        pack(*arguments, progress=False)
    assert not (folder / "shards/train.csv").exists()
    first = (folder / "shards/000000.tar").stat().st_mtime_ns
    monkeypatch.setattr(module, "_write_shard", write)
    shards = pack(*arguments, progress=False)
    assert (folder / "shards/000000.tar").stat().st_mtime_ns == first
    # the bytes of a packing that nobody killed
    other = pack(f"{folder}/audio", f"{folder}/other", 0.04, progress=False)
    assert [open(path, "rb").read() for path in shards] == [
        open(path, "rb").read() for path in other
    ]
    write_noise(folder / "audio/new.wav", 0.3)
    with pytest.raises(ValueError, match="files: was"):
        pack(*arguments, progress=False)


def test_members_of_shards_are_packed_again(tmp_path):
    for seed, name in enumerate(("x", "y")):  # one name in both
        write_noise(tmp_path / name / "a.wav", 0.4, seed=seed)
        pack(f"{tmp_path}/{name}", f"{tmp_path}/shards/{name}", progress=False)
    paths, _ = audio.find(f"{tmp_path}/shards")
    rows = [(f"{n}", 0.4, path, 0, 6400) for n, path in enumerate(paths)]
    write_annotation(tmp_path / "rows.csv", rows)
    expected = views_of(read_annotation(tmp_path / "rows.csv"))
    for source in ("shards", "rows.csv"):
        target = tmp_path / f"of {source}"
        pack(f"{tmp_path}/{source}", str(target), progress=False)
        found = views_of(read_annotation(target / "train.csv", target))
        assert_same([(str(n), x) for n, (_, x) in enumerate(found)], expected)


def test_shards_lie_elsewhere_and_their_members_have_one_name(folder):
    with pytest.raises(ValueError, match="would be found twice"):
        pack(f"{folder}/audio", f"{folder}/audio/shards", progress=False)
    rows = [("a", 1.0, f"{folder}/audio{folder}/x.wav", 0, 9)]
    rows += [("b", 1.0, f"{folder}/x.wav", 0, 9)]
    write_annotation(folder / "rows.csv", rows)
    with pytest.raises(ValueError, match="would both be called .*x.wav"):
        pack(
            f"{folder}/rows.csv",
            f"{folder}/shards",
            data_root=f"{folder}/audio",
            progress=False,
        )


def test_segments_of_a_file_stay_segments_and_labels_stay_behind(folder):
    path = folder / "segments.csv"
    rows = [
        ("s1", 0.1, "$data_root/z.ogg", 0, 1600, "anna"),
        ("s2", 0.1, "$data_root/a b/one.wav", 800, 2400, "anna"),
        ("s3", 0.1, "$data_root/z.ogg", 1600, 3200, "berta"),
    ]
    write_annotation(path, rows, extra=("spk_id",))
    pack(
        str(path),
        f"{folder}/shards",
        data_root=f"{folder}/audio",
        progress=False,
    )
    header = (folder / "shards/train.csv").read_text().splitlines()[0]
    assert header == "ID,duration,wav,start,stop"
    packed = read_annotation(folder / "shards/train.csv", folder / "shards")
    before = read_annotation(path, folder / "audio")
    assert list(packed.ids()) == ["s1", "s2", "s3"]
    assert_same(views_of(packed), views_of(before))
    assert len(os.listdir(folder / "shards")) == 3  # shard, CSV, record


def test_shuffled_shards_are_read_in_sequence(folder):
    for seed in range(40):
        write_noise(folder / f"audio/{seed:02d}.wav", 0.2, seed=seed)
    pack(f"{folder}/audio", f"{folder}/shards", 0.1, shuffle=1, progress=False)
    packed = read_annotation(folder / "shards/train.csv", folder / "shards")
    ids = list(packed.ids())
    assert ids != sorted(ids) and len(ids) == 44
    # the order of the rows is that of the bytes
    assert sorted(packed.wavs(), key=_place) == list(packed.wavs())
    sampler = EpochSampler(44, sequential_rows=44)
    assert [row for _, row in sampler] == list(range(44))


def _place(wav):
    shard, place, _ = wav.split("::")
    return shard, int(place.split("+")[0])


def test_a_shard_that_was_written_again_is_noticed(folder):
    pack(f"{folder}/audio", f"{folder}/shards", progress=False)
    (wav, *_) = read_annotation(
        folder / "shards/train.csv", folder / "shards"
    ).wavs()
    audio.open(wav).close()
    wrong = wav.replace("512+", "1024+")
    with pytest.raises(audio.AudioError, match="pack the data again"):
        audio.open(wrong)
    size = wav.split("::")[1].split("+")[1]
    with pytest.raises(audio.AudioError, match="no member a b/one.wav"):
        audio.open(wav.replace(f"+{size}", f"+{int(size) + 1}"))
    (folder / "shards/000000.tar").write_bytes(b"x" * 2000)
    paths, left_out = [], {}
    with pytest.raises(FileNotFoundError, match="unreadable"):
        paths, left_out = audio.find(f"{folder}/shards")


def test_shards_of_no_size_are_refused(tmp_path):
    # they would be made without end
    with pytest.raises(SystemExit, match="pack: shard_mb must be"):
        main(["user/name", f"{tmp_path}/shards", "--hf", "--shard_mb=0"])


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--hf", "--shuffle=1"], "--shuffle cannot be used with --hf"),
        (["--hf", "--data_root=x"], "--data_root cannot be used with --hf"),
        (["--column=sound"], "--column needs --hf"),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit):
        main(["user/name", "shards", *flags])
    assert said in capsys.readouterr().err


def test_a_dataset_of_hugging_face_is_packed_as_it_is(tmp_path, capsys):
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    files = []
    for seed, kind in enumerate(("flac", "wav") * 2):
        path = tmp_path / f"{seed}.{kind}"
        write_noise(path, 0.5, seed=seed)
        files.append(path.read_bytes())
    paths = ["a/x.flac", None, "y.flac", None]
    sound = [{"bytes": d, "path": p} for d, p in zip(files, paths)]
    rows = pyarrow.table({"sound": sound, "speaker": ["anna"] * 4})
    source = tmp_path / "data"
    source.mkdir()
    parquet.write_table(rows, source / "train.parquet")
    given = [str(source), str(tmp_path / "shards"), "--hf", "--shard_mb=0.02"]
    main([*given, "--column=sound"])
    assert "4 files. Train with" in capsys.readouterr().out
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 1
    found, _ = audio.find(tmp_path / "shards")
    names = audio.names(found, str(tmp_path / "shards"))
    assert [name[8:] for name in names] == [
        "0_x.flac",
        "1_.wav",
        "2_y.flac",
        "3_.wav",
    ]
    for path, data in zip(found, files):
        with audio.open_bytes(path) as file:
            assert file.read() == data
    with pytest.raises(SystemExit, match="has tar files"):
        main([*given, "--column=sound"])
    with pytest.raises(SystemExit, match="column 'audio', only .'sound', 'sp"):
        main([given[0], str(tmp_path / "other"), "--hf"])


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match=r"speechbrain_ssl\[hf\]"):
        main(["some/name", str(tmp_path), "--hf"])
