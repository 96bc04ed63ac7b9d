"""Stage two: it learns what the gate selects, and resumes bit by bit."""

import functools
import json
import logging
import math
import os
import shutil

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain
from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.dataio.augmentation import Augmentation, Gain
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.pseudo_labels.gating import FixedGate, MixtureGate
from speechbrain_ssl.pseudo_labels.labels import Labels
from speechbrain_ssl.pseudo_labels.loss import (
    AAMSoftmax,
    Classifier,
    GatedLoss,
)
from tests.brains import tiny
from tests.brains.test_base import Interrupted
from tests.brains.tiny import records

CLASSES = np.arange(12, dtype=np.int64) % 4
# what a brain that learns nothing would have to trust
NOTHING = FixedGate(0.0)


class Watching(PseudoLabelBrain):
    """Stops where it is told to."""

    stop_at = None

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if self.optimizer_step == self.stop_at:
            raise Interrupted


def make_brain(folder, output, gate=None, loss=None, **settings):
    """A brain ready to fit, always of the same weights."""
    torch.manual_seed(0)
    encoder = Branch(tiny.Frames(), tiny.AsTheyAre(), tiny.Pooled())
    encoder = settings.pop("encoder", encoder)
    sampler = ViewSampler(16000, 1, 0.1, clean_views=True, seed=3)
    sampler = settings.pop("view_sampler", sampler)
    classes = 4 * len(sampler.speeds)
    classifier = Classifier(tiny.DIM, classes, settings.pop("subcenters", 1))
    gate = gate or FixedGate(math.inf)
    counter = EpochCounter(settings.pop("epochs", 2))
    utterances = read_annotation(os.path.join(folder, "train.csv"), folder)
    recoverables = {"encoder": encoder, "classifier": classifier}
    if isinstance(gate, MixtureGate):
        recoverables["gate"] = gate
    hparams = {
        "seed": 3,
        "output_folder": str(output),
        "epoch_counter": counter,
        "lr_schedule": 1.0,
        "frozen_epochs": [],
        "clip_each_tensor": False,
        "checkpoints_to_keep": 2,
        "select_by": None,
        "train_loggers": [],
        "dev_trials": None,
        "dev_every": 1,
        "view_sampler": sampler,
        "loss": loss or GatedLoss(AAMSoftmax()),
        "gate": gate,
        "centroid_start": False,
        "batch_size": 3,
        **settings,
    }
    run_opts = {"device": "cpu", "noprogressbar": True}
    for name in list(hparams):
        if hasattr(sb.core.RunOptions(), name):
            run_opts[name] = hparams.pop(name)
    brain = hparams.pop("brain_class", PseudoLabelBrain)(
        Labels(utterances, CLASSES, 4, None, np.arange(4)),
        {"encoder": encoder, "classifier": classifier},
        functools.partial(torch.optim.AdamW, lr=0.05),
        hparams,
        run_opts,
        AtomicCheckpointer(
            os.path.join(output, "save"), {**recoverables, "counter": counter}
        ),
    )
    brain.train_csv = os.path.join(folder, "train.csv")
    return brain


def run(folder, output, **settings):
    return tiny.fit(make_brain(folder, str(output), **settings))


def gates(output):
    with open(os.path.join(output, "gate.jsonl")) as file:
        return [json.loads(line) for line in file]


def dlg_lc():
    """Gate and correction from the first epoch on."""
    loss = GatedLoss(AAMSoftmax(), correct_from=1.0, threshold=0.3)
    return {"gate": MixtureGate(), "loss": loss}


