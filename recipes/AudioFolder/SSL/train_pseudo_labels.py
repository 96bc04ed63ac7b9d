r"""Trains a speaker encoder on pseudo-labels, trusting those it learns easily.

To run this recipe::

    > python train_pseudo_labels.py hparams/train_dlg_lc.yaml \
        --data_folder /audio \
        --pseudo_labels results/pseudo_labels/pseudo_labels.csv \
        --init_from results/moco/1/model

The labels are those of ``make_pseudo_labels.py``; no other column of the file
is read. What comes out lies in ``<output_folder>/model``: a folder that
SpeechBrain's EncoderClassifier loads. ``gate.jsonl`` and the plots in ``gate``
have the gate of each epoch, ``decisions.csv`` what the last one decided about
each utterance.
"""

import importlib.util
import json
import logging
import os

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain
from speechbrain_ssl.dataio.annotations import EpochSampler, read_annotation
from speechbrain_ssl.inference import continue_run, start_from
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import (
    check_same_labels,
    note_labels,
    read_labels,
    write_labels,
)
from speechbrain_ssl.report.plots import gate_plot
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script
from train_ssl import check_rules, choose_checkpoint, export_model, views_of

import speechbrain as sb

logger = logging.getLogger(__name__)

# SpeechBrain's checks look for every key of a YAML in the script beside it.
# train_ssl.py and the brain read hparams["reference_batch"], ["lr_for"],
# ["decay_vectors"], ["parameter_options"], ["lr_schedule"], ["frozen_epochs"],
# ["clip_each_tensor"], ["dev_trials"], ["dev_every"], ["checkpoints_to_keep"],
# ["average_last"], ["select_by"] and ["train_loggers"].


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
    sampler, loss = hparams["view_sampler"], hparams["loss"]
    corrects = loss.correct_from < float("inf")
    check_rules(
        hparams,
        (
            sampler.counts == (1, 0),
            "view_sampler must cut one global crop and no local ones",
        ),
        (
            sampler.clean_views or not corrects,
            "labels are corrected from the clean views of crops: set "
            "clean_views of view_sampler to True, or correct_from of loss to "
            ".inf",
        ),
        (
            callable(hparams["gate"]) and hasattr(hparams["gate"], "fit"),
            "gate must be a FixedGate, a MixtureGate or the like",
        ),
        (
            all(len(entry) == 2 for entry in hparams["learning_rates"]),
            "learning_rates must be a list of [module, rate]",
        ),
        (
            hparams["centroid_start"] in (True, False, None),
            "centroid_start must be True, False or null",
        ),
        (
            not hparams.get("continue_from")
            or not (hparams["init_from"] or hparams["centroid_start"]),
            "continue_from takes over encoder and classifier: set init_from "
            "to null and centroid_start to False",
        ),
        (
            not hparams.get("regularizer") or callable(hparams["regularizer"]),
            "regularizer must be a DistanceToPretrained or the like",
        ),
    )


def labels_of_run(hparams):
    """Reads the pseudo-labels and checks that they belong here.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Returns
    -------
    Labels
        Labelled utterances and their classes.
    """
    embeddings = training = None
    if hparams["embeddings_folder"]:
        meta = load(hparams["embeddings_folder"]).meta
        embeddings = meta["made"]["embeddings"]
    if hparams["train_annotation"]:
        training = read_annotation(
            hparams["train_annotation"], data_root=hparams["data_folder"]
        )
    return read_labels(
        hparams["pseudo_labels"],
        data_root=hparams["data_folder"],
        embeddings=embeddings,
        training=training,
        allow_missing=hparams["allow_missing"],
    )


