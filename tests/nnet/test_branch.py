"""A branch keeps views apart, in order."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import Branch


class Frames(torch.nn.Module):
    """Waveforms to frames of ten samples."""

    def forward(self, wavs):
        return wavs.unflatten(1, (-1, 10))


class Identity(torch.nn.Module):
    """Normalisation that does nothing."""

    def forward(self, feats, lengths):
        return feats


class Mean(torch.nn.Module):
    """Embeds features by their mean; counts its calls."""

    def __init__(self, middle_axis=True):
        super().__init__()
        self.sizes, self.middle_axis = [], middle_axis

    def forward(self, feats, lengths):
        self.sizes.append(len(feats))
        mean = feats.mean(1)
        return mean[:, None] if self.middle_axis else mean


def branch_of(encoder=None, head=None):
    return Branch(Frames(), Identity(), encoder or Mean(), head)


def test_order_is_that_of_the_views_given():
    wavs = [torch.full((3, n), float(v)) for v, n in enumerate([40, 20, 40])]
    views = branch_of(head=torch.nn.Linear(10, 4))(wavs)
    assert views.embedding.shape == (3, 3, 10)
    assert views.projection.shape == (3, 3, 4)
    assert views.embedding[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert views.index is None


def test_projections_belong_to_their_embeddings():
    head = torch.nn.Linear(10, 4)
    views = branch_of(head=head)([torch.randn(3, 40), torch.randn(3, 20)])
    assert torch.allclose(head(views.embedding), views.projection)


def test_views_of_equal_length_share_one_pass():
    encoder = Mean()
    branch_of(encoder)([torch.randn(3, n) for n in (40, 20, 40, 20, 20)])
    assert encoder.sizes == [6, 9]


@pytest.mark.parametrize("middle_axis", [True, False])
def test_encoders_with_and_without_a_middle_axis_work(middle_axis):
    embedding = branch_of(Mean(middle_axis)).embed(torch.randn(3, 40))
    assert embedding.shape == (3, 10)
