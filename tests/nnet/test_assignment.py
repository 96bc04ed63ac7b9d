"""Sinkhorn-Knopp and the use of prototypes."""

import pytest
import torch

from speechbrain_ssl.nnet.assignment import prototypes_used, sinkhorn
from tests.objectives.reference import distillation


@pytest.mark.parametrize("shape", [(2, 7), (9, 5), (1, 3)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_the_loops_of_the_authors(shape, iterations):
    scores = torch.randn(shape, dtype=torch.float64)
    found = sinkhorn(scores, iterations)
    slow = distillation.sinkhorn(scores.exp().numpy(), iterations)
    assert found.numpy() == pytest.approx(slow, rel=1e-9)


def test_masses_of_uniform_scores_are_the_golden_ones():
    scores = (2 * torch.rand(256, 32) - 1) / 0.05
    found = sinkhorn(scores, 3)
    assert torch.allclose(found.sum(1), torch.ones(256), atol=1e-6)
    mass = found.sum(0) / (256 / 32)
    # .93 to 1.10 for one draw; seeds differ
    assert 0.85 < mass.min() < 0.95 and 1.05 < mass.max() < 1.2


def test_no_temperature_is_too_small():
    scores = torch.randn(8, 4) / 1e-4
    assert torch.isfinite(sinkhorn(scores)).all()
    assert sinkhorn(scores.bfloat16()).dtype == torch.float32


def test_prototypes_used_counts_those_with_equal_mass():
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(2, 3, 4)
    assert prototypes_used(half).item() == pytest.approx(2.0)
    assert prototypes_used(torch.eye(5)[:1]).item() == pytest.approx(1.0)
