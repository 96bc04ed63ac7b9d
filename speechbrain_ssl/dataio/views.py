"""Views: segments of an utterance, each with its own augmentation."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from speechbrain_ssl.checks import (
    checked,
    each,
    number,
    one_of,
    optional,
    whole,
)
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.dataio.augmentation import Augmentation

# number of the random stream that draws speed and positions of an utterance
POSITIONS = 1000


class ViewSampler:
    """Reads views of an utterance from its file, and augments them.

    Only the segments are read, not the whole file. All random numbers come
    from (seed, epoch, row, view), so a view does not depend on workers,
    processes or earlier views. An utterance shorter than a crop is repeated.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the views in Hz; files are resampled.
    global_crops : int
        Number of global crops.
    global_seconds : float
        Length of a global crop.
    local_crops : int
        Number of local crops.
    local_seconds : float
        Length of a local crop.
    augmentation : Augmentation
        Augmentation of each view. None: all views are clean.
    clean_global : bool
        Whether global crops are not augmented.
    clean_views : bool
        Whether to add the segments of the global crops without augmentation.
    same_augmentation : bool
        Whether to add the last global crop with the augmentation of the
        first one, for augmentation-adversarial training.
    min_gap : float
        Smallest gap in seconds between two global or two local crops; 0
        forbids overlaps. None: crops may overlap. If the utterance is too
        short, the crops are spread evenly from its start to its end.
    speeds : list of float
        Factors of speed perturbation. One of them is drawn for all views of
        an utterance in an epoch. Speeds other than 1 are rounded to multiples
        of 100 Hz of the file's sample rate.
    within_seconds : float
        All views of an utterance come from a stretch of this length, at a
        random place in it: for long recordings, where the speaker may change.
        None: from all of it.
    augment_on : str
        ``workers`` augments in the loader, ``device`` on the encoder's device.
    partners : ClusterPartners
        Draws the utterances from which the views of a sample are cut. None:
        all views come from one utterance.
    seed : int
        Seed of all draws.
    max_unreadable : float
        Largest share of unreadable utterances, which are replaced by others,
        in an epoch. Training stops above it.

    Example
    -------
    >>> sampler = ViewSampler(16000, global_crops=2, global_seconds=2.0)
    >>> views, _ = sampler.split(torch.zeros(4, 64000))
    >>> [tuple(view.shape) for view in views]
    [(4, 32000), (4, 32000)]
    """

    # columns of the annotation that a call takes; no images are read
    columns = ("wav", "start", "stop")
    face_size = None

    @checked(
        sample_rate=whole(*audio.RATES),
        global_crops=whole(0),
        global_seconds=number(above=0),
        local_crops=whole(0),
        local_seconds=number(above=0),
        clean_global=one_of(True, False),
        clean_views=one_of(True, False),
        same_augmentation=one_of(True, False),
        min_gap=optional(number(0)),
        speeds=each(number(0.1, 10)),
        within_seconds=optional(number(above=0)),
        augment_on=one_of("workers", "device"),
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
        augmentation: Augmentation | None = None,
        clean_global: bool = False,
        clean_views: bool = False,
        same_augmentation: bool = False,
        min_gap: float | None = None,
        speeds: Sequence[float] = (1.0,),
        within_seconds: float | None = None,
        augment_on: str = "workers",
        partners: Any = None,
        seed: int = 0,
        max_unreadable: float = 0.25,
    ):
        if global_crops + local_crops < 1:
            raise ValueError(
                "global_crops and local_crops are 0; set one of them to 1 or more"
            )
        if not speeds:
            raise ValueError("speeds is empty; expected e.g. [1.0]")
        self.sample_rate = sample_rate
        if same_augmentation and (global_crops < 2 or clean_views):
            raise ValueError(
                "same_augmentation needs two global crops or more, and no "
                f"clean_views; found {global_crops} crops and clean_views "
                f"{clean_views}"
            )
        self.same_augmentation = same_augmentation
        self.counts = (global_crops + same_augmentation, local_crops)
        self.frames = tuple(
            round(seconds * sample_rate)
            for seconds in (global_seconds, local_seconds)
        )
        for kind, frames in zip(("global", "local"), self.frames):
            if not frames:
                raise ValueError(
                    f"{kind}_seconds is less than a sample at {sample_rate} "
                    "Hz; expected e.g. 2.0"
                )
        self.augmentation = augmentation
        self.clean_global = clean_global
        self.clean_views = clean_views
        self.min_gap = min_gap
        self.speeds = tuple(speeds)
        needed = max(
            seconds * max(speeds)
            for seconds, count in (
                (global_seconds, global_crops),
                (local_seconds, local_crops),
            )
            if count
        )
        if within_seconds is not None and within_seconds < needed:
            raise ValueError(
                f"within_seconds is {within_seconds:g}, but the longest view "
                f"needs {needed:g} s at the highest of the speeds. Raise it, "
                "or set it to null."
            )
        self.within_seconds = within_seconds
        self.augment_on = augment_on
        self.partners = partners
        self.seed = seed
        self.max_unreadable = max_unreadable

    def prepare(self, utterances: Utterances) -> None:
        """Prepares augmentation and partners for the training set."""
        if self.augmentation is not None:
            self.augmentation.prepare(self.sample_rate, utterances)
        if self.partners is not None:
            self.partners.prepare(utterances)

    def __call__(
        self, key: tuple[int, ...], wav: str, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the views of one utterance.

        ``key`` is epoch and row of the utterance; ``start`` and ``stop`` are
        its first frame in the file, and one after the last. Gives the
        concatenated views, global crops first [time], and parameters of the
        augmentation of each view, float32 [views, parameters]. With
        ``augment_on: device`` they are not applied yet. An utterance that
        cannot be read is an AudioError.
        """
        anchor = (wav, start, stop)
        sources = self._sources(key, anchor)
        try:
            views = self._cut_views(key, sources)
        except audio.AudioError:
            # replace an unreadable partner by the utterance itself
            if set(sources) == {anchor}:
                raise
            views = self._cut_views(key, [anchor] * len(sources))
        draws = self._draws(key)
        if self.augment_on == "workers":
            views = self._augment(views, draws[None])
        return torch.cat([view.flatten() for view in views]), draws

    def speed_of(self, key: tuple[int, ...]) -> int:
        """Index in ``speeds`` of the speed that ``__call__`` draws for a key."""
        return self._speed(np.random.default_rng((self.seed, *key, POSITIONS)))

    def split(
        self, batch: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Splits concatenated views [batch, time] into global and local crops.

        They are lists of [batch, time of a view]. Clean views follow the global
        crops.
        """
        counts = (self.counts[0] * (1 + self.clean_views), self.counts[1])
        sizes = [n * frames for n, frames in zip(counts, self.frames)]
        parts = batch.split(sizes, dim=1)
        crops = [
            list(part.unflatten(1, (n, -1)).unbind(1)) if n else []
            for n, part in zip(counts, parts)
        ]
        return crops[0], crops[1]

    def to(self, device: torch.device | str) -> None:
        """Moves the augmentation to the encoder's device, if it is used there."""
        if self.augment_on == "device" and self.augmentation is not None:
            self.augmentation.to(device)

    def augment(self, batch: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augments views [batch, time], unless workers have done it.

        ``draws`` are parameters of their augmentation [batch, views,
        parameters].
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
        """Augments global and local views, [batch * count, time] each, and
        adds the clean views to the global ones.
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
        """Reads global and local segments, [count, frames] each."""
        rng = np.random.default_rng((self.seed, *key, POSITIONS))
        speed = self.speeds[self._speed(rng)]
        views, done = [], 0
        with contextlib.ExitStack() as stack:
            files = {
                path: stack.enter_context(audio.open(path))
                for path in dict.fromkeys(path for path, *_ in sources)
            }
            if self.within_seconds is not None:
                spans = {
                    (path, start, stop): self._stretch(
                        files[path], start, stop, rng
                    )
                    for path, start, stop in dict.fromkeys(sources)
                }
                sources = [(source[0], *spans[source]) for source in sources]
            sources = [(files[path], *span) for path, *span in sources]
            repeated = (int(self.same_augmentation), 0)
            for count, frames, again in zip(self.counts, self.frames, repeated):
                if count:
                    mine = sources[done : done + count - again]
                    cut = self._segments(mine, frames, speed, rng)
                    views.append(torch.cat([cut, cut[len(cut) - again :]]))
                done += count
        return views

    def _stretch(self, file, start, stop, rng):
        """Draws the part of an utterance from which all views are cut."""
        length = round(self.within_seconds * file.rate)
        first = start + int(rng.integers(max(stop - start - length, 0) + 1))
        return first, min(first + length, stop)

    def _speed(self, rng):
        """Draws a speed: the first number of the stream of an utterance."""
        return int(rng.random() * len(self.speeds))

    def _draws(self, key):
        """Draws parameters of each view, float32 [views, parameters]."""
        count = sum(self.counts)
        if self.augmentation is None:
            return torch.zeros(count, 1)
        streams = list(range(count))
        if self.same_augmentation:
            streams[self.counts[0] - 1] = 0
        draws = [
            self.augmentation.draw(
                np.random.default_rng((self.seed, *key, stream))
            )
            for stream in streams
        ]
        # SpeechBrain's batches need at least one column
        return torch.tensor([list(draw.values()) or [0.0] for draw in draws])

    def _sources(self, key, anchor):
        """Returns file, start and stop of the utterance of each view."""
        if self.partners is None:
            return [anchor] * sum(self.counts)
        rows = self.partners((self.seed, *key), self.counts)
        found = {key[-1]: anchor}
        for row in set(rows) - {key[-1]}:
            item = self.partners.utterances.row(row)
            found[row] = (item["wav"], item["start"], item["stop"])
        return [found[row] for row in rows]

    def _segments(self, sources, frames, speed, rng):
        """Reads one segment of each source [count, frames]."""
        played = [torch.empty(0)] * len(sources)
        for source in dict.fromkeys(sources):
            mine = [i for i, other in enumerate(sources) if other == source]
            segments = self._cut(source, len(mine), frames, speed, rng)
            for i, segment in zip(mine, segments):
                played[i] = segment
        return torch.stack(played)

    def _cut(self, source, count, frames, speed, rng):
        """Reads segments of one utterance [count, frames]."""
        file, start, stop = source
        rate = file.rate
        if speed != 1:
            # rates with a small common divisor are slow to resample
            speed = round(rate * speed, -2) / rate
        # a higher speed needs more frames of the file
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


def positions(
    length: int,
    needed: int,
    count: int,
    gap: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the first frames of segments, in random order [count].

    The utterance has ``length`` frames, a segment ``needed``; if that is more,
    positions are 0. ``gap`` is the smallest number of frames between segments.
    None: they may overlap.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> sorted(positions(100, 40, 2, 20, rng).tolist())
    [0, 60]
    """
    free = max(length - needed, 0)
    if gap is None or count == 1:
        return rng.integers(0, free + 1, count)
    # sorted draws of the space that segments and gaps leave free
    step = min(needed + gap, free // (count - 1))
    slack = free - step * (count - 1)
    starts = np.sort(rng.integers(0, slack + 1, count))
    return rng.permutation(starts + step * np.arange(count))
