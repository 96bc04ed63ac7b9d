"""What an epoch of training on pseudo-labels decided about each utterance."""

import csv

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import distributed
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.pseudo_labels.loss import Learnt

COLUMNS = ("ID", "spk_id", "log_loss", "trusted", "corrected", "learnt")
BINS = 60


@register_checkpoint_hooks
class Decisions:
    """The last decision about each utterance, the same in all processes.

    Arguments
    ---------
    labels : torch.Tensor
        int64 pseudo-label of each utterance [utterances].

    Example
    -------
    >>> decisions = Decisions(torch.tensor([0, 1, 1]))
    >>> yes, no = torch.tensor([True]), torch.tensor([False])
    >>> loss, label = torch.tensor([-2.0]), torch.tensor([1])
    >>> decisions.write(torch.tensor([2]), Learnt(loss, yes, no, label))
    >>> decisions.log_losses().tolist(), decisions.silent_classes()
    ([-2.0], 1)
    """

    def __init__(self, labels):
        self.labels = labels
        self.clear()

    def clear(self):
        """Forgets all decisions: an epoch begins."""
        count = len(self.labels)
        self.table = Learnt(
            torch.full((count,), torch.nan),
            torch.zeros(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.bool),
            self.labels.clone(),
        )
        self.seen = torch.zeros(count, dtype=torch.bool)

    def write(self, index, learnt):
        """Adds a batch of all processes.

        Arguments
        ---------
        index : torch.Tensor
            int64 rows of the utterances [batch].
        learnt : Learnt
            What was decided about them.
        """
        # one message: float64 holds rows, labels and float32 losses
        packed = torch.stack([x.double() for x in (index, *learnt)], dim=1)
        index, *columns = distributed.gather(packed).cpu().unbind(1)
        self.seen[index.long()] = True
        for column, values in zip(self.table, columns):
            column[index.long()] = values.to(column.dtype)

    def log_losses(self):
        """Log-losses of the utterances that were seen [seen utterances]."""
        return self.table.log_loss[self.seen]

    def shares(self):
        """Shares of the utterances that were seen.

        Returns
        -------
        dict of str to float
            ``trusted``, ``corrected`` and ``relabeled`` (corrected to another
            label); 0 if none was seen.
        """
        changed = self.table.corrected & (self.table.label != self.labels)
        kinds = {
            "trusted": self.table.trusted,
            "corrected": self.table.corrected,
            "relabeled": changed,
        }
        seen = max(int(self.seen.sum()), 1)
        return {
            name: int((kind & self.seen).sum()) / seen
            for name, kind in kinds.items()
        }

    def silent_classes(self):
        """Number of classes of which the epoch learnt no utterance."""
        used = self.seen & (self.table.trusted | self.table.corrected)
        taught = self.table.label[used].unique()
        return len(self.labels.unique()) - len(taught)

    def histogram(self):
        """How many utterances have which log-loss, for a plot.

        Returns
        -------
        dict
            ``edges`` [bins + 1] and ``counts`` [bins]; both are empty if no
            loss is finite.
        """
        losses = self.log_losses().numpy()
        losses = losses[np.isfinite(losses)].astype(float)
        if not len(losses):
            return {"edges": [], "counts": []}
        counts, edges = np.histogram(losses, BINS)
        return {"edges": edges.tolist(), "counts": counts.tolist()}

    def corrected_labels(self):
        """The labels, with those that were corrected in their place.

        Returns
        -------
        torch.Tensor
            int64; what was neither trusted nor corrected keeps its label
            [utterances].
        """
        return torch.where(self.table.corrected, self.table.label, self.labels)

    def write_csv(self, path, ids):
        """Writes what was decided about each utterance that was seen.

        Arguments
        ---------
        path : str
            CSV file with the columns ID, spk_id (the class given), log_loss,
            trusted, corrected (1 or 0) and learnt (the class learnt).
        ids : iterable of str
            IDs of the utterances, in order.
        """
        columns = (
            self.labels.tolist(),
            self.table.log_loss.tolist(),
            self.table.trusted.int().tolist(),
            self.table.corrected.int().tolist(),
            self.table.label.tolist(),
        )
        rows = zip(self.seen.tolist(), ids, *columns)
        with write_whole(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(row[1:] for row in rows if row[0])

    @mark_as_saver
    def _save(self, path):
        """Writes the decisions of an epoch that is not over."""
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
        self.table = Learnt(*columns)


def read_decisions(path):
    """Reads what ``Decisions.write_csv`` wrote.

    Arguments
    ---------
    path : str
        The CSV file.

    Returns
    -------
    ids : list of str
        Utterances [n].
    columns : dict of str to np.ndarray
        ``given`` and ``learnt`` (int64 classes), ``trusted`` and
        ``corrected`` (bool) [n].
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = [("given", "spk_id", int), ("learnt", "learnt", int)]
    kinds += [("trusted", "trusted", bool), ("corrected", "corrected", bool)]
    columns = {
        name: np.array([int(row[column]) for row in rows]).astype(kind)
        for name, column, kind in kinds
    }
    return [row["ID"] for row in rows], columns
