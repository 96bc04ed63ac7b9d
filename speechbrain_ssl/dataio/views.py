"""Views: segments of an utterance, each with its own augmentation."""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_ssl.checks import check, checked, each, number, whole
from speechbrain_ssl.dataio import audio

# streams of random numbers that belong to an utterance, not to one view
POSITIONS = 1000


class ViewSampler:
    """Reads the views of an utterance, and only these segments of its file.

    All randomness comes from (seed, epoch, row, view), so that a view does
    not depend on workers, processes or earlier views. An utterance shorter
    than a crop is repeated until it fills the crop.

    Arguments
    ---------
    sample_rate : int
        Rate of the views in Hz; files are resampled to it.
    global_crops : int
        Number of long views.
    global_seconds : float
        Length of a long view.
    local_crops : int
        Number of short views.
    local_seconds : float
        Length of a short view.
    augmentation : Augmentation
        Applied to each view with its own draw; None leaves views clean.
    clean_global : bool
        Whether global views stay clean.
    clean_views : bool
        Whether the global views are followed by the same segments without
        augmentation.
    min_gap : float
        Smallest distance in seconds of two global or two local crops (0
        forbids overlaps); None allows any position. In an utterance that is
        too short, the crops are spread from its start to its end.
    speeds : list of float
        Factors of speed perturbation. One is drawn for each utterance and
        epoch, for all of its views. Speeds other than 1 are rounded to
        multiples of 100 Hz of the file's rate.
    augment_on : str
        ``workers`` augments in the loader, ``device`` where the encoder is.
    partners : ClusterPartners
        Draws the utterances that the views of a sample are cut from; None
        cuts all views from one utterance.
    seed : int
        Seed of all draws.
    max_unreadable : float
        Largest share of the utterances of an epoch that may be replaced by
        others because their audio cannot be read. Above it, training ends.

    Raises
    ------
    ArgumentError
        If a value is out of range.

    Example
    -------
    >>> sampler = ViewSampler(16000, global_crops=2, global_seconds=2.0)
    >>> views, _ = sampler.split(torch.zeros(4, 64000))
    >>> [tuple(view.shape) for view in views]
    [(4, 32000), (4, 32000)]
    """

    @checked(
        sample_rate=whole(*audio.RATES),
        global_crops=whole(0),
        global_seconds=number(above=0),
        local_crops=whole(0),
        local_seconds=number(above=0),
        speeds=each(number(0.1, 10)),
        seed=whole(0),
        max_unreadable=number(0, 1),
    )
    def __init__(
        self,
        sample_rate: int,
        global_crops: int,
        global_seconds: float,
        local_crops: int = 0,
        local_seconds: float = 1.0,
        augmentation=None,
        clean_global: bool = False,
        clean_views: bool = False,
        min_gap: float | None = None,
        speeds: Sequence[float] = (1.0,),
        augment_on: str = "workers",
        partners=None,
        seed: int = 0,
        max_unreadable: float = 0.25,
    ):
        if global_crops + local_crops < 1:
            raise ValueError("At least one global or local crop is needed")
        if not speeds:
            raise ValueError("speeds must name at least one speed, such as 1.0")
        if min_gap is not None:
            check("min_gap", min_gap, number(0))
        if augment_on not in ("workers", "device"):
            raise ValueError(
                f"augment_on must be workers or device, not {augment_on!r}"
            )
        self.sample_rate = sample_rate
        self.counts = (global_crops, local_crops)
        self.frames = tuple(
            round(seconds * sample_rate)
            for seconds in (global_seconds, local_seconds)
        )
        self.augmentation = augmentation
        self.clean_global = clean_global
        self.clean_views = clean_views
        self.min_gap = min_gap
        self.speeds = tuple(speeds)
        self.augment_on = augment_on
        self.partners = partners
        self.seed = seed
        self.max_unreadable = max_unreadable

    def prepare(self, utterances):
        """Prepares augmentation and partners for a training set.

        Arguments
        ---------
        utterances : Utterances
            The rows of the training CSV.
        """
        if self.augmentation is not None:
            self.augmentation.prepare(self.sample_rate, utterances)
        if self.partners is not None:
            self.partners.prepare(utterances)

    def __call__(self, key, wav, start, stop):
        """Makes the views of one utterance.

        Arguments
        ---------
        key : tuple of int
            Epoch and row of the utterance.
        wav : str
            The file of the utterance.
        start, stop : int
            First frame of the utterance in the file, and the one after its
            last.

        Returns
        -------
        views : torch.Tensor
            All views one after another, global crops first [time].
        draws : torch.Tensor
            Parameters of the augmentation of each view, float32 [views,
            parameters]; already applied unless ``augment_on`` is ``device``.

        Raises
        ------
        AudioError
            If the utterance cannot be read.
        """
        anchor = (wav, start, stop)
        sources = self._sources(key, anchor)
        try:
            views = self._cut_views(key, sources)
        except audio.AudioError:
            # a partner that cannot be read is replaced by the anchor
            alone = [anchor] * len(sources)
            if sources == alone:
                raise
            views = self._cut_views(key, alone)
        draws = self._draws(key)
        if self.augment_on == "workers":
            views = self._augment(views, draws[None])
        return torch.cat([view.flatten() for view in views]), draws

    def speed_of(self, key):
        """Draws the speed of an utterance, as ``__call__`` does.

        Arguments
        ---------
        key : tuple of int
            Epoch and row of the utterance.

        Returns
        -------
        int
            Index of the speed in ``speeds``.
        """
        return self._speed(np.random.default_rng((self.seed, *key, POSITIONS)))

    def split(self, batch):
        """Undoes the packing of a batch.

        Arguments
        ---------
        batch : torch.Tensor
            What the sampler made of each utterance [batch, time].

        Returns
        -------
        global_crops, local_crops : list of torch.Tensor
            Each view [batch, time of the view]; clean views are the last
            global crops.
        """
        counts = (self.counts[0] * (1 + self.clean_views), self.counts[1])
        sizes = [n * frames for n, frames in zip(counts, self.frames)]
        parts = batch.split(sizes, dim=1)
        return tuple(
            list(part.unflatten(1, (n, -1)).unbind(1)) if n else []
            for n, part in zip(counts, parts)
        )

    def to(self, device: torch.device | str) -> None:
        """Moves what augments a batch to the device where it is applied.

        Arguments
        ---------
        device : torch.device
            Device of the encoder.
        """
        if self.augment_on == "device" and self.augmentation is not None:
            self.augmentation.to(device)

    def augment(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augments a batch on its device, unless the workers did so.

        Arguments
        ---------
        batch : torch.Tensor
            What the sampler made of each utterance [batch, time].
        draws : torch.Tensor
            Its draws [batch, views, parameters].

        Returns
        -------
        torch.Tensor
            Augmented views for ``split`` [batch, time].
        """
        if self.augment_on == "workers":
            return batch
        sizes = [n * frames for n, frames in zip(self.counts, self.frames)]
        views = [
            part.reshape(-1, frames)
            for part, frames in zip(batch.split(sizes, dim=1), self.frames)
            if part.shape[1]
        ]
        views = self._augment(views, draws)
        return torch.cat([view.reshape(len(batch), -1) for view in views], 1)

    def _augment(self, views, draws):
        """Augments clean views.

        ``views`` are global and local ones, [batch * count, time] each, the
        views of an utterance together; clean views make more global ones.
        """
        augmented, done = [], 0
        kinds = [bool(n) for n in self.counts]
        for is_local, view in zip(np.flatnonzero(kinds), views):
            count = self.counts[is_local]
            mine = draws[:, done : done + count].flatten(0, 1)
            done += count
            clean = view
            if self.augmentation and (is_local or not self.clean_global):
                columns = mine.to(view.device).unbind(1)
                parameters = dict(zip(self.augmentation.names, columns))
                view = self.augmentation.apply(view, parameters)
            if self.clean_views and not is_local:
                both = [v.unflatten(0, (-1, count)) for v in (view, clean)]
                view = torch.cat(both, dim=1).flatten(0, 1)
            augmented.append(view)
        return augmented

    def _cut_views(self, key, sources):
        """Global and local segments, [count, frames] each."""
        rng = np.random.default_rng((self.seed, *key, POSITIONS))
        speed = self.speeds[self._speed(rng)]
        views, done = [], 0
        with contextlib.ExitStack() as stack:
            files = {
                path: stack.enter_context(audio.open(path))
                for path in dict.fromkeys(path for path, *_ in sources)
            }
            sources = [(files[path], *span) for path, *span in sources]
            for count, frames in zip(self.counts, self.frames):
                if count:
                    mine = sources[done : done + count]
                    views.append(self._segments(mine, frames, speed, rng))
                done += count
        return views

    def _speed(self, rng):
        """Draws a speed: the first number of an utterance's stream."""
        return int(rng.random() * len(self.speeds))

    def _draws(self, key):
        """Parameters of each view, float32 [views, parameters]."""
        count = sum(self.counts)
        if self.augmentation is None:
            return torch.zeros(count, 1)
        draws = [
            self.augmentation.draw(
                np.random.default_rng((self.seed, *key, view))
            )
            for view in range(count)
        ]
        # SpeechBrain's batches need a column at least
        return torch.tensor([list(draw.values()) or [0.0] for draw in draws])

    def _sources(self, key, anchor):
        """File, start and stop of what each view is cut from."""
        if self.partners is None:
            return [anchor] * sum(self.counts)
        rows = self.partners((self.seed, *key), self.counts)
        found = {key[-1]: anchor}
        for row in set(rows) - {key[-1]}:
            item = self.partners.utterances.row(row)
            found[row] = (item["wav"], item["start"], item["stop"])
        return [found[row] for row in rows]

    def _segments(self, sources, frames, speed, rng):
        """Clean segments of one length, one from each source [count, frames]."""
        played = [None] * len(sources)
        for source in dict.fromkeys(sources):
            mine = [i for i, other in enumerate(sources) if other == source]
            segments = self._cut(*source, len(mine), frames, speed, rng)
            for i, segment in zip(mine, segments):
                played[i] = segment
        return torch.stack(played)

    def _cut(self, file, start, stop, count, frames, speed, rng):
        """Segments of one utterance [count, frames]."""
        rate = file.rate
        if speed != 1:
            # rates with a small common divisor are slow to resample
            speed = round(rate * speed, -2) / rate
        # played faster, a second of view takes more of the file
        needed = int(np.ceil(frames * rate * speed / self.sample_rate))
        gap = None if self.min_gap is None else round(self.min_gap * rate)
        begins = start + positions(stop - start, needed, count, gap, rng)
        segments = file.read_spans(
            [(begin, min(begin + needed, stop)) for begin in begins.tolist()]
        )
        segments = np.stack([np.resize(s, needed) for s in segments])
        played = audio.resample(
            torch.from_numpy(segments), round(rate * speed), self.sample_rate
        )
        return played[:, :frames]


def positions(length, needed, count, gap, rng):
    """Draws where segments start.

    Arguments
    ---------
    length : int
        Frames of the utterance.
    needed : int
        Frames of a segment.
    count : int
        Number of segments.
    gap : int
        Frames to leave between segments; None lets them overlap.
    rng : np.random.Generator
        Source of randomness.

    Returns
    -------
    np.ndarray
        First frame of each segment [count], in random order. All zero if
        the utterance is shorter than a segment.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> sorted(positions(100, 40, 2, 20, rng).tolist())
    [0, 60]
    """
    free = max(length - needed, 0)
    if gap is None or count == 1:
        return rng.integers(0, free + 1, count)
    # sorted draws from what is left once all segments and gaps are placed
    step = min(needed + gap, free // (count - 1))
    slack = free - step * (count - 1)
    starts = np.sort(rng.integers(0, slack + 1, count))
    return rng.permutation(starts + step * np.arange(count))
