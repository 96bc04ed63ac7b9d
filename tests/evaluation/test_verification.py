"""Trial lists, embeddings of files and the files that verify writes."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.evaluation import metrics, scoring, verification
from speechbrain_ssl.evaluation.verification import (
    read_conditions,
    read_trials,
    summarize,
    summarize_conditions,
    trial_paths,
    verify,
)


def write_list(folder, text, name="list.txt"):
    """A trial list with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_wav(path, seconds=0.5, rate=16000, seed=0, **kwargs):
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * rate)
    noise = np.random.default_rng(seed).normal(0, 0.1, frames)
    soundfile.write(path, noise.astype(np.float32), rate, **kwargs)
    return str(path)


@pytest.fixture
def corpus(tmp_path):
    """Three speakers with two files each, and a list beside their folder."""
    for number in range(6):
        wav = tmp_path / "wav" / f"s{number // 2}" / f"{number % 2}.wav"
        write_wav(wav, 0.3 + 0.1 * number, seed=number)
    names = [f"wav/s{n // 2}/{n % 2}.wav" for n in range(6)]
    lines = [
        f"{int(a // 2 == b // 2)} {names[a]} {names[b]}\n"
        for a in range(6)
        for b in range(a + 1, 6)
    ]
    return write_list(tmp_path, "".join(lines))


def statistics(wavs, wav_lens):
    """Embeddings that need no training: quantiles of the valid samples."""
    steps = torch.linspace(0, 1, 16)
    frames = (wav_lens * wavs.shape[1]).round().long()
    rows = [wav[:n].quantile(steps) for wav, n in zip(wavs, frames)]
    return torch.stack(rows) + 0.01


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
        ("a b target\n", "line 1: expected a label.*found 'a'"),
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


def test_missing_files_are_counted_and_the_first_line_named(corpus, tmp_path):
    os.remove(tmp_path / "wav/s0/1.wav")
    os.remove(tmp_path / "wav/s2/0.wav")
    trials = read_trials(corpus)
    message = r"2 of 6 .*list.txt .*wav/s0/1.wav, wav/s2/0.wav .*line 1\)"
    with pytest.raises(FileNotFoundError, match=message):
        trial_paths(trials, corpus)


def scored_trials(tmp_path, folders=4, files=5):
    """All pairs of the files of some speakers, with random scores."""
    names = [f"s{s}/{f}.wav" for s in range(folders) for f in range(files)]
    lines = [
        f"{int(a[:2] == b[:2])} {a} {b}\n"
        for a in names
        for b in names
        if a < b
    ]
    trials = read_trials(write_list(tmp_path, "".join(lines)))
    noise = np.random.default_rng(0).standard_normal(len(lines))
    return noise + 1.5 * trials.targets, trials


def test_summary_holds_the_metrics_in_their_units(tmp_path):
    scores, trials = scored_trials(tmp_path)
    summary = summarize(scores, trials)
    rate, threshold = metrics.eer(scores, trials.targets)
    assert summary["EER"] == pytest.approx(100 * rate)
    assert summary["threshold"] == threshold
    assert summary["EER_low"] < summary["EER"] < summary["EER_high"] < 100
    for p_target in (0.01, 0.05):
        cost = metrics.min_dcf(scores, trials.targets, p_target)
        assert summary[f"minDCF_{p_target}"] == cost
    counts = [summary[name] for name in ("trials", "targets", "files")]
    assert counts == [190, 40, 20]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_bootstrap_draws_folders_that_hold_several_files(tmp_path):
    scores, trials = scored_trials(tmp_path)
    speakers = np.array([int(file[1]) for file in trials.files])
    low, high = metrics.bootstrap(
        scores, trials.targets, speakers[trials.enrol], speakers[trials.test]
    )
    summary = summarize(scores, trials)
    assert summary["bootstrap_over"] == "folders"
    assert summary["EER_low"] == pytest.approx(100 * low)
    assert summary["EER_high"] == pytest.approx(100 * high)
    files = summarize(scores, trials, groups="files")
    assert files["bootstrap_over"] == "files"
    assert files["EER_low"] != summary["EER_low"]


