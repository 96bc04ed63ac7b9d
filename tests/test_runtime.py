"""Memory and number formats."""

import platform
import subprocess
import sys

import pytest
import torch

from speechbrain_ssl.runtime import default_precision, keep_memory

PROGRAM = """
import resource, sys
from speechbrain_ssl.runtime import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
import torch
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(2)])
batch = torch.randn(160_000, 64)  # 41 MB
counts = []
for step in range(10):
    before = faults()
    layers(batch).sum().backward()
    layers.zero_grad()
    counts.append(faults() - before)
# the heap may still grow by a tensor in a single later step
print(min(counts[5:]))
"""


def faults_of_a_training_step(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's allocator only"
)
def test_kept_memory_is_not_faulted_in_again():
    assert keep_memory()
    # 41 MB are 10,000 pages of 4 kB
    assert faults_of_a_training_step("default") > 20_000
    assert faults_of_a_training_step("keep") < 2_000


def test_precision_on_a_processor_is_what_it_multiplies_in_hardware():
    fast = torch.cpu._is_avx512_bf16_supported()
    assert default_precision("cpu") == ("bf16" if fast else "fp32")
    assert default_precision("mps") == "fp32"
