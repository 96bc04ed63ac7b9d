"""Finds the enrolled speaker of recordings::

    > speechbrain-ssl identify SPEAKERS unknown.wav [--threshold 0.4] [--top 5]

``SPEAKERS`` is a folder that ``speechbrain-ssl enrol`` wrote. The score of a
speaker is the cosine with the mean of the speaker's embeddings of length 1. The
speaker with the highest score is named if the score reaches the threshold:
the given one, or that of the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.cli.enrol import model_of_database, speakers_of
from speechbrain_ssl.cli.score import embed_paths, threshold_of
from speechbrain_ssl.dataio.embedding import EncoderError
from speechbrain_ssl.evaluation.scoring import model_of, unit
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder


class Identification(NamedTuple):
    """The speaker of a recording."""

    file: str
    # that of the highest score, if it reaches the threshold; otherwise, and
    # without a threshold, None
    speaker: str | None
    scores: dict[str, float]  # cosines with each speaker, the highest first
    threshold: float | None  # lowest cosine that names one; None if unknown


def identify(
    database: str,
    files: str | Sequence[str],
    threshold: float | None = None,
    model: str | None = None,
    device: str | None = None,
    trust: Sequence[str] = (),
) -> list[Identification]:
    """Finds the enrolled speaker of each recording, in the order of the files.

    ``database`` is a folder that ``enrol`` wrote; each recording is of one
    speaker. ``threshold`` is the lowest cosine that names a speaker, None: the
    model's own. ``model`` is the model's folder, if it was moved; ``device``
    and ``trust`` are as for ``verify``.
    """
    files = [files] if isinstance(files, str) else list(files)
    model = model_of_database(database, model)
    folder = hub.local_folder(model)
    encoder = load_encoder(folder, device or infer_device(), trust)
    threshold = threshold_of(folder, encoder, threshold)
    speakers = speakers_of(database)
    models = torch.stack([model_of(rows) for rows in speakers.values()])
    rows = embed_paths(encoder, files).rows
    if models.shape[1] != rows.shape[1]:
        raise ValueError(
            f"The speakers in {database} have embeddings of "
            f"{models.shape[1]} dimensions, the model {rows.shape[1]}."
        )
    cosines = unit(rows) @ unit(models).T
    found = []
    for file, row in zip(files, cosines.tolist()):
        order = sorted(zip(speakers, row), key=lambda pair: -pair[1])
        best, score = order[0]
        is_known = threshold is not None and score >= threshold
        scores, speaker = dict(order), best if is_known else None
        found.append(Identification(file, speaker, scores, threshold))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line of ``identify``."""
    parser = command_parser(__doc__)
    parser.add_argument("database", metavar="SPEAKERS")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--threshold", type=float)
    parser.add_argument(
        "--top", type=int, default=3, help="speakers to print for each file"
    )
    parser.add_argument("--model", help="the model's folder, if it was moved")
    parser.add_argument("--device")
    add_trust(parser)
    args = vars(parser.parse_args(argv))
    top = max(args.pop("top"), 1)
    with one_line("identify", EncoderError):
        found = identify(**args)
    for own in found:
        if own.threshold is None:
            verdict = "no decision (no threshold)"
        else:
            verdict = own.speaker or "unknown"
            verdict = f"{verdict} (threshold {own.threshold:.4f})"
        nearest = list(own.scores.items())[:top]
        scores = ", ".join(f"{name} {score:.4f}" for name, score in nearest)
        print(f"{own.file}: {verdict}; {scores}")
    if found[0].threshold is None:
        print(
            "The model has no threshold.json: verify it on a labelled list "
            "(speechbrain-ssl verify), or give a --threshold."
        )
