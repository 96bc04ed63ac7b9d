"""What the training scripts share: checks, the run's folder, training, export.

A training script reads its YAML once, at the top, and goes through these steps:
``Training`` (settings that any training has, checked), ``open_run`` (processes,
lock, same settings as before), ``fit`` and ``export_model``.
"""

import concurrent.futures
import contextlib
import datetime
import functools
import importlib.util
import logging
import os
import stat
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook
from speechbrain.utils.data_pipeline import GeneratorDynamicItem
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.base import SpeakerBrain
from speechbrain_ssl.brains.pseudo_label import FACE, PseudoLabelBrain
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.card import set_label_free_threshold, suggest_threshold
from speechbrain_ssl.checkpoints import AtomicCheckpointer, average_of_last
from speechbrain_ssl.checks import (
    Rule,
    checked,
    number,
    one_of,
    optional,
    schedule,
    whole,
)
from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    UtteranceDataset,
    Utterances,
    read_annotation,
)
from speechbrain_ssl.dataio.clips import ClipSampler
from speechbrain_ssl.dataio.faces import FaceSampler
from speechbrain_ssl.dataio.listing import find_utterances
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.devices import check_device
from speechbrain_ssl.evaluation.selfcheck import SelfCheck, held_out
from speechbrain_ssl.evaluation.trials import read_trials, trial_paths
from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.exporting import check_export, export
from speechbrain_ssl.files import (
    differences,
    occupy,
    read_json,
    read_jsonl,
    refuse_changes,
    write_json,
    write_whole,
)
from speechbrain_ssl.loading import (
    continue_run,
    face_size_of,
    load_encoder,
    start_from,
)
from speechbrain_ssl.nnet.parameters import parameters_with
from speechbrain_ssl.nnet.schedules import lr_factor
from speechbrain_ssl.options import (
    OptionsError,
    resolved,
    run_option_types,
    settings_of,
)
from speechbrain_ssl.pseudo_labels import channels
from speechbrain_ssl.pseudo_labels.labels import (
    Labels,
    keep_labels,
    write_labels,
)
from speechbrain_ssl.pseudo_labels.modalities import SELECTIONS
from speechbrain_ssl.report.plots import gate_plot, save
from speechbrain_ssl.script import defer_signals, outlive_signal

logger = logging.getLogger(__name__)

Sampler = ViewSampler | FaceSampler | ClipSampler

RECORD = "settings.json"
# Keys with which a run may go on although they have changed: how long, how
# fast and where it trains, what is logged, verified and kept, and the learning
# rate. Another value of any other key would make another experiment, as would
# another optimizer than that of ``opt_class``.
MAY_CHANGE = (
    "number_of_epochs",
    "opt_class",
    "learning_rates",
    "num_workers",
    "output_folder",
    "save_folder",
    "skip_prep",
    "pseudo_labels",  # compared by content
    "dev_trials",
    "dev_every",
    "select_by",
    "selfcheck_folder",
    "selfcheck_every",
    "checkpoints_to_keep",
    "average_last",
    "write_corrected",
    "file_logger",
    "train_loggers",
)
# Run options that change what is learned; others may change.
FIXED_OPTIONS = ("max_grad_norm", "grad_accumulation_factor")
# Crops of a view sampler, as in the names of their keys.
KINDS = ("global", "local")
# Steps of a new process that are slower than later ones.
SETTLING_STEPS = 4
# value of select_by that needs no labels, and the statistic it stands for
SELFCHECK = "selfcheck"
SELFCHECKED = (
    "cross-entropy {cross_entropy:.3f} bits, EER {EER:.1f} % (same utterance "
    "against others, without labels; {utterances} held-out utterances)"
)
UNLABELLED = "Trained by speechbrain_ssl without speaker labels."


def _pairs(rule, text):
    """Rule for a list of [module, number]."""

    def holds(value):
        return isinstance(value, list) and all(
            isinstance(module, torch.nn.Module) and rule.holds(number)
            for module, number in value
        )

    return Rule(holds, text)


