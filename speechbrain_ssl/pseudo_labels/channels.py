"""Groups of utterances that were recorded alike, found without labels.

If all utterances of a batch share device, room and background, an objective
that tells utterances apart cannot use these, and the embedding has to rely on
the voice.
"""

import logging
import os

import numpy as np
import torch
from speechbrain.lobes.features import Fbank

from speechbrain_ssl import distributed
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.pseudo_labels.extract import embed_utterances

logger = logging.getLogger(__name__)

QUANTILE = 0.1


class QuietSpectrum(torch.nn.Module):
    """Spectrum of the quiet frames of an utterance, without its level.

    Of the decibels of each mel band over time, it takes the 10 % quantile: what
    device, room and background leave when nobody speaks.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    n_mels : int
        Bands.

    Example
    -------
    >>> QuietSpectrum()(torch.randn(2, 16000), torch.ones(2)).shape
    torch.Size([2, 40])
    """

    def __init__(self, sample_rate: int = 16000, n_mels: int = 40):
        super().__init__()
        self.fbank = Fbank(sample_rate=sample_rate, n_mels=n_mels)

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
    groups: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Groups the utterances of a training set by their quiet spectra (k-means).

    The groups are written to ``path`` and read from there in a resumed run, so
    that its batches are the same. Processes share the work.

    Arguments
    ---------
    utterances : Utterances
        The training set.
    path : str
        A .npy file.
    sample_rate : int
        In Hz.
    groups : int
        How many.
    seed : int
        Of k-means.
    device : str | torch.device
        Where spectra are computed.

    Returns
    -------
    np.ndarray
        int64 group of each utterance [utterances].

    Raises
    ------
    ValueError
        If there are more groups than utterances, or the file has groups of
        another training set.
    """
    if groups > len(utterances):
        raise ValueError(
            f"channel_groups is {groups}, but there are {len(utterances)} "
            "utterances. Lower it; 0: no groups."
        )
    if not distributed.gather_objects(os.path.exists(path))[0]:
        spectrum = QuietSpectrum(sample_rate).to(device).eval()
        points = embed_utterances(
            spectrum, utterances, sample_rate, device=device
        )
        distributed.on_first(_write, path, points, groups, seed)
    found = np.load(path)
    if len(found) != len(utterances):
        raise ValueError(
            f"{path} has the groups of {len(found)} utterances, the training "
            f"set has {len(utterances)}. Delete the file, or train in another "
            "output_folder."
        )
    return found


def _write(path, points, groups, seed):
    """Clusters on the first process, for all of them."""
    found = KMeans(groups, spherical=False, n_init=4, random_state=seed)
    labels = found.fit_predict(points.numpy())
    with write_whole(path, "wb") as file:
        np.save(file, labels)
    sizes = np.bincount(labels, minlength=groups)
    logger.info(
        "Batches of utterances that were recorded alike: %d groups of %d to %d.",
        groups,
        sizes.min(),
        sizes.max(),
    )
