"""Half precision is lifted, nothing else changes."""

import pytest
import torch

from speechbrain_ssl.nnet.precision import full_precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    x = torch.randn(5).to(dtype)
    found = full_precision(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, x.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_full_already_comes_back_itself(dtype):
    x = torch.randn(5, dtype=dtype)
    assert full_precision(x) is x
