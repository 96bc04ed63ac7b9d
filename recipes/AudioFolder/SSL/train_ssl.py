r"""Trains a speaker encoder on a folder of unlabelled audio.

To run this recipe::

    > python train_ssl.py hparams/train_moco.yaml --data_folder /audio

With several processes::

    > torchrun --standalone --nproc_per_node=2 train_ssl.py \
        hparams/train_moco.yaml --data_folder /audio

The result lies in ``<output_folder>/model``: a folder that SpeechBrain's
EncoderClassifier loads. After a kill the same command goes on.

``hparams/train_simclr_av.yaml`` trains encoders of voices and of faces at once;
the one of faces lies in ``<output_folder>/face_model``.
"""

import functools
import os
import sys

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import distributed
from speechbrain_ssl.brains import experiment
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.checks import check, check_keys, number, one_of
from speechbrain_ssl.loading import check_sample_rate
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.pseudo_labels import channels
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script

import speechbrain as sb

# Python looks where this file is. A link to it in another recipe has that
# recipe's preparation beside it.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


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
    check_keys(
        hparams,
        skip_prep=one_of(True, False),
        min_seconds=number(0),
        student_sees_global=one_of(True, False),
    )
    check("channel_groups", hparams.get("channel_groups", 0), channels.COUNT)
    modules, branch = hparams["modules"], hparams["extract_from"]
    has_teacher = "teacher" in modules
    has_locals = hparams["view_sampler"].counts[1] > 0
    partners = hparams["view_sampler"].partners
    tables = hparams["cluster_tables"]
    experiment.check_rules(
        (
            branch == "student" or (branch == "teacher" and has_teacher),
            f"extract_from is {branch!r}; it must be student, or teacher where "
            "modules has one",
        ),
        (
            hparams["view_sampler"].counts[0] > 0 or not has_teacher,
            "the teacher sees global crops only: set global_crops of "
            "view_sampler to 1 or more",
        ),
        (
            hparams["student_sees_global"] or has_locals,
            "student_sees_global is False and there are no local crops: the "
            "student would see nothing",
        ),
        (isinstance(tables, list), "cluster_tables must be a list"),
        (
            not hparams.get("channel_groups")
            or hparams["view_sampler"].face_size is None,
            "channel_groups are groups of audio; for faces it must be 0",
        ),
        (
            not (hparams.get("channel_groups") and training.sequential_rows),
            "channel_groups and sequential_rows both say in which order "
            "utterances come: set channel_groups to 0 or sequential_rows to "
            "null",
        ),
        (
            partners is None or partners.table in tables,
            "view_sampler has partners from a table that is not in "
            "cluster_tables: it would never be filled",
        ),
    )
    experiment.check_recoverables(
        training.checkpointer,
        {
            **modules,
            "epoch_counter": training.epoch_counter,
            **{f"cluster_tables[{i}]": table for i, table in enumerate(tables)},
        },
    )
    check_sample_rate(
        [hparams["compute_features"], hparams["embedding_model"]],
        hparams["view_sampler"].sample_rate,
    )
    return training


def main(argv):
    """Prepares, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    training = check_settings(hparams)
    with experiment.open_run(
        training.output_folder, hparams_file, overrides, run_opts
    ) as run:
        sb.create_experiment_directory(training.output_folder)
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
        utterances = experiment.training_set(
            annotation, hparams["data_folder"], hparams["view_sampler"]
        )
        kept, check = experiment.make_selfcheck(
            utterances, training, hparams["view_sampler"]
        )
        if not kept.all():
            utterances = utterances.take(kept)
        brain = SSLBrain(
            modules=hparams["modules"],
            opt_class=training.opt_class,
            hparams={**hparams, "selfcheck": check},
            run_opts=run_opts,
            checkpointer=training.checkpointer,
        )
        train_set = experiment.views_of(utterances, hparams["view_sampler"])
        groups = None
        if hparams.get("channel_groups"):
            groups = channels.channel_groups(
                utterances,
                os.path.join(hparams["save_folder"], "channel_groups.npz"),
                hparams["view_sampler"].sample_rate,
                hparams["channel_groups"],
                training.seed,
                brain.device,
            )
        experiment.fit(brain, train_set, training, run, groups=groups)
        experiment.choose_checkpoint(training)
        distributed.on_first(
            experiment.export_model,
            brain,
            training,
            run,
            hparams["extract_from"],
        )
        if brain.evaluated_face is not None:
            distributed.on_first(
                functools.partial(experiment.export_model, prefix="face_"),
                brain,
                training,
                run,
                hparams["extract_from"],
            )


if __name__ == "__main__":
    run_script(main)