@checked(
    seed=whole(0, 2**32 - 1),
    number_of_epochs=whole(1),
    batch_size=whole(1),
    num_workers=whole(0),
    sequential_rows=optional(whole(1)),
    max_grad_norm=number(above=0),
    lr_schedule=schedule(number(0)),
    frozen_epochs=_pairs(number(0), "a list of [module, epoch]"),
    clip_each_tensor=one_of(True, False),
    dev_every=whole(1),
    select_by=one_of(None, "EER", "minDCF_0.01", SELFCHECK),
    selfcheck_share=number(0, below=1),
    selfcheck_every=whole(1),
    checkpoints_to_keep=whole(1),
    average_last=whole(1),
    train_loggers=Rule(lambda value: isinstance(value, list), "a list"),
    decay_vectors=one_of(True, False),
)
@dataclass(frozen=True)
class Training:
    """Settings that all trainings have, checked when they are put together.

    A field is the key of the same name in the YAML files, which explain it. A
    setting that is wrong or does not fit the others is a ValueError, whose
    message names the key.
    """

    output_folder: str
    seed: int
    number_of_epochs: int
    batch_size: int
    num_workers: int
    epoch_counter: Any
    checkpointer: AtomicCheckpointer
    opt_class: Any
    max_grad_norm: float
    lr_schedule: Any
    frozen_epochs: list
    clip_each_tensor: bool
    dev_trials: str | None
    dev_every: int
    select_by: str | None
    checkpoints_to_keep: int
    average_last: int
    train_loggers: list
    lr_for: str = "none"
    reference_batch: int | None = None
    decay_vectors: bool = False
    parameter_options: Sequence = ()
    sequential_rows: int | None = None
    selfcheck_share: float = 0.0
    selfcheck_folder: str | None = None
    selfcheck_every: int = 5

    def __post_init__(self):
        by_labels = self.select_by not in (None, SELFCHECK)
        has_check = self.selfcheck_share or self.selfcheck_folder
        name = "dev_every" if by_labels else "selfcheck_every"
        every = getattr(self, name)
        check_rules(
            (
                self.dev_trials or not by_labels,
                f"select_by: {self.select_by} chooses checkpoints by a "
                "labelled list: name it as dev_trials, or set select_by to "
                "null, or to selfcheck, which needs no labels",
            ),
            (
                self.select_by != SELFCHECK or has_check,
                "select_by: selfcheck needs audio that is not trained on: set "
                "selfcheck_share, such as 0.05, or selfcheck_folder",
            ),
            (
                not (self.selfcheck_share and self.selfcheck_folder),
                "selfcheck_share and selfcheck_folder both say which audio the "
                "self-check takes: set one of them",
            ),
            (
                not self.select_by or every <= self.number_of_epochs,
                f"{name} is {every}; with select_by it must not be more than "
                f"number_of_epochs ({self.number_of_epochs})",
            ),
            (
                self.average_last <= self.checkpoints_to_keep,
                f"average_last is {self.average_last}; it must not be more "
                f"than checkpoints_to_keep ({self.checkpoints_to_keep})",
            ),
            (
                self.average_last == 1 or not self.select_by,
                "average_last and select_by both say which weights to export: "
                "set average_last to 1, or select_by to null",
            ),
            (
                self.epoch_counter.limit == self.number_of_epochs,
                f"epoch_counter counts to {self.epoch_counter.limit}, but "
                f"number_of_epochs is {self.number_of_epochs}",
            ),
        )
        _try_optimizer(self.opt_class)
        # of these a wrong value says by itself what it should be
        lr_factor(self.lr_for, self.batch_size, self.reference_batch)
        parameters_with(self.parameter_options, "decay")
        if self.dev_trials:  # now, not when the first epochs are done
            _open_trials(self.dev_trials)


