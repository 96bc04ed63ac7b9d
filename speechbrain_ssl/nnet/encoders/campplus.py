"""CAM++: a densely connected TDNN with context-aware masking.

H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: A Fast and Efficient
Network for Speaker Verification Using Context-Aware Masking", Interspeech 2023
(arXiv:2303.00332). Written from the paper; weights of other implementations do
not fit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, whole


class FrontEnd(torch.nn.Module):
    """Residual 2D convolutions, which see the frequency axis (FCM).

    Four blocks of two 3 x 3 convolutions. The first block, the third one and a
    last convolution halve the frequencies; time is kept. ``width`` is the
    number of features of the output.
    """

    def __init__(self, n_mels: int, channels: int = 32):
        super().__init__()
        self.first = _conv2d(1, channels)
        strides = (2, 1, 2, 1)
        self.blocks = torch.nn.ModuleList(
            _Residual(channels, stride) for stride in strides
        )
        self.last = _conv2d(channels, channels, 2)
        for _ in range(3):
            n_mels = -(-n_mels // 2)
        self.width = channels * n_mels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [batch, n_mels, frames] to [batch, width, frames]."""
        x = F.relu(self.first(features[:, None]))
        for block in self.blocks:
            x = block(x)
        return F.relu(self.last(x)).flatten(1, 2)


class _Residual(torch.nn.Module):
    """Two 3 x 3 convolutions and a shortcut; the first one has the stride."""

    def __init__(self, channels, stride):
        super().__init__()
        self.first = _conv2d(channels, channels, stride)
        self.second = _conv2d(channels, channels)
        self.shortcut = torch.nn.Identity()
        if stride > 1:
            self.shortcut = _conv2d(channels, channels, stride, kernel=1)

    def forward(self, x):
        inner = self.second(F.relu(self.first(x)))
        return F.relu(inner + self.shortcut(x))


