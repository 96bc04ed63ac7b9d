r"""Trains a speaker encoder on speaker labels: baseline, upper bound, last step.

This is the only training here that reads speaker labels, and the models that
come of it say so. From random weights, or from those of a model trained
without labels, on all labels or on those of a share of the speakers::

    > python train_supervised.py hparams/train_supervised.yaml \
        --data_folder /audio --speakers speakers.csv \
        --label_share 0.25 --init_from results/moco/1/model

``labels`` in the output folder has the labels that were used.
"""

import logging
import os
import sys

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

import numpy as np
import train_pseudo_labels
from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.files import hash_of, read_json, refuse_changes
from speechbrain_ssl.options import OptionsError, load_experiment
from speechbrain_ssl.pseudo_labels.labels import (
    CSV_NAME,
    REPORT_NAME,
    read_labels,
    read_truth,
    write_labels,
)
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script
from train_ssl import is_resumed

import speechbrain as sb

logger = logging.getLogger(__name__)

# SpeechBrain's checks look for every key of a YAML in the script beside it.
# train_pseudo_labels.py reads hparams["batch_size"], ["num_workers"],
# ["view_sampler"], ["classifier"], ["centroid_start"], ["loss"], ["gate"],
# ["write_corrected"], ["opt_class"], ["learning_rates"], ["checkpointer"] and
# ["select_by"]; train_ssl.py and the brain ["reference_batch"], ["lr_for"],
# ["decay_vectors"], ["parameter_options"], ["lr_schedule"], ["frozen_epochs"],
# ["clip_each_tensor"], ["dev_trials"], ["dev_every"], ["checkpoints_to_keep"],
# ["average_last"] and ["train_loggers"].

# Python looks where this file is. A link to it in another recipe has that
# recipe's preparation beside it.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def label_speakers(hparams):
    """Writes the labels that training may know, unless they are there.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Raises
    ------
    OptionsError
        If ``label_share`` leaves fewer than two speakers, or the run was begun
        with other labels.
    """
    folder = os.path.dirname(hparams["pseudo_labels"])
    utterances = read_annotation(
        hparams["train_annotation"], data_root=hparams["data_folder"]
    )
    ids = list(utterances.ids())
    if callable(hparams["speakers"]):  # of a corpus whose paths name them
        source, speakers = "the paths", hparams["speakers"](ids)
    else:
        source = os.path.abspath(hparams["speakers"])
        speakers = read_truth(hparams["speakers"], ids)
    known = known_speakers(speakers, hparams["label_share"], hparams["seed"])
    if len(known) < 2:
        raise OptionsError(
            f"label_share of {hparams['label_share']} leaves {len(known)} of "
            f"{len(set(speakers) - {-1})} speakers; there must be two."
        )
    record = {
        "source": source,
        "training_set": hash_of(hparams["train_annotation"]),
        "speakers": int((np.unique(speakers) >= 0).sum()),
        "known": len(known),
        "share": hparams["label_share"],
        "seed": hparams["seed"],
    }
    path = os.path.join(folder, REPORT_NAME)
    if os.path.isfile(path):
        refuse_changes(
            read_json(path)["speakers"],
            record,
            what=f"The labels in {folder}",
            advice="Use the same settings, or name another output_folder.",
        )
        return
    labels = np.where(np.isin(speakers, known), speakers, -1)
    write_labels(folder, utterances, ids, labels, None, {"speakers": record})


def known_speakers(speakers, share, seed):
    """Draws the speakers whose labels are known; fewer are part of more.

    Arguments
    ---------
    speakers : np.ndarray
        Number of each utterance's speaker, -1 if unknown [utterances].
    share : float
        Of the speakers, above 0, at most 1.
    seed : int
        Of the draw.

    Returns
    -------
    np.ndarray
        Numbers of those speakers, in no order.

    Example
    -------
    >>> len(known_speakers(np.array([0, 0, 1, 2, 3, -1]), 0.5, seed=1))
    2
    """
    numbers = np.unique(speakers[speakers >= 0])
    drawn = np.random.default_rng(seed).permutation(numbers)
    return drawn[: round(share * len(numbers))]


def check_settings(hparams):
    """Finds settings that do not fit together before the first batch.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Raises
    ------
    OptionsError
        Says which keys do not fit, and what to do.
    """
    train_pseudo_labels.check_settings(hparams)
    if not 0 < hparams["label_share"] <= 1:
        raise OptionsError(
            "label_share must be above 0 and at most 1, not "
            f"{hparams['label_share']}"
        )


def prepare(hparams):
    """Lists the audio, and writes the labels.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    """
    prepare_corpus = hparams.get("prepare") or prepare_audio_folder
    if not hparams["skip_prep"] and not is_resumed(hparams):
        prepare_corpus(
            data_folder=hparams["data_folder"],
            save_csv=hparams["train_annotation"],
            min_seconds=hparams["min_seconds"],
        )
    label_speakers(hparams)


def main(argv):
    """Labels, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    check_settings(hparams)
    folder = os.path.join(hparams["output_folder"], "labels")
    hparams["pseudo_labels"] = os.path.join(folder, CSV_NAME)
    train_pseudo_labels.begin(hparams_file, hparams, overrides, run_opts)
    sb.utils.distributed.run_on_main(prepare, args=[hparams])
    labels = read_labels(hparams["pseudo_labels"], hparams["data_folder"])
    known, counts = labels.report["speakers"], labels.report["labels"]
    train_pseudo_labels.train_and_export(
        hparams,
        run_opts,
        labels,
        notes="Trained by speechbrain_ssl on speaker labels.",
        facts={
            "pseudo-labels": "none",
            "speaker labels": f"those of {known['known']} of "
            f"{known['speakers']} speakers were trained on "
            f"({counts['labelled']} of {counts['utterances']} utterances)",
            # a card goes to others: it names no path
            "start": "another model" if hparams["init_from"] else "random",
        },
    )


if __name__ == "__main__":
    run_script(main)
