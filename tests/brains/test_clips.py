"""Cross-modal stage one: resumption, faces that are missing or damaged."""

import functools

import pytest
import torch

from speechbrain_ssl.brains import experiment
from speechbrain_ssl.dataio.annotations import EpochSampler
from speechbrain_ssl.dataio.clips import ClipSampler
from speechbrain_ssl.dataio.faces import FaceSampler
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.face import ClipBranch, PixelNorm, Pixels
from speechbrain_ssl.objectives.cross_modal import CrossModal
from speechbrain_ssl.objectives.moco import MoCo
from tests.brains import test_audio_visual as audio_visual
from tests.brains import test_base, tiny
from tests.pretend_device import CUDA, pretended_cuda

corpus = audio_visual.corpus


def both(*parts):
    """A branch of voices with the given parts, and one of faces."""
    face = Branch(Pixels(6), PixelNorm(), audio_visual.Colors())
    return ClipBranch(Branch(*parts), face)


@pytest.fixture
def run(corpus, monkeypatch):
    """Trains both branches with MoCo within them."""
    monkeypatch.setattr(tiny, "Branch", both)

    def run(output, **settings):
        sampler = ClipSampler(
            ViewSampler(16000, 2, 0.1, seed=3), FaceSampler(6, 2, seed=3)
        )
        torch.manual_seed(0)  # of the queues
        within = [MoCo(tiny.DIM, queue_size=20) for _ in range(2)]
        brain = tiny.make_brain(
            corpus,
            str(output),
            objective=CrossModal(2, 0.3, 1.0, *within),
            view_sampler=sampler,
            **settings,
        )
        brain.before = tiny.state_of(brain)
        clips = experiment.training_set(brain.train_csv, corpus, sampler)
        dataset = experiment.views_of(clips, sampler)
        order = EpochSampler(len(clips), seed=3, batch_size=3)
        loader = {"sampler": order, "batch_size": 3, "drop_last": True}
        brain.fit(
            brain.hparams.epoch_counter, dataset, train_loader_kwargs=loader
        )
        return brain

    return run


def test_clips_without_a_face_are_left_out_or_replaced(run, tmp_path):
    brain = run(tmp_path, epochs=3)
    assert len(brain.utterances) == 11  # the third clip has no face
    listed = (tmp_path / "save/unreadable.csv").read_text().splitlines()
    assert [line[:5] for line in listed[1:]] == ["utt05"]
    assert not tiny.unexplained(tmp_path)
    student = brain.module("student")
    assert brain.evaluated is student.voice
    assert brain.evaluated_face is student.face
    for name, value in tiny.state_of(brain).items():
        if name.startswith("student") and "weight" in name:
            assert not torch.equal(value, brain.before[name]), name


class Cut(test_base.Watching):
    """Stops in the second epoch."""

    stop_at = 4


def test_interrupted_run_ends_with_the_same_bits(run, tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(test_base.Interrupted):
        run(tmp_path / "cut", brain_class=Cut, ckpt_interval_steps=1)
    second = run(tmp_path / "cut", ckpt_interval_steps=1)
    for name, value in tiny.state_of(whole).items():
        assert torch.equal(tiny.state_of(second)[name], value), name


def test_both_stages_run_on_a_device(run, corpus, tmp_path):
    with pretended_cuda():
        stages = [
            functools.partial(run, tmp_path / "one"),
            functools.partial(audio_visual.run, corpus, tmp_path / "two"),
        ]
        for stage in stages:
            brain = stage(device="cuda:0")
            devices = {x.device for x in tiny.state_of(brain).values()}
            assert devices == {CUDA}
