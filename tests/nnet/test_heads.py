"""Heads: shapes, and cosines to prototypes."""

import pytest
import torch

from speechbrain_ssl.nnet.heads import (
    PrototypeHead,
    Prototypes,
    mlp,
    predicted_cosine,
)


def test_the_last_layer_of_an_mlp_is_linear():
    layers = mlp([4, 8, 6, 2])
    names = [type(layer).__name__ for layer in layers]
    block = ["Linear", "BatchNorm1d", "GELU"]
    assert names == [*block, *block, "Linear"]
    assert layers(torch.randn(3, 4)).shape == (3, 2)


def test_a_wide_head_says_its_linear_layer_and_then_cosines():
    head = PrototypeHead([4, 8, 6, 3], Prototypes(3, 5), wide=True).eval()
    points = torch.randn(7, 4)
    hidden = head.hidden(points)
    assert isinstance(head.hidden[-1], torch.nn.Linear)
    assert hidden.shape == (7, 6)
    said = head(points)
    assert torch.equal(said[:, :6], hidden)
    assert torch.equal(said[:, 6:], head.prototypes(head.projector(hidden)))


def test_a_plain_head_says_cosines_only():
    head = PrototypeHead([4, 8, 3], Prototypes(3, 5)).eval()
    points = torch.randn(7, 4)
    assert torch.equal(head(points), head.prototypes(head.projector(points)))


def test_predicted_cosines_are_those_of_the_pairs_that_are_named():
    projection, target = (
        torch.randn(n, 4, 5, dtype=torch.float64) for n in (3, 2)
    )
    s, t = [0, 2], [1, 0]
    cosine, stats = predicted_cosine(
        torch.nn.Identity(), projection, target, s, t
    )
    every = torch.nn.functional.cosine_similarity(
        projection[s][:, :, None], target[t][:, None], dim=-1
    )
    mine = torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(cosine, every[:, mine].mean())
    negative = stats["negative_cosine"]
    torch.testing.assert_close(negative, every[:, ~mine].mean())


def test_an_mlp_can_do_without_normalisation():
    names = [type(layer).__name__ for layer in mlp([4, 8, 2], norm=None)]
    assert names == ["Linear", "GELU", "Linear"]


def test_prototypes_give_cosines_whatever_the_lengths():
    layer = Prototypes(dim=5, count=7)
    points = torch.randn(2, 3, 5)
    cosines = layer(points)
    expected = torch.nn.functional.cosine_similarity(
        points[..., None, :], layer.weight, dim=-1
    )
    assert cosines.shape == (2, 3, 7)
    assert torch.allclose(cosines, expected, atol=1e-6)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    assert torch.allclose(layer(10 * points), cosines, atol=1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_layers_of_a_head_start_as_in_the_code_of_dino(wide):
    sizes = [64, 256, 256, 128]
    head = PrototypeHead(sizes, Prototypes(128, 4), wide, init_std=0.02)
    layers = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
