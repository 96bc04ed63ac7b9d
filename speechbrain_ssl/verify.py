"""Do two recordings have one speaker? ::

    > python -m speechbrain_ssl.verify MODEL_FOLDER a.wav b.wav

prints the cosine of their embeddings, and a decision if the model has a
threshold of its own (``threshold.json``, written where a labelled list was
verified) or one is given.
"""

import argparse
import os
import sys
from typing import NamedTuple

from speechbrain.utils.distributed import infer_device

from speechbrain_ssl.dataio.embedding import EncoderError, embed_files
from speechbrain_ssl.evaluation.scoring import cosine_scores
from speechbrain_ssl.inference import load_encoder, read_threshold


class Verdict(NamedTuple):
    """What a model says of two recordings.

    Arguments
    ---------
    score : float
        Cosine of the embeddings, in [-1, 1].
    threshold : float
        From where on they count as one speaker; None if nobody knows.
    same : bool
        Whether they do; None if nobody knows.
    """

    score: float
    threshold: float | None
    same: bool | None


def verify(model_folder, enrol, test, threshold=None, device=None):
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
        From where on they count as one speaker; None: the model's own.
    device : str
        Where to compute; None: a GPU if there is one.

    Returns
    -------
    Verdict
        Score and decision.

    Raises
    ------
    OSError
        If there is no such model, or a file cannot be read.
    ValueError
        If a file has no audio, or the threshold is no cosine.
    """
    for path in (enrol, test):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file {path}.")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(
            f"The threshold is a cosine, between -1 and 1, not {threshold}."
        )
    device = device or infer_device()
    model = load_encoder(model_folder, device)
    if threshold is None:
        threshold = (read_threshold(model_folder) or {}).get("threshold")
    embeddings = embed_files(
        model.encode_batch,
        [enrol, test],
        model.audio_normalizer.sample_rate,
        device=device,
        progress=False,
    )
    score = float(cosine_scores(embeddings, [0], [1])[0])
    return Verdict(
        score, threshold, None if threshold is None else score >= threshold
    )


def main(argv=None):
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
    try:
        found = verify(**vars(parser.parse_args(argv)))
    except (OSError, ValueError, EncoderError) as error:
        sys.exit(f"verify: {error}")
    print(f"score {found.score:.4f}")
    if found.same is None:
        print(
            "no decision: this model has no threshold.json. Verify it on a "
            "labelled list, or give a --threshold."
        )
    else:
        verdict = "same speaker" if found.same else "different speakers"
        print(f"{verdict} (threshold {found.threshold:.4f})")


if __name__ == "__main__":
    main()
