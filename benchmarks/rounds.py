"""Rounds of pseudo-labels with each way to trust them, and what came of it.

    > python benchmarks/rounds.py --data_folder SPEECH/train \
        --model_folder MOCO/model --truth SPEECH/truth/train_speakers.csv \
        --trials SPEECH/trials/wild.txt SPEECH/trials/clean.txt \
        [--methods ungated lgl dlg_lc] [--seeds 1 2 3] [--rounds 2] \
        [--output_folder results/rounds_table] [further arguments of run_rounds.py]

One run of ``recipes/AudioFolder/SSL/run_rounds.py`` after another, each in
``<output_folder>/<method>_<seed>``. What is done is not repeated, so that the
command can be stopped, called again, and called with more methods. Each round
goes on from the encoder of the last one, and no agreement ends them. Prints a
Markdown table of all runs in the folder; true speakers and trials are read for
it alone.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from objectives import RECIPE, spread

# figures of a stage, what they are called, and their decimals
LABELS = {"NMI": 3, "purity": 2}
TRAINING = {
    "selected": "selected %",
    "selected_right": "right of these %",
    "corrected": "corrected %",
    "corrected_right": "right of these %",
}


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--model_folder", required=True)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--trials", nargs="+", required=True)
    parser.add_argument(
        "--methods", nargs="+", default=["ungated", "lgl", "dlg_lc"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/rounds_table"
    )
    return parser.parse_known_args()


def run(method, seed, args, further):
    """Makes all rounds that are not there yet."""
    paths = ("data_folder", "model_folder", "truth")
    lists = [str(pathlib.Path(path).resolve()) for path in args.trials]
    settings = {
        **{key: pathlib.Path(getattr(args, key)).resolve() for key in paths},
        "output_folder": args.output_folder.resolve() / f"{method}_{seed}",
        "trials": json.dumps(lists),
        "seed": seed,
        "rounds": args.rounds,
        "init": "previous",
        "stop_agreement": 1.0,
        "train": json.dumps({"hparams": f"hparams/train_{method}.yaml"}),
    }
    command = [sys.executable, "run_rounds.py", "hparams/rounds.yaml"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
    subprocess.run([*command, *further], cwd=RECIPE, check=True)


def read_runs(folder):
    """Stages of each method's runs by their round and name, by method."""
    runs = {}
    for path in sorted(folder.glob("*_*/summary.json")):
        stages = json.loads(path.read_text())["stages"]
        by_place = {(row["round"], row["stage"]): row for row in stages}
        method = path.parent.name.rsplit("_", 1)[0]
        runs.setdefault(method, []).append(by_place)
    return runs


def figures(stages, name, digits, scale=1):
    """Mean of a figure over runs, among what true labels say, too."""
    found = [{**row, **row.get("oracle", {})}.get(name) for row in stages]
    found = [scale * value for value in found if value is not None]
    return f"{statistics.mean(found):.{digits}f}" if found else ""


def error_rates(runs, number, lists):
    """Of the encoder that a round ends with."""
    verified = [run[number, "verify"]["lists"] for run in runs]
    return [
        spread([found[name]["EER"] for found in verified]) for name in lists
    ]


def rows(method, runs, lists):
    """A line of cells for each round that all runs have ended."""
    last = min(max(n for n, name in run if name == "verify") for run in runs)
    for number in range(1, last + 1):
        labels = [run[number, "labels"] for run in runs]
        training = [run[number, "train"] for run in runs]
        yield [
            method,
            str(number),
            str(len(runs)),
            figures(training, "seconds", 0),
            *error_rates(runs, number, lists),
            *(figures(labels, name, LABELS[name]) for name in LABELS),
            *(figures(training, name, 0, scale=100) for name in TRAINING),
        ]


def line(cells):
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main():
    """Runs what is missing, prints what is there."""
    args, further = parse_arguments()
    for seed in args.seeds:
        for method in args.methods:
            run(method, seed, args, further)
    runs = read_runs(args.output_folder)
    some = next(iter(runs.values()))
    lists = list(some[0][0, "verify"]["lists"])
    heads = ["labels selected by", "round", "runs", "training s"]
    heads += [f"{name} EER %" for name in lists]
    heads += [*LABELS, *TRAINING.values()]
    print(line(heads) + "\n" + "|---" * len(heads) + "|")
    start = ["none: the start", "0", "", "", *error_rates(some[:1], 0, lists)]
    print(line(start + [""] * (len(heads) - len(start))))
    for method, found in runs.items():
        for cells in rows(method, found, lists):
            print(line(cells))


if __name__ == "__main__":
    main()
