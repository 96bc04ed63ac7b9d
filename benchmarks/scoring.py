"""How long scores and metrics take on a list of VoxCeleb1-E's size.

    > python benchmarks/scoring.py --output scoring.json

Embeddings are generated: 580,000 trials over 145,000 utterances of 1,251
speakers, with empty files of their names. ``verify`` is all that
``evaluation.verification.verify`` does where the embeddings are known: it reads
the list, finds the files, looks up embeddings, scores, measures with an
interval, and writes. Its floor is the sum of the floors of its parts. A floor is
measured in the same process and says what cannot be left out, in plain Python
and NumPy: it is no bound for code in another language. Seconds are the best of
``--repeats``, by the clock and of processor time (all threads together), which
a busy machine changes less; peak memory is that of the process and never falls, so that
``peak_mb_added`` is what a stage added to the peak of the stages before it.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time

import numpy as np
import torch

from speechbrain_ssl.evaluation import metrics, scoring, trials, verification


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=580_000)
    parser.add_argument("--utterances", type=int, default=145_000)
    parser.add_argument("--speakers", type=int, default=1_251)
    parser.add_argument("--emb_dim", type=int, default=192)
    parser.add_argument("--cohort", type=int, default=5_000)
    parser.add_argument("--top_n", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--output", help="also write the JSON there")
    return parser.parse_args(argv)


def generate(args):
    """Embeddings around speaker means, and trials, half of them targets."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    per_speaker = args.utterances // args.speakers
    speaker = np.arange(args.utterances) // per_speaker % args.speakers
    embeddings = torch.randn(args.utterances, args.emb_dim)
    means = torch.randn(args.speakers, args.emb_dim)
    for start in range(0, args.utterances, 10_000):
        part = slice(start, start + 10_000)
        embeddings[part].add_(means[speaker[part]], alpha=0.5)
    # as in VoxCeleb's lists, the trials of an utterance follow each other
    enrol = np.sort(rng.integers(0, args.utterances, args.trials))
    test = rng.integers(0, args.utterances, args.trials)
    same = rng.random(args.trials) < 0.5
    nearby = rng.integers(0, per_speaker, same.sum())
    test[same] = speaker[enrol[same]] * per_speaker + nearby
    targets = (speaker[enrol] == speaker[test]).astype(np.uint8)
    return embeddings, enrol, test, targets, speaker


def peak_mb():
    """Largest resident size of the process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kilobytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(function, repeats):
    """Result of a call, its best time and what it added to the peak."""
    before, clock, processor = peak_mb(), [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        result = function()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    figures = {
        "seconds": round(min(clock), 4),
        "cpu_seconds": round(min(processor), 4),
        "peak_mb": round(peak_mb()),
        "peak_mb_added": round(peak_mb() - before),
    }
    return result, figures


def add_floor(figures, what, *parts):
    """Adds the time of the least work that the task needs.

    Parts are pairs of a function and how often the task needs it.
    """
    least = sum(
        share * measure(function, 5)[1]["cpu_seconds"]
        for function, share in parts
    )
    figures["floor"] = what
    figures["floor_cpu_seconds"] = round(least, 4)
    figures["times_floor"] = round(figures["cpu_seconds"] / max(least, 1e-4), 2)


def main(argv=None):
    """Measures all stages and prints one JSON object."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = run(args, folder)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")


def write_files(folder, enrol, test, targets, speaker):
    """Writes a trial list and empty files; gives the names of all files."""
    names = [
        f"id{10000 + own}/{number * 7919 % 99991:05d}/{number:06d}.wav"
        for number, own in enumerate(speaker.tolist())
    ]
    for name in names:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
    path = os.path.join(folder, "list.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(
            f"{label} {names[first]} {names[second]}\n"
            for label, first, second in zip(targets, enrol, test)
        )
    return path, names


