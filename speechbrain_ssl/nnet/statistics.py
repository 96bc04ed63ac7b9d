"""Running statistics, to be restored after a batch that has spoiled them."""

import torch


class RunningStatistics:
    """The buffers that forward passes change, and a copy of them.

    These are the buffers of all networks of a training, such as those of
    BatchNorm, except of modules with ``commit``: objectives change their queues
    and centers there only.
    """

    def __init__(self, module: torch.nn.Module):
        self.owners = [
            part
            for part in module.modules()
            if not hasattr(part, "commit") and list(part.buffers(recurse=False))
        ]
        self.copies = []

    def buffers(self) -> list[torch.Tensor]:
        """The buffers as they are now, not copies."""
        return [x for part in self.owners for x in part.buffers(recurse=False)]

    @torch.no_grad()
    def keep(self) -> None:
        """Copies the buffers, into memory that is allocated once."""
        buffers = self.buffers()
        if [x.shape for x in self.copies] != [x.shape for x in buffers]:
            self.copies = [torch.empty_like(x) for x in buffers]
        _copy(self.copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the buffers the values of the last ``keep``."""
        if self.copies:
            _copy(self.buffers(), self.copies)


def _copy(to, values):
    """Copies tensors, those of one type by few operators of the device."""
    for dtype in {x.dtype for x in values}:
        mine = [i for i, value in enumerate(values) if value.dtype == dtype]
        torch._foreach_copy_([to[i] for i in mine], [values[i] for i in mine])
