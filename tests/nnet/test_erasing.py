"""Random erasing: where it erases, how much, and where never."""

import torch

from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.erasing import RandomErasing
from speechbrain_ssl.nnet.teacher import EMATeacher
from tests.nnet.test_branch import Frames, Identity, Mean

ROWS = 2000


def erased(**settings):
    """Erased frames and channels of each row, as [rows, frames|channels]."""
    torch.manual_seed(0)
    zeros = RandomErasing(**settings)(torch.ones(ROWS, 40, 20)) == 0
    frames, channels = zeros.all(2), zeros.all(1)
    assert torch.equal(zeros, frames[:, :, None] | channels[:, None])
    return frames, channels


def test_one_band_of_each_axis_is_erased_in_a_share_of_the_views():
    frames, channels = erased(chance=0.2)
    for bands, widest in ((frames, 9), (channels, 5)):
        hit = bands.any(1)
        assert abs(hit.double().mean() - 0.2) < 0.03
        edges = bands.int().diff(dim=1, prepend=torch.zeros(ROWS, 1)) == 1
        assert (edges.sum(1) == hit).all()
        assert bands.sum(1)[hit].unique().tolist() == [*range(1, widest + 1)]
    assert torch.equal(frames.any(1), channels.any(1))
    assert frames.any(0).all() and channels.any(0).all()


def test_an_axis_can_be_spared():
    frames, channels = erased(chance=1.0, max_frames=0)
    assert not frames.any() and channels.any(1).all()


def test_only_a_student_in_training_is_erased():
    erasing = RandomErasing(chance=1.0)
    branch = Branch(Frames(), Identity(), Mean(), erasing=erasing)
    views = [torch.ones(2, 400)]
    assert (branch(views).embedding < 1).any()
    assert (EMATeacher(branch, 0.9)(views).embedding == 1).all()
    assert (branch.eval()(views).embedding == 1).all()


def test_the_same_seed_erases_the_same():
    feats = torch.ones(8, 40, 20)
    found = [
        RandomErasing(chance=0.5)(feats)
        for _ in range(2)
        if torch.manual_seed(3)
    ]
    assert torch.equal(*found)
