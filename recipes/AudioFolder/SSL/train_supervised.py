r"""Trains a speaker encoder on speaker labels: baseline, upper bound, last step.

This is the only training here that reads speaker labels, and the models that
come of it say so. From random weights, or from those of a model trained
without labels, on all labels or on those of a share of the speakers::

    > python train_supervised.py hparams/train_supervised.yaml \
        --data_folder /audio --speakers speakers.csv \
        --label_share 0.25 --init_from results/moco/1/model

``labels`` in the output folder has the labels that were used. After a kill the
same command goes on.
"""

import os
import sys

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

import numpy as np
from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import distributed
from speechbrain_ssl.brains import experiment
from speechbrain_ssl.checks import check_keys, number, one_of
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.files import hash_of, read_json, refuse_changes
from speechbrain_ssl.loading import check_sample_rate
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

import speechbrain as sb

# Python looks where this file is. A link to it in another recipe has that
# recipe's preparation beside it.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def check_settings(hparams):
    """Checks the settings before the first batch, and sorts them."""
    check_keys(
        hparams,
        skip_prep=one_of(True, False),
        min_seconds=number(0),
        label_share=number(above=0, high=1),
    )
    training = experiment.Training(
        output_folder=hparams["output_folder"],
        seed=hparams["seed"],
        number_of_epochs=hparams["number_of_epochs"],
        batch_size=hparams["batch_size"],
        num_workers=hparams["num_workers"],
        sequential_rows=hparams.get("sequential_rows"),
        epoch_counter=hparams["epoch_counter"],
        checkpointer=hparams["checkpointer"],
        opt_class=hparams["opt_class"],
        max_grad_norm=hparams["max_grad_norm"],
        lr_schedule=hparams["lr_schedule"],
        frozen_epochs=hparams["frozen_epochs"],
        clip_each_tensor=hparams["clip_each_tensor"],
        dev_trials=hparams["dev_trials"],
        dev_every=hparams["dev_every"],
        select_by=hparams["select_by"],
        selfcheck_share=hparams.get("selfcheck_share", 0),
        selfcheck_folder=hparams.get("selfcheck_folder"),
        selfcheck_every=hparams.get("selfcheck_every", 5),
        checkpoints_to_keep=hparams["checkpoints_to_keep"],
        average_last=hparams["average_last"],
        train_loggers=hparams["train_loggers"],
        lr_for=hparams.get("lr_for", "none"),
        reference_batch=hparams.get("reference_batch"),
        decay_vectors=hparams.get("decay_vectors", False),
        parameter_options=hparams.get("parameter_options", []),
    )
    settings = experiment.LabelTraining(
        encoder=hparams["encoder"],
        classifier=hparams["classifier"],
        loss=hparams["loss"],
        gate=hparams["gate"],
        view_sampler=hparams["view_sampler"],
        learning_rates=hparams["learning_rates"],
        centroid_start=hparams["centroid_start"],
        init_from=hparams["init_from"],
        write_corrected=hparams["write_corrected"],
    )
    experiment.check_recoverables(
        training.checkpointer,
        {
            "encoder": settings.encoder,
            "gate": settings.gate,
            "epoch_counter": training.epoch_counter,
        },
    )
    check_sample_rate(
        [hparams["compute_features"], hparams["embedding_model"]],
        hparams["sample_rate"],
    )
    return training, settings


def label_speakers(hparams, folder):
    """Writes the labels that training may know, unless they are there.

    They go to ``folder``. It is an error if ``label_share`` leaves fewer than
    two speakers, or if the run was begun with other labels.
    """
    annotation = hparams["train_annotation"]
    share, seed = hparams["label_share"], hparams["seed"]
    utterances = read_annotation(annotation, data_root=hparams["data_folder"])
    ids = list(utterances.ids())
    if callable(hparams["speakers"]):  # of a corpus whose paths name them
        source, speakers = "the paths", hparams["speakers"](ids)
        content = None
    else:
        content = f"SHA-256 {hash_of(hparams['speakers'])}"
        source = os.path.abspath(hparams["speakers"])
        speakers = read_truth(hparams["speakers"], ids)
    known = known_speakers(speakers, share, seed)
    if len(known) < 2:
        raise OptionsError(
            f"label_share of {share} leaves {len(known)} of "
            f"{len(set(speakers) - {-1})} speakers; there must be two."
        )
    record = {
        "source": source,
        "content": content,
        "training_set": hash_of(annotation),
        "speakers": int((np.unique(speakers) >= 0).sum()),
        "known": len(known),
        "share": share,
        "seed": seed,
    }
    path = os.path.join(folder, REPORT_NAME)
    if os.path.isfile(path):
        before = read_json(path)["speakers"]
        refuse_changes(
            before,
            record,
            {"content"} - before.keys(),  # of a run of an earlier version
            what=f"The labels in {folder}",
            advice="Use the same settings, or name another output_folder.",
        )
        return
    labels = np.where(np.isin(speakers, known), speakers, -1)
    write_labels(folder, utterances, ids, labels, None, {"speakers": record})


def known_speakers(speakers, share, seed):
    """Draws the speakers whose labels are known; fewer are part of more.

    ``speakers`` has the number of each utterance's speaker, -1 if unknown
    [utterances]; ``share`` is that of the speakers, above 0, at most 1. The
    numbers are in no order.

    Example
    -------
    >>> len(known_speakers(np.array([0, 0, 1, 2, 3, -1]), 0.5, seed=1))
    2
    """
    numbers = np.unique(speakers[speakers >= 0])
    drawn = np.random.default_rng(seed).permutation(numbers)
    return drawn[: round(share * len(numbers))]


def main(argv):
    """Labels, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    training, settings = check_settings(hparams)
    folder = training.output_folder
    with experiment.open_run(folder, hparams_file, overrides, run_opts) as run:
        sb.create_experiment_directory(folder)
        annotation = hparams["train_annotation"]
        is_listed = experiment.is_resumed(training, annotation)
        if not hparams["skip_prep"] and not is_listed:
            prepare = hparams.get("prepare") or prepare_audio_folder
            distributed.on_first(
                lambda: prepare(
                    data_folder=hparams["data_folder"],
                    save_csv=annotation,
                    min_seconds=hparams["min_seconds"],
                )
            )
        label_folder = os.path.join(folder, "labels")
        distributed.on_first(label_speakers, hparams, label_folder)
        labels = read_labels(
            os.path.join(label_folder, CSV_NAME), hparams["data_folder"]
        )
        brain = experiment.train_on_labels(
            labels, training, settings, run, hparams, run_opts
        )
        experiment.choose_checkpoint(training)
        known, counts = labels.report["speakers"], labels.report["labels"]
        facts = {
            "pseudo-labels": "none",
            "speaker labels": f"those of {known['known']} of "
            f"{known['speakers']} speakers were trained on "
            f"({counts['labelled']} of {counts['utterances']} utterances)",
            # a card goes to others: it names no path
            "start": "another model" if settings.init_from else "random",
        }
        distributed.on_first(
            experiment.export_model,
            brain,
            training,
            run,
            "encoder",
            "Trained by speechbrain_ssl on speaker labels.",
            facts,
        )


if __name__ == "__main__":
    run_script(main)
