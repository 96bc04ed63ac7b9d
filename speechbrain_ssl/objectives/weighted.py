"""A weighted sum of objectives over the same views."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from speechbrain_ssl.checks import checked, each, number, schedule
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import at


class Weighted(torch.nn.Module):
    """Several objectives at once.

    All get the same student and teacher. An objective is also computed while
    its weight is 0, so that its queue or center is filled when the weight
    rises.

    Arguments
    ---------
    objectives : list of torch.nn.Module
        The objectives.
    weights : list of float or callable
        Weight of each, constant or a schedule.

    Example
    -------
    >>> from speechbrain_ssl.objectives.lim import LIM
    >>> both = Weighted([LIM("nce"), LIM("bce")], weights=[1.0, 0.5])
    >>> crops = torch.randn(2, 8, 16)
    >>> loss, stats = both(BranchOutput(crops, crops), None, 0.0)
    >>> bool(loss == stats["lim_1_loss"] + 0.5 * stats["lim_2_loss"])
    True
    """

    objectives: Any

    @checked(weights=each(schedule(number(0))))
    def __init__(
        self,
        objectives: Sequence[torch.nn.Module],
        weights: Sequence[float | Callable[[float], float]],
    ):
        super().__init__()
        if not objectives or len(objectives) != len(weights):
            raise ValueError(
                "Weighted needs one objective or more and a weight for each, "
                f"got {len(objectives)} objectives and {len(weights)} weights"
            )
        self.objectives = torch.nn.ModuleList(objectives)
        self.weights = list(weights)

    @property
    def stats_help(self) -> dict[str, str]:
        """One line for each statistic, under the names of ``forward``."""
        found = {}
        for prefix, objective in zip(self._prefixes(), self.objectives):
            name = type(objective).__name__
            found[prefix + "loss"] = f"Loss of {name} without its weight."
            for stat, text in getattr(objective, "stats_help", {}).items():
                found[prefix + stat] = text
        return found

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Weighted sum of the losses.

        The statistics of an objective get the name of its class as a prefix,
        as in ``moco_accuracy``, with a number if there are two of a class:
        ``moco_1_accuracy``. ``moco_loss`` is the loss without its weight.
        """
        total: Any = 0.0
        stats: dict[str, torch.Tensor] = {}
        for prefix, objective, weight in zip(
            self._prefixes(), self.objectives, self.weights
        ):
            loss, said = objective(student, teacher, epoch)
            total = total + at(weight, epoch) * loss
            stats[prefix + "loss"] = loss.detach()
            stats.update({prefix + name: x for name, x in said.items()})
        return total, stats

    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Lets each objective keep what it keeps of a batch."""
        for objective in self.objectives:
            if hasattr(objective, "commit"):
                objective.commit(student, teacher)

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """Collects the warnings of the objectives."""
        found = []
        for prefix, objective in zip(self._prefixes(), self.objectives):
            if hasattr(objective, "warnings"):
                mine = {
                    name.removeprefix(prefix): x
                    for name, x in stats.items()
                    if name.startswith(prefix)
                }
                found += objective.warnings(mine)
        return found

    def _prefixes(self):
        """Prefix of the statistics of each objective."""
        names = [type(x).__name__.lower() for x in self.objectives]
        number = Counter()
        for name in names:
            number[name] += 1
            many = names.count(name) > 1
            yield f"{name}_{number[name]}_" if many else f"{name}_"