class MaskedLayer(torch.nn.Module):
    """A layer of the dense network, with context-aware masking.

    A bottleneck, then a dilated convolution of three frames over time. Its
    output, ``growth`` channels, is multiplied by a mask in (0, 1) for each
    channel and frame, which is made of the mean over the utterance and the mean
    over the frame's segment of so many frames.
    """

    def __init__(
        self,
        channels: int,
        growth: int,
        bottleneck: int,
        dilation: int,
        segment: int = 100,
    ):
        super().__init__()
        self.narrow = torch.nn.Sequential(
            _normed(channels),
            torch.nn.Conv1d(channels, bottleneck, 1, bias=False),
            _normed(bottleneck),
        )
        self.local = torch.nn.Conv1d(
            bottleneck,
            growth,
            3,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.mask = torch.nn.Sequential(
            torch.nn.Conv1d(bottleneck, bottleneck // 2, 1),
            torch.nn.ReLU(),
            torch.nn.Conv1d(bottleneck // 2, growth, 1),
            torch.nn.Sigmoid(),
        )
        self.segment = segment

    def forward(self, x: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """Masked features of each frame [batch, growth, frames].

        ``heard`` is 1 for frames of the utterance, 0 for padding [batch, 1,
        frames].
        """
        x = self.narrow(x)
        frames = x.shape[-1]
        utterance = _mean(x, heard)
        # segments of equal length, the last one shorter
        pooled = (
            F.avg_pool1d(part, self.segment, self.segment, ceil_mode=True)
            for part in (x * heard, heard)
        )
        total, count = pooled
        parts = total / count.clamp(min=1e-6)
        parts = parts.repeat_interleave(self.segment, -1)[..., :frames]
        return self.local(x) * self.mask(utterance + parts)


class CAMPlusPlus(torch.nn.Module):
    """The encoder: front-end, three dense blocks, statistics pooling.

    Arguments
    ---------
    input_size : int
        Number of input features.
    lin_neurons : int
        Dimension of the embedding.
    growth : int
        Channels that each layer of a dense block adds.
    bottleneck : int
        Channels inside of a layer.
    channels : int
        Channels before the first dense block.
    layers : tuple of int
        Layers in each dense block.
    dilations : tuple of int
        Dilation in each dense block.
    front_channels : int
        Channels of the 2D convolutions.
    segment : int
        Frames in a segment of the masks, after time was halved: 100 are two
        seconds at a hop of 10 ms.

    Example
    -------
    >>> encoder = CAMPlusPlus(80, 16, layers=(2, 2, 2))
    >>> encoder(torch.randn(2, 120, 80)).shape
    torch.Size([2, 1, 16])
    """

    @checked(
        input_size=whole(8),
        lin_neurons=whole(1),
        growth=whole(1),
        bottleneck=whole(2),
        channels=whole(1),
        front_channels=whole(1),
        segment=whole(1),
    )
    def __init__(
        self,
        input_size: int = 80,
        lin_neurons: int = 192,
        growth: int = 32,
        bottleneck: int = 128,
        channels: int = 128,
        layers: Sequence[int] = (12, 24, 16),
        dilations: Sequence[int] = (1, 2, 2),
        front_channels: int = 32,
        segment: int = 100,
    ):
        super().__init__()
        if len(layers) != len(dilations):
            raise ValueError(
                "layers and dilations have one number for each dense block, "
                f"found {list(layers)} and {list(dilations)}."
            )
        self.front_end = FrontEnd(input_size, front_channels)
        self.halve_time = torch.nn.Sequential(
            torch.nn.Conv1d(
                self.front_end.width, channels, 5, 2, padding=2, bias=False
            ),
            _normed(channels),
        )
        blocks, transits = [], []
        for count, dilation in zip(layers, dilations):
            block = []
            for _ in range(count):
                block.append(
                    MaskedLayer(channels, growth, bottleneck, dilation, segment)
                )
                channels += growth
            blocks.append(torch.nn.ModuleList(block))
            transits.append(
                torch.nn.Sequential(
                    _normed(channels),
                    torch.nn.Conv1d(channels, channels // 2, 1, bias=False),
                )
            )
            channels //= 2
        self.blocks = torch.nn.ModuleList(blocks)
        self.transits = torch.nn.ModuleList(transits)
        self.last = _normed(channels)
        self.embedding = torch.nn.Sequential(
            torch.nn.Linear(2 * channels, lin_neurons, bias=False),
            torch.nn.BatchNorm1d(lin_neurons, affine=False),
        )

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features [batch, frames, input_size] to [batch, 1, lin_neurons].

        Relative lengths [batch] are all ones by default. Padding is left out of
        all means; the convolutions see it.
        """
        x = self.halve_time(self.front_end(x.transpose(1, 2)))
        heard = torch.ones_like(x[:, :1])
        if lengths is not None:
            frames = torch.arange(x.shape[-1], device=x.device)
            ends = (lengths.to(x.device) * x.shape[-1]).round().clamp(min=1)
            heard = (frames < ends[:, None])[:, None].to(x.dtype)
        blocks: Any = self.blocks  # of a ModuleList in a ModuleList
        for block, transit in zip(blocks, self.transits):
            for layer in block:
                x = torch.cat([x, layer(x, heard)], 1)
            x = transit(x)
        x = self.last(x)
        mean = _mean(x, heard)
        variance = _mean((x - mean).square(), heard)
        # the square root has no gradient at zero
        deviation = variance.clamp(min=1e-5).sqrt()
        pooled = torch.cat([mean, deviation], 1).flatten(1)
        return self.embedding(pooled)[:, None]


def _mean(x, heard):
    """Mean over the frames of the utterance [batch, channels, 1]."""
    return (x * heard).sum(-1, keepdim=True) / heard.sum(-1, keepdim=True)


def _normed(channels):
    """Batch normalization, then ReLU."""
    return torch.nn.Sequential(torch.nn.BatchNorm1d(channels), torch.nn.ReLU())


def _conv2d(inputs, outputs, stride=1, kernel=3):
    """A convolution with batch normalization; the stride is of frequency."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(
            inputs,
            outputs,
            kernel,
            (stride, 1),
            padding=kernel // 2,
            bias=False,
        ),
        torch.nn.BatchNorm2d(outputs),
    )
