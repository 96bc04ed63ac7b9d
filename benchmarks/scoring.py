"""How long scores and metrics take on a list of VoxCeleb1-E's size.

    > python benchmarks/scoring.py --output scoring.json

Embeddings are generated: 580,000 trials over 145,000 utterances of 1,251
speakers. Each figure stands beside a floor, which is measured in the same
process: the time to read the same bytes at the speed of memory, to sort as
many numbers, or to multiply matrices of the same size. Seconds are the best of
``--repeats``, by the clock and of processor time (all threads together), which
a busy machine changes less; peak memory is that of the process and never falls, so that
``peak_mb_added`` is what a stage added to the peak of the stages before it.
"""

import argparse
import json
import resource
import sys
import time

import numpy as np
import torch

from speechbrain_ssl.evaluation import metrics, scoring


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


def floor_of(figures, function, what, share=1.0):
    """Adds the time of the least work that the task needs."""
    _, floor = measure(function, 5)
    least = max(floor["cpu_seconds"] * share, 1e-4)
    figures["floor_cpu_seconds"] = round(least, 4)
    figures["floor"] = what
    figures["times_floor"] = round(figures["cpu_seconds"] / least, 1)


def main(argv=None):
    """Measures all stages and prints one JSON object."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    embeddings, enrol, test, targets, speaker = generate(args)
    base = peak_mb()
    stages = {}

    def stage(name, function):
        result, stages[name] = measure(function, args.repeats)
        return result

    sides = enrol, test
    scores = stage("cosine", lambda: scoring.cosine_scores(embeddings, *sides))
    rate, _ = stage("eer", lambda: metrics.eer(scores, targets))
    stage("min_dcf", lambda: metrics.min_dcf(scores, targets, 0.01))
    stage(
        "bootstrap_200_over_speakers",
        lambda: metrics.bootstrap(
            scores, targets, speaker[enrol], speaker[test]
        ),
    )
    stage(
        "bootstrap_200_over_files",
        lambda: metrics.bootstrap(scores, targets, *sides),
    )
    without_as_norm = peak_mb()
    cohort = torch.randn(args.cohort, args.emb_dim)
    _, stages["as_norm"] = measure(
        lambda: scoring.normalize(
            scores, *sides, embeddings, cohort, "as_norm", args.top_n
        ),
        1,
    )
    add_floors(args, stages, embeddings, cohort, scores)
    parts = "cosine", "eer", "min_dcf", "min_dcf", "bootstrap_200_over_speakers"

    def total(figure):
        return round(sum(stages[part][figure] for part in parts), 3)

    result = {
        "settings": vars(args) | {"threads": torch.get_num_threads()},
        "EER": rate,
        "generated_mb": round(base),
        "peak_mb_without_as_norm": round(without_as_norm),
        "score_and_measure_seconds": total("seconds"),
        "score_and_measure_cpu_seconds": total("cpu_seconds"),
        "stages": stages,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")


def add_floors(args, stages, embeddings, cohort, scores):
    """Measures the floors, after the stages as they need memory too."""
    gathered = 2 * args.trials / args.utterances
    floor_of(
        stages["cosine"],
        lambda: embeddings.sum(),
        "reading both embeddings of each trial in the order of memory",
        share=gathered,
    )
    for name in ("eer", "min_dcf"):
        floor_of(
            stages[name],
            lambda: np.argsort(scores.astype(np.float64)),
            "np.argsort of the scores",
        )
    some = np.random.default_rng(0).random(args.trials)
    for name in ("bootstrap_200_over_speakers", "bootstrap_200_over_files"):
        floor_of(
            stages[name],
            lambda: np.cumsum(some),
            "np.cumsum over the trials, 200 times",
            share=200,
        )
    rows = embeddings[:10_000]
    floor_of(
        stages["as_norm"],
        lambda: rows @ cohort.T,
        "the matrix product of all utterances and the cohort",
        share=args.utterances / len(rows),
    )


if __name__ == "__main__":
    main()
