"""Compares two recordings: are they of the same speaker? ::

    > speechbrain-ssl score MODEL_FOLDER a.wav b.wav

prints the cosine of their embeddings, and a decision if a threshold is given or
the model has one: the recipe's verify.py writes ``threshold.json`` into the
model's folder when it verifies a labelled trial list.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.card import read_threshold
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.embedding import EncoderError, describe, try_files
from speechbrain_ssl.evaluation.scoring import cosine_scores
from speechbrain_ssl.loading import add_trust, load_encoder


class Verdict(NamedTuple):
    """Score of two recordings, and the decision.

    Arguments
    ---------
    score : float
        Cosine of the embeddings, in [-1, 1].
    threshold : float
        Lowest cosine that counts as the same speaker; None if unknown.
    same : bool
        Whether the speaker is the same; None without a threshold.
    notes : list of str
        Whether files are long or have digital silence.
    """

    score: float
    threshold: float | None
    same: bool | None
    notes: list[str]


def verify(
    model_folder: str,
    enrol: str,
    test: str,
    threshold: float | None = None,
    device: str | None = None,
    trust: Sequence[str] = (),
) -> Verdict:
    """Compares two recordings.

    Arguments
    ---------
    model_folder : str
        An exported folder.
    enrol : str
        A file of audio, of any rate and number of channels.
    test : str
        Another one.
    threshold : float
        Lowest cosine that counts as the same speaker; None: the model's own.
    device : str
        Where to compute; None: a GPU if there is one.
    trust : list of str
        Modules or classes that the model's YAML may name, see
        ``load_encoder``.

    Returns
    -------
    Verdict
        Score and decision.

    Raises
    ------
    OSError
        If there is no such model, or a file cannot be read.
    ValueError
        If a file is empty or digital silence, or the threshold is no cosine.
    EncoderError
        If the encoder fails on a file.
    """
    for path in (enrol, test):
        if not audio.is_file(path):
            raise FileNotFoundError(f"There is no file {path}.")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(
            f"The threshold is a cosine, between -1 and 1, not {threshold}."
        )
    device = device or infer_device()
    model_folder = hub.local_folder(model_folder)
    model = load_encoder(model_folder, device, trust)
    if threshold is None:
        threshold = (read_threshold(model_folder) or {}).get("threshold")
    found = try_files(
        model.encode_batch,
        [enrol, test],
        model.audio_normalizer.sample_rate,
        device=device,
        progress=False,
        strict=True,
    )
    score = float(cosine_scores(found.rows, [0], [1])[0])
    silence = found.silence.values()
    notes = describe(len(found.windowed), len(silence), sum(silence))
    same = None if threshold is None else score >= threshold
    return Verdict(score, threshold, same, notes)


def main(argv: list[str] | None = None) -> None:
    """The command line of ``verify``.

    Arguments
    ---------
    argv : list of str
        ``sys.argv[1:]`` by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_folder")
    parser.add_argument("enrol", metavar="a.wav")
    parser.add_argument("test", metavar="b.wav")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--device")
    add_trust(parser)
    args = parser.parse_args(argv)
    try:
        found = verify(**vars(args))
    except (ImportError, OSError, ValueError, EncoderError) as error:
        sys.exit(f"score: {error}")
    print(*found.notes, f"score {found.score:.4f}", sep="\n")
    if found.same is None:
        print(
            "no decision: this model has no threshold.json. To measure one on "
            "a labelled trial list, run `python -m speechbrain_ssl verify "
            f"--model_folder {args.model_folder} --trials LIST`; or give a "
            "--threshold."
        )
    else:
        verdict = "same speaker" if found.same else "different speakers"
        print(f"{verdict} (threshold {found.threshold:.4f})")
