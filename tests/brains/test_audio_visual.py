"""Voices and faces together: resumption, processes, faces that are missing."""

import functools
import json
import os

import numpy as np
import pytest
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ssl import distributed, testing
from speechbrain_ssl.brains.experiment import views_of
from speechbrain_ssl.brains.pseudo_label import PseudoLabelBrain, _embed
from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.faces import FaceSampler
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.face import PixelNorm, Pixels
from speechbrain_ssl.pseudo_labels.gating import FixedGate, MixtureGate
from speechbrain_ssl.pseudo_labels.labels import Labels
from speechbrain_ssl.pseudo_labels.loss import AAMSoftmax, Classifier, GatedLoss
from tests.brains import tiny
from tests.brains.test_base import Interrupted

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
COUNT, CLASSES = 12, 4


class Colors(torch.nn.Module):
    """A linear layer over the pixels."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 6 * 6, tiny.DIM)

    def forward(self, images, lengths):
        return self.layer(images.flatten(1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve clips; the third has no face, that of the sixth is damaged."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder)
    rows, whole = [], read_annotation(folder / "train.csv", folder)
    rng = np.random.default_rng(0)
    for n in range(COUNT):
        path = folder / f"{n:02d}.png"
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
        rows.append({**whole.row(n), "face": "" if n == 2 else str(path)})
    (folder / "05.png").write_bytes(b"damaged")
    write_annotation(folder / "train.csv", rows, extra=("face",))
    return str(folder)


class Watching(PseudoLabelBrain):
    """Stops where it is told to."""

    stop_at = None

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if self.optimizer_step == self.stop_at:
            raise Interrupted


def make_brain(folder, output, batch_size=3, gates=None, stop_at=None, **opts):
    """A brain ready to fit, always of the same weights."""
    torch.manual_seed(0)
    voice = Branch(tiny.Frames(), tiny.AsTheyAre(), tiny.Pooled())
    face = Branch(Pixels(6), PixelNorm(), Colors())
    counter = EpochCounter(4)
    gates = gates or (MixtureGate(), MixtureGate())
    utterances = read_annotation(
        os.path.join(folder, "train.csv"), folder, extra=("face",)
    )
    labels = np.arange(COUNT, dtype=np.int64) % CLASSES
    modules = {
        "encoder": voice,
        "classifier": Classifier(tiny.DIM, 2 * CLASSES),
        "face_encoder": face,
        "face_classifier": Classifier(tiny.DIM, CLASSES),
    }
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
        "view_sampler": ViewSampler(
            16000, 1, 0.1, clean_views=True, speeds=[1.0, 0.9], seed=3
        ),
        "face_sampler": FaceSampler(6, 1, clean_views=True, seed=3),
        "loss": GatedLoss(
            AAMSoftmax(), gate_from=1.0, correct_from=2.0, threshold=0.3
        ),
        "gate": gates[0],
        "face_gate": gates[1],
        "selection": "own",
        "centroid_start": False,
        "face_centroid_start": True,
        "batch_size": batch_size,
    }
    recoverables = {**modules, "counter": counter}
    if isinstance(gates[0], MixtureGate):
        recoverables |= {"gate": gates[0], "face_gate": gates[1]}
    brain = Watching(
        Labels(utterances, labels, CLASSES, None, np.arange(CLASSES)),
        modules,
        functools.partial(torch.optim.AdamW, lr=0.02),
        hparams,
        {"device": "cpu", "noprogressbar": True, **opts},
        AtomicCheckpointer(os.path.join(output, "save"), recoverables),
    )
    brain.stop_at = stop_at
    return brain


def fit(brain):
    hparams = brain.hparams
    dataset = views_of(
        brain.labels.utterances, hparams.view_sampler, hparams.face_sampler
    )
    order = EpochSampler(
        COUNT,
        seed=3,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch_size=hparams.batch_size,
    )
    loader = {
        "sampler": order,
        "batch_size": hparams.batch_size,
        "drop_last": True,
    }
    brain.fit(hparams.epoch_counter, dataset, train_loader_kwargs=loader)
    return brain


def run(folder, output, **settings):
    return fit(make_brain(folder, str(output), **settings))


def gates_of(output, name):
    with open(os.path.join(output, name)) as file:
        return [json.loads(line) for line in file]


def test_missing_and_damaged_faces_train_the_voice_alone(corpus, tmp_path):
    brain = run(corpus, tmp_path)
    voice, face = brain.modalities
    assert voice.decisions.seen.all()
    assert (~face.decisions.seen).nonzero()[:, 0].tolist() == [2, 5]
    listed = (tmp_path / "save/unreadable_faces.csv").read_text()
    assert [line[:5] for line in listed.splitlines()[1:]] == ["utt05"]
    logged = [line["train"] for line in tiny.records(tmp_path)]
    assert [line["unreadable_faces"] for line in logged] == [1] * 4
    assert [line["unreadable"] for line in logged] == [0] * 4
    assert not tiny.unexplained(tmp_path)
    for name in ("gate.jsonl", "face_gate.jsonl"):
        assert len(gates_of(tmp_path, name)) == 4
    decided = (tmp_path / "face_decisions.csv").read_text().splitlines()
    assert len(decided) == 11


def test_both_branches_learn(corpus, tmp_path):
    gates = FixedGate(np.inf), FixedGate(np.inf)
    run(corpus, tmp_path, gates=gates)
    lines = [line["train"] for line in tiny.records(tmp_path)]
    for name in ("label_loss", "face_label_loss"):
        assert lines[-1][name] < lines[0][name]


def test_closed_gate_of_faces_moves_no_face_weight(corpus, tmp_path):
    """Before correction each branch has its own gate."""
    brain = make_brain(
        corpus, str(tmp_path), gates=(FixedGate(np.inf), FixedGate(0.0))
    )
    brain.hparams.loss.gate_from = 0.0
    brain.hparams.loss.correct_from = np.inf
    brain.hparams.face_centroid_start = False
    # decay alone moves weights too
    brain.opt_class = functools.partial(torch.optim.SGD, lr=0.1)
    before = tiny.state_of(brain)
    after = tiny.state_of(fit(brain))
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("face_")


@pytest.mark.parametrize("first", [0.0, 2.0])
def test_gate_of_faces_starts_when_it_is_told_to(corpus, tmp_path, first):
    gates = FixedGate(np.inf), FixedGate(0.0)
    brain = make_brain(corpus, str(tmp_path), gates=gates)
    brain.hparams.loss.gate_from = 1.0
    brain.hparams.face_gate_from = first
    fit(brain)
    lines = [line["train"] for line in tiny.records(tmp_path)]
    assert [line["selected"] for line in lines] == [1.0] * 4
    expected = [epoch < max(first, 1.0) for epoch in range(4)]
    assert [line["face_selected"] == 1.0 for line in lines] == expected


@pytest.mark.parametrize("stop_at", [6, 11])
def test_interrupted_run_ends_with_the_same_bits(corpus, tmp_path, stop_at):
    every = {"ckpt_interval_steps": 1}
    whole = run(corpus, tmp_path / "whole", **every)
    with pytest.raises(Interrupted):
        run(corpus, tmp_path / "cut", stop_at=stop_at, **every)
    second = run(corpus, tmp_path / "cut", **every)
    for name, value in tiny.state_of(whole).items():
        assert torch.equal(tiny.state_of(second)[name], value), name
    for name in ("gate.jsonl", "face_gate.jsonl"):
        logs = [gates_of(tmp_path / x, name) for x in ("whole", "cut")]
        assert logs[0] == logs[1]
    files = [tmp_path / n / "face_decisions.csv" for n in ("whole", "cut")]
    assert files[0].read_text() == files[1].read_text()


def _trained(folder, corpus, batch_size, **opts):
    brain = run(corpus, folder, batch_size=batch_size, **opts)
    tables = [tuple(m.decisions.table) for m in brain.modalities]
    return tiny.state_of(brain), tables


def test_two_processes_train_as_one_does_on_the_doubled_batch(corpus, tmp_path):
    opts = {"distributed_launch": True, "distributed_backend": "gloo"}
    first, second = testing.run_processes(
        functools.partial(_trained, str(tmp_path / "two"), corpus, 3, **opts)
    )
    one, tables = _trained(str(tmp_path / "one"), corpus, 6)
    for name, value in one.items():
        assert torch.equal(first[0][name], second[0][name]), name
        assert torch.allclose(first[0][name], value, atol=1e-4), name
    for mine, alone in zip(first[1], tables):
        for column, expected in zip(mine, alone):
            assert torch.allclose(
                column.double(), expected.double(), atol=1e-3, equal_nan=True
            )


def test_statistics_of_a_batch_are_those_of_the_faces_there_are():
    torch.manual_seed(0)
    encoder = Branch(Pixels(6), PixelNorm(), Colors())
    encoder.embedding_model.layer = torch.nn.Sequential(
        torch.nn.Linear(108, 4), torch.nn.BatchNorm1d(4)
    )
    crop = torch.rand(5, 108)
    present = torch.tensor([True, False, True, True, False])
    found = _embed(encoder, crop, present)
    expected = encoder([crop[present]]).embedding[0]
    assert torch.allclose(found[present], expected)
    assert found[~present].eq(0).all()
    assert _embed(encoder, crop, ~present & False).eq(0).sum() == 3 * 4
