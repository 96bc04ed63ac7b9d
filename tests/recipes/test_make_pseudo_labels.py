"""From an exported model and a folder of audio to labels."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.options import OptionsError
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import read_labels
from tests.recipes.test_rows import sandbox  # noqa: F401 (a fixture)

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"


@pytest.fixture
def run(sandbox, monkeypatch):  # noqa: F811
    """The script's ``main``, in this process as that is quicker."""
    monkeypatch.syspath_prepend(RECIPE)
    path = RECIPE / "make_pseudo_labels.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(out, *flags):
        return module.main(
            [
                str(RECIPE / "hparams/pseudo_labels.yaml"),
                f"--model_folder={sandbox}/model",
                f"--data_folder={sandbox}/audio",
                f"--output_folder={out}",
                "--noprogressbar",
                "--device=cpu",
                *flags,
            ]
        )

    return run


def test_two_parts_and_then_a_second_round(
    run,
    sandbox,  # noqa: F811
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
    assert report["quality"]["stability"]["utterances"] == 12

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


@pytest.mark.parametrize(
    "flag, message, error",
    [
        ("--truth=no.csv", r"no.csv \(truth\)", FileNotFoundError),
        ("--clusterer={n_cluster: 3}", "n_cluster", OptionsError),
    ],
)
def test_a_wrong_setting_is_named_first(run, tmp_path, flag, message, error):
    with pytest.raises(error, match=message):
        run(tmp_path / "out", flag)
    assert not (tmp_path / "out" / "embeddings").exists()
