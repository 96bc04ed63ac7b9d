r"""Trains a speaker encoder on a folder of unlabelled audio.

To run this recipe::

    > python train_ssl.py hparams/train_moco.yaml --data_folder /audio

With several processes::

    > torchrun --standalone --nproc_per_node=2 train_ssl.py \
        hparams/train_moco.yaml --data_folder /audio

What comes out lies in ``<output_folder>/model``: a folder that SpeechBrain's
EncoderClassifier loads.
"""

import logging
import os
import sys

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import distributed
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.checkpoints import average_of_last
from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    UtteranceDataset,
    read_annotation,
)
from speechbrain_ssl.evaluation.trials import read_trials, trial_paths
from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.inference import (
    check_sample_rate,
    export,
    load_encoder,
    suggest_threshold,
)
from speechbrain_ssl.nnet.parameters import parameters_with
from speechbrain_ssl.nnet.schedules import at, lr_factor
from speechbrain_ssl.options import OptionsError, load_experiment
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script

import speechbrain as sb

logger = logging.getLogger(__name__)
SELECT_BY = (None, "EER", "minDCF_0.01")  # what verify_epoch reports
UNLABELLED = "Trained by speechbrain_ssl on audio without speaker labels."

# Python looks where this file is. A link to it in another recipe has that
# recipe's preparation beside it.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


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
    branch = hparams["extract_from"]
    has_teacher = "teacher" in hparams["modules"]
    has_locals = hparams["view_sampler"].counts[1] > 0
    partners = hparams["view_sampler"].partners
    check_rules(
        hparams,
        (
            branch == "student" or (branch == "teacher" and has_teacher),
            f"extract_from is {branch!r}; it must be student, or teacher where "
            "modules has one",
        ),
        (
            hparams["student_sees_global"] or has_locals,
            "student_sees_global is False and there are no local crops: the "
            "student would see nothing",
        ),
        (
            isinstance(hparams["cluster_tables"], list),
            "cluster_tables must be a list",
        ),
        (
            partners is None or partners.table in hparams["cluster_tables"],
            "view_sampler has partners from a table that is not in "
            "cluster_tables: it would never be filled",
        ),
    )


def check_rules(hparams, *rules):
    """Checks settings of one stage, and those that all trainings share.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    *rules : tuple of (bool, str)
        Whether a rule holds, and what to say if not.

    Raises
    ------
    OptionsError
        Of the first rule that does not hold.
    OSError, ValueError
        If ``dev_trials`` or audio that it names cannot be read, or the encoder
        is built for another sample rate.
    """
    shared = [
        (
            hparams["dev_trials"] or not hparams["select_by"],
            "select_by chooses checkpoints by a labelled list; name it as "
            "dev_trials, or set select_by to null",
        ),
        (
            hparams["select_by"] in SELECT_BY,
            f"select_by is {hparams['select_by']!r}; it must be null, EER or "
            "minDCF_0.01",
        ),
        (
            1 <= hparams["dev_every"]
            and (
                not hparams["select_by"]
                or hparams["dev_every"] <= hparams["epoch_counter"].limit
            ),
            "dev_every must be 1 epoch or more and, with select_by, not more "
            "than number_of_epochs",
        ),
        (
            hparams["average_last"] <= hparams["checkpoints_to_keep"],
            "average_last must not be more than checkpoints_to_keep",
        ),
        (
            hparams["average_last"] == 1 or not hparams["select_by"],
            "average_last and select_by both say which weights to export; "
            "set average_last to 1, or select_by to null",
        ),
        (
            all(len(entry) == 2 for entry in hparams["frozen_epochs"]),
            "frozen_epochs must be a list of [module, epoch]",
        ),
        (
            hparams["clip_each_tensor"] in (True, False),
            "clip_each_tensor must be True or False",
        ),
        (
            at(hparams["lr_schedule"], 0.0) >= 0,
            "lr_schedule must not be negative",
        ),
        (
            hparams.get("decay_vectors", False) in (True, False),
            "decay_vectors must be True or False",
        ),
        (
            isinstance(hparams["train_loggers"], list),
            "train_loggers must be a list",
        ),
    ]
    for holds, message in (*rules, *shared):
        if not holds:
            raise OptionsError(message)
    check_sample_rate(
        [hparams["compute_features"], hparams["embedding_model"]],
        hparams["sample_rate"],
    )
    # of these a wrong value says by itself what it should be
    rule, batch = hparams.get("lr_for", "none"), hparams["batch_size"]
    lr_factor(rule, batch, hparams.get("reference_batch"))
    parameters_with(hparams.get("parameter_options", []), "decay")
    if hparams["dev_trials"]:  # now, not when the first epochs are done
        path = hparams["dev_trials"]
        trials = read_trials(path, need_labels=True)
        trial_paths(trials, path)
        logger.info(
            "%s: %d trials, lines `%s`", path, len(trials.enrol), trials.layout
        )


def dataio_prepare(hparams):
    """Makes the training set: views of utterances, and no label.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Returns
    -------
    UtteranceDataset
        Gives ``id``, ``index``, ``views`` and ``draws``.
    """
    utterances = read_annotation(
        hparams["train_annotation"], data_root=hparams["data_folder"]
    )
    return views_of(utterances, hparams["view_sampler"])


