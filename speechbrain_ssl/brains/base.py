"""The training loop that both stages share."""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import speechbrain as sb
import torch
import yaml
from speechbrain.dataio.batch import PaddedBatch
from torch.nn.parallel import DistributedDataParallel

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.collapse import CollapseStats
from speechbrain_ssl.brains.unreadable import UnreadableUtterances
from speechbrain_ssl.dataio.annotations import UtteranceDataset
from speechbrain_ssl.dataio.loader import EpochLoader
from speechbrain_ssl.devices import Later
from speechbrain_ssl.evaluation.selfcheck import stats_of
from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.files import read_jsonl, write_whole
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.parameters import (
    clip_gradients,
    parameter_groups,
    parameters_with,
)
from speechbrain_ssl.nnet.schedules import at, lr_factor
from speechbrain_ssl.nnet.statistics import RunningStatistics
from speechbrain_ssl.random_states import RandomStates
from speechbrain_ssl.script import Interrupted, stop_requested

logger = logging.getLogger(__name__)

# consecutive steps without a selected utterance before a warning is logged
PATIENCE = 20
# modules that --compile compiles
NETWORKS = ("student", "teacher", "encoder", "face_encoder")
# statistics in the line that the console shows for each epoch
SUMMARY = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "selected": "{:.0%} selected",
    "EER": "EER {:.2f} %",
    "selfcheck": "self-check {:.3f}",
    "effective_rank": "effective rank {:.1f}",
    "lr": "learning rate {:.2g}",
    "views_per_second": "{:.0f} views/s",
}
# halvings that bring a scaler of fp16 from its start to where it cannot help
HALVINGS = 24


class StepResult(NamedTuple):
    """The result of ``compute_objectives`` for one batch."""

    loss: torch.Tensor  # scalar to minimize
    stats: dict[str, torch.Tensor]  # detached scalars for the log
    # whether there is something to learn, the same in all processes []; a step
    # of batches without is skipped
    teaches: bool | torch.Tensor
    # takes over queues, decisions and statistics of embeddings; called if the
    # loss is finite in all processes
    commit: Callable[[], None]


