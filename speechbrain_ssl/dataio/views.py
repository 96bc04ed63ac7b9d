"""Views: segments of an utterance, each with its own corruption."""

import contextlib

import numpy as np
import torch

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.corruption import DRAW_SIZE

# streams of random numbers that belong to an utterance, not to one view
POSITIONS = 1000


class ViewSampler:
    """Cuts views from an utterance, reading nothing but them.

    All randomness comes from (seed, epoch, row, view), so that a view does
    not depend on which worker or process makes it, nor on what was made
    before. An utterance shorter than a crop is repeated until it fills it.

    Arguments
    ---------
    sample_rate : int
        Rate of the views in Hz; files are resampled to it.
    global_crops : int
        Number of long views.
    global_seconds : float
        Their length.
    local_crops : int
        Number of short views.
    local_seconds : float
        Their length.
    corruption : Corruption
        What is done to the views; None leaves them clean.
    clean_global : bool
        Whether global views stay clean.
    clean_twins : bool
        Whether each global view comes again, uncorrupted, after all of them.
    min_gap : float
        Seconds to leave between two views of equal kind (0 forbids that they
        overlap); None lets them fall anywhere. In an utterance too short for
        it they are spread as far as it goes.
    speeds : list of float
        One is drawn for each utterance and epoch and played by all its
        views: a voice at another speed is another voice. Speeds other than 1
        are exact to 100 Hz of a file's rate.
    corrupt_on : str
        ``workers`` or ``device``.
    partners : ClusterPartners
        Which utterances give the views of a sample; None: each its own.
    seed : int
        Of all draws.

    Example
    -------
    >>> sampler = ViewSampler(16000, global_crops=2, global_seconds=2.0)
    >>> views, _ = sampler.split(torch.zeros(4, 64000))
    >>> [tuple(view.shape) for view in views]
    [(4, 32000), (4, 32000)]
    """

    def __init__(
        self,
        sample_rate,
        global_crops,
        global_seconds,
        local_crops=0,
        local_seconds=1.0,
        corruption=None,
        clean_global=False,
        clean_twins=False,
        min_gap=None,
        speeds=(1.0,),
        corrupt_on="workers",
        partners=None,
        seed=0,
    ):
        if global_crops + local_crops < 1:
            raise ValueError("At least one global or local crop is needed")
        if corrupt_on not in ("workers", "device"):
            raise ValueError(
                f"corrupt_on must be workers or device, not {corrupt_on!r}"
            )
        self.sample_rate = sample_rate
        self.counts = (global_crops, local_crops)
        self.frames = tuple(
            round(seconds * sample_rate)
            for seconds in (global_seconds, local_seconds)
        )
        self.corruption = corruption
        self.clean_global = clean_global
        self.clean_twins = clean_twins
        self.min_gap = min_gap
        self.speeds = tuple(speeds)
        self.corrupt_on = corrupt_on
        self.partners = partners
        self.seed = seed

    def prepare(self, utterances):
        """Tells corruption and partners what is trained on.

        Arguments
        ---------
        utterances : Utterances
            The rows of the training CSV.
        """
        if self.corruption is not None:
            self.corruption.prepare(utterances)
        if self.partners is not None:
            self.partners.prepare(utterances)

    def __call__(self, key, wav, start, stop):
        """Makes the views of one utterance.

        Arguments
        ---------
        key : tuple of int
            Epoch and row of the utterance.
        wav : str
            Its file.
        start, stop : int
            Where it begins and ends in the file, in frames of the file.

        Returns
        -------
        views : torch.Tensor
            All views one after another, global crops first [time].
        draws : torch.Tensor
            The corruption of each view [views, DRAW_SIZE]; already applied
            unless ``corrupt_on`` is ``device``.

        Raises
        ------
        AudioError
            If a segment cannot be read.
        """
        rng = np.random.default_rng((self.seed, *key, POSITIONS))
        speed = self.speeds[self._speed(rng)]
        sources = self._sources(key, (wav, start, stop))
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
        draws = torch.from_numpy(self._draws(key))
        if self.corrupt_on == "workers":
            views = self.corrupt(views, draws[None])
        return torch.cat([view.flatten() for view in views]), draws

    def speed_of(self, key):
        """Which of ``speeds`` an utterance is played at.

        Arguments
        ---------
        key : tuple of int
            Epoch and row of the utterance.

        Returns
        -------
        int
            Its place in ``speeds``.
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
            Each view [batch, time of the view]; clean twins are global crops.
        """
        counts = (self.counts[0] * (1 + self.clean_twins), self.counts[1])
        sizes = [n * frames for n, frames in zip(counts, self.frames)]
        parts = batch.split(sizes, dim=1)
        return tuple(
            list(part.unflatten(1, (n, -1)).unbind(1)) if n else []
            for n, part in zip(counts, parts)
        )

    def corrupt(self, views, draws):
        """Corrupts views that are still clean.

        Arguments
        ---------
        views : list of torch.Tensor
            Global and local views, [batch * count, time] each, the views of
            an utterance together.
        draws : torch.Tensor
            Their draws [batch, views, DRAW_SIZE].

        Returns
        -------
        list of torch.Tensor
            The same shapes; clean twins make more global views.
        """
        corrupted, done = [], 0
        kinds = [bool(n) for n in self.counts]
        for is_local, view in zip(np.flatnonzero(kinds), views):
            count = self.counts[is_local]
            mine = draws[:, done : done + count].flatten(0, 1)
            done += count
            clean = view
            if self.corruption and (is_local or not self.clean_global):
                view = self.corruption(view, mine)
            if self.clean_twins and not is_local:
                both = [v.unflatten(0, (-1, count)) for v in (view, clean)]
                view = torch.cat(both, dim=1).flatten(0, 1)
            corrupted.append(view)
        return corrupted

    def corrupt_batch(self, batch, draws):
        """Corrupts a batch on its device.

        Arguments
        ---------
        batch : torch.Tensor
            Packed clean views [batch, time].
        draws : torch.Tensor
            Their draws [batch, views, DRAW_SIZE].

        Returns
        -------
        torch.Tensor
            Packed corrupted views [batch, time].
        """
        sizes = [n * frames for n, frames in zip(self.counts, self.frames)]
        views = [
            part.reshape(-1, frames)
            for part, frames in zip(batch.split(sizes, dim=1), self.frames)
            if part.shape[1]
        ]
        views = self.corrupt(views, draws)
        return torch.cat([view.reshape(len(batch), -1) for view in views], 1)

    def _speed(self, rng):
        """Draws a speed: the first number of an utterance's stream."""
        return int(rng.random() * len(self.speeds))

    def _draws(self, key):
        """The corruption of each view [views, DRAW_SIZE]."""
        count = sum(self.counts)
        if self.corruption is None:
            return np.zeros((count, DRAW_SIZE))
        return np.stack(
            [
                self.corruption.draw(
                    np.random.default_rng((self.seed, *key, view))
                )
                for view in range(count)
            ]
        )

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
