"""The verification script: back ends that learn from clusters, and slices."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ssl.card import read_threshold
from speechbrain_ssl.cli.embed import embed
from speechbrain_ssl.cli.score import verify as compare
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.dataio.augmentation import (
    Augmentation,
    Gain,
    Reverberation,
)
from speechbrain_ssl.evaluation import calibration, plda
from speechbrain_ssl.evaluation.verification import KINDS
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.pseudo_labels.labels import write_labels
from tests.models import export_model

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"
VOICES, TAKES = 10, 5


def write_voice(path, voice, take):
    """Three tones of the voice, one after the other, again and again."""
    rng = np.random.default_rng([voice, take])
    tones = np.random.default_rng(voice).uniform(200, 7000, 3)
    time = np.arange(6000 + 800 * take)
    phase = np.cumsum(tones[time // 500 % 3]) / 16000
    wav = np.sin(2 * np.pi * phase) + 0.1 * rng.normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * wav, 16000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A model; voices to test it on; others in clusters, embedded."""
    folder = tmp_path_factory.mktemp("verify")
    export_model(folder / "model")
    rows, lines = [], []
    for voice in range(VOICES):
        for take in range(TAKES):
            name = f"v{voice}/{take}.wav"
            write_voice(folder / "train" / name, voice, take)
            frames = 6000 + 800 * take
            rows.append((name, frames / 16000, f"$data_root/{name}", 0, frames))
            write_voice(folder / "test" / name, 50 + voice, take)
            if take:
                other = (voice + take) % VOICES
                lines.append(f"1 v{voice}/0.wav {name}")
                lines.append(f"0 v{other}/0.wav {name}")
    (folder / "test/list.txt").write_text("\n".join(lines) + "\n")
    write_annotation(folder / "train.csv", rows)
    utterances = read_annotation(folder / "train.csv", folder / "train")
    found = embed(
        f"{folder}/model",
        f"{folder}/train.csv",
        f"{folder}/labels/embeddings",
        data_root=f"{folder}/train",
        progress=False,
    )
    clusters = [int(name[1]) for name in found.ids]
    write_labels(folder / "labels", utterances, found.ids, clusters, "any")
    words = [
        f"v{v}/{t}.wav,{'abc'[v % 3]}" for v in range(10) for t in range(5)
    ]
    (folder / "words.csv").write_text("\n".join(["ID,condition", *words]))
    return folder


@pytest.fixture
def run(corpus, tmp_path, monkeypatch, capsys):
    """The script's ``main``; gives metrics and what was printed."""
    path = RECIPE / "verify.py"
    spec = importlib.util.spec_from_file_location("verify_recipe", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*flags):
        given = [
            f"--model_folder={corpus}/model",
            f"--trials={corpus}/test/list.txt",
            f"--output_folder={tmp_path}",
            *("--noprogressbar", "--device=cpu"),
        ]
        names = {flag.split("=")[0] for flag in flags}
        given = [flag for flag in given if flag.split("=")[0] not in names]
        script.main([str(RECIPE / "hparams/verify.yaml"), *given, *flags])
        found = {}
        if "--trials" not in names:
            found = json.loads((tmp_path / "list/metrics.json").read_text())
        return found, capsys.readouterr().out

    run.folder = tmp_path / "list"
    run.script = script
    run.labels = (
        f"--pseudo_labels={corpus}/labels/pseudo_labels.csv",
        f"--data_folder={corpus}/train",
    )
    return run


def test_curves_are_those_of_this_run(corpus, run, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "speechbrain_ssl.report.plots.det_plot",
        lambda curves: drawn.append(list(curves)),
    )
    monkeypatch.setattr(
        "speechbrain_ssl.report.plots.save", lambda figure, path: None
    )
    run(f"--cohort={corpus}/train", "--top_n=10")
    run()  # in the same folder, without a cohort
    assert drawn == [["raw", "as_norm"], ["raw"]]


