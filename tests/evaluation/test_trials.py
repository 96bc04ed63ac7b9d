"""Trial lists: layouts, maps of models, files, copies."""

import os

import numpy as np
import pytest

from speechbrain_ssl.evaluation.trials import (
    known_files,
    parts_of,
    read_models,
    read_trials,
    trial_paths,
)
from tests.evaluation.test_verification import write_list, write_wav

LAYOUTS = {
    "label enrol test": "1 a b\n0 a c\n1 b d\n",
    "enrol test label": "a b target\na c nontarget\nb d target\n",
}


@pytest.fixture
def corpus(tmp_path):
    """Six files, and a list beside their folder."""
    for number in range(6):
        wav = tmp_path / "wav" / f"s{number // 2}" / f"{number % 2}.wav"
        write_wav(wav, 0.1, seed=number)
    lines = ["1 wav/s0/0.wav wav/s0/1.wav"]
    lines += [
        f"0 wav/s0/0.wav wav/s{n}/{m}.wav" for n in (1, 2) for m in (0, 1)
    ]
    return write_list(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("labels", ["words", "numbers", "capitals"])
def test_the_place_of_the_label_is_found_out(tmp_path, layout, labels):
    words = {"1": "target", "0": "nontarget"}
    fields = [line.split() for line in LAYOUTS[layout].splitlines()]
    place = layout.split().index("label")
    for line in fields:
        value = {"target": "1", "nontarget": "0"}.get(line[place], line[place])
        line[place] = {
            "words": words[value],
            "numbers": value,
            "capitals": words[value].upper(),
        }[labels]
    text = "\n".join(map(" ".join, fields))
    trials = read_trials(write_list(tmp_path, text))
    assert trials.layout == layout
    assert trials.files == ["a", "b", "c", "d"]
    assert trials.enrol.tolist() == [0, 0, 1]
    assert trials.test.tolist() == [1, 2, 3]
    assert trials.targets.tolist() == [1, 0, 1]


def test_two_fields_are_a_list_without_labels(tmp_path):
    path = write_list(tmp_path, "a\tmy b\na\tc\n")
    trials = read_trials(path)
    assert trials.layout == "enrol test" and trials.targets is None
    assert trials.files == ["a", "c", "my b"]
    with pytest.raises(ValueError, match="list.txt has no labels"):
        read_trials(path, need_labels=True)


def test_a_file_may_be_named_as_a_label(tmp_path):
    path = write_list(tmp_path, "1 0 a\n0 1 b\n1 1 a\n")
    trials = read_trials(path)
    assert trials.layout == "label enrol test"
    assert trials.files == ["0", "1", "a", "b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 a b\na c nontarget\n", "line 2: .* first field, as on line 1"),
        ("a b 1\n0 a c\nb c 0\n", "line 2: .* last field, as on line 1"),
        ("a b c\n1 a b\n", "line 1: .* as on line 2.* if it is a header"),
        ("label enrol test\n1 a b\n0 a c\n", "line 1: .*is a header"),
        ("a b yes\na c no\n", "line 1: .*first or the last field"),
        ("1 a 1\n0 b 0\n", "line 1: the first and the last field"),
        ("a b\na c 1\n", "line 2: expected 2 fields as on line 1, found 3"),
        ("1 a\n0 b\n", "line 1: expected 3 fields.*a label and one name"),
        ("1 a b 0.5\n0 a c 0.3\n", "line 1: expected `label enrol test` or"),
        ("a,b,1\na,c,0\n", "line 1: expected `label .*found 1: .*spaces"),
        ("1 a b\n0 b a\na c\n", "line 3: expected 3 fields as on line 1"),
    ],
)
def test_mixed_and_ambiguous_lists_are_refused_by_line(tmp_path, text, message):
    path = write_list(tmp_path, text)
    with pytest.raises(ValueError, match=f"list.txt, {message}"):
        read_trials(path)


def test_a_list_without_labels_may_repeat_a_trial(tmp_path, caplog):
    path = write_list(tmp_path, "a b\na c\na b\n")
    assert len(read_trials(path).enrol) == 3
    assert "1 lines repeat" in caplog.text


def test_models_are_read_and_lead_to_files(tmp_path):
    spk2utt = write_list(tmp_path, "me u1 u2\nyou u3\n", "spk2utt")
    scp = write_list(tmp_path, "u1 x/1.wav\nu2 x/2.wav\nu3 y/3.wav", "wav.scp")
    assert read_models(spk2utt) == {"me": ("u1", "u2"), "you": ("u3",)}
    both = read_models([spk2utt, scp])
    assert both["me"] == ("x/1.wav", "x/2.wav")
    trials = read_trials(write_list(tmp_path, "me u3 target\nyou u1 0\n"))
    assert parts_of(trials, both) == [
        ("x/1.wav", "x/2.wav"),
        ("x/1.wav",),
        ("y/3.wav",),
        ("y/3.wav",),
    ]
    assert trials.files == ["me", "u1", "u3", "you"]


