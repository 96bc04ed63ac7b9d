"""Holds the self-check without labels against true error rates.

    > python benchmarks/selfcheck.py MODEL [MODEL ...] \
        --audio train=SPEECH/train \
        --trials SPEECH/trials/wild.txt SPEECH/trials/clean.txt [--derived]
    > python benchmarks/selfcheck.py --models models.txt --audio ...

Prints Markdown: the figures of each model; for each audio and trial list, the
Spearman correlation of cross-entropy and EER of the self-check with the true
EER, and the regret (how much worse the chosen model is than the best one); the
true rate of false acceptances at the label-free thresholds, beside the promised
one. **The labels of the trial lists are used for this report only.**

``--derived`` adds encoders made of each model by a fixed map of its embeddings
that is found on the unlabelled audio (principal components kept or left out,
whitening, random projection) or by appending statistics of MFCCs, which describe
the channel. They differ in what they listen to, and cost no training.

Embeddings are kept in ``--output_folder`` and not computed again, so that the
command can be stopped, and called with more models.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from speechbrain_ssl.dataio.listing import find_utterances
from speechbrain_ssl.evaluation import metrics
from speechbrain_ssl.evaluation.scoring import cosine_scores
from speechbrain_ssl.evaluation.selfcheck import SelfCheck, measure
from speechbrain_ssl.evaluation.trials import read_trials
from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.pseudo_labels.statistics import NAME, MFCCStatistics

# sides of a trial: both as recorded, or one in another channel
THRESHOLDS = {
    "threshold": "as recorded",
    "threshold_augmented": "another channel",
}
KEPT, LEFT_OUT, PROJECTED = (8, 24), (3, 12), 12
SHARES = (0.3, 0.6, 1.0)  # of MFCC statistics, to an embedding of length 1


class Encoder(NamedTuple):
    """Embeddings of an encoder, by name of the audio and of the trial list."""

    name: str
    parts: dict[str, tuple[np.ndarray, np.ndarray]]  # as recorded, augmented
    lists: dict[str, np.ndarray]  # one row for each file of the list


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", metavar="MODEL", nargs="*")
    parser.add_argument("--models", dest="listed", help="a path per line")
    parser.add_argument("--audio", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--trials", nargs="+", required=True)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/selfcheck"
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--derived", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="of the encoders")
    return parser.parse_args()


def name_of(path):
    """A short name for a model folder: that of its run."""
    parts = [part for part in pathlib.Path(path).parts if part != "model"]
    return "_".join(parts[-2:]).lstrip("/_")


class Embedder:
    """An encoder that is loaded when it is needed."""

    def __init__(self, path, is_bf16):
        self.path, self.is_bf16, self.model = path, is_bf16, None

    def __call__(self, wavs, lengths):
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16),
        ):
            return self._loaded()(wavs, lengths).float()

    def _loaded(self):
        if self.model is None:
            if self.path == NAME:
                self.model = MFCCStatistics().eval()
            else:
                self.model = load_encoder(self.path).encode_batch
        return self.model


def checks_of(args):
    """Makes the self-check of an audio when it is needed."""
    made = {}

    def get(name, source):
        if name not in made:
            with tempfile.TemporaryDirectory() as listing:
                utterances = find_utterances(source, listing)
            made[name] = SelfCheck(
                utterances, count=args.count, copies=args.copies
            )
        return made[name]

    return get


def embed(path, args, checks):
    """Embeddings of a model: those that are kept, and those that are missing."""
    folder = args.output_folder / name_of(path)
    encoder, cache, parts, hard, lists = (
        Embedder(path, args.bf16),
        {},
        {},
        {},
        {},
    )
    for entry in args.audio:
        name, _, source = entry.partition("=")
        kept = folder / f"parts_{name}.npz"
        if not kept.exists():
            check = checks(name, source)
            clean, augmented = check.embed(encoder)
            with write_whole(kept, "wb") as file:
                np.savez(
                    file, clean=clean, augmented=augmented, hard=check.hard
                )
        found = np.load(kept)
        parts[name] = found["clean"], found["augmented"]
        hard[name] = found["hard"]
    for trials in args.trials:
        place = folder / pathlib.Path(trials).stem
        if not (place / "metrics.json").exists():
            verify(encoder, trials, str(folder), cache=cache, progress=False)
        lists[place.name] = np.load(place / "embeddings.npy")
    return Encoder(name_of(path), parts, lists), hard


def changed(encoder, name, function):
    """The encoder with a function of its embeddings."""
    return Encoder(
        f"{encoder.name} {name}",
        {
            audio: tuple(function(rows) for rows in pair)
            for audio, pair in encoder.parts.items()
        },
        {trials: function(rows) for trials, rows in encoder.lists.items()},
    )


def derived(encoder, mfcc):
    """Encoders that differ from one in what they listen to."""
    audio = next(iter(encoder.parts))
    rows = encoder.parts[audio][0]
    rows = rows.reshape(-1, rows.shape[-1])
    mean = rows.mean(0)
    variances, axes = np.linalg.eigh(np.cov((rows - mean).T))
    variances, axes = variances[::-1], axes[:, ::-1]
    for count in KEPT:
        part = axes[:, :count]
        yield changed(
            encoder, f"kept {count}", lambda x, p=part: (x - mean) @ p
        )
    for count in LEFT_OUT:
        part = axes[:, count:]
        yield changed(
            encoder, f"left out {count}", lambda x, p=part: (x - mean) @ p
        )
    scale = (variances + 0.05 * variances.mean()) ** -0.5
    yield changed(encoder, "whitened", lambda x: (x - mean) @ axes * scale)
    rng = np.random.default_rng(0)
    part = rng.standard_normal((rows.shape[1], PROJECTED))
    yield changed(encoder, f"projected {PROJECTED}", lambda x: x @ part)
    if mfcc is None:
        return
    size = np.linalg.norm(mfcc.parts[audio][0], axis=-1).mean()

    def beside(one, other, share):
        length = np.linalg.norm(one, axis=-1, keepdims=True)
        return np.concatenate([one / length, share * other / size], axis=-1)

    for share in SHARES:
        yield Encoder(
            f"{encoder.name} + {share} MFCC",
            {
                name: tuple(
                    beside(one, other, share)
                    for one, other in zip(pair, mfcc.parts[name])
                )
                for name, pair in encoder.parts.items()
            },
            {
                name: beside(rows, mfcc.lists[name], share)
                for name, rows in encoder.lists.items()
            },
        )


def standardized(mfcc):
    """MFCC statistics at unit variance over the unlabelled audio."""
    rows = next(iter(mfcc.parts.values()))[0]
    rows = rows.reshape(-1, rows.shape[-1])
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    return changed(mfcc, "", lambda x: (x - mean) / scale)._replace(name=NAME)


def figures_of(encoder, hard, lists):
    """Self-checks, true EER, and the scores of non-target trials."""
    checks = {
        name: measure(*pair, hard[name]) for name, pair in encoder.parts.items()
    }
    rates, strangers = {}, {}
    for name, trials in lists.items():
        scores = cosine_scores(encoder.lists[name], trials.enrol, trials.test)
        rates[name] = 100 * metrics.eer(scores, trials.targets)[0]
        strangers[name] = scores[trials.targets == 0]
    return {"checks": checks, "EER": rates, "strangers": strangers}


def print_table(heads, rows):
    """Prints a Markdown table."""
    for row in [heads, ["---"] * len(heads), *rows]:
        print(f"| {' | '.join(map(str, row))} |")
    print()


def report(found):
    """Prints all tables.

    Arguments
    ---------
    found : dict
        From ``figures_of``, by name of the encoder.
    """
    first = next(iter(found.values()))
    audios, lists = list(first["checks"]), list(first["EER"])
    ordered = sorted(found.items(), key=lambda item: item[1]["EER"][lists[0]])
    heads = ["encoder", *(f"{name} EER %" for name in lists)]
    heads += [f"self-check, {name}: bits, EER %" for name in audios]
    rows = []
    for name, figures in ordered:
        cells = [f"{rate:.1f}" for rate in figures["EER"].values()]
        cells += [
            f"{check['cross_entropy']:.3f}, {check['EER']:.1f}"
            for check in figures["checks"].values()
        ]
        rows.append([name, *cells])
    print_table(heads, rows)
    heads = ["self-check on", "trial list", "encoders", "Spearman: bits", "EER"]
    heads += ["regret in points: bits", "EER"]
    rows = []
    for audio in audios:
        for trials in lists:
            true = [figures["EER"][trials] for figures in found.values()]
            correlations, regrets = [], []
            for key in ("cross_entropy", "EER"):
                mine = [f["checks"][audio][key] for f in found.values()]
                correlations.append(f"{spearmanr(mine, true).statistic:.2f}")
                regrets.append(f"{true[int(np.argmin(mine))] - min(true):.1f}")
            rows.append([audio, trials, len(true), *correlations, *regrets])
    print_table(heads, rows)
    heads = ["threshold of", "for trials", "trial list", "promised"]
    heads += ["true: median", "lowest, highest", "within a factor of two"]
    rows = []
    for audio in audios:
        for kind, words in THRESHOLDS.items():
            for trials in lists:
                rates = [
                    float(
                        np.mean(
                            figures["strangers"][trials]
                            >= figures["checks"][audio][kind]
                        )
                    )
                    for figures in found.values()
                ]
                promised = first["checks"][audio]["false_acceptance"]
                near = [promised / 2 <= rate <= 2 * promised for rate in rates]
                cells = [
                    f"{100 * promised:.3g} %",
                    f"{100 * statistics.median(rates):.2g} %",
                    f"{100 * min(rates):.2g}, {100 * max(rates):.2g} %",
                    f"{sum(near)} of {len(near)}",
                ]
                rows.append([audio, words, trials, *cells])
    print_table(heads, rows)


def main():
    """Embeds what is missing, and prints the report."""
    args = parse_arguments()
    models = list(args.models)
    if args.listed:
        lines = pathlib.Path(args.listed).read_text().splitlines()
        models += [line.strip() for line in lines if line.strip()]
    lists = {
        pathlib.Path(path).stem: read_trials(path, need_labels=True)
        for path in args.trials
    }
    checks, found, mfcc = checks_of(args), {}, None
    if args.derived:
        mfcc = standardized(embed(NAME, args, checks)[0])
    for number, path in enumerate(dict.fromkeys(models), 1):
        print(f"{number} of {len(models)}: {path}", file=sys.stderr, flush=True)
        encoder, hard = embed(path, args, checks)
        found[encoder.name] = figures_of(encoder, hard, lists)
        for other in derived(encoder, mfcc) if args.derived else ():
            found[other.name] = figures_of(other, hard, lists)
    report(found)


if __name__ == "__main__":
    main()
