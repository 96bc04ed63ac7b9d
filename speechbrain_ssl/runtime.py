"""How the process uses the machine: memory pages and number formats."""

import ctypes
import platform

import torch

# mallopt's names for its options (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
INT_MAX = 2**31 - 1


def keep_memory() -> bool:
    """Stops glibc from handing large tensors back to the kernel.

    By default every tensor of more than 32 MB is a fresh mapping, whose pages
    the kernel clears at each step. Training allocates the same sizes again and
    again, so the process keeps them: 15 to 50 % of a step on a CPU. Call it
    before the first large tensor; other allocators are left alone. It is False
    if the allocator did not take the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    took_mmap = libc.mallopt(M_MMAP_MAX, 0)
    return bool(took_mmap and libc.mallopt(M_TRIM_THRESHOLD, INT_MAX))


def default_precision(device: str = "cpu") -> str:
    """The faster of the number formats that train as well as float32.

    It is ``bf16`` on accelerators that have it and on processors that multiply
    it in hardware, ``fp32`` elsewhere.
    """
    if str(device).startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp32"
    if str(device) == "cpu":
        # without these instructions bf16 is emulated and slower than float32
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
        return "bf16" if has_bf16 else "fp32"
    return "fp32"
