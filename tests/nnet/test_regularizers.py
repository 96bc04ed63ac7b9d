"""Variance, covariance and KoLeo against known values and loops."""

import math

import numpy as np
import pytest
import torch

from speechbrain_ssl.nnet.regularizers import (
    DistanceToPretrained,
    DistanceToStart,
    covariance,
    koleo,
    squared_off_diagonal,
    variance_hinge,
)
from tests.objectives.reference import distillation


def test_hinge_is_zero_from_a_deviation_of_one_on():
    wide = torch.tensor([[-3.0, -0.5], [3.0, 0.5]])
    missing = 1 - math.sqrt(0.5 + 1e-4)
    assert variance_hinge(wide).item() == pytest.approx(missing / 2)
    assert variance_hinge(torch.ones(5, 3)).item() == pytest.approx(0.99)


def test_covariance_is_numpys():
    points = torch.randn(9, 4, dtype=torch.float64)
    found = covariance(points).numpy()
    assert found == pytest.approx(np.cov(points.numpy().T))


def test_off_diagonal_leaves_out_the_diagonal():
    matrix = torch.tensor([[7.0, 2.0], [3.0, -5.0]])
    assert squared_off_diagonal(matrix).item() == 13.0
    assert matrix[0, 0] == 7.0


@pytest.mark.parametrize("shape", [(2, 3), (9, 4)])
def test_koleo_equals_the_loops(shape):
    points = torch.randn(shape, dtype=torch.float64)
    slow = distillation.koleo(points.tolist())
    assert koleo(points).item() == pytest.approx(slow, rel=1e-9)


def test_koleo_has_the_golden_values():
    assert koleo(torch.eye(5)).item() == pytest.approx(-0.34657, abs=1e-5)
    antipodal = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo(antipodal).item() == pytest.approx(-0.6931, abs=1e-4)
    random = koleo(torch.randn(96, 512)).item()
    assert random == pytest.approx(-0.29, abs=0.02)


def test_koleo_of_equal_points_is_finite_and_has_a_finite_gradient():
    points = torch.ones(3, 4, requires_grad=True)
    loss = koleo(points)
    loss.backward()
    assert 15 < loss.item() < 19
    assert torch.isfinite(points.grad).all()


def test_koleo_of_a_single_point_is_refused():
    with pytest.raises(ValueError, match="two points"):
        koleo(torch.randn(1, 4))


def moved_network():
    """A network, the object that saw its start, and its distance to that."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    net[1].bias.requires_grad_(False)
    return net, {
        on: DistanceToPretrained(net, 0.1, self_normalized=on)
        for on in (False, True)
    }


def shift(net):
    """Moves the tensors by norms of 2, 1 and 3; the frozen one too."""
    with torch.no_grad():
        net[0].weight += 1.0
        net[0].bias[0] += 1.0
        net[1].weight[0, 0] -= 3.0
        net[1].bias += 50.0


def gradients(net, total):
    net.zero_grad()
    total.backward()
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in net.named_parameters()
        if p.requires_grad
    }


def test_distance_is_the_sum_of_norms_of_what_learns():
    net, add = moved_network()
    shift(net)
    total, stats = add[False](torch.tensor(2.0))
    assert stats["distance"].item() == pytest.approx(6.0)
    assert total.item() == pytest.approx(2.6)
    assert not stats["distance"].requires_grad


def test_distance_is_zero_at_the_start_with_a_zero_gradient():
    net, add = moved_network()
    for on in (False, True):
        total, stats = add[on](torch.tensor(2.0))
        assert stats["distance"] == 0
        for gradient in gradients(net, total).values():
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_normalised_value_is_constant_and_gradient_is_of_logarithms():
    net, add = moved_network()
    shift(net)
    total, _ = add[True](net(torch.ones(1, 2)).square().sum())
    assert total.item() == pytest.approx(1.1, rel=1e-4)
    found = gradients(net, total)
    loss = net(torch.ones(1, 2)).square().sum()
    distance = add[False](torch.zeros(()))[0] / 0.1
    wanted = gradients(net, loss.log() + 0.1 * distance.log())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_normalising_a_loss_of_nothing_gives_no_nan():
    net, add = moved_network()
    shift(net)
    total, _ = add[True](0.0 * net(torch.ones(1, 2)).sum())
    assert total.item() == pytest.approx(0.1, rel=1e-4)
    for gradient in gradients(net, total).values():
        assert torch.isfinite(gradient).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(
        ValueError, match="weight must be a number of at least 0"
    ):
        DistanceToPretrained(torch.nn.Linear(2, 2), -0.1)


def test_distance_to_start_pulls_back_in_proportion_to_the_way():
    net = moved_network()[0]
    add = DistanceToStart(net, weight=0.1)
    with torch.no_grad():  # as the weights of init_from are loaded
        net[1].weight += 7.0
    add.begin()
    shift(net)
    total, stats = add(torch.tensor(1.5))
    square = 2.0**2 + 1.0**2 + 3.0**2  # the frozen tensor does not count
    assert total.item() == pytest.approx(1.5 + 0.05 * square)
    assert stats["distance"].item() == pytest.approx(math.sqrt(square))
    found = gradients(net, total)
    wanted = torch.zeros(1, 2)
    wanted[0, 0] = 0.1 * -3.0
    assert torch.allclose(found["1.weight"], wanted)
    assert torch.allclose(found["0.weight"], torch.full((2, 2), 0.1))


def test_distance_to_start_is_zero_at_the_start():
    net = moved_network()[0]
    total, stats = DistanceToStart(net, weight=0.1)(torch.tensor(1.5))
    assert (total.item(), stats["distance"].item()) == (1.5, 0.0)
    found = gradients(net, total)
    assert all((gradient == 0).all() for gradient in found.values())
