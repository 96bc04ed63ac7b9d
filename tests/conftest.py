"""Every test draws the same random numbers, whatever ran before it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Seeds torch; NumPy's generators are made with seeds in the tests."""
    torch.manual_seed(0)
