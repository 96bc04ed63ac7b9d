"""CAM++: the size of the paper, its mask, and what padding changes."""

import pytest
import torch

from speechbrain_ssl.nnet.encoders.campplus import (
    CAMPlusPlus,
    FrontEnd,
    MaskedLayer,
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    sizes = {"growth": 4, "bottleneck": 6, "channels": 8, "front_channels": 4}
    return CAMPlusPlus(16, 5, layers=(2, 2, 1), segment=10, **sizes)


def test_the_number_of_parameters_is_that_of_the_paper():
    count = sum(p.numel() for p in CAMPlusPlus(80, 512).parameters())
    assert round(count / 1e6, 2) == 7.18


def test_the_front_end_divides_frequencies_by_eight_and_keeps_time():
    assert FrontEnd(80).width == 320
    front_end = FrontEnd(20, 4)
    assert front_end(torch.randn(2, 20, 31)).shape == (2, front_end.width, 31)


def test_a_mask_is_made_of_the_utterance_and_the_segment():
    torch.manual_seed(0)
    layer = MaskedLayer(8, growth=3, bottleneck=6, dilation=2, segment=10)
    layer.eval()
    x = torch.randn(1, 8, 25)
    found = layer(x, torch.ones(1, 1, 25))
    inner = layer.narrow(x)
    whole = inner.mean(-1)
    for frame in (0, 9, 10, 19, 20, 24):
        first = frame // 10 * 10
        part = inner[..., first : min(first + 10, 25)].mean(-1)
        mask = layer.mask((whole + part)[..., None])[..., 0]
        expected = layer.local(inner)[..., frame] * mask
        torch.testing.assert_close(found[..., frame], expected)


def test_padding_is_in_no_mean():
    torch.manual_seed(0)
    layer = MaskedLayer(8, growth=3, bottleneck=6, dilation=1, segment=10)
    layer.eval()
    x = torch.randn(1, 8, 24)
    padded = torch.cat([x, torch.full((1, 8, 6), 9.0)], -1)
    heard = (torch.arange(30) < 24).float()[None, None]
    short, long = layer(x, torch.ones(1, 1, 24)), layer(padded, heard)
    # the convolution sees one frame of padding at the end
    torch.testing.assert_close(short[..., :23], long[..., :23])


def test_relative_lengths_select_the_frames_that_are_pooled(encoder):
    encoder.eval()
    features = torch.randn(2, 60, 16)
    both = encoder(features, torch.tensor([1.0, 0.5]))
    assert both.shape == (2, 1, 5)
    torch.testing.assert_close(both[:1], encoder(features[:1]))
    other = features.clone()
    other[1, 45:] = 7.0  # beyond what the convolutions reach
    changed = encoder(other, torch.tensor([1.0, 0.5]))
    assert (changed[1] - both[1]).norm() < 0.2 * both[1].norm()
    whole = encoder(features)
    assert (whole[1] - both[1]).norm() > 1e-3 * both[1].norm()


def test_every_parameter_learns(encoder):
    encoder(torch.randn(4, 50, 16)).square().mean().backward()
    found = [p.grad for p in encoder.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found)


def test_layers_without_a_dilation_are_refused():
    with pytest.raises(ValueError, match="one number for each dense block"):
        CAMPlusPlus(16, 5, layers=(2, 2))
