"""Random erasing of features, as in SpecAugment."""

import torch

from speechbrain_ssl.checks import checked, number, whole


class RandomErasing(torch.nn.Module):
    """Erases one band of time and one of mel channels in some views.

    Of normalized features, whose mean is zero, so that erased parts hold the
    mean (D. S. Park et al., Interspeech 2019, arXiv:1904.08779; with these
    defaults SDPN, Y. Chen et al., arXiv:2308.02774). It is active in training
    mode where gradients are computed: never in a teacher, in evaluation or in
    an exported model. Its random numbers come from the generator of torch on
    the features' device, as those of dropout: a resumed run continues them.

    Arguments
    ---------
    chance : float
        Probability that a view is erased.
    max_frames : int
        Largest number of consecutive frames; each from 1 on is as likely.
    max_channels : int
        Largest number of neighboring channels; each from 1 on is as likely.

    Example
    -------
    >>> erasing = RandomErasing(chance=1.0)
    >>> bool((erasing(torch.ones(2, 50, 80)) == 0).any())
    True
    """

    @checked(chance=number(0, 1), max_frames=whole(0), max_channels=whole(0))
    def __init__(
        self, chance: float = 0.2, max_frames: int = 9, max_channels: int = 5
    ):
        super().__init__()
        self.chance = chance
        self.widths = (max_frames, max_channels)

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """Sets bands of features [rows, frames, channels] to zero."""
        if not self.training or not torch.is_grad_enabled():
            return feats
        rows, device = len(feats), feats.device
        erased = torch.zeros(rows, 1, 1, dtype=torch.bool, device=device)
        for axis, widest in ((1, self.widths[0]), (2, self.widths[1])):
            size = feats.shape[axis]
            width, start = torch.rand(2, rows, 1, device=device)
            width = 1 + (width * widest).floor() if widest else 0 * width
            start = (start * (size - width + 1)).floor()
            place = torch.arange(size, device=device)
            band = (place >= start) & (place < start + width)
            erased = erased | band.unsqueeze(3 - axis)
        chosen = torch.rand(rows, 1, 1, device=device) < self.chance
        return feats.masked_fill(erased & chosen, 0.0)