def test_back_ends_learn_from_clusters_and_say_so(corpus, run):
    found, out = run(
        *run.labels,
        f"--cohort={corpus}/train",
        "--top_n=10",
        "--plda_rank=4",
        "--calibrate=as_norm",
        "--quality_measures=[duration, magnitude, cohort_mean]",
        f"--conditions={corpus}/words.csv",
    )
    kinds = ["raw", "as_norm", "plda", "calibrated"]
    assert list(found) == [*kinds, "label_use"]
    assert "Nothing was trained" in found["label_use"]
    assert "pseudo_labels.csv" in found["label_use"]
    for kind in kinds:
        is_ratio = kind in ("plda", "calibrated")
        assert ("Cllr" in found[kind]) == is_ratio
        assert set(found[kind]["conditions"]) == {
            *("a", "b", "c", "a / b", "a / c", "b / c")
        }
    assert found["calibrated"]["Cllr"] < 1
    for line in (" with AS-norm: EER", " with PLDA: EER", ", calibrated: EER"):
        assert f"list.txt{line}" in out
    assert out.count("actDCF") == 2 and out.count("  b / c: EER - %") == 4
    assert (run.folder / "scores_calibrated.txt").is_file()
    assert (run.folder / "scores_plda.txt").is_file()


def test_back_ends_learn_from_augmented_utterances(corpus, run):
    model = load_encoder(f"{corpus}/model")
    labels = f"{corpus}/labels/pseudo_labels.csv"
    clusters = run.script.read_clusters(
        {
            "pseudo_labels": labels,
            "data_folder": f"{corpus}/train",
            "embeddings_folder": None,
            "model_folder": f"{corpus}/model",
        }
    )
    rows = np.array([7, 3, 40])
    effects = {"rir": Reverberation(simulated=4), "gain": Gain()}

    def embed(effects):
        augmentation = Augmentation(effects)
        augmentation.prepare(16000, clusters.utterances)
        return run.script.embed_augmented(
            model.encode_batch, clusters, rows, augmentation, 16000, "cpu"
        )

    clean, changed, again = embed({}), embed(effects), embed(effects)
    wanted = torch.from_numpy(clusters.embeddings[rows])
    torch.testing.assert_close(clean, wanted, atol=1e-3, rtol=1e-3)
    assert (changed - wanted).norm(dim=1).min() > 0.01 * wanted.norm()
    torch.testing.assert_close(changed, again)


def test_augmentation_reaches_the_calibration(run):
    bold, _ = run(*run.labels, "--calibrate=raw", "--augmentation=null")
    careful, _ = run(*run.labels, "--calibrate=raw")
    found = bold["calibrated"]["Cllr"], careful["calibrated"]["Cllr"]
    assert found[0] != found[1]


def test_calibration_alone_changes_no_order(run):
    found, _ = run(*run.labels, "--calibrate=raw")
    assert found["calibrated"]["EER"] == found["raw"]["EER"]
    assert found["calibrated"]["threshold"] != found["raw"]["threshold"]


def test_s_norm_needs_no_number(corpus, run):
    found, _ = run(f"--cohort={corpus}/train", "--top_n=null")
    fixed, _ = run(f"--cohort={corpus}/train", f"--top_n={VOICES * TAKES}")
    assert found == fixed and "as_norm" in found


def test_norms_are_chosen_by_name_and_need_no_top_n(corpus, run):
    found, out = run(
        f"--cohort={corpus}/train", "--norms=[z_norm, t_norm, s_norm]"
    )
    assert found["as_norm"] is None
    for norm, name in zip(("z_norm", "t_norm", "s_norm"), "ZTS"):
        assert 0 <= found[norm]["EER"] <= 100
        assert f"list.txt with {name}-norm: EER" in out
        assert (run.folder / f"scores_{norm}.txt").is_file()
    both, _ = run(f"--cohort={corpus}/train", "--top_n=null")
    assert both["as_norm"] == found["s_norm"]


def test_without_back_ends_there_are_raw_scores_only(run):
    found, out = run()
    assert "Cllr" not in found["raw"] and "actDCF" not in out
    assert [kind for kind in KINDS if found[kind]] == ["raw"]


def test_the_threshold_of_the_list_decides_in_the_model_folder(
    corpus, run, tmp_path
):
    model = tmp_path / "model"
    export_model(model)
    found, out = run(f"--model_folder={model}", "--write_threshold=False")
    assert "is stored" not in out
    assert not (model / "threshold.json").exists()
    found, out = run(f"--model_folder={model}")
    assert f"list.txt) is stored in {model}" in out
    stored = read_threshold(str(model))
    raw = found["raw"]
    assert stored == {
        "threshold": raw["threshold"],
        "EER": raw["EER"],
        "EER_low": raw["EER_low"],
        "EER_high": raw["EER_high"],
        "trials": "list.txt",
        "trial_count": raw["trials"],
        "target_prior": round(raw["targets"] / raw["trials"], 6),
    }
    card = (model / "README.md").read_text()
    assert f"list.txt ({raw['trials']} trials, " in card
    wavs = [f"{corpus}/test/v{voice}/0.wav" for voice in (0, 1)]
    verdict = compare(str(model), *wavs)
    assert verdict.threshold == raw["threshold"]
    assert verdict.same == (verdict.score >= raw["threshold"])


