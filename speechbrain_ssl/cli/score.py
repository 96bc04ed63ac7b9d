"""Compares recordings: are they of the same speaker? ::

    > speechbrain-ssl score MODEL_FOLDER a.wav b.wav
    > speechbrain-ssl score MODEL_FOLDER --pairs pairs.txt --output scores.csv

The first command prints the cosine of two embeddings. The second one scores
each line ``enrol test`` of a file (any layout of a trial list; labels are not
used) and embeds each file once. Its output has the columns ``enrol, test,
score, same, reason``; the reason says why a pair has no score. Paths start from
``--data_root`` or, without it, from the folder of the list or the one above it.

There is a decision if a threshold is given or the model has one: the recipe's
verify.py writes ``threshold.json`` into the model's folder when it verifies a
labelled trial list.
"""

import contextlib
import csv
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.card import read_threshold
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.embedding import (
    EncoderError,
    FileEmbeddings,
    try_files,
)
from speechbrain_ssl.evaluation.scoring import cosine_scores, model_of
from speechbrain_ssl.evaluation.trials import (
    parts_of,
    read_models,
    read_trials,
    trial_paths,
)
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder
from speechbrain_ssl.nnet.onnx_encoder import OnnxEncoder


class Verdict(NamedTuple):
    """Score of two recordings, and the decision."""

    score: float  # cosine of the embeddings, in [-1, 1]
    # lowest cosine that counts as the same speaker; None if unknown
    threshold: float | None
    same: bool | None  # whether the speaker is; None without a threshold
    notes: list[str]  # whether files are long or have digital silence


class Pair(NamedTuple):
    """Score of a line of a list of pairs."""

    enrol: str  # the names in the list
    test: str
    score: float | None  # cosine; None if a file cannot be embedded
    same: bool | None  # None without threshold or score
    reason: str  # why there is no score, or an empty string


def verify(
    model_folder: str,
    enrol: str,
    test: str,
    threshold: float | None = None,
    device: str | None = None,
    trust: Sequence[str] = (),
) -> Verdict:
    """Compares two recordings of any rate and number of channels.

    ``threshold`` is the lowest cosine that counts as the same speaker, None:
    the model's own. ``device`` None is a GPU if there is one; ``trust`` is that
    of ``load_encoder``. A file that cannot be read, is empty or is digital
    silence is an error; EncoderError if the encoder fails on it.
    """
    model_folder = hub.local_folder(model_folder)
    model = load_encoder(model_folder, device or infer_device(), trust)
    threshold = threshold_of(model_folder, model, threshold)
    found = embed_paths(model, [enrol, test])
    score = float(cosine_scores(found.rows, [0], [1])[0])
    same = None if threshold is None else score >= threshold
    return Verdict(score, threshold, same, found.notes())


def embed_paths(
    model: EncoderClassifier | OnnxEncoder, paths: Sequence[str]
) -> FileEmbeddings:
    """Embeds files by a loaded model; one that cannot be is an error."""
    for path in paths:
        if not audio.is_file(path):
            raise FileNotFoundError(f"There is no file {path}.")
    return try_files(
        model.encode_batch,
        paths,
        model.audio_normalizer.sample_rate,
        device=model.device,
        progress=False,
        strict=True,
    )


def score_pairs(
    model_folder: str,
    pairs: str,
    data_root: str | None = None,
    enrolment: str | Sequence[str] | None = None,
    threshold: float | None = None,
    batch_seconds: float = 120.0,
    device: str | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
) -> list[Pair]:
    """Scores a file of pairs, in the order of the file.

    ``pairs`` is a list in a layout of ``speechbrain_ssl.evaluation.trials``,
    whose paths start from ``data_root``, see ``trial_paths``. ``enrolment`` are
    map files for names that stand for several files, see ``read_models``.
    ``batch_seconds`` is the upper bound of the audio in a batch. The other
    arguments are those of ``verify``.
    """
    model_folder = hub.local_folder(model_folder)
    models = None if enrolment is None else read_models(enrolment)
    trials = read_trials(pairs, need_both=False)
    paths = trial_paths(trials, pairs, data_root, models)
    device = device or infer_device()
    model = load_encoder(model_folder, device, trust)
    threshold = threshold_of(model_folder, model, threshold)
    found = try_files(
        model.encode_batch,
        paths,
        model.audio_normalizer.sample_rate,
        batch_seconds,
        device,
        progress,
    )
    parts = parts_of(trials, models)
    rows = {f: n for n, f in enumerate(sorted({f for p in parts for f in p}))}
    # ones stand for what cannot be embedded, and has no score
    embeddings = torch.ones(len(parts), max(found.rows.shape[1], 1))
    reasons = [""] * len(parts)
    for place, own in enumerate(parts):
        numbers = [rows[file] for file in own]
        failed = [found.failed[n] for n in numbers if n in found.failed]
        if failed:
            reasons[place] = str(failed[0])
        else:
            embeddings[place] = model_of(found.rows[numbers])
    scores = cosine_scores(embeddings, trials.enrol, trials.test).tolist()
    scored = []
    for a, b, score in zip(trials.enrol, trials.test, scores):
        reason, same = reasons[a] or reasons[b], None
        if threshold is not None and not reason:
            same = score >= threshold
        names = trials.files[a], trials.files[b]
        scored.append(Pair(*names, None if reason else score, same, reason))
    return scored