def test_a_model_may_have_the_name_of_its_file(tmp_path):
    path = write_list(tmp_path, "a a b\nme a\n", "map")
    assert read_models(path) == {"a": ("a", "b"), "me": ("a", "b")}


@pytest.mark.parametrize(
    "text, message",
    [
        ("me a b\nyou\n", "line 2: expected `model file1"),
        ("me\ta\t\tb\n", "line 1: expected `model file1"),
        ("me a\nme b\n", "line 2: 'me' is on an earlier line"),
        ("me sox a.wav -t wav - |\n", "line 1: commands are not run"),
        ("\n", "holds no lines"),
        ("me you\nyou me\n", "loop: model 'me' is made of 'you'"),
    ],
)
def test_wrong_maps_are_refused_by_line(tmp_path, text, message):
    path = write_list(tmp_path, text, "map")
    with pytest.raises(ValueError, match=message):
        read_models(path)


def test_files_of_models_are_found_and_missing_ones_named(corpus, tmp_path):
    path = write_list(tmp_path, "me wav/s1/0.wav\n", "models.txt")
    models = {"me": ("wav/s0/0.wav", "wav/s0/1.wav")}
    trials = read_trials(path)
    assert trial_paths(trials, path, models=models) == [
        str(tmp_path / f"wav/{name}.wav") for name in ("s0/0", "s0/1", "s1/0")
    ]
    os.remove(tmp_path / "wav/s0/1.wav")
    with pytest.raises(FileNotFoundError, match="s0/1.wav .*first one is me"):
        trial_paths(trials, path, models=models)
    with pytest.raises(FileNotFoundError, match="me .*enrolment"):
        trial_paths(trials, path)


def test_known_files_are_found_by_link_and_by_copy(corpus, tmp_path):
    paths = trial_paths(read_trials(corpus), corpus)
    other = tmp_path / "other"
    other.mkdir()
    (other / "link.wav").symlink_to(paths[0])
    os.link(paths[1], other / "hard.wav")
    (other / "0.wav").write_bytes(open(paths[2], "rb").read())
    (other / "copy.wav").write_bytes(open(paths[3], "rb").read())
    write_wav(tmp_path / "another" / "1.wav", 0.1, seed=77)
    others = [
        *(str(path) for path in other.iterdir()),
        str(tmp_path / "another/1.wav"),
        str(tmp_path / "missing.wav"),
    ]
    assert known_files(paths, others) == set(paths[:3])
    assert known_files(paths, paths) == set(paths)


def test_a_list_is_read_in_order_with_sorted_files(tmp_path):
    path = write_list(tmp_path, "1 c a\n\n0 b c\ntarget a b\nnontarget a c\n")
    trials = read_trials(path)
    assert trials.files == ["a", "b", "c"]
    assert trials.enrol.tolist() == [2, 1, 0, 0]
    assert trials.test.tolist() == [0, 2, 1, 2]
    assert trials.targets.tolist() == [1, 0, 1, 0]
    assert trials.enrol.dtype == trials.test.dtype == np.int64
    assert trials.targets.dtype == np.uint8


def test_line_ends_marks_and_wide_gaps_do_not_matter(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf1  a   b\r\n  0 a c  \r\n\r\n1 a\td")
    trials = read_trials(str(path))
    assert trials.files == ["a", "b", "c", "d"]
    assert trials.targets.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "1 b a\n0 a c\n1 b d\n",
        "b a target\na c nontarget\nb d target\n",
        "b a\na c\nb d\n",
    ],
)
def test_regular_lists_are_read_as_those_with_wide_gaps(tmp_path, text):
    regular = read_trials(write_list(tmp_path, text))
    wide = read_trials(write_list(tmp_path, text.replace(" ", "  "), "wide"))
    assert regular.files == wide.files == ["a", "b", "c", "d"]
    assert regular.layout == wide.layout
    for own, other in zip(regular[1:4], wide[1:4]):
        np.testing.assert_array_equal(own, other)


def test_a_regular_list_without_a_last_line_end_is_read_whole(tmp_path):
    trials = read_trials(write_list(tmp_path, "1 a b\n0 a \x0bc"))
    assert trials.files == ["\x0bc", "a", "b"]


