"""Heads: shapes, and cosines to prototypes."""

import torch

from speechbrain_ssl.nnet.heads import Prototypes, mlp


def test_the_last_layer_of_an_mlp_is_linear():
    layers = mlp([4, 8, 6, 2])
    names = [type(layer).__name__ for layer in layers]
    block = ["Linear", "BatchNorm1d", "GELU"]
    assert names == [*block, *block, "Linear"]
    assert layers(torch.randn(3, 4)).shape == (3, 2)


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