def test_training_lowers_the_loss_of_the_labels(corpus, tmp_path):
    run(corpus, tmp_path, epochs=10)
    losses = [r["train"]["label_loss"] for r in records(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_gate_that_trusts_nothing_moves_nothing(corpus, tmp_path, caplog):
    brain = make_brain(corpus, str(tmp_path), gate=NOTHING, epochs=6)
    before = tiny.state_of(brain)
    with caplog.at_level(logging.WARNING):
        tiny.fit(brain)
    for name, value in tiny.state_of(brain).items():
        assert torch.equal(value, before[name]), name
    assert brain.optimizer_step == 0
    last = records(tmp_path)[-1]["train"]
    assert last["selected"] == 0 and last["nothing_selected"] == 1
    assert last["loss"] == 0 and last["silent_classes"] == 1
    # six epochs of four steps
    assert sum("nothing to learn" in m for m in caplog.messages) == 1


def test_a_window_steps_if_one_of_its_batches_teaches(corpus, tmp_path):
    class Sometimes(FixedGate):
        calls = 0

        def __call__(self, loss_logs):
            self.calls += 1
            return torch.full_like(loss_logs, self.calls == 2).bool()

    brain = run(
        corpus,
        tmp_path,
        gate=Sometimes(1.0),
        grad_accumulation_factor=2,
        epochs=1,
    )
    assert brain.optimizer_step == 1


@pytest.mark.parametrize("stop_at", [5, 8, 10])
def test_an_interrupted_run_ends_with_the_same_bits(corpus, tmp_path, stop_at):
    cut = {"brain_class": Watching, "ckpt_interval_steps": 1, "epochs": 4}
    whole = run(corpus, tmp_path / "whole", **dlg_lc(), **cut)
    first = make_brain(corpus, str(tmp_path / "cut"), **dlg_lc(), **cut)
    first.stop_at = stop_at
    with pytest.raises(Interrupted):
        tiny.fit(first)
    second = run(corpus, tmp_path / "cut", **dlg_lc(), **cut)
    for name, value in tiny.state_of(whole).items():
        assert torch.equal(tiny.state_of(second)[name], value), name
    logs = [gates(tmp_path / name) for name in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    files = [tmp_path / n / "decisions.csv" for n in ("whole", "cut")]
    assert files[0].read_text() == files[1].read_text()


def test_labels_are_corrected_from_clean_views(corpus, tmp_path):
    augmentation = Augmentation({"gain": Gain()}, seed=3)
    sampler = ViewSampler(16000, 1, 0.1, clean_views=True, seed=3)
    sampler.augmentation, sampler.augment_on = augmentation, "device"
    loss = GatedLoss(AAMSoftmax(), correct_from=1.0, threshold=0.0)
    brain = make_brain(
        corpus, str(tmp_path), gate=NOTHING, loss=loss, view_sampler=sampler
    )
    seen = []
    predict = loss.predict

    def watch(clean_cosines, epoch):
        seen.append(clean_cosines)
        return predict(clean_cosines, epoch)

    loss.predict = watch
    tiny.fit(brain)
    first, second = (r["train"] for r in records(tmp_path))
    assert (first["corrected"], second["corrected"]) == (0, 1)
    assert len(seen) == 4 and not seen[0].requires_grad
    assert brain.modules.training
    # a threshold of 0 believes all: the new labels are those of the clean views
    assert brain.optimizer_step > 0
    labels = brain.decisions.corrected_labels()
    assert labels.shape == (12,) and labels.max() < 4
    assert not tiny.unexplained(tmp_path)


def test_the_log_has_the_threshold_of_the_gate(corpus, tmp_path):
    run(corpus, tmp_path / "mixture", **dlg_lc())
    logged = [r["train"] for r in records(tmp_path / "mixture")]
    decided = [gate["threshold"] for gate in gates(tmp_path / "mixture")]
    assert all(threshold is not None for threshold in decided)
    assert [stats["gate_loss_log"] for stats in logged] == decided
    run(corpus, tmp_path / "fixed", gate=FixedGate(3.0), epochs=1)
    (record,) = records(tmp_path / "fixed")
    assert record["train"]["gate_loss_log"] == pytest.approx(math.log(3.0))
    run(corpus, tmp_path / "none", epochs=1)
    (record,) = records(tmp_path / "none")
    assert "gate_loss_log" not in record["train"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_encoder_learns_the_same_from_the_same_labels(
    corpus, tmp_path
):
    loss = GatedLoss(AAMSoftmax(), correct_from=1.0, threshold=0.0)
    runs = {
        name: run(
            corpus, tmp_path / name, loss=loss, compile=name == "compiled"
        )
        for name in ("plain", "compiled")
    }
    assert hasattr(runs["compiled"].modules.encoder, "_orig_mod")
    wanted, found = map(tiny.state_of, runs.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)
    labels = [b.decisions.corrected_labels() for b in runs.values()]
    assert torch.equal(*labels)


def test_centers_may_start_at_the_mean_embeddings(corpus, tmp_path):
    brain = make_brain(
        corpus,
        str(tmp_path),
        gate=NOTHING,
        epochs=1,
        centroid_start=True,
        subcenters=2,
    )
    tiny.fit(brain)
    cosines = brain.module("classifier").weight.detach()
    pairs = torch.nn.functional.normalize(cosines, dim=-1).unflatten(0, (4, 2))
    # the two centers of a class are near one another, and not the same
    alike = (pairs[:, 0] * pairs[:, 1]).sum(-1)
    assert alike.min() > 0.9 and alike.max() < 1 - 1e-5


def test_a_class_at_another_speed_is_another_class(corpus, tmp_path):
    speeds = [0.5, 1.0, 2.0]
    sampler = ViewSampler(16000, 1, 0.1, speeds=speeds, seed=3)
    asked = []

    class Noting(GatedLoss):
        def forward(self, cosines, labels, *others, **more):
            asked.extend(labels.tolist())
            return super().forward(cosines, labels, *others, **more)

    brain = run(
        corpus,
        tmp_path,
        view_sampler=sampler,
        loss=Noting(AAMSoftmax()),
        centroid_start=True,
    )
    keys = [(epoch, row) for epoch in (1, 2) for row in range(12)]
    drawn = [sampler.speed_of(key) for key in keys]
    wanted = [CLASSES[row] + 4 * speed for (_, row), speed in zip(keys, drawn)]
    assert sorted(asked) == sorted(wanted) and len(set(drawn)) == 3
    # the file's classes are still four
    assert brain.decisions.table.label.tolist() == CLASSES.tolist()
    assert len(brain.module("classifier").weight) == 12


def test_classes_of_other_channels_count_less(corpus, tmp_path):
    sampler = ViewSampler(16000, 1, 0.1, seed=3, speeds=[0.9, 1.0])
    brain = make_brain(corpus, str(tmp_path), view_sampler=sampler)
    # classes 0 and 1 occur in group 0, classes 2 and 3 in group 1
    brain.compare_within(CLASSES // 2, 0.1)
    found = brain._offsets(torch.tensor([0, 2])).exp()
    expected = torch.tensor([[1.0, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 1.0]])
    assert torch.allclose(found, expected.repeat(1, 2))
    losses = {}
    for weight in (1.0, 0.1, None):
        brain = make_brain(corpus, str(tmp_path / str(weight)), epochs=3)
        if weight is not None:
            brain.compare_within(CLASSES // 2, weight)
        tiny.fit(brain)
        rows = records(tmp_path / str(weight))
        losses[weight] = [r["train"]["label_loss"] for r in rows]
    assert losses[1.0] == losses[None]
    assert losses[0.1][0] < losses[1.0][0]  # fewer classes to tell apart


def test_encoder_and_classifier_may_have_rates_of_their_own(corpus, tmp_path):
    brain = make_brain(corpus, str(tmp_path), epochs=1)
    brain.hparams.learning_rates = [[brain.module("encoder"), 0.0]]
    before = tiny.state_of(brain)
    after = tiny.state_of(tiny.fit(brain))
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"classifier.weight"}


def test_a_refused_gate_is_said_in_the_log(corpus, tmp_path):
    run(corpus, tmp_path, gate=MixtureGate(min_separation=1e9))
    (warning,) = records(tmp_path)[0]["warnings"][-1:]
    assert warning.startswith("Gate: no gate, refusal 1")
    first = gates(tmp_path)[0]
    assert first["threshold"] is None and not first["accepted"]
    assert sum(first["histogram"]["counts"]) == 12