@pytest.mark.parametrize("text", ["1 a b\n0 a c\n", "1 x/a y/b\n0 x/a z/c\n"])
def test_bootstrap_draws_files_where_folders_say_nothing(tmp_path, text):
    trials = read_trials(write_list(tmp_path, text))
    assert summarize([1, 0], trials)["bootstrap_over"] == "files"


def test_a_trial_given_twice_counts_twice_with_a_warning(tmp_path, caplog):
    path = write_list(tmp_path, "1 a b\n0 a c\n0 a c\n1 a b\n")
    trials = read_trials(path)
    assert len(trials.targets) == 4
    (message,) = caplog.messages
    assert str(path) in message and "2 lines repeat" in message
    assert "lines 1 and 4" in message or "lines 2 and 3" in message


def test_unknown_groups_are_refused(tmp_path):
    scores, trials = scored_trials(tmp_path)
    with pytest.raises(ValueError, match="'speakers'"):
        summarize(scores, trials, groups="speakers")


def test_verify_writes_metrics_scores_and_embeddings(corpus, tmp_path):
    out = tmp_path / "out"
    summary = verify(statistics, corpus, str(out), progress=False)
    folder = out / "list"
    assert json.loads((folder / "metrics.json").read_text()) == summary
    assert sorted(os.listdir(folder)) == [
        "embeddings.npy",
        "embeddings_ids.txt",
        "metrics.json",
        "scores.txt",
    ]
    trials = read_trials(corpus)
    ids = (folder / "embeddings_ids.txt").read_text().splitlines()
    embeddings = np.load(folder / "embeddings.npy")
    assert ids == trials.files
    assert embeddings.dtype == np.float32 and embeddings.shape == (6, 16)
    scores = scoring.cosine_scores(embeddings, trials.enrol, trials.test)
    given = open(corpus).read().splitlines()
    written = (folder / "scores.txt").read_text().splitlines()
    assert [line.split()[:3] for line in written] == [
        line.split() for line in given
    ]
    found = np.array([float(line.split()[3]) for line in written], np.float32)
    np.testing.assert_array_equal(found, scores)


def test_verify_with_a_cohort_reports_raw_and_normalised(corpus, tmp_path):
    cohort = torch.rand(10, 16)
    summary = verify(
        statistics,
        corpus,
        str(tmp_path / "out"),
        cohort=cohort,
        top_n=4,
        progress=False,
    )
    folder = tmp_path / "out" / "list"
    alone = verify(statistics, corpus, progress=False)
    assert {**summary["raw"], "label_use": summary["label_use"]} == alone
    assert summary["as_norm"]["threshold"] != summary["raw"]["threshold"]
    assert json.loads((folder / "metrics.json").read_text()) == summary
    trials = read_trials(corpus)
    raw = scoring.cosine_scores(
        embeddings := np.load(folder / "embeddings.npy"),
        trials.enrol,
        trials.test,
    )
    normalised = scoring.as_norm(
        raw, trials.enrol, trials.test, embeddings, cohort, 4
    )
    lines = (folder / "scores_as_norm.txt").read_text().splitlines()
    found = np.array([float(line.split()[3]) for line in lines], np.float32)
    np.testing.assert_allclose(found, normalised, rtol=1e-5)


def test_a_small_cohort_is_refused_before_embedding(corpus):
    def embed(wavs, wav_lens):
        raise RuntimeError("embedded")

    with pytest.raises(ValueError, match="300 cohort utterances"):
        verify(embed, corpus, cohort=torch.rand(3, 16))


def test_a_cache_embeds_each_file_once(corpus):
    cache, calls = {}, []

    def embed(wavs, wav_lens):
        calls.append(len(wavs))
        return statistics(wavs, wav_lens)

    first = verify(embed, corpus, cache=cache, progress=False)
    assert sum(calls) == len(cache) == 6
    assert verify(embed, corpus, cache=cache, progress=False) == first
    assert sum(calls) == 6


