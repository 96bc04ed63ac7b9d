"""The loop that both stages share, on a run small enough to repeat."""

import errno
import functools
import logging
import os
import shutil
import signal
import types

import numpy as np
import pytest
import torch

from speechbrain_ssl.brains import base
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.nnclr import NNCLR
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.script import defer_signals, run_script
from tests.brains import tiny
from tests.brains.tiny import records, run


class Interrupted(Exception):
    """Stands for kill -9."""


class Watching(SSLBrain):
    """Counts what happens at each step."""

    stop_at = None

    def on_fit_start(self):
        super().on_fit_start()
        self.updates, self.rates, self.drawn = 0, [], []

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.drawn.append(torch.rand(1).item())

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.updates += should_step
        if self.optimizer_step == self.stop_at:
            raise Interrupted


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 7])
def test_an_interrupted_run_ends_with_the_same_bits(corpus, tmp_path, stop_at):
    settings = {
        "encoder": tiny.ecapa,
        "brain_class": Watching,
        "ckpt_interval_steps": 1,
    }
    whole = run(corpus, tmp_path / "whole", **settings)
    parts = str(tmp_path / "parts")
    first = tiny.make_brain(corpus, parts, **settings)
    first.stop_at = stop_at
    with pytest.raises(Interrupted):
        tiny.fit(first)
    second = run(corpus, parts, **settings)
    expected, found = tiny.state_of(whole), tiny.state_of(second)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert second.drawn == whole.drawn[-len(second.drawn) :]
    assert second.optimizer_step == whole.optimizer_step == 8
    assert [r["epoch"] for r in records(tmp_path / "parts")] == [1, 2]


def test_a_run_killed_at_the_end_of_an_epoch_ends_with_the_same_bits(
    corpus, tmp_path
):
    class Dies(SSLBrain):
        def verify_epoch(self, epoch):
            raise Interrupted

    settings = {"encoder": tiny.ecapa, "ckpt_interval_steps": 1}
    whole = run(corpus, tmp_path / "whole", **settings)
    parts = tmp_path / "parts"
    with pytest.raises(Interrupted):
        run(corpus, parts, brain_class=Dies, **settings)
    second = run(corpus, parts, **settings)
    found = tiny.state_of(second)
    for name, value in tiny.state_of(whole).items():
        assert torch.equal(value, found[name]), name


class Signalled(Watching):
    """Gets a signal in a step."""

    signal_at = None

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        if self.optimizer_step + 1 == self.signal_at:
            os.kill(os.getpid(), self.hparams.signal)


@pytest.mark.parametrize(
    "signal_at, number, place",
    [
        (1, signal.SIGTERM, "step 1 of epoch 1"),
        (4, signal.SIGINT, "epoch 1"),
        (7, signal.SIGTERM, "step 3 of epoch 2"),
    ],
)
def test_signal_saves_and_the_run_goes_on_with_the_same_bits(
    corpus, tmp_path, signal_at, number, place, monkeypatch, capsys
):
    settings = {"encoder": tiny.ecapa, "signal": number}
    whole = run(corpus, tmp_path / "whole", **settings, brain_class=Watching)
    parts = str(tmp_path / "parts")
    first = tiny.make_brain(corpus, parts, **settings, brain_class=Signalled)
    first.signal_at = signal_at

    def train(argv):
        with defer_signals():
            tiny.fit(first)

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        run_script(train)
    assert end.value.code == 128 + number
    said = f"saved after {place}; the same command"
    assert said in capsys.readouterr().err
    second = run(corpus, parts, **settings, brain_class=Watching)
    expected, found = tiny.state_of(whole), tiny.state_of(second)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert second.optimizer_step == whole.optimizer_step == 8


def test_full_disk_ends_no_training_and_loses_no_record(
    corpus, tmp_path, monkeypatch, caplog
):
    written = base.write_whole

    def refuse_once(path, *mode):
        monkeypatch.setattr(base, "write_whole", written)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    class FullLogger:
        def log_stats(self, *stats, verbose):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base, "write_whole", refuse_once)
    run(corpus, tmp_path, epochs=3, train_loggers=[FullLogger()])
    assert [record["epoch"] for record in records(tmp_path)] == [1, 2, 3]
    assert "No space left on device: '" in caplog.text
    assert caplog.text.count("Training goes on") == 4


