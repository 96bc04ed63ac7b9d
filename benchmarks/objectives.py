"""Trains every objective for the same minutes and tabulates what came of it.

    > python benchmarks/objectives.py --data_folder SPEECH/train \
        --trials SPEECH/trials/wild.txt SPEECH/trials/clean.txt \
        [--methods simclr dino] [--seeds 1 2 3] [--minutes 10] \
        [--output_folder results/objectives] [further arguments of demo.py]

One run of ``recipes/AudioFolder/SSL/demo.py`` after another, each in
``<output_folder>/<method>_<seed>``. Runs that are complete are not repeated, so
that the command can be stopped, called again, and called with more methods.
Prints a Markdown table of all runs in the folder, with two floors beside them:
the untrained encoder, and mean and deviation of MFCCs over each utterance.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import torch
import torchaudio

from speechbrain_ssl.dataio.audio import find, load
from speechbrain_ssl.evaluation.verification import verify

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
        before = json.loads((folder / "demo.json").read_text())
        if (before["minutes"], before["further"]) != (args.minutes, further):
            raise SystemExit(
                f"{folder} holds a run of {before['minutes']} minutes with "
                f"{before['further']}. Name another --output_folder."
            )
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


def mfcc_statistics(wav):
    """Mean and deviation of 30 MFCCs over an utterance [60]."""
    melkwargs = {"n_fft": 512, "hop_length": 160, "n_mels": 60}
    mfcc = torchaudio.transforms.MFCC(16000, 30, melkwargs=melkwargs)(wav)
    return torch.cat([mfcc.mean(1), mfcc.std(1)])


def measure_mfcc(data_folder, trials):
    """Summaries of what MFCCs, standardized on the training set, say."""
    paths, _ = find(data_folder)
    train = torch.stack([mfcc_statistics(load(x, 16000)) for x in paths])

    def embed(wavs, wav_lens):
        lengths = (wav_lens * wavs.shape[1]).round().int()
        found = [mfcc_statistics(w[:n]) for w, n in zip(wavs, lengths)]
        return (torch.stack(found) - train.mean(0)) / train.std(0)

    with tempfile.TemporaryDirectory() as folder:
        return {
            pathlib.Path(path).stem: verify(embed, path, folder)["raw"]
            for path in trials
        }


def rates(summaries, name):
    """EER and interval of one run, or mean and deviation of several."""
    values = [summary[name]["EER"] for summary in summaries]
    if len(values) > 1:
        return spread(values)
    found = summaries[0][name]
    return f"{values[0]:.1f} [{found['EER_low']:.1f}, {found['EER_high']:.1f}]"


def spread(values, digits=1):
    """One value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    deviation = statistics.stdev(values)
    return f"{statistics.mean(values):.{digits}f} ({deviation:.{digits}f})"


def row(method, runs):
    """A line of the table."""
    train = [run["last"]["train"] for run in runs]
    hparams = (RECIPE / f"hparams/train_{method}.yaml").read_text()
    cells = [
        method,
        re.search(r"\nextract_from: (\w+)", hparams).group(1),
        ", ".join(str(run["seed"]) for run in runs),
        ", ".join(str(run["steps"]) for run in runs),
        ", ".join(f"{run['training_seconds']:.0f}" for run in runs),
        spread([run["views_per_second"] for run in runs], 0),
        *(
            rates([run["after"] for run in runs], name)
            for name in runs[0]["after"]
        ),
        spread([stats["effective_rank"] for stats in train], 0),
        spread([stats["embedding_spread"] for stats in train], 2),
        "; ".join(run["warnings"][0][:40] for run in runs if run["warnings"])
        or "none",
    ]
    return cells


def main():
    """Trains what is missing, prints what is there."""
    args, further = parse_arguments()
    for method in args.methods:
        for seed in args.seeds:
            run(method, seed, args, further)
    runs = read_runs(args.output_folder)
    some = next(iter(runs.values()))[0]
    lists = list(some["after"])
    heads = ["objective", "exported", "seeds", "steps", "seconds", "views/s"]
    heads += [f"{name} EER %" for name in lists]
    heads += ["effective rank", "spread", "warnings"]
    table = [row(name, found) for name, found in runs.items()]
    table.sort(key=lambda cells: float(cells[6].split()[0]))
    floors = {
        f"untrained, seed {some['seed']}": some["before"],
        "MFCC statistics": measure_mfcc(args.data_folder, args.trials),
    }
    for name, found in floors.items():
        figures = [rates([found], name) for name in lists]
        table.append([name, *[""] * 5, *figures, *[""] * 3])
    print(f"{some['machine']}\n")
    for cells in [heads, ["---"] * len(heads), *table]:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
