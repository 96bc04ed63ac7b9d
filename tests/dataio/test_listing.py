"""A folder, a file or a list becomes an annotation."""

import numpy as np
import pytest
import soundfile

from speechbrain_ssl.dataio.listing import find_utterances


@pytest.fixture
def audio(tmp_path):
    """Two files, one of which cannot be read."""
    folder = tmp_path / "audio/in"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", np.zeros(800), 8000)
    (folder / "broken.flac").write_text("text")
    (folder / "notes.txt").write_text("a.wav\n\n../in/broken.flac\n")
    return tmp_path / "audio"


def rows_of(source, out):
    utterances = find_utterances(str(source), str(out))
    rows = [utterances.row(n) for n in range(len(utterances))]
    keys = ("ID", "duration", "start", "stop")
    return [tuple(row[key] for key in keys) for row in rows]


def test_a_folder_is_listed_with_lengths_and_what_is_left_out(audio, tmp_path):
    # the extraction will say why the second one has no embedding
    assert rows_of(audio, tmp_path / "out") == [
        ("in/a.wav", pytest.approx(0.1), 0, 800),
        ("in/broken.flac", 1.0, 0, 1),
    ]
    skipped = (tmp_path / "out/skipped.csv").read_text()
    assert "notes.txt" in skipped


def test_the_lines_of_a_list_are_ids_and_start_from_its_folder(audio, tmp_path):
    found = rows_of(audio / "in/notes.txt", tmp_path / "out")
    assert [row[0] for row in found] == ["a.wav", "../in/broken.flac"]
    assert found[0][3] == 800
    (audio / "twice.txt").write_text("in/a.wav\nin/a.wav \n")
    assert len(rows_of(audio / "twice.txt", tmp_path / "out")) == 1
    soundfile.write(audio / "jose\u0301.wav", np.zeros(900), 8000)
    (audio / "other.txt").write_text("jos\u00e9.wav\n", encoding="utf-8")
    ((name, *_, stop),) = rows_of(audio / "other.txt", tmp_path / "out")
    assert (name, stop) == ("jos\u00e9.wav", 900)


def test_a_single_file_has_its_name(audio, tmp_path):
    (row,) = rows_of(audio / "in/a.wav", tmp_path / "out")
    assert row[0] == "a.wav" and row[3] == 800


def test_an_annotation_is_read_as_it_is(audio, tmp_path):
    rows_of(audio, tmp_path / "out")
    path = tmp_path / "out/utterances.csv"
    path.write_text("".join(path.read_text().splitlines(True)[:2]))
    assert len(rows_of(path, tmp_path / "none")) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "content, message",
    [(b"\n \n", "names no audio"), (b"\xff\xfe", "no list of paths")],
)
def test_a_list_that_names_nothing_is_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_utterances(str(tmp_path / "list.txt"), str(tmp_path))
