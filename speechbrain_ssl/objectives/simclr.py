"""SimCLR: each view must find the other views of its utterance in the batch.

T. Chen et al., "A simple framework for contrastive learning of visual
representations", ICML 2020 (https://arxiv.org/abs/2002.05709). Margin: T.
Lepage and R. Dehak, "Experimenting with additive margins for contrastive
self-supervised speaker verification", Interspeech 2023
(https://arxiv.org/abs/2306.03664).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number, schedule
from speechbrain_ssl.nnet.branch import (
    BranchOutput,
    check_views,
    different_views,
)
from speechbrain_ssl.nnet.contrast import contrast
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.schedules import at


class SimCLR(torch.nn.Module):
    """NT-Xent over the views of all utterances of all processes.

    With more than two views each one has several positives; the loss is the
    mean over them, and no positive is a negative of another.

    Arguments
    ---------
    temperature : float
        Temperature of the softmax.
    margin : float or callable
        Subtracted from the cosine of positives (CosFace), or a schedule of
        it; 0 is plain NT-Xent.

    Example
    -------
    >>> crops = torch.randn(1, 8, 16).expand(2, 8, 16)
    >>> loss, stats = SimCLR()(BranchOutput(crops, crops), None, 0.0)
    >>> loss.shape, sorted(stats)
    (torch.Size([]), ['accuracy', 'negative_cosine', 'positive_cosine'])
    """

    stats_help = {
        "accuracy": (
            "Share of the positives with a higher cosine than all negatives."
        ),
        "positive_cosine": "Mean cosine of views of the same utterance.",
        "negative_cosine": (
            "Mean cosine of views of different utterances; near 1 on collapse."
        ),
    }

    @checked(temperature=number(above=0), margin=schedule(number()))
    def __init__(
        self,
        temperature: float = 0.07,
        margin: float | Callable[[float], float] = 0.0,
    ):
        super().__init__()
        self.temperature = temperature
        self.margin = margin

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch, the mean over views and their positives."""
        views = len(student.projection)
        if views < 2:
            raise ValueError(f"SimCLR needs two views or more, got {views}")
        check_views(self, student, utterances=2)
        anchor = F.normalize(full_precision(student.projection), dim=-1)
        cosines = contrast(anchor, anchor)
        a, b = different_views(student, student)
        positive, negative = cosines.positive[a, b], cosines.negative
        spread = (negative / self.temperature).logsumexp(-1)[a]
        logit = (positive - at(self.margin, epoch)) / self.temperature
        # -log(e^p / (e^p + sum of e^n)) without forming the quotient
        loss = F.softplus(spread - logit).mean()
        with torch.no_grad():
            found = positive > negative.amax(-1)[a]
            stats = {
                "accuracy": found.float().mean(),
                "positive_cosine": positive.mean(),
                "negative_cosine": cosines.mean_negative(),
            }
        return loss, stats
