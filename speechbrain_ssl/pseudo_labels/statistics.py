"""Embeddings without an encoder: statistics of MFCCs, decorrelated.

A weak start of rounds of pseudo-labels, instead of i-vectors, from which
Z. Aldeneh et al. start in "Speaker-IPL" (https://arxiv.org/abs/2409.10791).
"""

import os
import tempfile

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from speechbrain.lobes.features import MFCC

from speechbrain_ssl.dataio.annotations import Utterances
from speechbrain_ssl.pseudo_labels.extract import (
    Embeddings,
    extract,
    load,
    save,
)

NAME = "mfcc"  # where the path of a model stands otherwise
N_MFCC, N_MELS, FLOOR = 20, 40, 30.0
RATE, SECONDS = 16000, 20.0  # of the audio that is read


def fft_size(sample_rate: int) -> int:
    """Size of the FFT of SpeechBrain's features, for windows of 25 ms."""
    return max(400, round(sample_rate * 0.025))


class MFCCStatistics(torch.nn.Module):
    """Mean, deviation and skewness of MFCCs and their deltas over time.

    Frames whose energy is more than ``FLOOR`` dB below that of the loudest
    ones count as silence and are left out.

    Example
    -------
    >>> MFCCStatistics()(torch.randn(2, 16000), torch.ones(2)).shape
    torch.Size([2, 119])
    """

    def __init__(self, sample_rate: int = 16000):
        super().__init__()
        self.mfcc = MFCC(
            sample_rate=sample_rate,
            n_fft=fft_size(sample_rate),
            n_mfcc=N_MFCC,
            n_mels=N_MELS,
            context=False,
        )

    @torch.no_grad()
    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor
    ) -> torch.Tensor:
        """Waveforms [batch, time], relative lengths to rows [batch, dim]."""
        feats = self.mfcc(wavs)[..., : 2 * N_MFCC]
        frames = torch.arange(feats.shape[1], device=feats.device)
        inside = frames < (wav_lens * feats.shape[1]).ceil()[:, None]
        energy = feats[..., 0].masked_fill(~inside, -torch.inf)
        # the first coefficient is the sum of decibels over root of channels
        per_db = N_MELS**0.5  # its change for a decibel in all channels
        loud = energy.amax(1, keepdim=True) - FLOOR * per_db
        weight = (inside & (energy >= loud)).float()[..., None]
        count = weight.sum(1).clamp(min=1)
        mean = (feats * weight).sum(1) / count
        centered = (feats - mean[:, None]) * weight
        deviation = (centered.square().sum(1) / count).sqrt().clamp(min=1e-5)
        skewness = (centered / deviation[:, None]).pow(3).sum(1) / count
        # without the level of the utterance
        return torch.cat([mean[:, 1:], deviation, skewness], dim=1)


def extract_statistics(
    utterances: Utterances, folder: str | os.PathLike, dim: int = 60
) -> Embeddings:
    """Writes statistics of MFCCs as a folder of embeddings.

    Each statistic is scaled to unit variance over the training set, and the
    statistics are decorrelated and whitened by PCA (scikit-learn).
    The first ``SECONDS`` of each utterance are read; ``dim`` principal
    components are kept. The folder is as that of ``extract``.
    """
    folder = os.path.abspath(folder)
    if os.path.isfile(os.path.join(folder, "meta.json")):
        return load(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        place = os.path.join(scratch, "embeddings")
        raw = extract(
            MFCCStatistics(RATE).eval(),
            utterances,
            place,
            RATE,
            encoder=NAME,
            max_seconds=SECONDS,
            batch_seconds=60.0,
        )
        points = np.asarray(raw.matrix, dtype=np.float64)
        scale = make_pipeline(
            StandardScaler(), PCA(min(dim, *points.shape), whiten=True)
        )
        points = scale.fit_transform(points).astype(np.float32)
        meta = raw.meta["settings"], raw.meta["made"]
        save(place, raw.ids, points, raw.failed, *meta)
        os.rename(place, folder)
    return load(folder)
