"""From an exported model and a folder of audio to labels."""

import csv
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.options import OptionsError
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import read_labels

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"


@pytest.fixture
def run(sandbox, monkeypatch):
    """The script's ``main``, in this process as that is quicker."""
    monkeypatch.syspath_prepend(RECIPE)
    path = RECIPE / "make_pseudo_labels.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(out, *flags, model="model", data="audio"):
        folder = f"--model_folder={sandbox}/{model}"
        named = [folder] if model else []
        return module.main(
            [
                str(RECIPE / "hparams/pseudo_labels.yaml"),
                *named,
                f"--data_folder={sandbox}/{data}",
                f"--output_folder={out}",
                "--noprogressbar",
                "--device=cpu",
                *flags,
            ]
        )

    run.module = module
    return run


def test_two_parts_and_then_a_second_round(
    run,
    sandbox,
    tmp_path,
    capsys,
):
    truth = tmp_path / "truth.csv"
    names = [f"s{s}/{take}.flac" for s in range(4) for take in range(3)]
    lines = [f"{name},{name[:2]}" for name in names]
    truth.write_text("\n".join(["ID,spk_id", *lines]) + "\n")
    out = tmp_path / "first"
    flags = ["--num_parts=2", "--chunk_size=5", "--clusterer={n_clusters: 3}"]
    assert run(out, *flags, "--part_idx=1") is None
    assert "Part 1 of 2 is done" in capsys.readouterr().out
    assert not (out / "pseudo_labels.csv").exists()
    run(out, *flags, "--part_idx=0", "--min_size=1")
    assert "12 of 12 utterances in 3 clusters" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert "oracle" not in report
    # what is joined without a seed cannot be joined from another one
    assert report["quality"]["stability"] is None

    embeddings = load(out / "embeddings")
    assert embeddings.ids == names
    training = read_annotation(out / "train.csv", sandbox / "audio")
    labels = read_labels(
        out / "pseudo_labels.csv",
        sandbox / "audio",
        embeddings.meta["made"]["embeddings"],
        training,
    )
    assert labels.count == 3

    again = tmp_path / "second"
    flags = [
        f"--embeddings_folder={out}/embeddings",
        f"--train_annotation={out}/train.csv",
        f"--previous={out}/pseudo_labels.csv",
        f"--truth={truth}",
        "--clusterer={n_clusters: 3}",
        "--min_size=1",
        "--chunk_size=5",
    ]
    report = run(again, *flags)
    assert "for this report only" in capsys.readouterr().out
    assert json.loads((again / "report.json").read_text()) == report
    assert report["quality"]["previous"] == {"ARI": 1.0, "utterances": 12}
    assert report["oracle"]["speakers"] == 4
    same = read_labels(again / "pseudo_labels.csv", sandbox / "audio")
    assert np.array_equal(same.classes, labels.classes)

    # embeddings of any origin are enough
    run(tmp_path / "third", *flags, model=None)
    same = read_labels(tmp_path / "third/pseudo_labels.csv", sandbox / "audio")
    assert np.array_equal(same.classes, labels.classes)
    with pytest.raises(ValueError, match="embeddings_folder"):
        run(tmp_path / "fourth", model=None)
    training = (out / "train.csv").read_text().replace("s3/", "s4/")
    (tmp_path / "other.csv").write_text(training)
    flags[1] = f"--train_annotation={tmp_path}/other.csv"
    with pytest.raises(ValueError, match="3 IDs"):
        run(tmp_path / "fifth", *flags, model=None)


def table(path):
    """Cluster of each utterance of a label file."""
    with open(path, newline="") as file:
        return {row["ID"]: row["spk_id"] for row in csv.DictReader(file)}


def groups(labels):
    found = {}
    for name, cluster in labels.items():
        found.setdefault(cluster, set()).add(name)
    return sorted(found.values(), key=sorted)