def test_half_written_line_of_the_log_is_left_out(corpus, tmp_path, caplog):
    run(corpus, tmp_path, epochs=2)
    path = tmp_path / "train_log.jsonl"
    path.write_text(path.read_text()[:-30])
    run(corpus, tmp_path, epochs=3)
    assert [record["epoch"] for record in records(tmp_path)] == [1, 3]
    assert "train_log.jsonl, line 2 is damaged" in caplog.text


def test_each_epoch_is_one_short_line(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(corpus, tmp_path, epochs=2, objective=SimCLR())
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.INFO
    ]
    shown = [line for line in lines if line.startswith("epoch ")]
    assert len(shown) == 2 and shown[0].startswith("epoch 1 of 2: loss ")
    assert max(map(len, shown)) < 120
    for word in ("Saved", "Saving", "Deleted"):
        assert not [line for line in lines if word in line]


def test_a_run_that_has_all_its_steps_can_be_started_again(corpus, tmp_path):
    for _ in range(2):
        brain = run(corpus, tmp_path, optimizer_step_limit=5)
        assert brain.optimizer_step == 5


def test_an_epoch_is_not_resumed_with_steps_of_another_size(corpus, tmp_path):
    class Dies(Watching):
        stop_at = 2

    with pytest.raises(Interrupted):
        run(corpus, tmp_path, brain_class=Dies, ckpt_interval_steps=1)
    with pytest.raises(ValueError, match="3 utterances in a step .* not 6"):
        run(corpus, tmp_path, batch_size=6)
    assert run(corpus, tmp_path).optimizer_step == 8


def test_checkpoints_inside_epochs_take_no_place_of_those_at_ends(
    corpus, tmp_path
):
    class Dies(Watching):
        stop_at = 14

    settings = {"epochs": 4, "checkpoints_to_keep": 3, "ckpt_interval_steps": 1}
    with pytest.raises(Interrupted):
        run(corpus, tmp_path, brain_class=Dies, **settings)

    def ends():
        brain = tiny.make_brain(corpus, str(tmp_path), **settings)
        found = brain.checkpointer.list_checkpoints()
        return sorted(c.meta["end-of-epoch"] for c in found)

    assert ends() == [False, True, True, True]
    run(corpus, tmp_path, **settings)
    assert ends() == [True, True, True]


def test_accumulated_windows_step_once_and_the_last_one_is_not_lost(
    corpus, tmp_path
):
    brain = run(
        corpus, tmp_path, brain_class=Watching, grad_accumulation_factor=3
    )
    # 4 batches per epoch: a window of three and one of one, two epochs
    assert brain.optimizer_step == brain.updates == 4


def test_accumulation_gives_the_gradient_of_the_mean_loss(corpus, tmp_path):
    gradients = []

    class Noting(SSLBrain):
        def optimizers_step(self):
            layer = self.module("student").embedding_model.layer
            gradients.append(layer.weight.grad.clone())
            self.optimizer_step += 1
            return True

    settings = {"epochs": 1, "brain_class": Noting}
    for factor in (1, 4):
        objective = SimCLR()
        run(
            corpus,
            tmp_path / str(factor),
            objective=objective,
            grad_accumulation_factor=factor,
            **settings,
        )
    mean = torch.stack(gradients[:4]).mean(0)
    assert torch.allclose(mean, gradients[4], atol=1e-6)


def test_clipping_reaches_all_groups(corpus, tmp_path):
    before = tiny.make_brain(corpus, str(tmp_path / "none"))
    start = tiny.state_of(before)
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    brain = run(
        corpus,
        tmp_path / "run",
        epochs=1,
        max_grad_norm=1e-3,
        opt_class=sgd,
    )
    assert len(brain.optimizer.param_groups) == 2
    moved = [
        tiny.state_of(brain)[name] - start[name]
        for name in start
        if name.startswith("student")
    ]
    total = torch.cat([m.flatten() for m in moved]).norm().item()
    # four steps of at most 1e-3, and more than nothing in either group
    assert total <= 4e-3 + 1e-6
    assert all(m.abs().max() > 0 for m in moved)