def views_of(utterances, view_sampler):
    """A data set of views.

    Arguments
    ---------
    utterances : Utterances
        Rows of the training CSV.
    view_sampler : ViewSampler
        Cuts and augments.

    Returns
    -------
    UtteranceDataset
        Gives ``id``, ``index``, ``views``, ``draws``, ``speed`` and
        ``unreadable``.
    """
    view_sampler.prepare(utterances)

    @sb.utils.data_pipeline.takes("key", "wav", "start", "stop")
    @sb.utils.data_pipeline.provides("views", "draws", "speed")
    def views_pipeline(key, wav, start, stop):
        views, draws = view_sampler(key, wav, start, stop)
        yield views
        yield draws
        yield view_sampler.speed_of(key)

    return UtteranceDataset(
        utterances,
        dynamic_items=[views_pipeline],
        output_keys=["id", "index", "views", "draws", "speed"],
        seed=view_sampler.seed,
    )


def is_resumed(hparams):
    """Whether a run goes on, with the training CSV that it began with.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Returns
    -------
    bool
        True if there are a checkpoint and a training CSV.
    """
    return bool(
        os.path.isfile(hparams["train_annotation"])
        and hparams["checkpointer"].list_checkpoints()
    )


def export_model(brain, hparams, notes=UNLABELLED, facts=None):
    """Exports the trained encoder, averaged over the last checkpoints.

    Arguments
    ---------
    brain : SpeakerBrain
        After training.
    hparams : dict
        The loaded hparams file.
    notes : str
        What the model card begins with.
    facts : dict of str to str
        For the card, beside or instead of those of ``describe``.

    Returns
    -------
    str
        The folder that SpeechBrain loads.
    """
    if hparams["average_last"] > 1:
        name = hparams.get("extract_from", "encoder")
        brain.module(name).load_state_dict(
            average_of_last(
                hparams["checkpointer"], name, hparams["average_last"]
            )
        )
    settings = os.path.join(hparams["output_folder"], "hyperparams.yaml")
    with open(settings, encoding="utf-8") as file:
        text = file.read()
    trials = hparams["dev_trials"]
    model = export(
        brain.evaluated,
        text,
        os.path.join(hparams["output_folder"], "model"),
        notes=notes,
        facts={**describe(brain, hparams), **(facts or {})},
    )
    if trials:
        encoder = load_encoder(model, brain.device)
        training = hparams["train_annotation"] or hparams["pseudo_labels"]
        utterances = read_annotation(training, hparams["data_folder"])
        summary = verify(
            encoder.encode_batch,
            trials,
            sample_rate=encoder.audio_normalizer.sample_rate,
            device=brain.device,
            strict=False,
            known={"training set": utterances.wavs()},
        )
        name, known = os.path.basename(trials), summary.get("known_files")
        suggest_threshold(model, summary["raw"], name, known)
    return model


def describe(brain, hparams):
    """What the exported folder says of its training.

    Arguments
    ---------
    brain : SpeakerBrain
        After training.
    hparams : dict
        The loaded hparams file.

    Returns
    -------
    dict of str to str
        Facts by name.
    """
    # of the second stage, or the first
    labels = getattr(brain, "labels", None)
    utterances = (labels or brain).utterances
    hours = utterances.durations.double().sum().item() / 3600
    label_use = "none in training or selection"
    if hparams["select_by"]:
        label_use = f"those of {hparams['dev_trials']} chose the checkpoint"
    facts = {
        "data": f"{len(utterances)} utterances, {hours:.1f} hours",
        "pseudo-labels": f"{labels.count} clusters" if labels else "none",
        "epochs": hparams["epoch_counter"].current,
        "seed": hparams["seed"],
        "speaker labels": label_use,
    }
    return {name: str(fact) for name, fact in facts.items()}


def choose_checkpoint(hparams):
    """Loads what a declared labelled list chooses, if there is one.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Raises
    ------
    ValueError
        If no checkpoint has the figure to choose by.
    """
    name = hparams["select_by"]
    if not name:
        return
    chosen = hparams["checkpointer"].recover_if_possible(min_key=name)
    if chosen is None or name not in chosen.meta:
        raise ValueError(
            f"No checkpoint in {hparams['checkpointer'].checkpoints_dir} has "
            f"the {name} of select_by: dev_trials were never verified. Train "
            "on with a smaller dev_every, or set select_by to null."
        )


def train(hparams, run_opts, brain_class=SSLBrain):
    """Trains on the prepared annotation.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    run_opts : dict
        SpeechBrain's run options.
    brain_class : type
        SSLBrain, or one that watches it.

    Returns
    -------
    SSLBrain
        After training.
    """
    train_set = dataio_prepare(hparams)
    sampler = EpochSampler(
        len(train_set),
        seed=hparams["seed"],
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch_size=hparams["batch_size"],
    )
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
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


def main(argv):
    """Prepares, trains and exports."""
    keep_memory()
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    check_settings(hparams)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    if not hparams["skip_prep"] and not is_resumed(hparams):
        prepare = prepare_audio_folder
        if hparams.get("prepare"):  # of a recipe that knows its corpus
            prepare = hparams["prepare"]
        sb.utils.distributed.run_on_main(
            prepare,
            kwargs={
                "data_folder": hparams["data_folder"],
                "save_csv": hparams["train_annotation"],
                "min_seconds": hparams["min_seconds"],
            },
        )
    brain = train(hparams, run_opts)
    choose_checkpoint(hparams)
    sb.utils.distributed.run_on_main(export_model, args=[brain, hparams])


if __name__ == "__main__":
    run_script(main)
