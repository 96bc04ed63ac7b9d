"""Decisions of an epoch about the pseudo-label of each utterance."""

import csv
from collections.abc import Iterable

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import distributed
from speechbrain_ssl.devices import Later
from speechbrain_ssl.files import write_csv
from speechbrain_ssl.pseudo_labels.loss import LabelDecisions

# Batches on a device whose decisions may not have been fetched yet.
DELAY = 2
COLUMNS = ("ID", "spk_id", "loss_log", "selected", "corrected", "label")
BINS = 60


@register_checkpoint_hooks
class Decisions:
    """The last decision about each utterance, the same in all processes.

    ``labels`` are the int64 pseudo-labels [utterances].
    """

    def __init__(self, labels: torch.Tensor):
        self.labels = labels
        self.clear()

    def clear(self) -> None:
        """Removes all decisions, at the start of an epoch."""
        count = len(self.labels)
        self.table = LabelDecisions(
            torch.full((count,), torch.nan),
            torch.zeros(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.bool),
            self.labels.clone(),
        )
        self.seen = torch.zeros(count, dtype=torch.bool)
        self.waiting = []

    def write(self, index: torch.Tensor, decided: LabelDecisions) -> None:
        """Adds a batch of all processes.

        Nothing waits for a device: decisions are fetched when it has computed
        later batches, or before they are used. ``index`` has the rows of the
        utterances, int64 [batch].
        """
        # one message: float64 holds rows, labels and float32 losses
        packed = torch.stack([x.double() for x in (index, *decided)], dim=1)
        self.waiting.append(Later(distributed.gather(packed)))
        self.fetch(DELAY if packed.is_cuda else 0)

    def fetch(self, delay: int = 0) -> None:
        """Fetches decisions but those of the last ``delay`` batches."""
        while len(self.waiting) > delay:
            index, *columns = self.waiting.pop(0).read().unbind(1)
            # a clip without a face has no loss there
            self.seen[index.long()] = ~columns[0].isnan()
            for column, values in zip(self.table, columns):
                column[index.long()] = values.to(column.dtype)

    def loss_logs(self) -> torch.Tensor:
        """Logarithms of the losses of the utterances seen [utterances]."""
        return self.table.loss_log[self.seen]

    def shares(self) -> dict[str, float]:
        """Shares of the utterances that were seen, 0 if none was.

        ``selected``, ``corrected`` and ``label_changed`` (corrected to another
        class).
        """
        changed = self.table.corrected & (self.table.label != self.labels)
        kinds = {
            "selected": self.table.selected,
            "corrected": self.table.corrected,
            "label_changed": changed,
        }
        seen = max(int(self.seen.sum()), 1)
        return {
            name: int((kind & self.seen).sum()) / seen
            for name, kind in kinds.items()
        }

    def silent_classes(self) -> int:
        """Number of classes of which the epoch learned no utterance."""
        used = self.seen & (self.table.selected | self.table.corrected)
        taught = self.table.label[used].unique()
        return len(self.labels.unique()) - len(taught)

    def histogram(self) -> dict:
        """Histogram of the logarithms of the losses, for a plot.

        ``edges`` [bins + 1] and ``counts`` [bins]; both are empty if no loss is
        finite.
        """
        losses = self.loss_logs().numpy()
        losses = losses[np.isfinite(losses)].astype(float)
        if not len(losses):
            return {"edges": [], "counts": []}
        counts, edges = np.histogram(losses, BINS)
        return {"edges": edges.tolist(), "counts": counts.tolist()}

    def corrected_labels(self) -> torch.Tensor:
        """The pseudo-labels, replaced where they were corrected."""
        return torch.where(self.table.corrected, self.table.label, self.labels)

    def write_csv(self, path: str, ids: Iterable[str]) -> None:
        """Writes the decision about each utterance that was seen.

        The columns are ID, spk_id (the pseudo-label), loss_log, selected,
        corrected (1 or 0) and label (the class learned).
        """
        columns = (
            self.labels.tolist(),
            self.table.loss_log.tolist(),
            self.table.selected.int().tolist(),
            self.table.corrected.int().tolist(),
            self.table.label.tolist(),
        )
        rows = zip(self.seen.tolist(), ids, *columns)
        write_csv(path, COLUMNS, (row[1:] for row in rows if row[0]))

    @mark_as_saver
    def _save(self, path):
        """Writes the decisions of an epoch that is not over."""
        self.fetch()
        torch.save((self.seen, *self.table), path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        """Reads what ``_save`` wrote."""
        self.seen, *columns = torch.load(path, weights_only=True)
        if len(self.seen) != len(self.labels):
            raise ValueError(
                f"The checkpoint is of {len(self.seen)} labelled utterances, "
                f"the label file has {len(self.labels)}. Train on the same "
                "labels, or start in a new output_folder."
            )
        self.table = LabelDecisions(*columns)


def read_decisions(path: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Reads IDs and columns that ``Decisions.write_csv`` wrote.

    The columns ``given`` and ``label`` are int64 classes, ``selected`` and
    ``corrected`` bool [n].
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds: list[tuple[str, str, type]] = [
        ("given", "spk_id", int),
        ("label", "label", int),
        ("selected", "selected", bool),
        ("corrected", "corrected", bool),
    ]
    columns = {
        name: np.array([int(row[column]) for row in rows]).astype(kind)
        for name, column, kind in kinds
    }
    return [row["ID"] for row in rows], columns
