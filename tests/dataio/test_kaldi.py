"""Files of Kaldi, read and written."""

import struct

import numpy as np
import pytest

from speechbrain_ssl.dataio.kaldi import read_map, write_vectors


def test_a_map_keeps_its_order_and_spaces_in_a_single_value(tmp_path):
    path = tmp_path / "wav.scp"
    path.write_text("b  /x/a b.wav\n\na /y.wav\n")
    assert list(read_map(path).items()) == [
        ("b", ("/x/a b.wav",)),
        ("a", ("/y.wav",)),
    ]
    path.write_text("u rec 0.5\t1.25\n")
    assert read_map(path, 3) == {"u": ("rec", "0.5", "1.25")}


@pytest.mark.parametrize(
    "line, values, message",
    [
        ("b sph2pipe x |", 1, "commands are not run; write the audio of 'b'"),
        ("a /z.wav", 1, "'a' is on an earlier line"),
        ("b", 1, "expected a key and 1 values, found 'b'"),
        ("b /x 1", 3, "expected a key and 3 values"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, values, message):
    path = tmp_path / "map"
    first = " ".join(["a", *["0"] * values])
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=f"map, line 2: {message}"):
        read_map(path, values)


def test_an_empty_map_is_refused(tmp_path):
    (tmp_path / "map").write_text("\n")
    with pytest.raises(ValueError, match="has no lines"):
        read_map(tmp_path / "map")
    (tmp_path / "map").write_text("a b\n", encoding="utf-16")
    with pytest.raises(ValueError, match="map is no file of Kaldi"):
        read_map(tmp_path / "map")


def test_the_scp_points_to_the_vectors_in_the_ark(tmp_path):
    matrix = np.arange(6, dtype=np.float16).reshape(3, 2)[:, ::-1]
    write_vectors(tmp_path, ["x", "y/1", "z"], matrix)
    lines = (tmp_path / "xvector.scp").read_text().splitlines()
    for line, name, row in zip(lines, ["x", "y/1", "z"], matrix, strict=True):
        key, place = line.split()
        path, start = place.rsplit(":", 1)
        data = open(path, "rb").read()[int(start) :]
        assert key == name and data[:6] == b"\0BFV \4"
        assert struct.unpack_from("<i2f", data, 6) == (2, *row)
    with pytest.raises(ValueError, match="no spaces, found 'a b'"):
        write_vectors(tmp_path, ["a b"], matrix[:1])
