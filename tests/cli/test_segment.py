"""From long recordings to a training CSV."""

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.cli.segment import main, segment
from speechbrain_ssl.dataio import parallel
from speechbrain_ssl.dataio.annotations import read_annotation


@pytest.fixture
def folder(tmp_path):
    """Two recordings with a burst from 2 to 8 s, and a broken one."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for name, rate in {"a.wav": 16000, "b.wav": 8000}.items():
        samples = 1e-3 * rng.standard_normal(10 * rate)
        samples[2 * rate : 8 * rate] *= 100
        soundfile.write(tmp_path / "audio" / name, samples, rate)
    (tmp_path / "audio/broken.wav").write_bytes(b"RIFF")
    return tmp_path


@pytest.mark.parametrize("processes", [1, 2])
def test_pieces_are_rows_of_the_recordings(folder, processes, capsys):
    main(
        [
            *(f"{folder}/audio", f"{folder}/out/train.csv"),
            *("--min_seconds=1", "--max_seconds=4"),
            f"--processes={processes}",
        ]
    )
    assert "4 pieces" in capsys.readouterr().out
    rows = read_annotation(folder / "out/train.csv", folder / "audio")
    assert [row.partition("@")[0] for row in rows.ids()] == [
        *("a.wav", "a.wav", "b.wav", "b.wav")
    ]
    for index, rate in enumerate([16000, 16000, 8000, 8000]):
        row = rows.row(index)
        first = [1.9, 5.0][index % 2]
        assert abs(row["start"] / rate - first) < 0.03
        assert abs(row["stop"] / rate - first - 3.1) < 0.03
        assert abs(row["duration"] - 3.1) < 0.03
    assert "broken.wav" in (folder / "out/failed.csv").read_text()
    # segments of segments: frames count from the beginning of the file
    found = segment(
        str(folder / "out/train.csv"),
        str(folder / "again/train.csv"),
        min_seconds=0.5,
        max_seconds=1.6,
        data_root=str(folder / "audio"),
        progress=False,
    )
    again = read_annotation(folder / "again/train.csv", folder / "audio")
    assert found["recordings"] == 4 and found["pieces"] == 8
    assert again.row(2)["start"] >= rows.row(1)["start"]
    assert again.row(3)["stop"] <= rows.row(1)["stop"]
    assert again.row(2)["wav"] == rows.row(1)["wav"]


def test_recordings_without_speech_and_wrong_limits_are_named(folder):
    arguments = f"{folder}/audio", f"{folder}/out.csv"
    with pytest.raises(ValueError, match="at least twice min_seconds"):
        segment(*arguments, min_seconds=3, max_seconds=5)
    with pytest.raises(ValueError, match="no speech of 30 s or more in 3"):
        segment(*arguments, min_seconds=30, max_seconds=90, progress=False)
    assert not (folder / "out.csv").exists()


def test_chunks_come_in_order_from_any_number_of_processes(monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK", 3)
    expected = [(n, n * n) for n in range(20)]
    for processes in (1, 3):
        chunks = list(
            parallel.map_chunks(lambda n: n * n, range(20), processes)
        )
        assert [pair for chunk in chunks for pair in chunk] == expected
        assert max(map(len, chunks)) == 3