def run(args, folder):
    """Figures of all stages."""
    embeddings, enrol, test, targets, speaker = generate(args)
    list_path, names = write_files(folder, enrol, test, targets, speaker)
    base, stages = peak_mb(), {}
    rows = dict(zip(names, embeddings))
    cache = {
        os.path.join(folder, name): verification.CachedFile(row, False, 0.0)
        for name, row in rows.items()
    }

    def stage(name, function, repeats=args.repeats):
        result, stages[name] = measure(function, repeats)
        return result

    listed = stage("read the list", lambda: trials.read_trials(list_path))
    embeddings = torch.stack([rows[name] for name in listed.files])
    del rows
    sides = listed.enrol, listed.test
    scores = stage("scores", lambda: scoring.cosine_scores(embeddings, *sides))
    summary = stage("metrics", lambda: verification.summarize(scores, listed))
    stage(
        "bootstrap over files",
        lambda: metrics.bootstrap(scores, listed.targets, *sides),
    )
    written = os.path.join(folder, "scores.txt")

    def write():
        with open(written, "w", encoding="utf-8") as file:
            file.writelines(verification.score_lines(listed, scores))

    stage("write the scores", write)
    stage(
        "verify",
        lambda: verification.verify(
            None, list_path, os.path.join(folder, "out"), folder, cache=cache
        ),
    )
    without_as_norm = peak_mb()
    cohort = torch.randn(args.cohort, args.emb_dim)
    stage(
        "as_norm",
        lambda: scoring.normalize(
            scores, *sides, embeddings, cohort, "as_norm", args.top_n
        ),
        1,
    )
    add_floors(args, stages, listed, list_path, embeddings, scores, cache)
    add_floor(
        stages["as_norm"],
        "the matrix product of all utterances and the cohort",
        (lambda: embeddings[:10_000] @ cohort.T, len(embeddings) / 10_000),
    )
    return {
        "settings": vars(args) | {"threads": torch.get_num_threads()},
        "EER": summary["EER"],
        "generated_mb": round(base),
        "peak_mb_without_as_norm": round(without_as_norm),
        "stages": stages,
    }


def add_floors(args, stages, listed, list_path, embeddings, scores, cache):
    """Measures the floors of ``verify`` and its parts."""
    enrol, test = map(torch.from_numpy, (listed.enrol, listed.test))
    group = np.unique(
        [os.path.dirname(name) for name in listed.files], return_inverse=True
    )[1]
    is_target = listed.targets == 1
    columns = [
        listed.enrol[is_target],
        listed.enrol[~is_target],
        listed.test[~is_target],
    ]
    index = dict(zip(listed.files, range(len(listed.files))))
    sides = torch.empty(2, 512, embeddings.shape[1])
    with open(list_path, encoding="utf-8") as file:
        text = file.read()
    where = list_path + ".copy"

    def read():
        with open(list_path, encoding="utf-8") as file:
            fields = file.read().split()
        for column in (fields[1::3], fields[2::3]):
            list(map(index.__getitem__, column))

    def gather():
        for start in range(0, len(enrol), 512):
            for side, rows in zip(sides, (enrol, test)):
                part = rows[start : start + 512]
                torch.index_select(embeddings, 0, part, out=side[: len(part)])

    def sort():
        np.argsort(scores.astype(np.float64))

    def draw(groups_of_columns, groups):
        taken = [np.empty(len(column)) for column in groups_of_columns]

        def once():
            rng = np.random.default_rng(0)
            drawn = rng.integers(0, groups, groups)
            weight = np.bincount(drawn, minlength=groups).astype(float)
            for column, out in zip(groups_of_columns, taken):
                weight.take(column, out=out, mode="clip")

        return once, 200

    def write():
        for score in scores.tolist():
            f"{score:.9g}"
        with open(where, "w", encoding="utf-8") as file:
            file.write(text)

    def look_up():
        for path in cache:
            os.stat(path)
        torch.stack([cache[path].row for path in cache])

    speakers = draw([group[column] for column in columns], group.max() + 1)
    floors = {
        "read the list": (
            "str.split of the file, and a dict look-up of each name",
            (read, 1),
        ),
        "scores": ("copying both embeddings of each trial", (gather, 1)),
        "metrics": (
            "np.argsort of the scores, drawing groups 200 times, and taking "
            "their weights for all trials",
            (sort, 1),
            speakers,
        ),
        "bootstrap over files": (
            "the same over files",
            (sort, 1),
            draw(columns, len(listed.files)),
        ),
        "write the scores": (
            "formatting the numbers, and writing as many bytes",
            (write, 1),
        ),
    }
    for name, floor in floors.items():
        add_floor(stages[name], *floor)
    parts = "read the list", "scores", "metrics", "write the scores"
    known = sum(stages[part]["floor_cpu_seconds"] for part in parts)
    figures = stages["verify"]
    add_floor(
        figures,
        "those of list, scores, metrics and writing; os.stat of each file and "
        "torch.stack of the embeddings",
        (look_up, 1),
    )
    known += figures["floor_cpu_seconds"]
    figures["floor_cpu_seconds"] = round(known, 4)
    figures["times_floor"] = round(figures["cpu_seconds"] / known, 2)


if __name__ == "__main__":
    main()
