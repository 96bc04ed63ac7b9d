"""Trains every objective for the same minutes and tabulates what came of it.

    > python benchmarks/objectives.py --data_folder SPEECH/train \
        --trials SPEECH/trials/wild.txt SPEECH/trials/clean.txt \
        [--methods simclr dino] [--seeds 1 2 3] [--minutes 10] \
        [--output_folder results/objectives] [further arguments of demo.py]

One run of ``recipes/AudioFolder/SSL/demo.py`` after another, each in
``<output_folder>/<method>_<seed>``. Runs that are complete are not repeated, so
that the command can be stopped, called again, and called with more methods.
Prints a Markdown table of all runs in the folder.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/AudioFolder/SSL"


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--trials", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=all_methods())
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/objectives"
    )
    return parser.parse_known_args()


def all_methods():
    """Names of the small profiles that need no labels."""
    return [
        path.stem.removeprefix("train_")
        for path in sorted((RECIPE / "hparams").glob("train_*.yaml"))
        if "\nobjective:" in path.read_text()
    ]


def run(method, seed, args, further):
    """Trains and verifies once, unless that has been done."""
    folder = args.output_folder.resolve() / f"{method}_{seed}"
    if (folder / "summary.json").exists():
        return
    settings = {
        "data_folder": pathlib.Path(args.data_folder).resolve(),
        "output_folder": folder,
        "method": method,
        "seed": seed,
        "minutes": args.minutes,
        "rounds": 0,
    }
    lists = [str(pathlib.Path(path).resolve()) for path in args.trials]
    command = [sys.executable, "demo.py", "--trials", *lists]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
    subprocess.run([*command, *further], cwd=RECIPE, check=True)


def read_runs(folder):
    """Figures of each method's runs, by method."""
    runs = {}
    for path in sorted(folder.glob("*_*/summary.json")):
        summary = json.loads(path.read_text())
        log = (path.parent / "train_log.jsonl").read_text().splitlines()
        last = json.loads(log[-1])
        method = path.parent.name.rsplit("_", 1)[0]
        runs.setdefault(method, []).append({**summary, "last": last})
    return runs


def spread(values, digits=1):
    """One value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    deviation = statistics.stdev(values)
    return f"{statistics.mean(values):.{digits}f} (sd {deviation:.{digits}f})"


def row(method, runs):
    """A line of the table."""
    lists = list(runs[0]["after"])
    train = [run["last"]["train"] for run in runs]
    cells = [
        method,
        ", ".join(str(run["seed"]) for run in runs),
        ", ".join(str(run["steps"]) for run in runs),
        spread([run["views_per_second"] for run in runs], 0),
        *(
            spread([run["after"][name]["EER"] for run in runs])
            for name in lists
        ),
        spread([stats["effective_rank"] for stats in train], 0),
        spread([stats["embedding_spread"] for stats in train], 2),
        "; ".join(run["warnings"][0][:40] for run in runs if run["warnings"])
        or "none",
    ]
    return "| " + " | ".join(cells) + " |"


def main():
    """Trains what is missing, prints what is there."""
    args, further = parse_arguments()
    for method in args.methods:
        for seed in args.seeds:
            run(method, seed, args, further)
    runs = read_runs(args.output_folder)
    some = next(iter(runs.values()))[0]
    names = [f"{name} EER %" for name in some["after"]]
    heads = ["objective", "seeds", "steps", "views/s", *names]
    heads += ["effective rank", "spread", "warnings"]
    before = [
        f"{name} {run['EER']:.1f}" for name, run in some["before"].items()
    ]
    print(f"{some['machine']}. Untrained, seed {some['seed']}: {before}\n")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for _, line in sorted(
        (
            found[0]["after"][next(iter(found[0]["after"]))]["EER"],
            row(name, found),
        )
        for name, found in runs.items()
    ):
        print(line)


if __name__ == "__main__":
    main()