def test_lists_of_other_layouts_give_the_same_error_rates(
    corpus, run, tmp_path
):
    expected, _ = run()
    lines = [line.split() for line in open(corpus / "test/list.txt")]
    kaldi = tmp_path / "kaldi.txt"
    words = {"1": "target", "0": "nontarget"}
    kaldi.write_text("".join(f"{b} {c} {words[a]}\n" for a, b, c in lines))
    voxsrc = tmp_path / "voxsrc.txt"
    voxsrc.write_text("".join(f"{b} {c}\n" for _, b, c in lines))
    root = f"--data_root={corpus}/test"
    _, out = run(f"--trials=[{kaldi}, {voxsrc}]", root)
    found = json.loads((tmp_path / "kaldi/metrics.json").read_text())
    assert found == expected
    assert f"{kaldi}: {len(lines)} trials, lines `enrol test label`" in out
    assert f"{voxsrc}: {len(lines)} trials, lines `enrol test`" in out
    assert out.count("is stored in") == 1
    found = json.loads((tmp_path / "voxsrc/metrics.json").read_text())
    assert found["raw"]["EER"] is None
    assert "no error rates as the list has no labels" in out
    assert (tmp_path / "voxsrc/scores.txt").is_file()
    assert not (tmp_path / "voxsrc/det.png").exists()


def test_models_of_several_files_are_enrolled(corpus, run, tmp_path):
    lines = [f"me{v} v{v}/0.wav v{v}/1.wav\n" for v in range(10)]
    (tmp_path / "map.txt").write_text("".join(lines))
    trials = [
        f"me{v} v{w}/2.wav {int(v == w)}\n"
        for v in range(10)
        for w in range(10)
    ]
    (tmp_path / "models.txt").write_text("".join(trials))
    flags = f"--trials={tmp_path}/models.txt", f"--data_root={corpus}/test"
    run(*flags, f"--enrolment={tmp_path}/map.txt")
    found = json.loads((tmp_path / "models/metrics.json").read_text())
    assert found["raw"]["trials"] == 100 and found["raw"]["files"] == 20
    with pytest.raises(FileNotFoundError, match="me0.*enrolment"):
        run(*flags)


def test_segments_of_a_cohort_are_used(corpus, run, tmp_path):
    path = tmp_path / "cohort.csv"
    wavs = [f"$data_root/v{n}/4.wav" for n in range(VOICES)]
    rows = [
        (f"{n}{part}", 0.25, wav, start, start + 4000)
        for n, wav in enumerate(wavs)
        for part, start in (("a", 0), ("b", 4000))
    ]
    write_annotation(path, rows)
    paths, spans = run.script.cohort_segments(
        str(path), 1000, f"{corpus}/train"
    )
    assert len(paths) == 2 * VOICES and paths == sorted(paths)
    assert spans == [(0, 4000), (4000, 8000)] * VOICES
    half, spans = run.script.cohort_segments(
        str(path), VOICES, f"{corpus}/train"
    )
    assert half == paths[::2] and set(spans) == {(0, 4000)}
    found, _ = run(
        f"--cohort={path}", "--top_n=10", f"--data_folder={corpus}/train"
    )
    whole, _ = run(f"--cohort={corpus}/train", "--top_n=10")
    assert found["as_norm"]["threshold"] != whole["as_norm"]["threshold"]


def test_a_damaged_file_of_a_cohort_is_left_out(corpus, run, tmp_path, caplog):
    shutil.copytree(corpus / "train", tmp_path / "cohort")
    (tmp_path / "cohort/v0/0.wav").write_text("This is text.")
    found, _ = run(f"--cohort={tmp_path}/cohort", "--top_n=10")
    assert found["as_norm"]["EER"] >= 0
    assert "1 of 50 files of the cohort cannot be embedded" in caplog.text
    with pytest.raises(ValueError, match="50 cohort utterances"):
        run(f"--cohort={tmp_path}/cohort", f"--top_n={VOICES * TAKES}")