@sb.utils.checkpoints.register_checkpoint_hooks
class SpeakerBrain(sb.Brain):
    """A SpeechBrain loop with the details that SSL training depends on.

    Differences from ``sb.Brain``: time is a fractional epoch, and learning
    rates follow a schedule of it. Gradients of all groups are clipped.
    Gradient accumulation that the end of the epoch cuts short still makes a
    step. A loss that is not finite in one process skips the step in all of
    them and names the utterances; more than ``nonfinite_patience`` of these,
    or of gradients that are not finite, in an epoch or in a row end the run.
    A resumed run gives the same bits on a CPU. Each process draws its own
    random numbers. BatchNorm works in processes without GPUs.

    An accelerator always has work in its queue. The host reads whether a loss
    is finite when the backward pass is queued already. The optimizer itself
    skips a step whose gradients are not finite, if it has a fused form; the
    host learns of it in the next step. Everything else that the host wants to
    know is fetched at the end of an epoch.

    A subclass has ``evaluated`` (the Branch that is verified and exported; with
    a second one for faces also ``evaluated_face``), and its
    ``compute_objectives`` returns a ``StepResult``, whose ``commit`` hands the
    embeddings to ``collapse``. Each statistic has a line in ``stats_help`` of
    the class, of a module or of an object among the hyperparameters.

    Hyperparameters: ``seed``, ``output_folder``, ``epoch_counter``,
    ``lr_schedule`` (factor of the learning rate, a number or a schedule),
    ``learning_rates`` (list of [module, rate]; others have that of the
    optimizer; may be left out), ``lr_for`` and ``reference_batch`` (how
    learning rates follow the size of a step, see ``lr_factor``; may be left
    out), ``decay_vectors`` and ``parameter_options`` (which parameters are
    decayed, clipped and summed over processes, see ``parameters_with``; may be
    left out), ``frozen_epochs`` (list of [module, epoch at which it starts to
    move]), ``clip_each_tensor``, ``checkpoints_to_keep``,
    ``select_by`` (None, or the statistic that chooses the checkpoint to
    keep), ``dev_trials`` and ``dev_every`` (a labelled list to
    report error rates on every so many epochs; null for none), ``selfcheck``
    and ``selfcheck_every`` (a SelfCheck without labels, and the epochs between
    its figures; may be left out),
    ``train_loggers``.
    """

    compile_module_keys: list[str] | None

    stats_help = {
        "loss": "Mean loss of the steps.",
        "gradient_norm": "Norm of all gradients before clipping.",
        "lr": (
            "Learning rate of the first group of parameters at the end of the "
            "epoch."
        ),
        "data_wait": "Share of the time in which training waited for data.",
        "views_per_second": (
            "Views of utterances that were trained on per second."
        ),
        "EER": "Equal error rate of dev_trials in %.",
        "minDCF_0.01": (
            "Normalized minimum detection cost of dev_trials at p_target 0.01."
        ),
        **CollapseStats.stats_help,
        **UnreadableUtterances.stats_help,
    }

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm must be positive, not {self.max_grad_norm}: "
                "SpeechBrain would climb the loss. Use .inf for no clipping."
            )
        log = os.path.join(self.hparams.output_folder, "train_log.jsonl")
        if self.debug and not self.debug_persistently and os.path.exists(log):
            raise ValueError(
                f"--debug would write over the run in {os.path.dirname(log)}. "
                "Name another --output_folder."
            )
        self.random_states = RandomStates()
        # of the batches since the last step
        self.gradients_are_usable, self.something_to_learn = True, False
        self.steps_without = 0
        self.lost_in_a_row = 0
        # 1 if the last step was made, 0 if not, on the device; None: it was
        self.moved: torch.Tensor | None = None
        # gradient norm of a step that may be lost
        self.unsettled: tuple[torch.Tensor, Later] | None = None
        self.stop_asked = False
        self.utterances_hash: str | None = None  # of subclasses that keep rows
        self.training_seconds = 0.0
        self.clock = time.monotonic()
        self.train_stats = {}
        self.epoch_log = EpochLog(log)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("random", self.random_states)

    @property
    def epoch(self) -> float:
        """Fractional epoch, 0.0 at the first batch; survives a restart."""
        done = max(self.step - 1, 0) / self.steps_per_epoch
        return self.hparams.epoch_counter.current - 1 + done

    def module(self, name: str) -> Any:
        """A module without the wrappers of DDP and of torch.compile."""
        module = self.this_process(name)
        return getattr(module, "_orig_mod", module)

    def this_process(self, name: str) -> Any:
        """A module without the wrapper of DDP, but compiled with --compile.

        It is called without communication between processes.
        """
        module = self.modules[name]
        return getattr(module, "module", module)

    @property
    def evaluated_face(self) -> Branch | None:
        """The branch of faces, which is exported too; None: there is none."""
        return None

    @property
    def on_gpu(self) -> bool:
        """Whether training is on a GPU."""
        return torch.device(self.device).type == "cuda"

    def make_dataloader(
        self, dataset: UtteranceDataset, stage: sb.Stage, **kwargs: Any
    ) -> Any:
        """Makes the loader, and notes the length of an epoch.

        ``stage`` is always TRAIN: utterances are verified by ``verify_epoch``.
        ``kwargs`` are those of ``EpochLoader``, with the ``sampler`` of this
        process. The loader is part of checkpoints.
        """
        if self.on_gpu:  # copies from other memory would wait
            kwargs.setdefault("pin_memory", True)
        loader = EpochLoader(
            dataset,
            last_epoch=self.hparams.epoch_counter.limit,
            ahead=dataset.in_thread,
            **kwargs,
        )
        self.train_loader, self.train_sampler = loader, loader.sampler
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("dataloader-TRAIN", loader)
        self.steps_per_epoch = len(loader)
        self.utterances_per_step = (
            loader.batch_size or 1
        ) * distributed.world_size()
        if self.debug:
            self.steps_per_epoch = min(len(loader), self.debug_batches)
        return loader

    def _wrap_distributed(self):
        """Wraps modules that learn in DDP; SyncBatchNorm needs GPUs."""
        if not self.distributed_launch:
            return
        on_cpu = not self.on_gpu
        for name, module in self.modules.items():
            if not on_cpu:  # the teacher's as well as the student's
                module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
                self.modules[name] = module
            if not any(p.requires_grad for p in module.parameters()):
                continue
            self.modules[name] = DistributedDataParallel(
                module,
                device_ids=None if on_cpu else [self.device],
                find_unused_parameters=self.find_unused_parameters,
            )

    def init_optimizers(self) -> None:
        """Makes the optimizer; learning rates follow the size of a step."""
        get = vars(self.hparams).get
        options = get("parameter_options", [])
        self.unclipped = parameters_with(options, "clip")
        self.summed = parameters_with(options, "sum")
        groups = parameter_groups(
            self.modules,
            get("learning_rates", []),
            get("decay_vectors", False),
            parameters_with(options, "decay"),
        )
        self.optimizer = self._make_optimizer(groups)
        self.optimizers_dict = {"opt_class": self.optimizer}
        self.lr_scale = self._lr_scale(get("lr_for", "none"))
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"] * self.lr_scale
        self.settings = [
            {name: x for name, x in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def _make_optimizer(self, groups):
        """Makes the optimizer, on a GPU in its fused form if it has one."""
        given = getattr(self.opt_class, "keywords", {})
        if self.on_gpu and not {"fused", "foreach", "dampening"} & given.keys():
            with contextlib.suppress(TypeError, RuntimeError):
                return self.opt_class([{**g} for g in groups], fused=True)
        return self.opt_class(groups)

    def _complete_state(self):
        """Adds the state that fused optimizers of torch expect."""
        state = self.optimizer.state
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                # SGD would leave it uninitialized if the first step is skipped
                if group.get("momentum") and not state[parameter]:
                    zeros = torch.zeros_like(parameter)
                    state[parameter]["momentum_buffer"] = zeros
                # steps are counted on the device, by others on the CPU
                if "step" in state.get(parameter, ()):
                    steps = state[parameter]["step"]
                    state[parameter]["step"] = steps.to(parameter.device)

    def _lr_scale(self, rule):
        """Factor of all learning rates by the rule ``lr_for``."""
        if rule == "none":
            return 1.0
        reference = vars(self.hparams).get("reference_batch")
        step = self.utterances_per_step * self.grad_accumulation_factor
        scale = lr_factor(rule, step, reference)
        if sb.utils.distributed.if_main_process():
            logger.info(
                "Learning rates of the hparams file, for %s utterances in a "
                "step, are multiplied by %.4g for %d (lr_for: %s). The first "
                "one is %.4g.",
                reference,
                scale,
                step,
                rule,
                self.optimizer.param_groups[0]["lr"] * scale,
            )
        return scale

    def on_fit_start(self) -> None:
        """Compiles modules, loads the checkpoint, seeds each process."""
        if self.compile and not self.compile_module_keys:
            self.compile_module_keys = [
                n for n in NETWORKS if n in self.modules
            ]
        super().on_fit_start()
        self.running_statistics = RunningStatistics(self.modules)
        # loading a checkpoint has set those of the earlier run
        for group, settings in zip(self.optimizer.param_groups, self.settings):
            group.update(settings)
        if self._skips_by_itself:
            self._complete_state()
        if sb.utils.distributed.if_main_process():
            path = os.path.join(self.hparams.output_folder, "stats_help.json")
            with writing(path), write_whole(path) as file:
                json.dump(self.all_stats_help(), file, indent=2)
        # weights are the same everywhere, random numbers differ from here on
        torch.manual_seed(self.hparams.seed + 1000 * distributed.rank())

    def all_stats_help(self) -> dict[str, str]:
        """What each logged statistic means, for ``stats_help.json``.

        They are those of this class, of the modules and of the objects among
        the hyperparameters.
        """
        modules = [self.module(name) for name in self.modules]
        sources = [self, *modules, *vars(self.hparams).values()]
        return {
            name: text
            for source in sources
            for name, text in getattr(source, "stats_help", {}).items()
        }

    def fit_batch(self, batch: PaddedBatch) -> torch.Tensor:
        """One batch: forward, backward, commit and, if it is time, a step."""
        # if resumed inside an epoch: making the loader drew random numbers
        self.random_states.restore_pending()
        self.wait_seconds += time.monotonic() - self.clock
        self.unreadable.note(batch.unreadable)
        accumulated = self._accumulated()
        should_step = self.step == accumulated[-1]
        self.on_fit_batch_start(batch, should_step)
        self.running_statistics.keep()
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                result = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            verdict = self._verdict(result)
            self.scaler.scale(result.loss / len(accumulated)).backward()
        # the device computes the backward pass while this waits for the loss
        loss, finite, teaches, unasked = verdict.read().unbind()
        self.stop_asked = not unasked
        self._settle()
        if finite:
            with torch.no_grad():
                result.commit()
            self.note({"loss": result.loss, **result.stats})
        else:
            self.gradients_are_usable = False
            self._undo(loss, batch)
        self.something_to_learn |= bool(teaches)
        stepped = False
        if should_step:
            if self.gradients_are_usable and self.something_to_learn:
                stepped = self.optimizers_step()
            self._count_steps_without()
            self.zero_grad(set_to_none=True)
            self.gradients_are_usable, self.something_to_learn = True, False
        self.on_fit_batch_end(batch, outputs, result.loss, stepped)
        now = time.monotonic()
        self.training_seconds += now - self.clock
        self.clock = now
        return loss

    @torch.no_grad()
    def _verdict(self, result):
        """What the host must know of a batch: the loss; whether it is finite
        in all processes; whether there is something to learn; whether no
        process received a signal.
        """
        loss, teaches = result.loss.detach().float(), result.teaches
        if not isinstance(teaches, torch.Tensor):
            teaches = torch.full_like(loss, teaches)
        unasked = torch.full_like(loss, stop_requested() is None).bool()
        flags = torch.stack([loss.isfinite(), unasked])
        finite, unasked = distributed.everywhere(flags).float()
        return Later(torch.stack([loss, finite, teaches.float(), unasked]))

    def _accumulated(self):
        """Steps of the epoch whose gradients are accumulated with this one."""
        size = self.grad_accumulation_factor
        first = (self.step - 1) // size * size + 1
        return range(first, min(first + size - 1, self.steps_per_epoch) + 1)

    def _undo(self, loss, batch):
        """Restores running statistics after a loss that is not finite."""
        self.running_statistics.restore()
        ids = distributed.gather_objects([] if loss.isfinite() else batch.id)
        if sb.utils.distributed.if_main_process():
            logger.warning(
                "The loss is not finite; the step is skipped. Utterances: %s",
                ", ".join(name for names in ids for name in names),
            )
        self._lose_step("loss was")

    def _lose_step(self, what):
        """Ends the run if too many steps were lost, here or in a row."""
        self.nonfinite_count += 1  # SpeechBrain begins anew in each epoch
        self.lost_in_a_row += 1
        if self.nonfinite_count > self.nonfinite_patience:
            when = f"{self.nonfinite_count} times in one epoch"
        elif self.lost_in_a_row > self.nonfinite_patience:
            when = f"{self.lost_in_a_row} times in a row"
        else:
            return
        raise ValueError(
            f"The {what} not finite {when} (nonfinite_patience). Look at the "
            "utterances named in the log, or lower the learning rate."
        )

    def _count_steps_without(self):
        """Warns of steps in a row that had nothing to learn from."""
        self.steps_without += 1
        if self.something_to_learn:
            self.steps_without = 0
        if self.steps_without == PATIENCE:
            logger.warning(
                "For %d steps in a row there was nothing to learn from.",
                PATIENCE,
            )

    def on_fit_batch_start(self, batch: PaddedBatch, should_step: bool) -> None:
        """Sets learning rates from the schedule."""
        factor = at(
            self.hparams.lr_schedule,
            self.epoch,
            steps_per_epoch=self.steps_per_epoch,
            scale=self.lr_scale,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def optimizers_step(self) -> bool:
        """Removes gradients of frozen modules, clips the others, steps.

        Gives False if no step was made because gradients are not finite. On an
        accelerator True may turn out wrong; ``moved`` has the answer.
        """
        self.scaler.unscale_(self.optimizer)
        for parameter in self.summed:  # DDP has averaged
            if parameter.grad is not None:
                parameter.grad *= distributed.world_size()
        for module, epoch in self.hparams.frozen_epochs:
            if self.epoch < epoch:
                for parameter in module.parameters():
                    parameter.grad = None
        norm = clip_gradients(
            self.modules.parameters(),
            self.max_grad_norm,
            each=self.hparams.clip_each_tensor,
            unclipped=self.unclipped,
        )
        self.unsettled = norm, Later(norm)
        if self.on_gpu and self._skips_by_itself:
            self.moved = norm.isfinite().float()
            self._step_if(self.moved)
            self.optimizer_step += 1
            return True
        finite = bool(norm.isfinite())
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer_step += 1
        self._settle()
        return finite

    @property
    def _skips_by_itself(self):
        """Whether the optimizer can skip a step by a flag on the device."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def _step_if(self, moved):
        """A step of the optimizer, if ``moved`` is 1 and not 0."""
        if self.scaler.is_enabled():  # it looks for itself
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        # what torch.amp.GradScaler tells an optimizer
        self.optimizer.grad_scale = None
        self.optimizer.found_inf = 1 - moved
        self.optimizer.step()
        del self.optimizer.grad_scale, self.optimizer.found_inf

    def _settle(self):
        """Finds out whether the last step of the optimizer was made."""
        if self.unsettled is None:
            return
        norm, copy = self.unsettled
        self.unsettled = None
        if copy.read().isfinite():
            self.note({"gradient_norm": norm})
            self.lost_in_a_row = 0
            return
        self.optimizer_step -= 1
        if self.scaler.is_enabled():
            self._look_for_scale()
            return
        logger.warning("Gradients are not finite; the step is skipped.")
        self._lose_step("gradients were")

    def _look_for_scale(self):
        """Counts steps that the scaler skips while it searches its scale."""
        self.lost_in_a_row += 1
        if self.lost_in_a_row > HALVINGS + self.nonfinite_patience:
            raise ValueError(
                f"The gradients were not finite {self.lost_in_a_row} times in "
                "a row. Lower the learning rate, or take another --precision."
            )

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Not during gradient accumulation, nor after the last step.

        Accumulated gradients are not part of a checkpoint. At the end of an
        epoch a checkpoint is saved anyway; one just before it would be resumed
        with an epoch without steps.
        """
        last = self._accumulated()[-1]
        if self.step != last or last == self.steps_per_epoch:
            return False
        self.stopping = self.stop_asked
        if self.stopping and self.checkpointer is None:
            self._stop("ended without a checkpoint.")
        return self.stopping or super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )

    def _save_intra_epoch_ckpt(self):
        """Saves inside an epoch; ends there if a signal asks for it."""
        self._settle()
        failed = self.checkpointer.failed_saves
        super()._save_intra_epoch_ckpt()
        if self.stopping:
            self._stop_after_save(failed)

    def _stop_requested(self):
        """Whether any process received a signal; the same in all of them."""
        unasked = torch.tensor(stop_requested() is None, device=self.device)
        return not bool(distributed.everywhere(unasked))

    def _stop_after_save(self, failed):
        """Ends the process; ``failed`` saves had failed before this one."""
        if self.checkpointer.failed_saves > failed:
            self._stop("the checkpoint could not be saved; see the log.")
        epoch, step = self.hparams.epoch_counter.current, self.step
        place = f"step {step} of epoch {epoch}" if step else f"epoch {epoch}"
        self._stop(f"saved after {place}; the same command goes on from there.")

    def _stop(self, text):
        """Ends the process as the signal asks."""
        raise Interrupted(stop_requested() or signal.SIGTERM, text)

    def note(self, stats: dict[str, torch.Tensor]) -> None:
        """Adds scalars of a batch to the sums of the epoch.

        They stay on their device, so that nothing waits for them.
        """
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value.detach(), count + 1

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Resets the statistics."""
        self.random_states.restore_pending(starting_epoch=True)
        self.sums = {}
        self.collapse = CollapseStats()
        self.wait_seconds = 0.0
        self.seconds_before = self.training_seconds
        self.unreadable = UnreadableUtterances(
            os.path.join(self.hparams.output_folder, "save", "unreadable.csv"),
            self.hparams.view_sampler.max_unreadable,
        )
        self.clock = time.monotonic()

    def on_stage_end(
        self,
        stage: sb.Stage,
        stage_loss: float | None,
        epoch: int | None = None,
    ) -> None:
        """After training: statistics, verification, log, checkpoint."""
        if stage != sb.Stage.TRAIN:
            return
        self._settle()
        self.train_stats = {
            name: float(distributed.mean(torch.as_tensor(total / count)))
            for name, (total, count) in sorted(self.sums.items())
        }
        self.train_stats["lr"] = self.optimizer.param_groups[0]["lr"]
        seconds = max(self.training_seconds - self.seconds_before, 1e-9)
        self.train_stats["data_wait"] = self.wait_seconds / seconds
        self.train_stats["unreadable"] = self.unreadable.finish(
            self.steps_per_epoch * self.utterances_per_step
        )
        warnings = self.describe_epoch(seconds)
        valid_stats = self.verify_epoch(epoch or 0)
        self._log(epoch, valid_stats, warnings)
        # SpeechBrain resets these after this hook; the checkpoint needs it now
        self.step, self.avg_train_loss = 0, 0.0
        if self.checkpointer is None:
            return
        failed = self.checkpointer.failed_saves
        self._keep(epoch, valid_stats)
        if self._stop_requested():
            self._stop_after_save(failed)

    def describe_epoch(self, seconds: float) -> list[str]:
        """Adds speed and signs of collapse to ``train_stats``.

        ``seconds`` is the duration of the epoch. Gives warnings for the log.
        """
        summary = self.collapse.summarize()
        self.train_stats.update(summary)
        # of this process; all have as many
        views = self.collapse.count * distributed.world_size()
        self.train_stats["views_per_second"] = views / seconds
        warnings = self.collapse.warnings(summary)
        if unreadable := self.train_stats["unreadable"]:
            warnings.append(
                f"{unreadable} utterances cannot be read and were replaced by "
                f"others. {self.unreadable.path} lists them."
            )
        return warnings

    def verify_epoch(self, epoch: int) -> dict[str, float]:
        """Error rates of ``dev_trials`` and the self-check after an epoch.

        They are for log and checkpoint; empty if there is nothing to verify.
        """
        found = {}
        if not sb.utils.distributed.if_main_process():
            return found
        trials = self.hparams.dev_trials
        if trials and epoch % self.hparams.dev_every == 0:
            with self._evaluating() as branch:
                rates = verify(
                    branch.embed,
                    trials,
                    sample_rate=self.hparams.view_sampler.sample_rate,
                    device=self.device,
                    strict=False,
                    face_size=self.hparams.view_sampler.face_size,
                )["raw"]
            if rates["EER"] is not None:  # None: too many files have failed
                names = ("EER", "minDCF_0.01")
                found.update({name: rates[name] for name in names})
        every = vars(self.hparams).get("selfcheck_every", 1)
        last = self.hparams.epoch_counter.limit
        if epoch % every == 0 or epoch == last:
            figures = self.self_check()
            if figures is not None:
                found.update(stats_of(figures))
        return found

    def self_check(self) -> dict | None:
        """Measures the evaluated branch without labels, if that is asked for."""
        check = vars(self.hparams).get("selfcheck")
        if check is None:
            return None
        with self._evaluating() as branch:
            return check(branch.embed, self.device)

    @contextlib.contextmanager
    def _evaluating(self):
        """The evaluated branch, in evaluation mode for a while."""
        branch = self.evaluated
        was_training = branch.training
        branch.eval()
        try:
            with self.evaluation_ctx:
                yield branch
        finally:
            branch.train(was_training)

    def _keep(self, epoch, valid_stats):
        """Saves a checkpoint; keeps the newest, or the best by ``select_by``."""
        best_by = [self.hparams.select_by] if self.hparams.select_by else []
        # checkpoints inside epochs do not count among those to keep ...
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, **valid_stats},
            num_to_keep=self.hparams.checkpoints_to_keep,
            keep_recent=True,
            min_keys=best_by,
            ckpt_predicate=lambda c: c.meta["end-of-epoch"],
            verbosity=logging.DEBUG,
        )
        # ... and are deleted when their epoch has been saved
        self.checkpointer.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=self._is_superseded,
            verbosity=logging.DEBUG,
        )

    def _is_superseded(self, checkpoint):
        """Whether a checkpoint inside an epoch is older than one at an end."""
        return not checkpoint.meta["end-of-epoch"] and any(
            other.meta["end-of-epoch"]
            and other.meta["unixtime"] > checkpoint.meta["unixtime"]
            for other in self.checkpointer.list_checkpoints()
        )

    def _log(self, epoch, valid_stats, warnings):
        """Writes the epoch to the loggers and to ``train_log.jsonl``.

        A full disk does not end the training: what cannot be written now is
        written with the next epoch.
        """
        record = {
            "epoch": epoch,
            "step": self.optimizer_step,
            "seconds": round(self.training_seconds, 2),
            "train": self.train_stats,
            "valid": valid_stats,
            "warnings": warnings,
        }
        for train_logger in self.hparams.train_loggers:
            with writing("a log of training"):
                train_logger.log_stats(
                    {"epoch": epoch},
                    self.train_stats,
                    valid_stats or None,
                    verbose=False,
                )
        if sb.utils.distributed.if_main_process():
            logger.info(self._summary(record))
            for warning in warnings:
                logger.warning(warning)
            self.epoch_log.write(record)

    def _summary(self, record):
        """One line about an epoch."""
        stats = {**record["train"], **record["valid"]}
        shown = [
            text.format(stats[name])
            for name, text in SUMMARY.items()
            if name in stats
        ]
        limit = self.hparams.epoch_counter.limit
        return f"epoch {record['epoch']} of {limit}: {', '.join(shown)}"

    @sb.utils.checkpoints.mark_as_saver
    def _save(self, path):
        """Adds training time, size of a step and training set to the state."""
        super()._save(path)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"training_seconds: {self.training_seconds}\n")
            file.write(f"utterances_per_step: {self.utterances_per_step}\n")
            file.write(f"utterances_hash: {self.utterances_hash}\n")

    @sb.utils.checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        """Reads what ``_save`` wrote.

        It is an error if an epoch would continue with steps of another size, so
        that utterances would be left out or seen twice, or if the training set
        is another one, as clusters and queues identify utterances by rows.
        """
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            saved = yaml.safe_load(file)
        self.training_seconds = saved["training_seconds"]
        known = saved.get("utterances_hash", self.utterances_hash)
        if known not in ("None", self.utterances_hash):
            raise ValueError(
                f"{os.path.dirname(path)} was trained on other utterances, or "
                "in another order. Bring the training CSV of before, or train "
                "in another output_folder."
            )
        before = saved.get("utterances_per_step", self.utterances_per_step)
        if not end_of_epoch and before != self.utterances_per_step:
            raise ValueError(
                f"{os.path.dirname(path)} lies inside an epoch with "
                f"{before} utterances in a step of all processes, not "
                f"{self.utterances_per_step}. Go on with the batch_size and "
                "the number of processes of before, or delete that folder to "
                "go on from the end of the epoch before."
            )


class EpochLog:
    """A log with a line of JSON for each epoch.

    A record that cannot be written, because the disk is full, is kept and
    written with the next one. Epochs that are done again replace their lines.
    The file ``path`` is made if it is not there.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.waiting = []

    def write(self, record: dict) -> None:
        """Adds a record, which has ``epoch``."""
        self.waiting.append(record)
        with writing(self.path):
            records = read_jsonl(self.path)
            for new in self.waiting:
                records = [
                    x
                    for x in records
                    if isinstance(x, dict) and x.get("epoch", 0) < new["epoch"]
                ]
                records.append(new)
            with write_whole(self.path) as log:
                log.writelines(json.dumps(x) + "\n" for x in records)
            self.waiting = []


@contextlib.contextmanager
def writing(what: str | os.PathLike) -> Iterator[None]:
    """Logs an error instead of ending the training, as of a full disk.

    ``what`` is what is written, for the message.
    """
    try:
        yield
    except OSError as error:
        logger.error("Cannot write %s: %s. Training goes on.", what, error)
