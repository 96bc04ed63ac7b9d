"""Ranks exported models on unlabelled audio, without any label::

    > speechbrain-ssl selfcheck MODEL [MODEL ...] AUDIO

``AUDIO`` is a folder (with all folders in it), a text file with one path per
line, or an annotation (CSV with ID, duration, wav, start, stop). Use audio that
no model was trained on, from where the models will be used. The best model is
printed first: the one with the lowest cross-entropy of "same utterance"
against other utterances, one side of each trial in another channel. Compare figures of
the same audio and settings only.

``--set_threshold`` writes the threshold of each model into its folder, with the
promised rate of false acceptances, unless a labelled list has given one.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.card import set_label_free_threshold
from speechbrain_ssl.dataio.listing import find_utterances
from speechbrain_ssl.evaluation.selfcheck import SelfCheck
from speechbrain_ssl.files import write_json
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder
from speechbrain_ssl.nnet.onnx_encoder import is_onnx

COLUMNS = {
    "cross_entropy": "{:.4f}",
    "EER": "{:.2f}",
    "interval": "{}",
    "effective_rank": "{:.1f}",
    "agreement": "{:.3f}",
    "threshold": "{:.4f}",
    "threshold_augmented": "{:.4f}",
}


def selfcheck(
    model_folders: Sequence[str],
    source: str,
    data_root: str | None = None,
    device: str | None = None,
    trust: Sequence[str] = (),
    **settings: Any,
) -> dict[str, dict]:
    """Measures exported models without labels.

    ``source`` is a folder of audio, a list of paths or an annotation with
    ``data_root``; ``settings`` are those of ``SelfCheck``. Gives what it finds
    by model folder, the best model first.
    """
    device = device or infer_device()
    # all of them first: a wrong name shows before anything is measured
    models = {
        path: load_encoder(path, device, trust)
        for path in dict.fromkeys(model_folders)
    }
    with tempfile.TemporaryDirectory() as folder:
        utterances = find_utterances(source, folder, data_root)
    checks, found = {}, {}
    for path, model in models.items():
        rate = model.audio_normalizer.sample_rate
        if rate not in checks:
            checks[rate] = SelfCheck(utterances, rate, **settings)
        found[path] = checks[rate](model.encode_batch, device)
    order = sorted(found, key=lambda path: found[path]["cross_entropy"])
    return {path: found[path] for path in order}


def table(found: dict[str, dict]) -> str:
    """The figures of models, from ``selfcheck``, as lines of text."""
    lines = [[name.replace("_", " ") for name in COLUMNS] + ["model"]]
    for path, figures in found.items():
        values = {
            **figures,
            "interval": "{EER_low:.1f}-{EER_high:.1f}".format(**figures),
        }
        cells = [
            "-" if values[name] is None else form.format(values[name])
            for name, form in COLUMNS.items()
        ]
        lines.append([*cells, path])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines
    )


def main(argv: list[str] | None = None) -> None:
    """The command line of ``selfcheck``."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folders", metavar="MODEL", nargs="+")
    parser.add_argument("source", metavar="AUDIO")
    parser.add_argument("--data_root", help="for $data_root in a CSV")
    parser.add_argument("--count", type=int, default=300, help="utterances")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a part")
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--noise_folder", help="default: generated noise")
    parser.add_argument("--rir_folder", help="default: simulated RIRs")
    parser.add_argument(
        "--false_acceptance",
        type=float,
        default=0.01,
        help="promised rate of the thresholds",
    )
    parser.add_argument(
        "--same_speaker",
        type=float,
        default=0.0,
        help="largest share of pairs of files that may be of one speaker",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--set_threshold", action="store_true")
    parser.add_argument("--device")
    add_trust(parser)
    args = vars(parser.parse_args(argv))
    output, is_set = args.pop("output"), args.pop("set_threshold")
    with one_line("selfcheck"):
        for path in args["model_folders"] if is_set else ():
            if hub.is_name(path) or is_onnx(path):
                raise ValueError(
                    f"--set_threshold writes into the folder of the model, but "
                    f"{path} is no local folder. Leave --set_threshold out."
                )
            if os.path.isdir(path) and not os.access(path, os.W_OK):
                raise PermissionError(
                    f"--set_threshold writes into the folder of the model, but "
                    f"{path} is read-only. Leave --set_threshold out, or copy "
                    "the model."
                )
        found = selfcheck(**args)
        if output:
            write_json(output, found)
        if is_set:
            for path, figures in found.items():
                set_label_free_threshold(
                    path,
                    figures,
                    os.path.basename(os.path.abspath(args["source"])),
                )
    print(table(found))