def test_what_was_heard_corrects_the_labels_twice(
    run,
    sandbox,
    tmp_path,
    capsys,
    monkeypatch,
):
    flags = ["--clusterer={n_clusters: 4}", "--min_size=1"]
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    report = run(first, *flags, "--ask_stability=False")
    assert report["embeddings_folder"] == "embeddings"
    page = (first / "clusters.html").read_text()
    labels = table(first / "pseudo_labels.csv")
    name = next(name for name in labels if labels[name] == "2")
    (first / "edits.csv").write_text(
        f"action,cluster,value\nmerge,0,1\nmerge,1,3\ndrop,,{name}\n"
    )

    def fail(*_, **__):
        raise RuntimeError("nothing is clustered or embedded")

    monkeypatch.setattr(
        "speechbrain_ssl.clustering.kmeans.KMeans.fit_predict", fail
    )
    monkeypatch.setattr(run.module, "extract", fail)
    report = run(second, *flags, f"--edits={first}/edits.csv")
    assert "corrections: 2 merge, 0 split" in capsys.readouterr().out
    expected = [
        {n for n in labels if labels[n] in "013"},
        {n for n in labels if labels[n] == "2" and n != name},
    ]
    expected = sorted(filter(None, expected), key=sorted)
    corrected = table(second / "pseudo_labels.csv")
    assert groups(corrected) == expected
    assert json.loads((second / "report.json").read_text()) == report
    assert report["edits"]["merge"] == 2
    assert report["edits"]["utterances_dropped"] == 1
    assert report["labels"]["utterances"] == 12
    assert report["labels"]["labelled"] == 11
    assert report["embeddings_folder"] == "../1/embeddings"
    assert (first / "clusters.html").read_text() == page
    assert "Clusters to listen to" in (second / "clusters.html").read_text()
    # the corrected labels belong to the training set, and can be corrected
    training = read_annotation(first / "train.csv", sandbox / "audio")
    found = read_labels(
        second / "pseudo_labels.csv",
        sandbox / "audio",
        training=training,
    )
    name = found.utterances.row(0)["ID"]
    (second / "edits.csv").write_text(f"action,cluster,value\ndrop,,{name}\n")
    report = run(third, *flags, f"--edits={second}/edits.csv", "--listen=0")
    del corrected[name]
    assert groups(table(third / "pseudo_labels.csv")) == groups(corrected)
    assert report["labels"]["utterances"] == 12
    assert not (third / "clusters.html").exists()


