"""Counts and lists the utterances that a training cannot read."""

import csv
import logging
import os

from speechbrain_ssl import distributed

logger = logging.getLogger(__name__)


class UnreadableUtterances:
    """Utterances that were replaced by others because they cannot be read.

    ``path`` is a CSV with the columns ``ID,reason``, to which the main process
    adds each utterance once, also in a run that is resumed; ``most`` is the
    share of the utterances of an epoch that may be replaced.
    """

    stats_help = {
        "unreadable": (
            "Utterances that cannot be read and were replaced by others; "
            "save/unreadable.csv lists them."
        )
    }

    def __init__(self, path: str | os.PathLike, most: float):
        self.path = path
        self.most = most
        self.replaced, self.new = 0, {}
        self.listed = set()
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                self.listed.update(row[0] for row in csv.reader(file) if row)

    def note(self, batch: list[dict[str, str]]) -> None:
        """Counts the utterances of a batch and lists new unreadable ones.

        Each sample's item ``unreadable`` has reasons by ID.
        """
        for reasons in filter(None, batch):
            self.replaced += 1
            self.new.update(reasons)
        if distributed.rank() == 0:
            self._add(self.new)

    def finish(self, utterances: int) -> int:
        """Ends an epoch in all processes; counts the utterances replaced in it.

        ``utterances`` is the number of those of the epoch, of all processes.
        Too many replaced ones are an error.
        """
        parts = distributed.gather_objects((self.replaced, self.new))
        self.replaced, self.new = 0, {}
        replaced = sum(count for count, _ in parts)
        if distributed.rank() == 0:
            for _, reasons in parts:
                self._add(reasons)
        if replaced > self.most * utterances:
            raise ValueError(
                f"{replaced} of the {utterances} utterances of this epoch "
                f"cannot be read, more than {self.most:.0%} (max_unreadable of "
                f"view_sampler). {self.path} lists them with the reasons. "
                "Restore the files, then run the same command again."
            )
        return replaced

    def _add(self, reasons):
        """Appends the utterances that are not listed yet."""
        rows = [row for row in reasons.items() if row[0] not in self.listed]
        if not rows:
            return
        if not self.listed:
            rows.insert(0, ("ID", "reason"))
        self.listed.update(name for name, _ in rows)
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        except OSError as error:  # a full disk must not end training
            logger.warning("Cannot list unreadable utterances: %s", error)