def threshold_of(
    model_folder: str,
    model: EncoderClassifier | OnnxEncoder,
    threshold: float | None = None,
) -> float | None:
    """The threshold that decides: the given one, else that of the model.

    It is in the folder, or in the metadata of an ONNX file; ``model`` was
    loaded from there. None if none is given and the model has none.
    """
    if threshold is None and isinstance(model, OnnxEncoder):
        return model.threshold
    if threshold is None:
        return (read_threshold(model_folder) or {}).get("threshold")
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"The threshold is a cosine, between -1 and 1, not {threshold}."
        )
    return threshold


def decision(score: float, threshold: float) -> str:
    """The decision about two recordings in words."""
    is_same = score >= threshold
    word = "same speaker" if is_same else "different speakers"
    return f"{word} (threshold {threshold:.4f})"


def main(argv: list[str] | None = None) -> None:
    """The command line of ``verify`` and ``score_pairs``."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folder")
    parser.add_argument("enrol", metavar="a.wav", nargs="?")
    parser.add_argument("test", metavar="b.wav", nargs="?")
    parser.add_argument("--pairs", help="file with lines `enrol test`")
    parser.add_argument("--output", help="CSV of --pairs; else it is printed")
    parser.add_argument("--data_root", help="folder of the files of --pairs")
    parser.add_argument(
        "--enrolment", nargs="+", help="map files for --pairs, see verify.yaml"
    )
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--device")
    add_trust(parser)
    args = vars(parser.parse_args(argv))
    output = args.pop("output")
    of_list = [args.pop(name) for name in ("pairs", "data_root", "enrolment")]
    if of_list[0] is None and (any(of_list) or output):
        parser.error("--data_root, --enrolment and --output need --pairs")
    files = [name for name in ("enrol", "test") if args[name] is not None]
    if len(files) != (2 if of_list[0] is None else 0):
        parser.error("give two files, or --pairs FILE")
    with one_line("score", EncoderError):
        if of_list[0] is None:
            _print_verdict(verify(**args), args["model_folder"])
        else:
            del args["enrol"], args["test"]
            found = score_pairs(args.pop("model_folder"), *of_list, **args)
            _write_pairs(found, output)


def _print_verdict(found, model_folder):
    """Score and decision of two files."""
    print(*found.notes, f"score {found.score:.4f}", sep="\n")
    if found.threshold is None:
        print(
            "no decision: this model has no threshold.json. To measure one on "
            "a labelled trial list, run `python -m speechbrain_ssl verify "
            f"--model_folder {shlex.quote(model_folder)} --trials LIST`; or "
            "give a --threshold."
        )
    else:
        print(decision(found.score, found.threshold))


def _write_pairs(found, output):
    """Writes the CSV of a list of pairs, and counts those without a score."""
    is_file = output is not None
    out = write_whole(output) if is_file else contextlib.nullcontext(sys.stdout)
    with out as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Pair._fields)
        for pair in found:
            score = "" if pair.score is None else f"{pair.score:.6f}"
            same = "" if pair.same is None else int(pair.same)
            writer.writerow([*pair[:2], score, same, pair.reason])
    lost = sum(pair.score is None for pair in found)
    if is_file:
        print(f"{len(found)} pairs in {output}")
    if lost:
        print(f"{lost} pairs have no score, see reason", file=sys.stderr)