def test_corrections_that_cannot_be_followed_change_nothing(run, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    flags = ["--clusterer={n_clusters: 3}", "--min_size=1", "--listen=0"]
    run(first, *flags, "--ask_stability=False")
    edits = first / "edits.csv"
    edits.write_text("action,cluster,value\ndrop,7,\n")
    before = (first / "pseudo_labels.csv").read_text()
    with pytest.raises(
        ValueError, match="line 2: the labels have no cluster 7"
    ):
        run(second, *flags, f"--edits={edits}")
    assert not (second / "pseudo_labels.csv").exists()
    with pytest.raises(ValueError, match="labels are to be corrected"):
        run(first, *flags, f"--edits={edits}")
    assert (first / "pseudo_labels.csv").read_text() == before
    elsewhere = tmp_path / "edits.csv"
    elsewhere.write_text(edits.read_text())
    with pytest.raises(FileNotFoundError, match="beside the labels"):
        run(second, *flags, f"--edits={elsewhere}")
    # labels whose embeddings were made anew by another encoder
    report = json.loads((first / "report.json").read_text())
    report["labels"]["embeddings"] = 64 * "0"
    (first / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="made from other embeddings"):
        run(second, *flags, f"--edits={edits}")


@pytest.mark.parametrize(
    "flag, message, error",
    [
        ("--listen=-1", "listen must be .* at least 0, not -1", ValueError),
        ("--max_seconds=-1", "max_seconds must be", ValueError),
        ("--batch_seconds=0", "batch_seconds must be", ValueError),
        ("--chunk_size=many", "chunk_size must be .* 'many'", ValueError),
        ("--num_parts=0", "num_parts must be", ValueError),
        ("--part_idx=1", "part_idx must be .* from 0 to 0", ValueError),
        ("--min_size=1.5", "min_size must be", ValueError),
        ("--edits=no.csv", r"no.csv \(edits\)", FileNotFoundError),
        ("--truth=no.csv", r"no.csv \(truth\)", FileNotFoundError),
        ("--clusterer={n_cluster: 3}", "n_cluster", OptionsError),
    ],
)
def test_a_wrong_setting_is_named_first(run, tmp_path, flag, message, error):
    with pytest.raises(error, match=message):
        run(tmp_path / "out", flag)
    assert not (tmp_path / "out" / "embeddings").exists()


def test_clusters_are_of_embeddings_without_their_channels(
    run, tmp_path, capsys
):
    out, plain = tmp_path / "out", tmp_path / "plain"
    flags = ["--clusterer={n_clusters: 3}", "--listen=0"]
    run(plain, *flags)  # twelve utterances are one group
    assert "recorded alike" not in capsys.readouterr().out
    report = run(out, *flags, "--channel_groups=3")
    assert report["clustering"]["channels"]["groups"] == 3
    assert (
        "the means of 3 groups recorded alike were" in capsys.readouterr().out
    )
    channels = np.load(out / "channel_groups.npz")["groups"]
    assert sorted(set(channels)) == [0, 1, 2] and len(channels) == 12
    assert not (plain / "channel_groups.npz").exists()
    first = load(plain / "embeddings").matrix
    assert (load(out / "embeddings").matrix == first).all()


def test_corrections_see_the_embeddings_that_were_clustered(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(run.module.channels, "LARGEST_SHARE", 1.0)
    seen, describe = [], run.module.quality.describe

    def note(matrix, labels):
        seen.append(np.array(matrix))
        return describe(matrix, labels)

    monkeypatch.setattr(run.module.quality, "describe", note)
    flags = ["--clusterer={n_clusters: 3}", "--listen=0"]
    run(tmp_path / "0", *flags, "--ask_stability=False", "--channel_groups=3")
    for n in (0, 1):  # corrected labels are corrected, too
        edits = tmp_path / f"{n}/edits.csv"
        edits.write_text(f"action,cluster,value\ndrop,,s{n}/0.flac\n")
        run(tmp_path / f"{n + 1}", *flags, f"--edits={edits}")
    assert len(seen) == 3
    for matrix in seen[1:]:
        assert (matrix == seen[0]).all()
    raw = load(tmp_path / "0/embeddings").matrix
    assert abs(seen[0] - raw).max() > 0.01


@pytest.mark.parametrize(
    "face_model, csv, said",
    [
        ("model", "av.csv", "is a voice encoder"),
        ("face_model", "train.csv", "face"),
        ("nowhere", "av.csv", "nowhere"),
    ],
)
def test_wrong_faces_are_named_before_voices_are_embedded(
    run, sandbox, tmp_path, face_model, csv, said, monkeypatch
):
    monkeypatch.setattr(run.module, "extract", None)
    flags = [f"--face_model_folder={sandbox}/{face_model}"]
    flags += [f"--train_annotation={sandbox}/{csv}"]
    with pytest.raises((OSError, ValueError), match=said):
        run(tmp_path / "out", *flags, data="av")


def test_faces_join_the_voices(run, sandbox, tmp_path, capsys):
    av, faces = {"data": "av"}, ["--clusterer={n_clusters: 3}"]
    faces += [f"--face_model_folder={sandbox}/face_model", "--listen=2"]
    out = tmp_path / "joint"
    report = run(out, *faces, **av)
    found = load(out / "joint_embeddings")
    assert found.meta["made"]["with_face"] == 8 and len(found.ids) == 12
    assert report["labels"]["embeddings"] == found.meta["made"]["embeddings"]
    assert report["quality_of_faces"]["utterances"] == 8
    assert "faces of 8 utterances" in capsys.readouterr().out
    labels = read_labels(
        out / "pseudo_labels.csv", f"{sandbox}/av", extra=("face",)
    )
    rows = [labels.utterances.row(n)["face"] for n in range(12)]
    assert rows[0] == f"{sandbox}/av/s0/0.png" and rows.count("") == 4
    # corrections keep the column
    (out / "edits.csv").write_text("action,cluster,value\ndrop,,s0/0.flac\n")
    edits = f"--edits={out}/edits.csv"
    run(tmp_path / "edited", edits, model=None, **av)
    # the same command with two more options
    report = run(tmp_path / "again", edits, *faces, **av)
    place = tmp_path / "again" / report["embeddings_folder"]
    assert place.samefile(out / "joint_embeddings")
    header = (tmp_path / "edited/pseudo_labels.csv").read_text().split()[0]
    assert header.endswith("face,spk_id")
    report = run(tmp_path / "agreed", *faces, "--agreement=True", **av)
    assert report["agreement"]["utterances"] == 8
    report = run(tmp_path / "voices", *faces, "--face_weight=0", **av)
    assert "quality_of_voices" in report and "quality_of_faces" not in report
    with pytest.raises(ValueError, match="face encoder"):
        run(tmp_path / "wrong", model="face_model")
    with pytest.raises(ValueError, match="face_model_folder"):
        run(tmp_path / "none", "--agreement=True")
