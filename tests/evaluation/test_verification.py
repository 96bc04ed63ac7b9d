"""Trial lists, embeddings of files and the files that verify writes."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.dataio import embedding
from speechbrain_ssl.evaluation import metrics, scoring, verification
from speechbrain_ssl.evaluation.trials import read_trials, trial_paths
from speechbrain_ssl.evaluation.verification import (
    KINDS,
    read_conditions,
    summarize,
    summarize_conditions,
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


@pytest.mark.parametrize("text", ["1 a b\n0 a c\n", "1 x/a y/b\n0 x/a z/c\n"])
def test_bootstrap_draws_files_where_folders_say_nothing(tmp_path, text):
    trials = read_trials(write_list(tmp_path, text))
    assert summarize([1, 0], trials)["bootstrap_over"] == "files"


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


def test_a_summary_has_all_kinds_whatever_was_asked_for(corpus):
    summary = verify(statistics, corpus, progress=False)
    assert list(summary) == [*KINDS, "label_use"]
    assert KINDS == ("raw", "as_norm", "plda", "calibrated")
    assert 0 <= summary["raw"]["EER"] <= 100
    assert all(summary[kind] is None for kind in KINDS[1:])


def test_a_list_without_labels_gets_scores_and_no_error_rates(corpus, tmp_path):
    pairs = [line.split()[1:] for line in open(corpus)]
    text = "".join(f"{enrol} {test}\n" for enrol, test in pairs)
    path = write_list(tmp_path, text, "voxsrc.txt")
    cohort = torch.rand(10, 16)
    summary = verify(
        statistics,
        path,
        str(tmp_path / "out"),
        cohort=cohort,
        top_n=4,
        conditions={},
        progress=False,
    )
    alone = {"EER": None, "trials": 15, "files": 6}
    assert summary["raw"] == summary["as_norm"] == alone
    assert "no labels" in summary["label_use"]
    folder = tmp_path / "out" / "voxsrc"
    assert json.loads((folder / "metrics.json").read_text()) == summary
    lines = (folder / "scores.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == pairs
    verify(statistics, corpus, str(tmp_path / "out"), progress=False)
    labelled = (tmp_path / "out/list/scores.txt").read_text().splitlines()
    assert lines == [line.split("\t", 1)[1] for line in labelled]


def test_a_model_is_the_mean_of_its_files(corpus, tmp_path):
    names = sorted({name for line in open(corpus) for name in line.split()[1:]})
    text = f"me {names[3]} target\nme {names[5]} nontarget\n"
    path = write_list(tmp_path, text, "models.txt")
    models = {"me": tuple(names[:3])}
    out = tmp_path / "out"
    summary = verify(statistics, path, str(out), progress=False, models=models)
    verify(statistics, corpus, str(out), progress=False)
    single = torch.from_numpy(np.load(out / "list/embeddings.npy"))
    lengths = single[:3].norm(dim=1)
    mean = (single[:3] / lengths[:, None]).mean(0) * lengths.mean()
    found = torch.from_numpy(np.load(out / "models/embeddings.npy"))
    torch.testing.assert_close(found[0], mean)
    assert torch.equal(found[1:], single[[3, 5]])
    assert summary["raw"]["trials"] == 2


def test_files_that_fail_are_left_out_if_asked(corpus, tmp_path, caplog):
    (tmp_path / "wav/s0/1.wav").write_text("This is text.")
    with pytest.raises(OSError, match="s0/1.wav"):
        verify(statistics, corpus, progress=False)
    cache = {}
    summary = verify(
        statistics, corpus, progress=False, strict=False, cache=cache
    )
    assert summary["left_out"]["trials"] == 5
    (path, reason) = next(iter(summary["left_out"]["files"].items()))
    assert path.endswith("s0/1.wav") and path in reason
    assert "5 of 15 trials are left out" in caplog.text
    lines = [line for line in open(corpus) if "s0/1.wav" not in line]
    kept = write_list(tmp_path, "".join(lines), "kept.txt")
    expected = verify(statistics, kept, progress=False, cache=cache)
    assert summary["raw"] == expected["raw"] and len(cache) == 5


def test_a_model_loses_the_files_that_fail(corpus, tmp_path):
    (tmp_path / "wav/s0/1.wav").write_text("This is text.")
    text = "me wav/s1/0.wav\nme wav/s2/0.wav\n"
    path = write_list(tmp_path, text, "models.txt")
    models = {"me": ("wav/s0/0.wav", "wav/s0/1.wav")}
    out = str(tmp_path / "out")
    settings = {"models": models, "progress": False, "strict": False}
    summary = verify(statistics, path, out, **settings)
    assert summary["raw"]["trials"] == 2
    assert summary["left_out"]["trials"] == 0
    found = np.load(tmp_path / "out/models/embeddings.npy")
    settings["models"] = {"me": ("wav/s0/0.wav",)}
    verify(statistics, path, out, **settings)
    expected = np.load(tmp_path / "out/models/embeddings.npy")
    assert np.array_equal(found, expected)


def test_without_non_targets_left_there_are_no_error_rates(corpus, tmp_path):
    text = "1 wav/s0/0.wav wav/s0/1.wav\n0 wav/s0/0.wav wav/s1/0.wav\n"
    path = write_list(tmp_path, text, "two.txt")
    (tmp_path / "wav/s1/0.wav").write_text("This is text.")
    summary = verify(statistics, path, progress=False, strict=False)
    assert summary["raw"] == {"EER": None, "trials": 1, "files": 2}


def test_a_list_of_files_that_all_fail_is_refused(corpus, tmp_path):
    for number in range(6):
        path = tmp_path / "wav" / f"s{number // 2}" / f"{number % 2}.wav"
        path.write_text("This is text.")
    with pytest.raises(ValueError, match="list.txt has no trial"):
        verify(statistics, corpus, progress=False, strict=False)


def test_files_that_are_elsewhere_too_are_counted(corpus, tmp_path, caplog):
    summary = verify(
        statistics,
        corpus,
        progress=False,
        known={
            "cohort": [str(tmp_path / "wav/s0/1.wav"), "nowhere.wav"],
            "training set": [],
        },
    )
    assert summary["known_files"] == {"cohort": 1, "training set": 0}
    (message,) = caplog.messages
    assert "1 of 6 files are in the cohort" in message
    assert "s0/1.wav" in message


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
    assert alone == {**summary, "as_norm": None}
    assert summary["as_norm"]["threshold"] != summary["raw"]["threshold"]
    assert json.loads((folder / "metrics.json").read_text()) == summary
    trials = read_trials(corpus)
    raw = scoring.cosine_scores(
        embeddings := np.load(folder / "embeddings.npy"),
        trials.enrol,
        trials.test,
    )
    normalised = scoring.normalize(
        raw, trials.enrol, trials.test, embeddings, cohort, "as_norm", 4
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


def test_long_files_and_silence_are_counted_in_each_list(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "WINDOW_SECONDS", 0.75)
    wav = tmp_path / "wav/s0/0.wav"
    noise, rate = soundfile.read(wav)
    soundfile.write(wav, np.r_[noise, np.zeros(rate // 4)], rate)
    cache = {}
    for _ in range(2):
        summary = verify(statistics, corpus, progress=False, cache=cache)
        assert summary["audio"] == {
            "windowed": 1,
            "with_silence": 1,
            "silence_seconds": 0.2,
        }


def test_a_failed_write_leaves_the_old_file(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    verify(statistics, corpus, str(out), progress=False)
    before = (out / "list" / "scores.txt").read_text()

    def fail(trials, scores):
        raise RuntimeError("disk full")

    monkeypatch.setattr(verification, "score_lines", fail)
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
    assert seen == [(6, [(path,) for path in trial_paths(trials, corpus)])]
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
    assert set(summary["raw"]["conditions"]) == {
        "phone",
        "phone / room",
        "room",
    }
    del conditions[names[3]]
    with pytest.raises(ValueError, match=f"1 of 6 files.*{names[3]}"):
        verify(statistics, corpus, progress=False, conditions=conditions)
    path.write_text(f"ID,condition\n{names[0]},a\n{names[0]},b\n")
    with pytest.raises(ValueError, match="line 3.*'b', but had 'a'"):
        read_conditions(path)
    path.write_text("file,condition\nx,a\n")
    with pytest.raises(ValueError, match="expected ID and condition"):
        read_conditions(path)
