"""Groups of utterances that were recorded alike, found without labels.

Device, room and background show in embeddings, so that clusters follow places
as well as speakers. The groups serve against this in three ways: an objective
that tells the utterances of one group apart cannot use the channel; embeddings
without the mean of their group differ by the speaker; and a classifier that
knows which classes a group has need not learn this from the channel.
"""

import json
import logging
import os
from collections.abc import Sequence

import numpy as np
import torch
from speechbrain.lobes.features import Fbank

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import Rule, number
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.pseudo_labels.extract import embed_utterances
from speechbrain_ssl.pseudo_labels.statistics import fft_size

logger = logging.getLogger(__name__)

QUANTILE = 0.1
# So many points with the mean of all points are added to each group: the mean
# of a few utterances is that of their speakers.
PRIOR = 5
# Share of the variance of embeddings above which groups are rather speakers
# than channels. Groups of places explain a tenth, speakers a half or more.
LARGEST_SHARE = 0.25
COUNT = Rule(
    lambda x: number(0).holds(x) and (x < 1 or x % 1 == 0),
    "a whole number, or below 1 a share of the utterances; 0 for no groups",
)


class QuietSpectrum(torch.nn.Module):
    """Spectrum of the quiet frames of an utterance, without its level.

    Of the decibels of each mel band over time, it takes the 10 % quantile: what
    device, room and background leave when nobody speaks. The sample rate is in
    Hz.

    Example
    -------
    >>> QuietSpectrum()(torch.randn(2, 16000), torch.ones(2)).shape
    torch.Size([2, 40])
    """

    def __init__(self, sample_rate: int = 16000, n_mels: int = 40):
        super().__init__()
        self.fbank = Fbank(
            sample_rate=sample_rate, n_fft=fft_size(sample_rate), n_mels=n_mels
        )

    @torch.no_grad()
    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor
    ) -> torch.Tensor:
        """Waveforms [batch, time], relative lengths to rows [batch, n_mels]."""
        feats = self.fbank(wavs)
        count = (wav_lens * feats.shape[1]).round().long().clamp(min=1)
        frames = torch.arange(feats.shape[1], device=feats.device)
        outside = (frames >= count[:, None])[..., None]
        ordered = feats.masked_fill(outside, torch.inf).sort(dim=1).values
        place = (QUANTILE * (count - 1)).round().long()
        rows = torch.arange(len(feats), device=feats.device)
        quiet = ordered[rows, place]
        return quiet - quiet.mean(1, keepdim=True)


def channel_groups(
    utterances: Utterances,
    path: str,
    sample_rate: int,
    groups: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Groups the utterances of a training set by their quiet spectra (k-means).

    The groups are written to ``path``, a .npz file. A resumed run reads them
    there, unless they are of other utterances or settings. Processes share the
    work. ``groups`` is how many; below 1: a share of the utterances, at least
    one group. Gives the int64 group of each utterance [utterances].
    """
    if groups < 1:
        groups = max(groups * len(utterances), 1)
    groups = round(groups)
    if groups > len(utterances):
        raise ValueError(
            f"channel_groups is {groups}, but there are {len(utterances)} "
            "utterances. Lower it; 0: no groups."
        )
    if groups == 1:
        return np.zeros(len(utterances), dtype=np.int64)
    made_of = f"{utterances.hash()} {sample_rate} {groups} {seed}"
    if not distributed.gather_objects(_has(path, made_of))[0]:
        logger.info(
            "The audio of %d utterances is read for channel_groups.",
            len(utterances),
        )
        spectrum = QuietSpectrum(sample_rate).to(device).eval()
        try:
            points = embed_utterances(
                spectrum, utterances, sample_rate, device=device
            )
        except ValueError as error:
            raise ValueError(
                f"channel_groups needs the audio (0: no groups). {error}"
            ) from error
        ids = json.dumps(list(utterances.ids())).encode()
        distributed.on_first(_write, path, points, groups, seed, made_of, ids)
    with np.load(path) as file:
        return file["groups"]


def read_groups(path: str, ids: Sequence[str]) -> np.ndarray:
    """Groups of utterances by their IDs, of a file of ``channel_groups``."""
    with np.load(path) as file:
        if "ids" not in file:
            raise ValueError(
                f"{path} is of an earlier version and has no IDs. Make the "
                "labels again."
            )
        known = json.loads(file["ids"].tobytes())
        rows = {name: row for row, name in enumerate(known)}
        return file["groups"][[rows[name] for name in ids]]


def _has(path, made_of):
    """Says whether a file has groups that were made of the same."""
    if not os.path.exists(path):
        return False
    with np.load(path) as file:
        return "ids" in file and str(file["made_of"]) == made_of


def subtract_channels(
    points: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, float]:
    """Subtracts from embeddings of unit length the mean of their group.

    Nothing is subtracted if the groups explain so much of the embeddings that
    they are rather speakers than channels (``LARGEST_SHARE``). Embeddings
    [rows, dim] have any norm, groups are int64 [rows]. Gives embeddings of unit
    length, float32, and the share of their variance that the groups explain.

    Example
    -------
    >>> speakers = np.random.default_rng(0).standard_normal((100, 8))
    >>> places = np.arange(100) % 2
    >>> heard = speakers + np.where(places, 0.5, -0.5)[:, None]
    >>> found, share = subtract_channels(heard, places)
    >>> between = found[places == 1].mean(0) - found[places == 0].mean(0)
    >>> bool(abs(between).max() < 0.1)
    True
    """
    unit = _unit(np.asarray(points, dtype=np.float32))
    centered = unit - unit.mean(0)
    sums = np.zeros((groups.max() + 1, unit.shape[1]))
    np.add.at(sums, groups, centered)
    sizes = np.bincount(groups)[:, None]
    total = max(np.vdot(centered, centered), 1e-12)
    share = float((sums**2 / np.maximum(sizes, 1)).sum() / total)
    if share > LARGEST_SHARE:
        return unit, share
    means = sums / (sizes + PRIOR)
    return _unit(centered - means.astype(np.float32)[groups]), share


def _unit(points):
    """Rows of length 1, or 0."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.maximum(norms, 1e-12)


def classes_of_channels(
    groups: np.ndarray, classes: np.ndarray, count: int
) -> torch.Tensor:
    """Says which classes have utterances in which group [groups, classes].

    Groups and classes of utterances are int64 [utterances]; ``count`` is the
    number of classes.

    Example
    -------
    >>> classes_of_channels(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    tensor([[ True, False],
            [ True,  True]])
    """
    found = torch.zeros(int(groups.max()) + 1, count, dtype=torch.bool)
    found[torch.from_numpy(groups), torch.from_numpy(classes)] = True
    return found


def _write(path, points, groups, seed, made_of, ids):
    """Clusters on the first process, for all of them."""
    found = KMeans(groups, spherical=False, n_init=4, random_state=seed)
    labels = found.fit_predict(points.numpy())
    with write_whole(path, "wb") as file:
        ids = np.frombuffer(ids, np.uint8)
        np.savez(file, groups=labels, made_of=made_of, ids=ids)
    sizes = np.bincount(labels, minlength=groups)
    logger.info(
        "%d groups of %d to %d utterances that were recorded alike.",
        groups,
        sizes.min(),
        sizes.max(),
    )