def _open_trials(list_path):
    """Opens all files of a trial list."""
    trials = read_trials(list_path, need_labels=True)
    paths = trial_paths(trials, list_path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reasons = [x for x in pool.map(_problem_of, paths) if x is not None]
    if len(reasons) == len(paths):
        raise OptionsError(
            f"dev_trials: no audio file of {list_path} can be read. The first "
            f"one: {reasons[0]}"
        )
    if reasons:
        logger.warning(
            "%d of %d audio files of dev_trials cannot be read and are left "
            "out, such as: %s",
            len(reasons),
            len(paths),
            reasons[0],
        )
    logger.info(
        "%s: %d trials, lines `%s`", list_path, len(trials.enrol), trials.layout
    )


def _problem_of(path):
    """Why a file cannot be opened; None if it can."""
    if os.path.splitext(path)[1].lower() in faces.IMAGES:
        return faces.problem_of(path) or None
    try:
        audio.info(path)
    except audio.AudioError as error:
        return str(error)
    return None


def _try_optimizer(opt_class):
    """Refuses arguments that the optimizer would refuse after preparation."""
    try:
        opt_class([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise OptionsError(
            f"opt_class cannot make an optimizer: {error}"
        ) from error


def check_rules(*rules: tuple[Any, str]) -> None:
    """Raises an OptionsError with the message of the first broken rule.

    A rule is whether it holds, and the message if it does not.
    """
    for holds, message in rules:
        if not holds:
            raise OptionsError(message)


def check_recoverables(
    checkpointer: AtomicCheckpointer, parts: Mapping[str, Any]
) -> None:
    """Checks that a checkpoint holds all parts of a training with a state.

    ``parts`` has the modules or other objects by their names in the YAML. A
    resumed run would begin a missing part anew.
    """
    saved = [id(value) for value in checkpointer.recoverables.values()]
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            has_state = bool(part.state_dict())
        else:
            has_state = get_default_hook(part, DEFAULT_SAVE_HOOKS) is not None
        if has_state and id(part) not in saved:
            raise OptionsError(
                f"The recoverables of checkpointer lack '{name}': a resumed "
                f"run would begin it anew. Add the line {name}: !ref <{name}>"
            )


class Run(NamedTuple):
    """An open run."""

    folder: str  # its output folder
    settings: dict  # what ``settings.json`` records; see ``refuse_changes``
    hparams_text: str  # the YAML file with all changes and references resolved
    source: str  # path of the YAML file


@contextlib.contextmanager
def open_run(
    output_folder: str, hparams_file: str, overrides: str, run_opts: Mapping
) -> Iterator[Run]:
    """Starts the processes and occupies the folder of a run.

    ``overrides`` are the changes of the command line, as ``load_experiment``
    returns them. It is an error if another process trains in the folder, or its
    run was started with settings that differ beyond ``MAY_CHANGE``.
    """
    distributed.start(run_opts)
    # only now is "cuda" the GPU of this process
    if run_opts["device"]:
        check_device(run_opts["device"])
    settings = settings_of(hparams_file, overrides)
    for key, value in settings.items():
        if key.endswith("_folder") and isinstance(value, str):
            settings[key] = audio.absolute(value)
    for name in FIXED_OPTIONS:
        settings.setdefault(name, run_opts[name])
    text = resolved(hparams_file, overrides)
    run = Run(output_folder, settings, text, os.path.abspath(hparams_file))
    with contextlib.ExitStack() as stack:
        distributed.on_first(stack.enter_context, occupy(output_folder))
        distributed.on_first(_compare, run)
        distributed.on_first(_free_script, output_folder)
        yield run


def _free_script(folder):
    """Lets SpeechBrain replace its copy of the script when a run goes on.

    The copy of a read-only script is read-only.
    """
    name = os.path.basename(os.path.realpath(sys.argv[0]))
    path = os.path.join(folder, name)
    # without a copy, or with one of another user, SpeechBrain says so
    with contextlib.suppress(OSError):
        os.chmod(path, os.stat(path).st_mode | stat.S_IWUSR)


def _compare(run):
    """Refuses settings that are not those of the run in the folder."""
    path = os.path.join(run.folder, RECORD)
    if not os.path.isfile(path):
        return
    may_change = {*MAY_CHANGE, *run_option_types()} - {*FIXED_OPTIONS}
    before = read_json(path)
    # the state of one optimizer is of no use to another
    if _optimizer_of(before) != _optimizer_of(run.settings):
        may_change.remove("opt_class")
    refuse_changes(
        before,
        run.settings,
        may_change,
        what=f"The run in {run.folder}",
        advice="Use the settings of before to go on with it, or name another "
        "output_folder.",
    )


def _optimizer_of(settings):
    """The tag of ``opt_class``, without its arguments."""
    found = settings.get("opt_class")
    return found[0] if isinstance(found, list) else found


def _record(run):
    """Writes the settings of a run that begins to train."""
    path = os.path.join(run.folder, RECORD)
    before = read_json(path) if os.path.isfile(path) else run.settings
    for line in differences(before, run.settings):
        logger.info("Changed setting: %s", line.strip())
    write_json(path, run.settings)
    path = os.path.join(run.folder, "hyperparams.yaml")
    with write_whole(path) as file:
        file.write(
            f"# Generated {datetime.date.today()} from:\n# {run.source}\n"
            f"# yamllint disable\n{run.hparams_text}"
        )


def is_resumed(training: Training, train_annotation: str) -> bool:
    """Whether there are a checkpoint and a training CSV to continue with."""
    return bool(
        os.path.isfile(train_annotation)
        and training.checkpointer.list_checkpoints()
    )


def training_set(
    csv_path: str, data_folder: str | None, view_sampler: Sampler
) -> Utterances:
    """Reads the training CSV; of faces, only the utterances that have one."""
    if faces.COLUMN not in view_sampler.columns:
        return read_annotation(csv_path, data_folder)
    found = read_annotation(csv_path, data_folder, extra=(faces.COLUMN,))
    kept = found.having(faces.COLUMN)
    logger.info(
        "%s: %d of %d utterances have a face.", csv_path, len(kept), len(found)
    )
    return kept


def make_selfcheck(
    utterances: Utterances, training: Training, view_sampler: Sampler
) -> tuple[np.ndarray, SelfCheck | None]:
    """Prepares the self-check without labels, if there is one.

    Gives whether each utterance is trained on [utterances], and the self-check
    of the first process; None in others, or without a self-check.
    """
    kept = np.ones(len(utterances), dtype=bool)
    folder, share = training.selfcheck_folder, training.selfcheck_share
    if not (folder or share):
        return kept, None
    if view_sampler.face_size is not None:
        raise OptionsError(
            "The self-check is for encoders of audio alone: set "
            "selfcheck_share to 0, selfcheck_folder and select_by to null"
        )
    if not folder:
        kept = ~held_out(utterances, share)

    def prepare():
        if folder:
            save = os.path.join(training.output_folder, "save", "selfcheck")
            listed = find_utterances(folder, save)
        else:
            listed = utterances.take(~kept)
        check = SelfCheck(listed, view_sampler.sample_rate)
        logger.info(
            "Self-check without labels: %d utterances, two parts of %.2g s; "
            "%d of %d utterances are held out of training.",
            len(check.ids),
            check.seconds,
            len(kept) - kept.sum(),
            len(kept),
        )
        return check

    return kept, distributed.on_first(prepare)


def views_of(
    utterances: Utterances,
    view_sampler: Sampler,
    face_sampler: FaceSampler | None = None,
) -> UtteranceDataset:
    """The training set: augmented views of utterances, and no label."""
    view_sampler.prepare(utterances)

    # no local function: workers that are not forked get a pickle
    views = GeneratorDynamicItem(
        takes=["key", *view_sampler.columns],
        func=functools.partial(_views, view_sampler),
        provides=["views", "draws", "speed"],
    )
    items = [views]
    if face_sampler is not None:
        images = GeneratorDynamicItem(
            takes=["key", faces.COLUMN],
            func=functools.partial(_face_views, face_sampler),
            provides=["face_views", "face_draws", "face_problem"],
        )
        items.append(images)
    return UtteranceDataset(
        utterances,
        dynamic_items=items,
        output_keys=["id", "index", *(x for i in items for x in i.provides)],
        seed=view_sampler.seed,
        # transforms of images draw from torch's generator, and some effects
        in_thread=face_sampler is None
        and getattr(view_sampler, "augment_on", None) == "device",
    )


def _face_views(face_sampler, key, face):
    """Yields views, draws and problem of a face; blank ones if there is none."""
    problem = None if face else ""
    try:
        views, draws = face_sampler(key, face) if face else face_sampler.blank()
    except faces.FaceError as error:
        (views, draws), problem = face_sampler.blank(), str(error)
    yield views
    yield draws
    yield problem


def _views(view_sampler, key, *columns):
    """Yields views, draws and speed of an utterance."""
    views, draws = view_sampler(key, *columns)
    yield views
    yield draws
    yield view_sampler.speed_of(key)


def fit(
    brain: SpeakerBrain,
    train_set: UtteranceDataset,
    training: Training,
    run: Run,
    sampler: Callable | None = None,
    groups: np.ndarray | None = None,
) -> None:
    """Trains to the last epoch, from the newest checkpoint if there is one.

    The settings of ``run`` are recorded now. ``sampler`` makes a sampler from
    seed, rank, world_size and batch_size; by default each utterance comes once
    in an epoch, with others of its group if there are ``groups``. SIGTERM and
    SIGINT end the training after a checkpoint, by ``Interrupted``.
    """
    share: dict[str, Any] = {
        "seed": training.seed,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "batch_size": training.batch_size,
    }
    if sampler is None:
        sampler = functools.partial(
            EpochSampler,
            len(train_set),
            sequential_rows=training.sequential_rows,
            groups=groups,
        )
    elif training.sequential_rows:
        raise OptionsError(
            "class_sampler and sequential_rows both say in which order "
            "utterances come: set one of them to null"
        )
    loader = {
        "sampler": sampler(**share),
        "batch_size": training.batch_size,
        "num_workers": training.num_workers,
        "persistent_workers": training.num_workers > 0,
        "worker_init_fn": outlive_signal,
        "drop_last": True,
    }
    if not brain.debug:
        distributed.on_first(_begin, brain, training, run)
    try:
        with defer_signals():
            brain.fit(
                training.epoch_counter, train_set, train_loader_kwargs=loader
            )
    finally:
        _end_workers(getattr(brain, "train_loader", None))
    done, limit = training.epoch_counter.current, training.number_of_epochs
    if distributed.rank() == 0:
        more = f" (more than number_of_epochs: {limit})" if done > limit else ""
        logger.info(f"{done} of {max(done, limit)} epochs are done{more}.")


def _end_workers(loader):
    """Ends persistent workers, which wait for the next epoch.

    When Python exits it sends one signal and waits, but ``outlive_signal`` lets
    them outlive the first one.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def _begin(brain, training, run):
    """Last checks; then a run is recorded."""
    if not training.checkpointer.list_checkpoints():
        try:
            check_export(brain.evaluated, run.hparams_text)
            _try_branch(brain, brain.evaluated)
            if brain.evaluated_face is not None:
                check_export(brain.evaluated_face, run.hparams_text, FACE)
                _try_branch(brain, brain.evaluated_face)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            raise OptionsError(
                "The encoder (compute_features, mean_var_norm, "
                "embedding_model) or its head cannot process a second of "
                f"audio: {error}"
            ) from error
    _record(run)


class _TimedBrain(SSLBrain):
    """Notes when each step ends."""

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.moments = [*getattr(self, "moments", []), time.monotonic()]


def time_steps(
    hparams: Mapping, run_opts: Mapping, steps: int
) -> tuple[SSLBrain, float]:
    """Times steps of a self-supervised training, without checkpoints or logs.

    ``steps`` is the ``optimizer_step_limit`` of the run options; the first
    steps are not timed. The training CSV must be there. Gives the brain after
    these steps, and the median seconds of a step.
    """
    utterances = training_set(
        hparams["train_annotation"],
        hparams["data_folder"],
        hparams["view_sampler"],
    )
    counter, size = EpochCounter(steps), hparams["batch_size"]
    brain = _TimedBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams={**hparams, "epoch_counter": counter, "train_loggers": []},
        run_opts=run_opts,
    )
    sampler = EpochSampler(
        len(utterances),
        hparams["seed"],
        distributed.rank(),
        distributed.world_size(),
        size,
    )
    brain.fit(
        counter,
        views_of(utterances, hparams["view_sampler"]),
        train_loader_kwargs={
            "sampler": sampler,
            "batch_size": size,
            "num_workers": hparams["num_workers"],
            "persistent_workers": hparams["num_workers"] > 0,
            "drop_last": True,
        },
    )
    _end_workers(brain.train_loader)
    moments = brain.moments[SETTLING_STEPS:]
    durations = [b - a for a, b in zip(moments, moments[1:])]
    return brain, statistics.median(durations)


@torch.no_grad()
def _try_branch(brain, branch):
    """Runs encoder and head on a second of noise and on shorter crops.

    Nothing is changed.
    """
    rate = brain.hparams.view_sampler.sample_rate
    was_training = branch.training
    branch.eval()([branch.noise(rate).to(brain.device)])
    sampler = brain.hparams.view_sampler
    sampler = getattr(sampler, "voice", sampler)
    for kind, count, frames in zip(KINDS, sampler.counts, sampler.frames):
        # faces have no sample rate
        if not count or sampler.face_size is not None or frames >= rate:
            continue
        try:
            branch([branch.noise(frames).to(brain.device)])
        except (IndexError, RuntimeError) as error:
            raise OptionsError(
                f"{kind}_seconds of view_sampler is {frames / rate:g}: crops "
                f"of {frames} samples are too short for the encoder. Make "
                f"them longer; a second can be processed. ({error})"
            ) from error
    branch.train(was_training)


def choose_checkpoint(training: Training) -> None:
    """Loads the checkpoint that a declared labelled list selects, if any."""
    name = training.select_by
    if not name:
        return
    chosen = training.checkpointer.recover_if_possible(min_key=name)
    if chosen is None or name not in chosen.meta:
        raise ValueError(
            f"No checkpoint in {training.checkpointer.checkpoints_dir} has "
            f"the {name} of select_by: it was never measured. Train on with a "
            "smaller dev_every or selfcheck_every, or set select_by to null."
        )


def export_model(
    brain: SpeakerBrain,
    training: Training,
    run: Run,
    name: str,
    notes: str = UNLABELLED,
    facts: Mapping[str, str] | None = None,
    prefix: str = "",
) -> str:
    """Exports the trained encoder, averaged over the last checkpoints.

    ``name`` is that of the exported module among the recoverables, ``notes``
    the first sentence of the model card, and ``facts`` stand beside or instead
    of those of ``describe``. The ``prefix`` of the face encoder of an
    audio-visual training is ``face_``: it goes to the folder ``face_model``.
    Gives the folder that SpeechBrain loads.
    """
    if training.average_last > 1:
        brain.module(name).load_state_dict(
            average_of_last(training.checkpointer, name, training.average_last)
        )
    found = None if prefix else brain.self_check()
    checked = (
        {} if found is None else {"self-check": SELFCHECKED.format(**found)}
    )
    branch: Any = brain.evaluated_face if prefix else brain.evaluated
    model = export(
        branch,
        run.hparams_text,
        os.path.join(run.folder, f"{prefix}model"),
        notes=notes,
        facts={**describe(brain, training), **checked, **(facts or {})},
        prefix=prefix,
    )
    if found is not None:
        set_label_free_threshold(
            model, found, training.selfcheck_folder or "held-out audio"
        )
    if training.dev_trials:
        try:
            _suggest_threshold(brain, training, model)
        except ValueError as error:
            if not prefix:  # the files of the trials may have no faces
                raise
            logger.warning("The face model gets no threshold: %s", error)
    return model


def _suggest_threshold(brain, training, model):
    """Writes the threshold of the labelled trial list into a model folder."""
    encoder = load_encoder(model, brain.device)
    summary = verify(
        encoder.encode_batch,
        training.dev_trials,
        sample_rate=encoder.audio_normalizer.sample_rate,
        device=brain.device,
        strict=False,
        known={"training set": _utterances_of(brain).wavs()},
        face_size=face_size_of(encoder),
    )
    if summary["raw"]["EER"] is not None:
        suggest_threshold(
            model,
            summary["raw"],
            os.path.basename(training.dev_trials),
            summary.get("known_files"),
        )


def describe(brain: SpeakerBrain, training: Training) -> dict[str, str]:
    """Facts about a training for the model card, by name."""
    labels = getattr(brain, "labels", None)
    utterances = _utterances_of(brain)
    hours = utterances.durations.double().sum().item() / 3600
    label_use = "none in training or selection"
    if training.select_by == SELFCHECK:
        label_use += "; the self-check without labels chose the checkpoint"
    elif training.select_by:
        name = os.path.basename(training.dev_trials or "")
        label_use = f"those of {name} chose the checkpoint"
    facts = {
        "data": f"{len(utterances)} utterances, {hours:.1f} hours",
        "pseudo-labels": f"{labels.count} clusters" if labels else "none",
        "epochs": training.epoch_counter.current,
        "seed": training.seed,
        "speaker labels": label_use,
    }
    return {name: str(fact) for name, fact in facts.items()}


def _utterances_of(brain):
    """The training set of the second stage, or of the first."""
    return (getattr(brain, "labels", None) or brain).utterances


@checked(
    learning_rates=_pairs(number(0), "a list of [module, rate]"),
    centroid_start=one_of(True, False, None),
    write_corrected=one_of(True, False),
    face_gate_from=number(0),
    selection=one_of(*SELECTIONS),
    channel_groups=channels.COUNT,
    channel_weight=number(above=0, high=1),
)
@dataclass(frozen=True)
class LabelTraining:
    """Settings that a training on labels has beside those of ``Training``.

    A field is the key of the same name in the YAML files, which explain it.
    ``classifier`` and ``face_classifier`` make a classifier from the number of
    ``classes``, ``class_sampler`` a sampler from the classes (None: each
    utterance comes once). ``begin`` of ``regularizer``, where it has one, is
    called when the weights of ``init_from`` are loaded. Settings that do not
    fit each other are a ValueError, whose message names the key.
    """

    encoder: Any
    classifier: Any
    loss: Any
    gate: Any
    view_sampler: Any
    learning_rates: list
    centroid_start: bool | None
    init_from: str | None
    write_corrected: bool
    continue_from: str | None = None
    regularizer: Any = None
    class_sampler: Any = None
    face_encoder: Any = None
    face_classifier: Any = None
    face_gate: Any = None
    face_sampler: Any = None
    face_init_from: str | None = None
    face_gate_from: float = 0.0
    selection: str = "own"
    channel_groups: float = 0
    channel_weight: float = 0.1

    def __post_init__(self):
        sampler = self.view_sampler
        corrects = self.loss.correct_from < float("inf")
        if self.face_encoder is not None:
            self._check_faces(corrects)
        check_rules(
            (
                sampler.counts == (1, 0),
                "view_sampler must cut one global crop and no local ones",
            ),
            (
                sampler.clean_views or not corrects,
                "labels are corrected from the clean views of crops: set "
                "clean_views of view_sampler to True, or correct_from of loss "
                "to .inf",
            ),
            (
                callable(self.gate) and hasattr(self.gate, "fit"),
                "gate must be a FixedGate, a MixtureGate or the like",
            ),
            (
                not self.continue_from
                or not (self.init_from or self.centroid_start),
                "continue_from takes over encoder and classifier: set "
                "init_from to null and centroid_start to False",
            ),
            (
                not self.regularizer or callable(self.regularizer),
                "regularizer must be a DistanceToPretrained, a DistanceToStart "
                "or the like",
            ),
        )

    def _check_faces(self, corrects):
        """Rules of the branch of faces."""
        sampler = self.face_sampler
        check_rules(
            (
                getattr(sampler, "counts", None) == (1, 0)
                and sampler.face_size is not None,
                "face_sampler must be a FaceSampler with one global crop and "
                "no local ones",
            ),
            (
                sampler.clean_views or not corrects,
                "labels are corrected from the clean views of crops: set "
                "clean_views of face_sampler to True, or correct_from of loss "
                "to .inf",
            ),
            (
                callable(self.face_gate) and hasattr(self.face_gate, "fit"),
                "face_gate must be a FixedGate, a MixtureGate or the like",
            ),
            (
                self.face_gate is not self.gate,
                "gate and face_gate are the same object, but the losses of "
                "voices and faces have different scales: make two",
            ),
            (
                not self.continue_from,
                "continue_from is for voices only: set it to null",
            ),
        )


def train_on_labels(
    labels: Labels,
    training: Training,
    settings: LabelTraining,
    run: Run,
    hparams: Mapping,
    run_opts: Mapping,
    brain_class: type[PseudoLabelBrain] = PseudoLabelBrain,
) -> PseudoLabelBrain:
    """Trains an encoder and a classifier on labels.

    ``brain_class`` is PseudoLabelBrain, or a class that watches it. Gives the
    brain after training; its gates are drawn, and corrected labels written.
    """
    kept, check = make_selfcheck(
        labels.utterances, training, settings.view_sampler
    )
    if not kept.all():
        labels = keep_labels(labels, kept)
    speeds = len(settings.view_sampler.speeds)
    classifier = settings.classifier(classes=labels.count * speeds)
    training.checkpointer.add_recoverable("classifier", classifier)
    if settings.init_from:
        start_from(settings.encoder, settings.init_from)
        if hasattr(settings.regularizer, "begin"):
            settings.regularizer.begin()
    if settings.continue_from:
        continue_run(settings.encoder, classifier, settings.continue_from)
    centroid_start = settings.centroid_start
    if centroid_start is None:
        # mean embeddings of random weights are almost equal for all classes
        centroid_start = bool(settings.init_from)
    modules = {"encoder": settings.encoder, "classifier": classifier}
    if settings.face_encoder is not None:
        modules[f"{FACE}encoder"] = settings.face_encoder
        modules[f"{FACE}classifier"] = classifier = settings.face_classifier(
            classes=labels.count
        )
        training.checkpointer.add_recoverable(f"{FACE}classifier", classifier)
        if settings.face_init_from:
            start_from(settings.face_encoder, settings.face_init_from)
    brain = brain_class(
        labels,
        modules=modules,
        opt_class=training.opt_class,
        hparams={
            **hparams,
            "centroid_start": centroid_start,
            f"{FACE}centroid_start": bool(settings.face_init_from),
            "selfcheck": check,
        },
        run_opts=run_opts,
        checkpointer=training.checkpointer,
    )
    if settings.channel_groups:
        groups = channels.channel_groups(
            labels.utterances,
            os.path.join(run.folder, "save", "channel_groups.npz"),
            settings.view_sampler.sample_rate,
            settings.channel_groups,
            training.seed,
            brain.device,
        )
        brain.compare_within(groups, settings.channel_weight)
    train_set = views_of(
        labels.utterances, settings.view_sampler, settings.face_sampler
    )
    sampler = None
    if settings.class_sampler:
        sampler = functools.partial(settings.class_sampler, labels.classes)
    fit(brain, train_set, training, run, sampler)
    if settings.write_corrected:
        distributed.on_first(_write_corrected, brain, run.folder)
    distributed.on_first(_draw_gates, run.folder)
    return brain


def _write_corrected(brain, folder):
    """Writes the labels as the last epoch corrected them."""
    labels, decisions = brain.labels, brain.decisions
    report = (labels.report or {}).get("labels", {})
    write_labels(
        os.path.join(folder, "corrected"),
        labels.utterances,
        list(labels.utterances.ids()),
        decisions.corrected_labels().numpy(),
        report.get("embeddings"),
        {"corrected": int(decisions.table.corrected.sum())},
        count=report.get("utterances"),
    )


def _draw_gates(folder):
    """Draws the gate of each epoch, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    for prefix in ("", FACE):
        for record in read_jsonl(os.path.join(folder, f"{prefix}gate.jsonl")):
            name = f"epoch_{record['epoch']:03d}.png"
            path = os.path.join(folder, f"{prefix}gate", name)
            save(gate_plot(record), path)