def test_a_failed_write_leaves_the_old_file(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    verify(statistics, corpus, str(out), progress=False)
    before = (out / "list" / "scores.txt").read_text()

    def fail(trials, scores):
        raise RuntimeError("disk full")

    monkeypatch.setattr(verification, "_score_lines", fail)
    with pytest.raises(RuntimeError):
        verify(statistics, corpus, str(out), progress=False)
    assert (out / "list" / "scores.txt").read_text() == before
    assert not [name for name in os.listdir(out / "list") if "tmp" in name]


def test_what_labels_were_used_for_is_written(corpus, tmp_path):
    out = tmp_path / "out"
    verify(statistics, corpus, str(out), progress=False)
    written = json.loads((out / "list" / "metrics.json").read_text())
    assert "Nothing was trained" in written["label_use"]
    verify(statistics, corpus, str(out), progress=False, label_use="All.")
    written = json.loads((out / "list" / "metrics.json").read_text())
    assert written["label_use"] == "All."


def test_back_ends_are_held_to_their_ratios(corpus, tmp_path):
    seen = []

    def back_end(embeddings, paths, trials):
        seen.append((len(embeddings), paths))
        return 3.0 * trials.targets - 1.0

    summary = verify(
        statistics,
        corpus,
        str(tmp_path / "out"),
        progress=False,
        back_ends={"mine": back_end},
    )
    trials = read_trials(corpus)
    assert seen == [(6, trial_paths(trials, corpus))]
    assert summary["mine"]["EER"] == 0 and summary["mine"]["minCllr"] == 0
    ratios = 3.0 * trials.targets - 1.0
    assert summary["mine"]["Cllr"] == metrics.cllr(ratios, trials.targets)
    for p_target in (0.01, 0.05):
        cost = metrics.act_dcf(ratios, trials.targets, p_target)
        assert summary["mine"][f"actDCF_{p_target}"] == cost
    assert "Cllr" not in summary["raw"]
    lines = (tmp_path / "out/list/scores_mine.txt").read_text().splitlines()
    assert {line.split()[3] for line in lines} == {"2", "-1"}


def test_conditions_have_error_rates_of_their_own(tmp_path):
    scores, trials = scored_trials(tmp_path)
    words = {f: "near" if f[1] < "2" else "far" for f in trials.files}
    found = summarize_conditions(scores, trials, words)
    for name, both in {
        "near": ("near", "near"),
        "far": ("far", "far"),
        "far / near": ("far", "near"),
    }.items():
        rows = [
            row
            for row, (a, b) in enumerate(zip(trials.enrol, trials.test))
            if tuple(sorted((words[trials.files[a]], words[trials.files[b]])))
            == both
        ]
        targets = trials.targets[rows]
        assert found[name]["trials"] == len(rows)
        assert found[name]["targets"] == targets.sum()
        if targets.any():
            rate = metrics.eer(scores[rows], targets)[0]
            assert found[name]["EER"] == 100 * rate
        else:
            assert found[name]["EER"] is None
    assert list(found) == ["far", "far / near", "near"]
    assert found["far / near"]["EER"] is None


def test_conditions_are_read_and_checked(tmp_path, corpus):
    names = read_trials(corpus).files
    path = tmp_path / "conditions.csv"
    rows = [
        f'"{name}",{"phone" if n % 2 else "room"}'
        for n, name in enumerate(names)
    ]
    path.write_text("\n".join(["ID,condition", *rows, rows[0]]) + "\n")
    conditions = read_conditions(path)
    assert conditions[names[1]] == "phone"
    summary = verify(statistics, corpus, progress=False, conditions=conditions)
    assert set(summary["conditions"]) == {"phone", "phone / room", "room"}
    del conditions[names[3]]
    with pytest.raises(ValueError, match=f"1 of 6 files.*{names[3]}"):
        verify(statistics, corpus, progress=False, conditions=conditions)
    path.write_text(f"ID,condition\n{names[0]},a\n{names[0]},b\n")
    with pytest.raises(ValueError, match="line 3.*'b', but had 'a'"):
        read_conditions(path)
    path.write_text("file,condition\nx,a\n")
    with pytest.raises(ValueError, match="expected ID and condition"):
        read_conditions(path)
