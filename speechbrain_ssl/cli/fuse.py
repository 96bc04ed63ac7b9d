"""Fuses the scores of several models by logistic regression::

    > speechbrain-ssl fuse --calibration A/dev/scores.txt B/dev/scores.txt \\
        --scores A/test/scores.txt B/test/scores.txt --output_folder fused

``A`` and ``B`` are output folders of verify.py for two models, on the lists
dev and test; any file of scores that it wrote will do (AS-norm, PLDA, ...).
The weights are learned on the labels of the calibration list, which must have
other speakers than the list that is scored. The output folder gets
``scores.txt`` (log-likelihood ratios) and ``metrics.json``: weights, offset,
label use and, if the list has labels, error rates of each model and fused.
"""

import logging
import os
from collections.abc import Sequence

from speechbrain_ssl.evaluation.fusion import Fusion, pairs_of, read_same
from speechbrain_ssl.evaluation.verification import score_lines, summarize
from speechbrain_ssl.files import write_json, write_whole
from speechbrain_ssl.help import command_parser, one_line

logger = logging.getLogger(__name__)


def fuse(
    calibration: Sequence[str],
    scores: Sequence[str],
    output_folder: str = "fused",
) -> dict:
    """Fuses scores; the module's docstring has the files.

    ``calibration`` are scores of a labelled list, a file for each model,
    ``scores`` those of the list to fuse, of the same models in the same order.
    Gives the content of ``metrics.json``.
    """
    if len(calibration) != len(scores) or len(scores) < 2:
        raise ValueError(
            "Fusion needs scores of two models or more, for both lists in the "
            f"same order; found {len(calibration)} files of the calibration "
            f"list and {len(scores)} of the list to fuse."
        )
    known, known_scores = read_same(calibration)
    if known.targets is None:
        raise ValueError(
            f"{calibration[0]} has no labels. Fusion learns from the labels "
            "of the calibration list."
        )
    trials, own = read_same(scores)
    pairs = pairs_of(trials)
    shared = len(pairs & pairs_of(known))
    if shared == len(pairs):
        raise ValueError(
            f"All trials of {scores[0]} are in the calibration list: their "
            "error rates would be those of training data. Give another "
            "calibration list."
        )
    if shared:
        logger.warning(
            "%d of %d trials are in the calibration list too.",
            shared,
            len(pairs),
        )
    fusion = Fusion().fit(known_scores, known.targets)
    fused = fusion(own)
    label_use = (
        f"The labels of the calibration list ({len(known.targets)} trials, "
        f"{calibration[0]}) were used to learn {len(scores)} weights and an "
        "offset. Labels of the fused list, if any, were used to measure only."
    )
    found = {
        "fused": summarize(fused, trials, are_llrs=True),
        "models": [
            {"scores": path, "weight": float(weight), **summarize(row, trials)}
            for path, weight, row in zip(scores, fusion.weights, own.T)
        ],
        "offset": fusion.offset,
        "calibration": list(calibration),
        "shared_trials": shared,
        "label_use": label_use,
    }
    with write_whole(os.path.join(output_folder, "scores.txt")) as file:
        file.writelines(score_lines(trials, fused))
    write_json(os.path.join(output_folder, "metrics.json"), found)
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line of ``fuse``."""
    parser = command_parser(__doc__)
    for name in ("calibration", "scores"):
        parser.add_argument(
            f"--{name}", nargs="+", required=True, metavar="FILE"
        )
    parser.add_argument("--output_folder", default="fused")
    args = parser.parse_args(argv)
    with one_line("fuse"):
        found = fuse(**vars(args))
    for own in found["models"]:
        print(f"{own['scores']}: weight {own['weight']:.3f}{_rates(own)}")
    print(f"fused, offset {found['offset']:.3f}{_rates(found['fused'])}")
    print(found["label_use"])


def _rates(summary):
    """Error rates of a list with labels, for a line of output."""
    if summary["EER"] is None:
        return ""
    cllr = f", Cllr {summary['Cllr']:.3f}" if "Cllr" in summary else ""
    return (
        f": EER {summary['EER']:.2f} %, minDCF "
        f"{summary['minDCF_0.01']:.3f} at p=0.01{cllr}"
    )