def test_trial_files_in_cohort_and_training_set_are_counted(
    corpus, run, tmp_path, caplog
):
    shutil.copytree(corpus / "model", tmp_path / "run/model")
    rows = [(f"{n}", 0.5, f"$data_root/v{n}/0.wav", 0, 8000) for n in range(3)]
    write_annotation(tmp_path / "run/save/train.csv", rows)
    settings = tmp_path / "run/hyperparams.yaml"
    settings.write_text(f"data_folder: {corpus}/test\nseed: !PLACEHOLDER\n")
    shutil.copytree(corpus / "train", tmp_path / "cohort")
    shutil.copytree(corpus / "test/v1", tmp_path / "cohort/else")
    found, out = run(
        f"--model_folder={tmp_path}/run/model",
        f"--cohort={tmp_path}/cohort",
        "--top_n=10",
    )
    assert found["known_files"]["training set"] == 3
    assert found["known_files"]["cohort"] == TAKES
    assert "3 of 50 files are in the training set too" in caplog.text
    assert "warning: 3 files are in the training set too" in out
    card = (tmp_path / "run/model/README.md").read_text()
    assert "**3 files of the list are in the training set too**" in card
    assert f"**{TAKES} files of the list are in the cohort too**" in card


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--calibrate=raw"], "pseudo_labels"),
        (["--plda_rank=4"], "pseudo_labels"),
        (["LABELS"], "pseudo_labels"),
        (["LABELS", "--calibrate=asnorm"], "must be raw, z_norm"),
        (["LABELS", "--calibrate=t_norm"], "t_norm, which needs a cohort"),
        (["LABELS", "--calibrate=as_norm"], "needs a cohort"),
        (["LABELS", "--calibrate=plda"], "needs a plda_rank"),
        (["--quality_measures=[duration]"], "set calibrate"),
        (
            ["LABELS", "--calibrate=raw", "--quality_measures=[cohort_mean]"],
            "needs a cohort",
        ),
        (["LABELS", "--plda_rank=7"], "7, but embeddings have 6"),
        (["--conditions=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_settings_that_do_not_fit_are_refused(run, flags, message):
    labels = run.labels if "LABELS" in flags else ()
    flags = [flag for flag in flags if flag != "LABELS"]
    with pytest.raises((OSError, ValueError), match=message):
        run(*labels, *flags)


def test_embeddings_of_another_model_are_refused(corpus, run, tmp_path):
    other = tmp_path / "other"
    text = (corpus / "labels/embeddings/meta.json").read_text()
    meta = json.loads(text)
    meta["settings"]["encoder"] = "another"
    shutil.copytree(corpus / "labels/embeddings", other)
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="not of the model"):
        run(*run.labels, "--plda_rank=4", f"--embeddings_folder={other}")


def test_plda_learns_from_clusters_that_do_not_calibrate(run, monkeypatch):
    seen = {}
    learn, fit = plda.PLDA.fit, calibration.Calibrator.fit

    def note_plda(self, rows, classes):
        seen["plda"] = set(classes.tolist())
        return learn(self, rows, classes)

    def note_calibrator(self, rows, seconds, classes, cohort=None):
        seen["calibrator"] = set(classes.tolist())
        return fit(self, rows, seconds, classes, cohort)

    monkeypatch.setattr(plda.PLDA, "fit", note_plda)
    monkeypatch.setattr(calibration.Calibrator, "fit", note_calibrator)
    run(*run.labels, "--plda_rank=2", "--calibrate=plda")
    assert len(seen["plda"]) == len(seen["calibrator"]) == VOICES / 2
    assert not seen["plda"] & seen["calibrator"]
    run(*run.labels, "--plda_rank=2")
    assert len(seen["plda"]) == VOICES


def embeddings_of(model, folder):
    """Unit embeddings of the files of the test list, by their names."""
    encoder = load_encoder(f"{model}", "cpu")
    found = {}
    for path in sorted(folder.glob("v*/*.wav")):
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        row = encoder.encode_batch(wav, torch.ones(1)).flatten()
        found[f"{path.parent.name}/{path.name}"] = row.detach(), wav[0]
    return encoder, found


def scores_of(folder, name="scores.txt"):
    lines = (folder / name).read_text().splitlines()
    return [(*line.split()[1:3], float(line.split()[3])) for line in lines]


def test_the_mean_of_a_folder_of_embeddings_is_subtracted(
    run, corpus, tmp_path
):
    before = read_threshold(str(corpus / "model"))
    _, out = run(f"--subtract_mean={corpus}/labels/embeddings")
    assert "No threshold is stored" in out
    assert read_threshold(str(corpus / "model")) == before
    matrix = np.load(corpus / "labels/embeddings/embeddings.npy")
    mean = torch.from_numpy(matrix.mean(0))
    _, rows = embeddings_of(corpus / "model", corpus / "test")
    (folder,) = {path.parent for path in tmp_path.rglob("scores.txt")}
    for enrol, test, score in scores_of(folder):
        pair = [rows[name][0] - mean for name in (enrol, test)]
        slow = torch.nn.functional.cosine_similarity(*pair, dim=0)
        assert score == pytest.approx(slow.item(), abs=1e-4)


def test_scores_of_crops_average_all_pairs_and_the_whole_files(
    run, corpus, tmp_path
):
    summary, printed = run("--crops=3", "--crop_seconds=0.2")
    assert "pairs of crops" in printed
    encoder, rows = embeddings_of(corpus / "model", corpus / "test")
    (folder,) = {path.parent for path in tmp_path.rglob("scores.txt")}

    def crops(wav):
        starts = np.linspace(0, len(wav) - 3200, 3).astype(int)
        parts = torch.stack([wav[s : s + 3200] for s in starts])
        return encoder.encode_batch(parts, torch.ones(3)).flatten(1).detach()

    cosine = torch.nn.functional.cosine_similarity
    for enrol, test, score in scores_of(folder, "scores_crops.txt")[:6]:
        (a, wav), (b, other) = rows[enrol], rows[test]
        pairs = [cosine(x, y, dim=0) for x in crops(wav) for y in crops(other)]
        slow = (sum(pairs) / 9 + cosine(a, b, dim=0)) / 2
        assert score == pytest.approx(slow.item(), abs=1e-4)


def test_the_means_of_clusters_are_a_cohort(run, corpus, tmp_path):
    summary, _ = run(
        "--cohort_means",
        f"--pseudo_labels={corpus}/labels/pseudo_labels.csv",
        f"--data_folder={corpus}/train",
        "--top_n=null",
    )
    assert summary["as_norm"]["EER"] is not None
    matrix = torch.from_numpy(
        np.load(corpus / "labels/embeddings/embeddings.npy")
    )
    ids = json.loads((corpus / "labels/embeddings/ids.json").read_text())
    unit = torch.nn.functional.normalize(matrix, dim=1)
    cohort = torch.stack(
        [
            unit[[n for n, x in enumerate(ids) if x[1] == str(v)]].mean(0)
            for v in range(VOICES)
        ]
    )
    _, rows = embeddings_of(corpus / "model", corpus / "test")
    (folder,) = {path.parent for path in tmp_path.rglob("scores.txt")}
    cosine = torch.nn.functional.cosine_similarity
    found = scores_of(folder, "scores_as_norm.txt")
    for (enrol, test, score), (*_, normed) in zip(scores_of(folder), found):
        sides = [cosine(rows[n][0][None], cohort) for n in (enrol, test)]
        slow = np.mean(
            [(score - s.mean()) / s.std(correction=1) for s in sides]
        )
        assert normed == pytest.approx(slow, abs=2e-3)


def test_costs_of_errors_are_in_the_summary(run):
    summary, _ = run("--costs=[10, 1]")
    assert summary["raw"]["c_miss"] == 10 and summary["raw"]["c_fa"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crops=-1"], "crops must be"),
        (["--norms=[b_norm]"], "norms must be"),
        (["--top_n=0"], "top_n must be .* at least 1, or null, not 0"),
        (["--batch_seconds=0"], "batch_seconds must be"),
        (["--costs=[1]"], "costs must be a list of 2 items"),
        (["--cohort_size=all"], "cohort_size must be"),
        (["--write_threshold=3"], "write_threshold must be True or False"),
        (["--crop_seconds=0"], "crop_seconds"),
        (["--cohort_means"], "pseudo_labels"),
    ],
)
def test_wrong_settings_of_scores_are_refused(run, flags, message):
    with pytest.raises(ValueError, match=message):
        run(*flags)
