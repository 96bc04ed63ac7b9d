"""Measures an exported model on trial lists: EER, minDCF, DET curve.

To run this recipe::

    > python verify.py hparams/verify.yaml --model_folder results/moco/1/model \
        --trials trials.txt

With several lists, normalised against a cohort of unlabelled audio::

    > python verify.py hparams/verify.yaml --model_folder results/moco/1/model \
        --trials "[easy.txt, hard.txt]" --cohort /audio

This is the only step that reads speaker labels. Each list gets a folder in
``<output_folder>`` with metrics.json, scores.txt, embeddings.npy and det.png.
"""

import importlib.util
import logging
import os
import sys

from speechbrain.utils.distributed import infer_device

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.dataio.embedding import embed_files
from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.evaluation.verification import (
    read_trials,
    results_folder,
    trial_paths,
    verify,
)
from speechbrain_ssl.inference import load_encoder
from speechbrain_ssl.options import load_experiment

logger = logging.getLogger(__name__)


def check_lists(lists, data_root, output_folder):
    """Finds mistakes in the lists before anything is computed.

    Arguments
    ---------
    lists : list of str
        The trial lists.
    data_root : str
        Folder that their paths start from, or None.
    output_folder : str
        Where each list gets a folder of its name.

    Raises
    ------
    ValueError
        If a list is wrong, or two lists have the same name.
    FileNotFoundError
        If a list or one of its files is missing.
    """
    folders = {}
    for list_path in lists:
        trial_paths(read_trials(list_path), list_path, data_root)
        folder = results_folder(output_folder, list_path)
        other = folders.setdefault(folder, list_path)
        if other != list_path or lists.count(list_path) > 1:
            raise ValueError(
                f"The results of {other} and {list_path} would both be "
                f"written to {folder}. Rename one of the lists."
            )


def cohort_paths(cohort, cohort_size, data_root):
    """Files of the cohort for AS-norm.

    Arguments
    ---------
    cohort : str
        A folder of audio, or an annotation whose files are used whole.
    cohort_size : int
        Most files to take, evenly spread over the sorted files.
    data_root : str
        What ``$data_root`` stands for in an annotation, or None.

    Returns
    -------
    list of str
        The files.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    """
    if os.path.isdir(cohort):
        files = audio.find_files(cohort)
    elif os.path.isfile(cohort):
        rows = read_annotation(cohort, data_root=data_root)
        files = {rows.row(index)["wav"] for index in range(len(rows))}
    else:
        raise FileNotFoundError(
            f"The cohort {cohort} is neither a folder of audio nor a CSV file."
        )
    files = sorted(files)
    taken = min(cohort_size, len(files))
    return [files[index * len(files) // taken] for index in range(taken)]


def describe(list_path, summary, folder):
    """Two lines on one list, or two for each kind of score.

    Arguments
    ---------
    list_path : str
        The trial list.
    summary : dict
        What ``verify`` returned.
    folder : str
        Where the results are.

    Returns
    -------
    str
        The lines.
    """
    kinds = summary if "raw" in summary else {"raw": summary}
    lines = []
    for kind, found in kinds.items():
        name = os.path.basename(list_path)
        name += "" if kind == "raw" else " with AS-norm"
        lines.append(
            f"{name}: EER {found['EER']:.2f} % (95 % interval "
            f"{found['EER_low']:.2f} to {found['EER_high']:.2f}), minDCF "
            f"{found['minDCF_0.01']:.3f} at p=0.01 and "
            f"{found['minDCF_0.05']:.3f} at p=0.05"
        )
        lines.append(
            f"  {found['trials']} trials ({found['targets']} targets) of "
            f"{found['files']} files; results in {folder}"
        )
    return "\n".join(lines)


def plot(folder):
    """Draws the DET curves of one list, if matplotlib is installed.

    Arguments
    ---------
    folder : str
        Results of ``verify``.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("matplotlib is not installed: no DET curve is drawn.")
        return
    from speechbrain_ssl.report.page import read_scores
    from speechbrain_ssl.report.plots import det_plot

    curves = {}
    for name, file in ("raw", "scores.txt"), ("AS-norm", "scores_as_norm.txt"):
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            trials = read_scores(path)
            points = metrics.error_rates(trials.scores, trials.targets)
            curves[name] = points.false_alarm, points.miss
    det_plot(curves, os.path.join(folder, "det.png"))


def main(argv):
    """Verifies the model on each list; returns the summaries by list."""
    _, run_opts, hparams, _ = load_experiment(argv)
    lists = hparams["trials"]
    lists = [lists] if isinstance(lists, str) else list(lists)
    check_lists(lists, hparams["data_root"], hparams["output_folder"])
    device = run_opts["device"] or infer_device()
    model = load_encoder(hparams["model_folder"], device)
    settings = {
        "sample_rate": model.audio_normalizer.sample_rate,
        "batch_seconds": hparams["batch_seconds"],
        "device": device,
        "progress": not run_opts["noprogressbar"],
    }
    cohort = None
    if hparams["cohort"] is not None:
        paths = cohort_paths(
            hparams["cohort"], hparams["cohort_size"], hparams["data_root"]
        )
        scoring.check_top_n(hparams["top_n"], len(paths))
        cohort = embed_files(model.encode_batch, paths, **settings)
    summaries, cache = {}, {}
    for list_path in lists:
        summaries[list_path] = verify(
            model.encode_batch,
            list_path,
            hparams["output_folder"],
            data_root=hparams["data_root"],
            cohort=cohort,
            top_n=hparams["top_n"],
            cache=cache,
            **settings,
        )
        folder = results_folder(hparams["output_folder"], list_path)
        plot(folder)
        print(describe(list_path, summaries[list_path], folder))
    return summaries


if __name__ == "__main__":
    main(sys.argv[1:])
