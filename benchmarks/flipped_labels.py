"""Whether gate and correction find labels that are known to be wrong.

    > python benchmarks/flipped_labels.py recipes/AudioFolder/SSL/hparams/train_dlg_lc.yaml \
        --data_folder SPEECH/test [--flip 0.4] [--truth CSV] \
        [--output_folder results/flipped] [further settings of the YAML]

True speakers are the labels (those of ``--truth``, with ID and speaker, or the
first folder of each path), a share of them is put into another class at
random, and ``train_pseudo_labels.py`` trains on that. Prints a line of JSON for
each epoch: the share that was selected and how much of it was right, and the
share of the flipped labels that was repaired. This measures the method and uses speaker
labels throughout: what it trains is no self-supervised model.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from speechbrain_ssl.brains import experiment
from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.pseudo_labels.labels import read_truth, write_labels

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes/AudioFolder/SSL"))

import train_pseudo_labels  # noqa: E402
from audio_folder_prepare import prepare_audio_folder  # noqa: E402


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


def judge(decisions, true):
    """How right the decisions of one epoch were."""
    seen = decisions.seen.numpy()
    _, selected, corrected, label = (x.numpy()[seen] for x in decisions.table)
    given, true = decisions.labels.numpy()[seen], true[seen]
    everyone, flips = np.ones(len(true), bool), given != true

    def share(hits, among):
        return round(float(hits[among].mean()), 3) if among.any() else None

    return {
        "flipped": share(flips, everyone),
        "selected": share(selected, everyone),
        "selected_right": share(~flips, selected),
        "corrected": share(corrected, everyone),
        "corrected_right": share(label == true, corrected),
        "flips_repaired": share(corrected & (label == true), flips),
        "right_after": share(label == true, everyone),
    }


def main():
    """Makes wrong labels, trains on them, counts."""
    args, further = parse_arguments()
    folder = args.output_folder.resolve()
    annotation = folder / "train.csv"
    prepare_audio_folder(str(args.data_folder), str(annotation))
    utterances = read_annotation(annotation, str(args.data_folder.resolve()))
    right = true_classes(utterances, args.truth)
    wrong = flipped(right, args.flip, args.seed)
    labels_folder = str(folder / "labels")
    ids = list(utterances.ids())
    write_labels(labels_folder, utterances, ids, wrong, "none")
    settings = {
        "data_folder": args.data_folder.resolve(),
        "pseudo_labels": folder / "labels" / "pseudo_labels.csv",
        "output_folder": folder / "run",
        "seed": args.seed,
    }
    argv = [str(args.hparams_file.resolve())]
    for name, value in settings.items():
        argv += [f"--{name}", str(value)]
    hparams_file, run_opts, hparams, overrides = load_experiment(argv + further)
    training, settings = train_pseudo_labels.check_settings(hparams)
    labels = train_pseudo_labels.find_labels(hparams)

    class Judged(PseudoLabelBrain):
        """Says after each epoch how right it was."""

        def on_stage_end(self, stage, loss, epoch=None):
            super().on_stage_end(stage, loss, epoch)
            found = judge(self.decisions, right)
            print(json.dumps({"epoch": epoch, **found}), flush=True)

    with experiment.open_run(
        training.output_folder, hparams_file, overrides, run_opts
    ) as run:
        experiment.train_on_labels(
            labels, training, settings, run, hparams, run_opts, Judged
        )


if __name__ == "__main__":
    main()
