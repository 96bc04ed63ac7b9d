"""Whether gate and correction find labels that are known to be wrong.

    > python benchmarks/flipped_labels.py recipes/AudioFolder/SSL/hparams/train_dlg_lc.yaml \
        --data_folder SPEECH/test [--flip 0.4] [--truth CSV] \
        [--output_folder results/flipped] [further settings of the YAML]

True speakers are the labels (those of ``--truth``, with ID and speaker, or the
first folder of each path), a share of them is put into another class at
random, and ``train_pseudo_labels.py`` trains on that. Prints JSON of its last
epoch: the share that was trusted and how much of it was right, and the share of
the flipped labels that was repaired. This measures the method and uses speaker
labels throughout: what it trains is no self-supervised model.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys

import numpy as np

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.pseudo_labels.labels import read_truth, write_labels

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/AudioFolder/SSL"
sys.path.insert(0, str(RECIPE))


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("hparams_file", type=pathlib.Path)
    parser.add_argument("--data_folder", type=pathlib.Path, required=True)
    parser.add_argument("--truth")
    parser.add_argument("--flip", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/flipped"
    )
    return parser.parse_known_args()


def true_classes(utterances, truth):
    """Number of each utterance's speaker [utterances]."""
    ids = list(utterances.ids())
    if truth:
        return read_truth(truth, ids)
    names = [name.split("/")[0] for name in ids]
    return np.unique(names, return_inverse=True)[1]


def flipped(classes, share, seed):
    """The classes, a share of them replaced by another one at random."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(classes), round(share * len(classes)), False)
    wrong = classes.copy()
    count = classes.max() + 1
    wrong[chosen] = (
        classes[chosen] + rng.integers(1, count, len(chosen))
    ) % count
    return wrong


def judge(path, right):
    """How right the decisions of one epoch were."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    given = np.array([int(row["spk_id"]) for row in rows])
    learnt = np.array([int(row["learnt"]) for row in rows])
    trusted = np.array([row["trusted"] == "1" for row in rows])
    corrected = np.array([row["corrected"] == "1" for row in rows])
    true = np.array([right[row["ID"]] for row in rows])
    flips = given != true

    def share(hits, among):
        return round(float(hits[among].mean()), 4) if among.any() else None

    return {
        "utterances": len(rows),
        "flipped": share(flips, np.ones(len(rows), bool)),
        "trusted": share(trusted, np.ones(len(rows), bool)),
        "trusted_right": share(~flips, trusted),
        "corrected": share(corrected, np.ones(len(rows), bool)),
        "corrected_right": share(learnt == true, corrected),
        "flips_repaired": share(corrected & (learnt == true), flips),
        "right_before": share(given == true, np.ones(len(rows), bool)),
        "right_after": share(learnt == true, np.ones(len(rows), bool)),
    }


def main():
    """Makes wrong labels, trains on them, counts."""
    from audio_folder_prepare import prepare_audio_folder

    args, further = parse_arguments()
    folder = args.output_folder.resolve()
    annotation = folder / "train.csv"
    prepare_audio_folder(str(args.data_folder), str(annotation))
    utterances = read_annotation(annotation, str(args.data_folder.resolve()))
    ids = list(utterances.ids())
    right = true_classes(utterances, args.truth)
    wrong = flipped(right, args.flip, args.seed)
    write_labels(str(folder / "labels"), utterances, ids, wrong, "none")
    settings = {
        "data_folder": args.data_folder.resolve(),
        "pseudo_labels": folder / "labels" / "pseudo_labels.csv",
        "output_folder": folder / "run",
        "seed": args.seed,
    }
    command = [sys.executable, "train_pseudo_labels.py"]
    command += [str(args.hparams_file.resolve())]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    subprocess.run([*command, *further], cwd=RECIPE, check=True)
    known = dict(zip(ids, right.tolist()))
    found = judge(folder / "run" / "decisions.csv", known)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