def train(hparams, run_opts, labels, brain_class=PseudoLabelBrain):
    """Trains on the labels.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    run_opts : dict
        SpeechBrain's run options.
    labels : Labels
        Labelled utterances and their classes.
    brain_class : type
        PseudoLabelBrain, or one that watches it.

    Returns
    -------
    PseudoLabelBrain
        After training.
    """
    speeds = hparams["view_sampler"].speeds
    classifier = hparams["classifier"](classes=labels.count * len(speeds))
    hparams["checkpointer"].add_recoverable("classifier", classifier)
    if hparams["centroid_start"] is None:
        # of random weights all means are one, and no class gets away from it
        hparams["centroid_start"] = bool(hparams["init_from"])
    if hparams["init_from"]:
        start_from(hparams["encoder"], hparams["init_from"])
    if hparams.get("continue_from"):
        continue_run(hparams["encoder"], classifier, hparams["continue_from"])
    train_set = views_of(labels.utterances, hparams["view_sampler"])
    brain = brain_class(
        labels,
        modules={"encoder": hparams["encoder"], "classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    share = {
        "seed": hparams["seed"],
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "batch_size": hparams["batch_size"],
    }
    if hparams.get("class_sampler"):
        sampler = hparams["class_sampler"](labels.classes, **share)
    else:
        sampler = EpochSampler(len(train_set), **share)
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        train_loader_kwargs={
            "sampler": sampler,
            "batch_size": hparams["batch_size"],
            "num_workers": hparams["num_workers"],
            "persistent_workers": hparams["num_workers"] > 0,
            "drop_last": True,
        },
    )
    return brain


def write_corrected(hparams, brain):
    """Writes the labels as the last epoch corrected them.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    brain : PseudoLabelBrain
        After training.
    """
    labels, decisions = brain.labels, brain.decisions
    report = (labels.report or {}).get("labels", {})
    write_labels(
        os.path.join(hparams["output_folder"], "corrected"),
        labels.utterances,
        list(labels.utterances.ids()),
        decisions.corrected_labels().numpy(),
        report.get("embeddings"),
        {"corrected": int(decisions.table.corrected.sum())},
        count=report.get("utterances"),
    )


def draw_gates(folder):
    """Draws the gate of each epoch, where matplotlib is installed.

    Arguments
    ---------
    folder : str
        The output folder, with ``gate.jsonl``.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    with open(os.path.join(folder, "gate.jsonl"), encoding="utf-8") as file:
        for record in map(json.loads, file):
            name = f"epoch_{record['epoch']:03d}.png"
            gate_plot(record, os.path.join(folder, "gate", name))


def begin(hparams_file, hparams, overrides, run_opts):
    """Starts the processes and the output folder.

    Arguments
    ---------
    hparams_file : str
        The hparams file.
    hparams : dict
        What was loaded from it.
    overrides : str
        What the command line changes of it.
    run_opts : dict
        SpeechBrain's run options.
    """
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )


def train_and_export(hparams, run_opts, labels, **card):
    """Trains on labels and writes all that comes of it.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file; ``pseudo_labels`` is the file of the labels.
    run_opts : dict
        SpeechBrain's run options.
    labels : Labels
        Labelled utterances and their classes.
    **card : dict
        ``notes`` and ``facts`` for the model card.
    """
    sb.utils.distributed.run_on_main(
        note_labels, args=[hparams["output_folder"], hparams["pseudo_labels"]]
    )
    brain = train(hparams, run_opts, labels)
    if hparams["write_corrected"]:
        sb.utils.distributed.run_on_main(write_corrected, args=[hparams, brain])
    choose_checkpoint(hparams)
    sb.utils.distributed.run_on_main(
        export_model, args=[brain, hparams], kwargs=card
    )
    sb.utils.distributed.run_on_main(
        draw_gates, args=[hparams["output_folder"]]
    )


def main(argv):
    """Reads labels, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    check_settings(hparams)
    labels = labels_of_run(hparams)
    if hparams.get("continue_from"):
        check_same_labels(hparams["continue_from"], hparams["pseudo_labels"])
    begin(hparams_file, hparams, overrides, run_opts)
    train_and_export(hparams, run_opts, labels)


if __name__ == "__main__":
    run_script(main)
