"""Supervised training from a self-supervised start and from random weights.

    > python benchmarks/label_efficiency.py --data_folder SPEECH/train \
        --speakers SPEECH/truth/train_speakers.csv \
        --trials SPEECH/trials/wild.txt SPEECH/trials/clean.txt \
        --start MOCO/model [--shares 0.25 0.5 1] [--seeds 1 2 3] [--steps 180] \
        [further settings of train_supervised.yaml]

The same steps for each share of the speakers and each start; random weights
learn with ``--random_rate``, others with the YAML's. What is there already is
not trained again. Prints a line of JSON for each run, writes table.json and
label_efficiency.png. Trains on speaker labels, and says so in each model.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import matplotlib
import numpy as np
from cluster_views import error_rates  # beside this script

from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.pseudo_labels.labels import read_truth

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "recipes/AudioFolder/SSL"
sys.path.insert(0, str(RECIPE))

from audio_folder_prepare import prepare_audio_folder  # noqa: E402
from train_supervised import known_speakers  # noqa: E402

BATCH = 64
STARTS = ("self-supervised start", "random start")


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--speakers", required=True)
    parser.add_argument("--trials", nargs="+", required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.25, 0.5, 1]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--random_rate", type=float, default=0.002)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/label_efficiency"
    )
    return parser.parse_known_args()


def epochs_for(args, share, seed):
    """How many epochs of the known speakers make up the steps."""
    annotation = args.output_folder / "train.csv"
    if not annotation.exists():
        prepare_audio_folder(args.data_folder, str(annotation))
    ids = list(read_annotation(annotation, args.data_folder).ids())
    speakers = read_truth(args.speakers, ids)
    known = known_speakers(speakers, share, seed)
    per_epoch = np.isin(speakers, known).sum() // BATCH
    return round(args.steps / max(per_epoch, 1))


def train(args, further, start, share, seed):
    """Trains unless it has been done; returns the model's folder."""
    folder = args.output_folder / f"{start.split()[0]}_{share:g}_{seed}"
    if not (folder / "model").is_dir():
        given = {
            "data_folder": args.data_folder,
            "speakers": args.speakers,
            "label_share": share,
            "seed": seed,
            "number_of_epochs": epochs_for(args, share, seed),
            "batch_size": BATCH,
            "output_folder": folder,
            "init_from": args.start,
        }
        if start == STARTS[1]:
            given["init_from"] = "null"
            rates = f"[[!ref <encoder>, {args.random_rate}]]"
            given["learning_rates"] = rates
        command = [sys.executable, "train_supervised.py"]
        command += ["hparams/train_supervised.yaml", "--noprogressbar"]
        command += [f"--{key}={value}" for key, value in given.items()]
        subprocess.run(command + further, cwd=RECIPE, check=True)
    return folder / "model"


def measure(args, further):
    """Trains and verifies all; returns a row for each model."""
    rows = []
    for seed in args.seeds:
        for share in args.shares:
            for start in STARTS:
                model = train(args, further, start, share, seed)
                row = {"start": start, "share": share, "seed": seed}
                row |= error_rates(model, args.trials)
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def draw(rows, trials, path):
    """Draws the EER over the share of the speakers, a panel for each list."""
    figure, axes = pyplot.subplots(
        1, len(trials), figsize=(4.5 * len(trials), 3.6), squeeze=False
    )
    for axis, name in zip(axes[0], trials):
        for start, color in zip(STARTS, ("tab:blue", "tab:orange")):
            mine = [row for row in rows if row["start"] == start]
            shares = sorted({row["share"] for row in mine})
            rates = [
                [row[name] for row in mine if row["share"] == share]
                for share in shares
            ]
            means = [statistics.mean(rate) for rate in rates]
            axis.plot(shares, means, color=color, marker="o", label=start)
            for share, rate in zip(shares, rates):
                axis.plot(
                    [share] * len(rate), rate, ".", color=color, alpha=0.6
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axis.minorticks_off()
        axis.set_xlabel("speakers whose labels are known")
        axis.set_title(name)
        axis.set_ylim(0, 50)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("EER %")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    """Trains, verifies, draws."""
    args, further = parse_arguments()
    for name in ("data_folder", "speakers", "start"):
        setattr(args, name, str(pathlib.Path(getattr(args, name)).resolve()))
    args.output_folder = args.output_folder.resolve()
    args.output_folder.mkdir(parents=True, exist_ok=True)
    rows = measure(args, further)
    with open(args.output_folder / "table.json", "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
    names = [pathlib.Path(path).stem for path in args.trials]
    draw(rows, names, args.output_folder / "label_efficiency.png")


if __name__ == "__main__":
    main()
