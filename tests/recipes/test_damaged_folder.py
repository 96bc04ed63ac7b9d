"""A folder with damaged files is trained on, resumed and embedded."""

import csv
import json
import pathlib

import pytest
import soundfile

from speechbrain_ssl.cli.embed import embed
from speechbrain_ssl.dataio.annotations import read_annotation
from tests import damage

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/AudioFolder/SSL"
GOOD = 40


def reasons(path):
    """Reasons by name of a list of files; each stands there once."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    names = [name.removeprefix("$data_root/") for name, _ in rows]
    assert len(set(names)) == len(names)
    return dict(zip(names, [reason for _, reason in rows]))


def train(monkeypatch, folder, run, epochs):
    """Trains in this process, as train_ssl.py does; lines of the log."""
    monkeypatch.syspath_prepend(str(RECIPE))
    import train_ssl

    train_ssl.main(
        [
            str(RECIPE / "hparams/train_moco.yaml"),
            f"--data_folder={folder}",
            f"--output_folder={run}",
            f"--number_of_epochs={epochs}",
            "--batch_size=8",
            "--num_workers=0",
            "--view_sampler={global_seconds: 1.0}",
            "--emb_dim=16",
            "--embedding_model={channels: [8, 8, 8, 8, 24]}",
            "--objective={queue_size: 24}",
            "--augmentation=null",
            "--noprogressbar",
        ]
    )
    with open(run / "train_log.jsonl") as file:
        return [json.loads(line)["train"] for line in file]


@pytest.mark.filterwarnings("ignore")
def test_each_bad_file_is_listed_once_and_stops_nothing(tmp_path, monkeypatch):
    folder, run = tmp_path / "audio", tmp_path / "run"
    folder.mkdir()
    odd = damage.write_odd(folder)
    good = damage.write_good(folder, GOOD)
    damaged = damage.write_damaged(folder)
    hidden = damage.write_damaged_between_probes(folder)

    logged = train(monkeypatch, folder, run, epochs=2)
    usable = read_annotation(run / "save/train.csv", folder)
    assert sorted(usable.ids()) == sorted(good + odd + hidden)
    assert sorted(reasons(run / "save/skipped.csv")) == sorted(damaged)
    assert len(logged) == 2
    listed = reasons(run / "save/unreadable.csv")
    assert set(listed) <= set(hidden)
    for name, reason in listed.items():
        assert name in reason

    # the folder changes, the run goes on with its own list
    before = (run / "save/train.csv").read_bytes()
    (folder / good[0]).unlink()
    (folder / good[1]).write_bytes(b"")
    soundfile.write(folder / good[2], damage.noise(0.1), damage.RATE)
    soundfile.write(folder / "new.flac", damage.noise(), damage.RATE)
    logged = train(monkeypatch, folder, run, epochs=3)
    assert (run / "save/train.csv").read_bytes() == before
    assert len(logged) == 3 and logged[2]["unreadable"] >= 2
    listed = reasons(run / "save/unreadable.csv")
    assert set(listed) <= {*hidden, *good[:3]}
    assert len(listed.keys() & set(good)) >= 2

    # the wholly read files of a folder: those with a hole fail by name
    out = tmp_path / "embeddings"
    found = embed(str(run / "model"), str(folder), str(out), progress=False)
    failed, skipped = reasons(out / "failed.csv"), reasons(out / "skipped.csv")
    assert not failed.keys() & skipped.keys()
    assert {*hidden, good[1]} <= failed.keys()
    assert {*odd, *good[2:], "new.flac"} <= set(found.ids)
    named = {*found.ids, *failed, *skipped}
    assert named >= {*damaged, *hidden, *odd, *good[1:], "new.flac"}