@pytest.mark.parametrize("limit", [-1.0, 0.0])
def test_a_limit_that_climbs_the_loss_is_refused(corpus, tmp_path, limit):
    with pytest.raises(ValueError, match="max_grad_norm"):
        tiny.make_brain(corpus, str(tmp_path), max_grad_norm=limit)


class BreaksAt(torch.nn.Module):
    """An objective whose loss is no number at one call."""

    def __init__(self, call):
        super().__init__()
        self.objective, self.call, self.calls = SimCLR(), call, 0

    def forward(self, student, teacher, epoch):
        self.calls += 1
        loss, stats = self.objective(student, teacher, epoch)
        if self.calls == self.call:
            loss = loss * float("nan")
        return loss, stats


def test_a_loss_that_is_no_number_skips_the_step_and_names_utterances(
    corpus, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING):
        brain = run(
            corpus,
            tmp_path,
            epochs=1,
            objective=BreaksAt(2),
            brain_class=Watching,
        )
    assert brain.updates == brain.optimizer_step == 3
    assert all(torch.isfinite(v).all() for v in tiny.state_of(brain).values())
    (message,) = [m for m in caplog.messages if "Utterances:" in m]
    assert message.count("utt") == 3
    assert records(tmp_path)[0]["train"]["loss"] > 0


@pytest.mark.parametrize(
    "objective", [None, NNCLR(tiny.DIM, 8, queue_size=20)], ids=["moco", "bn"]
)
def test_a_batch_without_numbers_leaves_no_trace_in_queue_or_statistics(
    corpus, tmp_path, objective
):
    class Spoils(SSLBrain):
        def compute_forward(self, batch, stage):
            if self.step == 2:
                batch["views"].data.fill_(float("nan"))
            return super().compute_forward(batch, stage)

    brain = run(
        corpus,
        tmp_path,
        encoder=tiny.ecapa,
        objective=objective,
        epochs=1,
        brain_class=Spoils,
    )
    for name, value in tiny.state_of(brain).items():
        assert torch.isfinite(value).all(), name
    stats = records(tmp_path)[0]["train"]
    assert all(value == value for value in stats.values())
    assert brain.optimizer_step == 3


def test_a_loss_that_stays_no_number_ends_the_run(corpus, tmp_path):
    class Broken(BreaksAt):
        def forward(self, *inputs):
            self.call = self.calls + 1
            return super().forward(*inputs)

    with pytest.raises(ValueError, match="not finite"):
        run(corpus, tmp_path, objective=Broken(1), nonfinite_patience=2)