def test_paths_with_spaces_are_read_from_tabs(tmp_path):
    path = write_list(tmp_path, "1\tmy a.wav\tmy b.wav\n0\tmy a.wav\tc\n")
    assert read_trials(path).files == ["c", "my a.wav", "my b.wav"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 a b\n\n0 a\n", "line 3: expected 3 fields.*found 2"),
        ("1 a b\n0 a b c\n", "line 2: expected 3 fields.*found 4"),
        ("1 a b\n0  a\n", "line 2: expected 3 fields.*found 2"),
        ("1 a b\n0 a\tb c\n", "line 2: expected 3 fields.*found 4"),
        ("1\ta\tb\n0\t\tc\n", "line 2: expected 3 fields"),
        ("1\ta\tb\n0 a c\n", "line 2: expected 3 fields.*found 1"),
        ("\n1 a b\n2 a c\n", "line 3: expected a label.*found '2'"),
        ("a b target\n", "1 target and 0 non-target"),
        ("1 a b\n0 a c\n0 a b\n", "lines 1 and 3.*different labels"),
        ("", "holds no trials"),
        ("\n \n", "holds no trials"),
        ("1 a b\n1 a c\n", "2 target and 0 non-target"),
        ("0 a b\n0 a c\n", "0 target and 2 non-target"),
    ],
)
def test_a_wrong_list_is_refused_with_file_and_line(tmp_path, text, message):
    path = write_list(tmp_path, text)
    with pytest.raises(ValueError, match=f"list.txt.*{message}"):
        read_trials(path)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"1 a \xff\xfe\n")
    with pytest.raises(ValueError, match="list.txt is no trial list"):
        read_trials(str(path))


def test_both_orders_of_a_pair_are_two_trials(tmp_path):
    path = write_list(tmp_path, "1 a b\n1 b a\n0 a c\n")
    assert len(read_trials(path).targets) == 3


def test_files_are_found_from_the_folder_of_the_list(corpus):
    trials = read_trials(corpus)
    root = os.path.dirname(corpus)
    expected = [os.path.join(root, file) for file in trials.files]
    assert trial_paths(trials, corpus) == expected


def test_files_are_found_from_the_folder_above_the_list(corpus, tmp_path):
    (tmp_path / "lists").mkdir()
    moved = tmp_path / "lists" / "list.txt"
    os.rename(corpus, moved)
    trials = read_trials(str(moved))
    paths = trial_paths(trials, str(moved))
    assert paths[0] == str(tmp_path / "wav/s0/0.wav")


def test_data_root_is_used_and_absolute_paths_stay(tmp_path):
    wav = write_wav(tmp_path / "else" / "a.wav")
    write_wav(tmp_path / "root" / "b.wav")
    path = write_list(tmp_path, f"1 {wav} b.wav\n0 b.wav {wav}\n")
    paths = trial_paths(read_trials(path), path, str(tmp_path / "root"))
    assert paths == [wav, str(tmp_path / "root" / "b.wav")]


def test_names_may_be_in_another_unicode_form(tmp_path):
    wav = write_wav(tmp_path / "jose\u0301" / "a.wav")
    other = write_wav(tmp_path / "b.wav")
    path = write_list(
        tmp_path, "1 jos\u00e9/a.wav b.wav\n0 b.wav jos\u00e9/a.wav\n"
    )
    assert sorted(trial_paths(read_trials(path), path)) == [other, wav]


def test_missing_files_are_counted_and_the_first_line_named(corpus, tmp_path):
    os.remove(tmp_path / "wav/s0/1.wav")
    os.remove(tmp_path / "wav/s2/0.wav")
    trials = read_trials(corpus)
    message = r"2 of 6 .*list.txt .*wav/s0/1.wav, wav/s2/0.wav .*line 1\)"
    with pytest.raises(FileNotFoundError, match=message):
        trial_paths(trials, corpus)


def test_a_pair_with_both_labels_in_two_orders_is_warned_of(tmp_path, caplog):
    path = write_list(tmp_path, "1 a b\n0 a c\n0 b a\n0 c a\n1 d e\n0 e d\n")
    assert len(read_trials(path).targets) == 6
    (message,) = caplog.messages
    assert "lines 1 and 3 are one pair" in message
    assert "there are 2 such pairs" in message


def test_a_comment_is_named_with_its_line(tmp_path):
    path = write_list(tmp_path, "# label enrol test\n1 a b\n0 a c\n")
    with pytest.raises(ValueError, match="line 1: trial lists have no comm"):
        read_trials(path)


def test_a_trial_given_twice_counts_twice_with_a_warning(tmp_path, caplog):
    path = write_list(tmp_path, "1 a b\n0 a c\n0 a c\n1 a b\n")
    trials = read_trials(path)
    assert len(trials.targets) == 4
    (message,) = caplog.messages
    assert str(path) in message and "2 lines repeat" in message
    assert "lines 1 and 4" in message or "lines 2 and 3" in message
