"""Pooling of all layers of a transformer into a speaker embedding.

Behind the end of an utterance ``PretrainedTransformer`` gives hidden states of
zeros. The poolings leave these frames out. They do not use relative lengths,
which are exact for samples but not for frames.
"""

import torch
from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling

from speechbrain_ssl.checks import checked, whole


def _spoken(hidden):
    """Which frames are not padding [batch, frames]."""
    return (hidden[-1] != 0).any(-1)


class WeightedLayers(torch.nn.Module):
    """One mean of the layers, with learned weights.

    S. Yang et al., "SUPERB: Speech processing universal performance
    benchmark", Interspeech 2021 (https://arxiv.org/abs/2105.01051). Before
    SpeechBrain's ECAPA_TDNN it is an alternative to MHFA.

    Arguments
    ---------
    layers : int
        Number of hidden states: that of the transformer's layers plus one.

    Example
    -------
    >>> WeightedLayers(3)(torch.ones(3, 2, 50, 32)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, layers: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [layers, batch, frames, width] to their mean."""
        if len(hidden) != len(self.weight):
            raise ValueError(
                f"Expected {len(self.weight)} hidden states (layers), found "
                f"{len(hidden)}: a transformer has one more than it has layers"
            )
        return torch.einsum("l,lbtc->btc", self.weight.softmax(0), hidden)


class MHFA(torch.nn.Module):
    """Multi-head factorised attentive pooling.

    J. Peng et al., "An attention-based backend allowing efficient fine-tuning
    of transformer models for speaker verification", SLT 2022
    (https://arxiv.org/abs/2210.01273). One mean of the layers makes the keys,
    another one the values; each head has its own weights of frames, and all
    heads share the values::

        K = W_k sum_l softmax(w_k)_l h_l + b_k     [frames, compression]
        V = W_v sum_l softmax(w_v)_l h_l + b_v     [frames, compression]
        A = softmax_frames(W_a K + b_a)            [frames, heads]
        embedding = W (A^T V) + b                  [emb_dim]

    Weights of layers start equal, the others as torch's Linear does.

    Arguments
    ---------
    layers : int
        Number of hidden states: that of the transformer's layers plus one.
    width : int
        Their width.
    emb_dim : int
        Width of the embedding.
    heads : int
        Number of weightings of the frames.
    compression : int
        Width of keys and values.

    Example
    -------
    >>> MHFA(layers=3, width=32, emb_dim=8)(torch.randn(3, 2, 50, 32)).shape
    torch.Size([2, 1, 8])
    """

    @checked(
        layers=whole(1),
        width=whole(1),
        emb_dim=whole(1),
        heads=whole(1),
        compression=whole(1),
    )
    def __init__(
        self,
        layers: int,
        width: int,
        emb_dim: int = 256,
        heads: int = 64,
        compression: int = 128,
    ):
        super().__init__()
        self.key_layers = WeightedLayers(layers)
        self.value_layers = WeightedLayers(layers)
        self.key = torch.nn.Linear(width, compression)
        self.value = torch.nn.Linear(width, compression)
        self.attention = torch.nn.Linear(compression, heads)
        self.output = torch.nn.Linear(heads * compression, emb_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [layers, batch, frames, width] to [batch, 1, emb_dim].

        Zeros are padding.
        """
        key = self.key(self.key_layers(hidden))
        value = self.value(self.value_layers(hidden))
        logit = self.attention(key).float()
        padding = ~_spoken(hidden)[..., None]
        logit = logit.masked_fill(padding, torch.finfo(logit.dtype).min)
        weight = logit.softmax(1).to(value.dtype)
        pooled = torch.einsum("bth,btd->bhd", weight, value)
        return self.output(pooled.flatten(1))[:, None]


class StatisticsPooling(torch.nn.Module):
    """Attentive mean and deviation of one mean of the layers.

    K. Okabe et al., "Attentive statistics pooling for deep speaker embedding",
    Interspeech 2018 (https://arxiv.org/abs/1803.10963), in SpeechBrain's form.

    Arguments
    ---------
    layers : int
        Number of hidden states: that of the transformer's layers plus one.
    width : int
        Their width.
    emb_dim : int
        Width of the embedding.
    attention_channels : int
        Width of the network that weighs frames.

    Example
    -------
    >>> pooling = StatisticsPooling(layers=3, width=32, emb_dim=8)
    >>> pooling(torch.randn(3, 2, 50, 32)).shape
    torch.Size([2, 1, 8])
    """

    @checked(
        layers=whole(1),
        width=whole(1),
        emb_dim=whole(1),
        attention_channels=whole(1),
    )
    def __init__(
        self,
        layers: int,
        width: int,
        emb_dim: int = 256,
        attention_channels: int = 128,
    ):
        super().__init__()
        self.layers = WeightedLayers(layers)
        self.pooling = AttentiveStatisticsPooling(width, attention_channels)
        self.output = torch.nn.Linear(2 * width, emb_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [layers, batch, frames, width] to [batch, 1, emb_dim].

        Zeros are padding.
        """
        # SpeechBrain counts frames that begin before the relative length
        frames = _spoken(hidden).sum(1).clamp(min=1) - 0.5
        pooled = self.pooling(
            self.layers(hidden).transpose(1, 2), frames / hidden.shape[2]
        )
        return self.output(pooled.transpose(1, 2))