class NoGradient(torch.nn.Module):
    """A finite loss whose gradient is none at some calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls, self.call = calls, 0

    def forward(self, student, teacher, epoch):
        self.call += 1
        x = student.projection.float()
        root = (0 * x).sqrt().mean()  # whose gradient is inf * 0
        loss = root if self.call in self.calls else x.square().mean()
        return loss, {"loss": loss.detach()}


def test_gradients_that_are_no_numbers_make_no_step(corpus, tmp_path):
    brain = run(
        corpus,
        tmp_path,
        epochs=1,
        objective=NoGradient({2}),
        brain_class=Watching,
    )
    assert brain.updates == brain.optimizer_step == 3
    stats = records(tmp_path)[0]["train"]
    assert all(value == value for value in stats.values())


@pytest.mark.parametrize("objective", [NoGradient(range(99)), None])
def test_steps_that_are_lost_in_a_row_end_the_run_over_epochs(
    corpus, tmp_path, objective
):
    """Four steps an epoch: nonfinite_patience alone would never be reached."""

    class Never(BreaksAt):
        def forward(self, *inputs):
            self.call = self.calls + 1
            return super().forward(*inputs)

    with pytest.raises(ValueError, match="6 times in a row"):
        run(
            corpus,
            tmp_path,
            objective=objective or Never(1),
            nonfinite_patience=5,
        )


def test_a_scaler_may_skip_steps_but_not_for_ever(corpus, tmp_path):
    def scaled(output, objective):
        brain = tiny.make_brain(
            corpus,
            str(output),
            objective=objective,
            brain_class=Watching,
            nonfinite_patience=2,
            epochs=10,
        )
        brain.scaler = torch.GradScaler("cpu", init_scale=8.0)
        return brain

    with pytest.raises(ValueError, match="27 times in a row"):
        tiny.fit(scaled(tmp_path / "lost", NoGradient(range(99))))
    # more than the patience, as it looks for its scale
    brain = tiny.fit(scaled(tmp_path / "found", NoGradient(range(1, 7))))
    assert brain.optimizer_step == brain.updates == 40 - 6
    assert brain.scaler.get_scale() == 8.0 / 2**6


def test_a_resumed_run_learns_at_the_rate_it_is_given(corpus, tmp_path):
    def adam(lr, weight_decay):
        return functools.partial(
            torch.optim.AdamW, lr=lr, weight_decay=weight_decay
        )

    run(corpus, tmp_path, epochs=1, opt_class=adam(0.01, 0.1))
    brain = run(corpus, tmp_path, brain_class=Watching, opt_class=adam(3.0, 0))
    assert brain.rates == [3.0] * 4
    assert {g["weight_decay"] for g in brain.optimizer.param_groups} == {0}


def test_debug_writes_over_no_run(corpus, tmp_path):
    run(corpus, tmp_path / "real", epochs=1)
    with pytest.raises(ValueError, match="write over the run in .*real"):
        run(corpus, tmp_path / "real", debug=True)
    brain = run(corpus, tmp_path / "other", debug=True, debug_batches=1)
    assert brain.optimizer_step == 2


def test_the_teacher_too_shares_its_batch_statistics_between_gpus(
    corpus, tmp_path, monkeypatch
):
    wrapped = []

    def note(module, **settings):
        wrapped.append(module)
        return module

    monkeypatch.setattr(base, "DistributedDataParallel", note)
    brain = tiny.make_brain(corpus, str(tmp_path), encoder=tiny.ecapa)
    brain.device, brain.distributed_launch = "cuda:0", True
    brain._wrap_distributed()
    assert wrapped == [brain.modules.student]
    for name in ("student", "teacher"):
        kinds = {
            type(module)
            for module in brain.modules[name].modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        }
        assert kinds == {torch.nn.SyncBatchNorm}, name


def test_frozen_modules_start_moving_at_their_epoch(corpus, tmp_path):
    encoder = tiny.Pooled()
    start = encoder.layer.weight.clone()

    class Noting(SSLBrain):
        weights = []

        def on_stage_end(self, *inputs):
            super().on_stage_end(*inputs)
            self.weights.append(encoder.layer.weight.clone())

    run(
        corpus,
        tmp_path,
        encoder=lambda: encoder,
        brain_class=Noting,
        frozen_epochs=[[encoder, 1]],
    )
    assert torch.equal(Noting.weights[0], start)
    assert not torch.equal(Noting.weights[1], start)


def test_learning_rate_follows_the_fractional_epoch(corpus, tmp_path):
    brain = run(
        corpus,
        tmp_path,
        brain_class=Watching,
        lr_schedule=lambda epoch: epoch,
    )
    expected = [0.01 * step / 4 for step in range(8)]
    assert brain.rates == pytest.approx(expected)


def test_bfloat16_trains_with_a_float32_loss(corpus, tmp_path):
    brain = run(
        corpus, tmp_path, encoder=tiny.ecapa, precision="bf16", epochs=1
    )
    assert all(
        value.dtype != torch.bfloat16 for value in tiny.state_of(brain).values()
    )
    assert records(tmp_path)[0]["train"]["loss"] > 0


def test_the_gradient_norm_is_that_of_all_gradients_before_clipping(
    corpus, tmp_path, monkeypatch
):
    norms, clip = [], base.clip_gradients

    def watch(parameters, *args, **kwargs):
        parameters = list(parameters)
        found = [p.grad.ravel() for p in parameters if p.grad is not None]
        norms.append(torch.cat(found).square().sum().sqrt().item())
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(base, "clip_gradients", watch)
    brain = run(corpus, tmp_path, epochs=1, max_grad_norm=1e-3)
    assert len(norms) == 4 and min(norms) > 1e-3
    logged = brain.train_stats["gradient_norm"]
    assert logged == pytest.approx(np.mean(norms), rel=1e-5)


def test_data_wait_is_the_share_of_time_before_batches(
    corpus, tmp_path, monkeypatch
):
    """By a clock that only loading (2 s for each utterance) and loss move."""
    seconds = [100.0]

    class SlowSampler(ViewSampler):
        def __call__(self, *args):
            seconds[0] += 2.0
            return super().__call__(*args)

    class SlowLoss(MoCo):
        def forward(self, *args):
            seconds[0] += 14.0
            return super().forward(*args)

    clock = types.SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr(base, "time", clock)
    run(
        corpus,
        tmp_path,
        epochs=1,
        objective=SlowLoss(tiny.DIM, queue_size=20),
        view_sampler=SlowSampler(16000, 2, 0.1, seed=3),
    )
    (record,) = tiny.records(tmp_path)
    # a batch has three utterances
    assert record["train"]["data_wait"] == pytest.approx(6 / (6 + 14))
    assert record["seconds"] == 4 * (6 + 14)
    views = 2 * 12
    assert record["train"]["views_per_second"] == pytest.approx(views / 80)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_networks_learn_the_same(corpus, tmp_path):
    plain = run(corpus, tmp_path / "plain")
    compiled = run(corpus, tmp_path / "compiled", compile=True)
    wrapped = [hasattr(m, "_orig_mod") for m in compiled.modules.values()]
    assert wrapped == [True, True, False]  # student, teacher, objective
    wanted = plain.evaluated.state_dict()
    for name, value in compiled.evaluated.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=0)
    last = [
        records(tmp_path / n)[-1]["train"]["loss"]
        for n in ("plain", "compiled")
    ]
    assert last[1] == pytest.approx(last[0], rel=1e-4)


def test_damaged_files_of_development_trials_do_not_end_training(
    tmp_path, caplog
):
    folder = tmp_path / "audio"
    folder.mkdir()
    tiny.write_corpus(folder)
    tiny.damage_corpus(folder)
    trials = folder / "dev.txt"
    trials.write_text(
        "00.wav 01.wav target\n00.wav 02.wav nontarget\n00.wav 05.wav 1\n"
    )
    run(folder, tmp_path / "run", dev_trials=str(trials))
    rates = [record["valid"]["EER"] for record in records(tmp_path / "run")]
    assert len(rates) == 2 and all(0 <= rate <= 100 for rate in rates)
    assert "1 of 3 trials are left out" in caplog.text
    trials.write_text("00.wav 01.wav target\n00.wav 05.wav nontarget\n")
    run(folder, tmp_path / "other", dev_trials=str(trials))
    assert all(not r.get("valid") for r in records(tmp_path / "other"))


def test_only_running_statistics_are_copied_in_each_step(corpus, tmp_path):
    brain = run(
        corpus,
        tmp_path,
        encoder=tiny.ecapa,
        objective=NNCLR(tiny.DIM, 8, queue_size=20),
        epochs=1,
    )
    copied = {id(buffer) for buffer in brain.running_statistics.buffers()}
    objective = brain.module("objective")
    kept = {id(objective.queue), id(objective.seen)}
    assert copied == {id(b) for b in brain.modules.buffers()} - kept


def test_what_an_objective_keeps_is_that_of_batches_with_a_finite_loss(
    corpus, tmp_path
):
    class Counting(SimCLR):
        commits = 0

        def commit(self, student, teacher):
            assert not torch.is_grad_enabled()
            self.commits += 1

    class Breaks(Counting):
        calls = 0

        def forward(self, student, teacher, epoch):
            self.calls += 1
            loss, stats = super().forward(student, teacher, epoch)
            return loss * (float("inf") if self.calls == 3 else 1.0), stats

    for make, wanted in ((Counting, 4), (Breaks, 3)):
        objective = make()
        run(corpus, tmp_path / make.__name__, objective=objective, epochs=1)
        assert objective.commits == wanted
