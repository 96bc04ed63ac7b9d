"""Variance, covariance and KoLeo against known values and loops."""

import math

import numpy as np
import pytest
import torch

from speechbrain_ssl.nnet.regularizers import (
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
