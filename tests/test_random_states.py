"""Random numbers come back, and a resumed run with them."""

import random

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.random_states import RandomStates


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_states_return_only_when_restored(tmp_path):
    states = RandomStates()
    checkpointer = AtomicCheckpointer(tmp_path, {"random": states})
    random.gauss(0, 1), np.random.randn()  # leaves a second number cached
    checkpointer.save_checkpoint(end_of_epoch=False)
    first = *draw(), random.gauss(0, 1), np.random.randn()
    checkpointer.recover_if_possible()
    assert draw() != first[:3]
    assert not states.restore_pending(starting_epoch=True)
    assert states.restore_pending()
    assert (*draw(), random.gauss(0, 1), np.random.randn()) == first
    assert not states.restore_pending()


def test_random_states_of_another_number_of_processes_are_not_used(
    tmp_path, caplog
):
    states = RandomStates()
    path = tmp_path / "random.ckpt"
    states.save(path)
    saved = torch.load(path, weights_only=True)
    torch.save({"processes": saved["processes"] * 2}, path)
    states.load(path, end_of_epoch=True)
    assert not states.restore_pending()
    assert "written by 2 processes and is read by 1" in caplog.text


class NoisyBrain(sb.Brain):
    """Draws random numbers in training; stops like a killed run."""

    stop_at = None

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.hparams.random.restore_pending(starting_epoch=True)

    def on_fit_batch_start(self, batch, should_step):
        self.hparams.random.restore_pending()

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0] + torch.rand_like(batch[0]))

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.optimizer_step == self.stop_at:
            raise KeyboardInterrupt

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.checkpointer.save_and_keep_only(num_to_keep=9)


def train(folder, stop_at=None):
    """Weights after two epochs of five steps; None if stopped before."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    states, counter = RandomStates(), EpochCounter(2)
    brain = NoisyBrain(
        modules={"model": model},
        opt_class=lambda parameters: torch.optim.SGD(parameters, 0.1),
        hparams={"random": states, "ckpt_interval_steps": 2},
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=AtomicCheckpointer(
            folder, {"model": model, "random": states, "counter": counter}
        ),
    )
    brain.stop_at = stop_at
    data = torch.utils.data.TensorDataset(torch.arange(10.0).view(5, 2) / 10)
    try:
        brain.fit(counter, data, train_loader_kwargs={"shuffle": True})
    except KeyboardInterrupt:
        return None
    return model.weight.detach().clone()


@pytest.mark.parametrize("stop_at, end_of_epoch", [(5, False), (6, True)])
def test_resumed_brain_equals_the_uninterrupted_one(
    tmp_path, stop_at, end_of_epoch
):
    expected = train(tmp_path / "whole")
    assert train(tmp_path / "stopped", stop_at) is None
    newest = AtomicCheckpointer(tmp_path / "stopped").find_checkpoint()
    assert newest.meta["end-of-epoch"] == end_of_epoch
    assert torch.equal(train(tmp_path / "stopped"), expected)
