r"""Trains a speaker encoder on pseudo-labels that a gate selects.

To run this recipe::

    > python train_pseudo_labels.py hparams/train_dlg_lc.yaml \
        --data_folder /audio \
        --pseudo_labels results/pseudo_labels/pseudo_labels.csv \
        --init_from results/moco/1/model

The labels are those of ``make_pseudo_labels.py``; no other column of the file
is read. The result lies in ``<output_folder>/model``: a folder that
SpeechBrain's EncoderClassifier loads. ``gate.jsonl`` and the plots in ``gate``
have the gate of each epoch, ``decisions.csv`` the last decision about each
utterance. After a kill the same command goes on.

``hparams/train_dlg_lc_av.yaml`` trains a second encoder on the faces of the
same utterances, which the column ``face`` of the labels names. Its model lies
in ``<output_folder>/face_model``, its gate in ``face_gate.jsonl``.
"""

import functools

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

from speechbrain_ssl import distributed
from speechbrain_ssl.brains import experiment
from speechbrain_ssl.checks import check_keys, one_of
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.loading import check_sample_rate
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import (
    check_same_labels,
    note_labels,
    read_labels,
)
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script

import speechbrain as sb


def check_settings(hparams):
    """Checks the settings before the first batch, and sorts them."""
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
        continue_from=hparams.get("continue_from"),
        regularizer=hparams.get("regularizer"),
        class_sampler=hparams.get("class_sampler"),
        channel_groups=hparams.get("channel_groups", 0),
        channel_weight=hparams.get("channel_weight", 0.1),
        face_encoder=hparams.get("face_encoder"),
        face_classifier=hparams.get("face_classifier"),
        face_gate=hparams.get("face_gate"),
        face_sampler=hparams.get("face_sampler"),
        face_init_from=hparams.get("face_init_from"),
        face_gate_from=hparams.get("face_gate_from", 0.0),
        selection=hparams.get("selection", "own"),
    )
    check_keys(hparams, allow_missing=one_of(True, False))
    experiment.check_recoverables(
        training.checkpointer,
        {
            "encoder": settings.encoder,
            "gate": settings.gate,
            "epoch_counter": training.epoch_counter,
            **(
                {
                    "face_encoder": settings.face_encoder,
                    "face_gate": settings.face_gate,
                }
                if settings.face_encoder is not None
                else {}
            ),
        },
    )
    check_sample_rate(
        [hparams["compute_features"], hparams["embedding_model"]],
        hparams["sample_rate"],
    )
    return training, settings


def find_labels(hparams):
    """Reads the pseudo-labels and checks that they belong here."""
    data_folder, csv_path = hparams["data_folder"], hparams["pseudo_labels"]
    embeddings = training = None
    if hparams["embeddings_folder"]:
        meta = load(hparams["embeddings_folder"]).meta
        embeddings = meta["made"]["embeddings"]
    if hparams["train_annotation"]:
        training = read_annotation(hparams["train_annotation"], data_folder)
    labels = read_labels(
        csv_path,
        data_root=data_folder,
        embeddings=embeddings,
        training=training,
        allow_missing=hparams["allow_missing"],
        extra=("face",) if hparams.get("face_encoder") else (),
    )
    if hparams.get("continue_from"):
        check_same_labels(hparams["continue_from"], csv_path)
    return labels


def main(argv):
    """Reads labels, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    training, settings = check_settings(hparams)
    labels = find_labels(hparams)
    folder = training.output_folder
    with experiment.open_run(folder, hparams_file, overrides, run_opts) as run:
        sb.create_experiment_directory(folder)
        distributed.on_first(note_labels, folder, hparams["pseudo_labels"])
        brain = experiment.train_on_labels(
            labels, training, settings, run, hparams, run_opts
        )
        experiment.choose_checkpoint(training)
        distributed.on_first(
            experiment.export_model, brain, training, run, "encoder"
        )
        if settings.face_encoder is not None:
            distributed.on_first(
                functools.partial(experiment.export_model, prefix="face_"),
                brain,
                training,
                run,
                "face_encoder",
            )


if __name__ == "__main__":
    run_script(main)
