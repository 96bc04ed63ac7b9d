"""Devices and shared memory, and transfers for which the host does not wait."""

from typing import Any

import torch


def check_device(device: torch.device | str) -> None:
    """Raises a ValueError that names a device that torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"The device {device} cannot be used: {str(error).splitlines()[0]}"
        ) from error


def share(x: torch.Tensor, what: str) -> torch.Tensor:
    """Moves a tensor to memory that loader workers map; ``what`` needs it.

    Containers often have 64 MiB of it.
    """
    try:
        return x.share_memory_()
    except RuntimeError as error:
        raise OSError(
            f"{what} needs {x.nbytes / 2**20:.0f} MiB of shared memory "
            f"(/dev/shm): {error}. Enlarge it (docker run --shm-size 8g ...)."
        ) from error


def send(x: Any, device: torch.device | str) -> torch.Tensor:
    """Copies a tensor to a device, behind the work that the device has.

    A plain ``.to(device)`` waits until the device has done all of it. ``x`` is
    a tensor or list of the host, or of the device already.
    """
    x = torch.as_tensor(x)
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


class Later:
    """Values of a device that the host reads after it has asked for more work.

    The copy is queued when the object is made. ``read`` waits for what the
    device was asked for before that, and not for what was asked for since: a
    device with enough work in its queue does not stand still.
    """

    def __init__(self, x: torch.Tensor):
        self.copy = x.detach().to("cpu", non_blocking=True)
        self.event = None
        if x.device.type == "cuda":
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> torch.Tensor:
        """Returns the values, on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy
