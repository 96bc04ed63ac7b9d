"""Classification of pseudo-labels of which some are wrong.

Margin: J. Deng et al., "ArcFace", CVPR 2019 (https://arxiv.org/abs/1801.07698).
Gate: R. Tao et al., "Self-supervised speaker recognition with loss-gated
learning", ICASSP 2022 (https://arxiv.org/abs/2110.03869). Correction: B. Han,
Z. Chen and Y. Qian, "Self-supervised speaker verification using dynamic
loss-gate and label correction", Interspeech 2022
(https://arxiv.org/abs/2208.01928).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of, schedule, whole
from speechbrain_ssl.nnet.schedules import at

# below, log(softplus(x)) is x to float32's last bit
TINY = -15.0
# the sine of an angle has no gradient where the cosine is 1 or -1
END = 1e-7


class LabelDecisions(NamedTuple):
    """What a step decided about the pseudo-label of each utterance [batch]."""

    loss_log: torch.Tensor  # logarithm of its loss, for the gate
    selected: torch.Tensor  # bool, whether it was learned
    corrected: torch.Tensor  # bool, whether the clean view's class was learned
    label: torch.Tensor  # int64 class that was learned, or the pseudo-label


def cross_entropy_per_utterance(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies and their logarithms, exact in float32.

    Log-softmax rounds losses below 1e-7 to 0, as many well-learned utterances
    have. From logits [batch, classes] and int64 labels [batch] to float32
    losses in nats and their logarithms (-inf for a single class) [batch].

    Example
    -------
    >>> logits = torch.tensor([[0.0, 60.0]])
    >>> cross_entropy_per_utterance(logits, torch.tensor([1]))[1]
    tensor([-60.])
    """
    logits, row = logits.float(), labels[:, None]
    others = logits.scatter(1, row, -math.inf).logsumexp(1)
    x = others - logits.gather(1, row)[:, 0]
    # clamped: the branch not taken must not have an infinite gradient
    loss_log = F.softplus(x.clamp(min=TINY)).log()
    return F.softplus(x), torch.where(x < TINY, x, loss_log)


class Classifier(torch.nn.Module):
    """Cosines of embeddings to class weights.

    Arguments
    ---------
    emb_dim : int
        Width of the embeddings.
    classes : int
        Number of clusters.
    subcenters : int
        Weights of a class; they follow one another.

    Example
    -------
    >>> Classifier(emb_dim=8, classes=5, subcenters=3)(torch.randn(2, 8)).shape
    torch.Size([2, 15])
    """

    @checked(emb_dim=whole(1), classes=whole(1), subcenters=whole(1))
    def __init__(self, emb_dim: int, classes: int, subcenters: int = 1):
        super().__init__()
        weight = torch.empty(classes * subcenters, emb_dim)
        self.weight = torch.nn.Parameter(torch.nn.init.xavier_normal_(weight))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, emb_dim] to float32 cosines [batch, weights]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            point = F.normalize(embeddings.float(), dim=-1)
            return F.linear(point, F.normalize(self.weight.float(), dim=-1))


def add_to_angle(cosine: torch.Tensor, margin: float) -> torch.Tensor:
    """Cosines of angles to which a margin is added.

    Where the angle would exceed pi and the cosine rise again, ``margin *
    sin(margin)`` is subtracted from the cosine instead. Cosines have any shape;
    the margin is in radians, from 0 to pi.
    """
    inside = cosine.clamp(-1 + END, 1 - END)
    sine = torch.sqrt((1 - inside) * (1 + inside))
    return torch.where(
        cosine > -math.cos(margin),
        inside * math.cos(margin) - sine * math.sin(margin),
        cosine - margin * math.sin(margin),
    )


class AAMSoftmax(torch.nn.Module):
    """Logits with an additive angular margin on the labels.

    Sub-centers: J. Deng et al., "Sub-center ArcFace", ECCV 2020.

    Arguments
    ---------
    margin : float or callable
        Added to the angle to the label, in radians, or a schedule of it.
    scale : float or callable
        Factor of the cosines, or a schedule of it.
    subcenters : int
        Weights of a class; the nearest one counts.

    Example
    -------
    >>> cosines, label = torch.tensor([[0.5, 0.1]]), torch.tensor([0])
    >>> AAMSoftmax(math.pi / 6)(cosines, label, epoch=0.0).round(decimals=3)
    tensor([[0., 3.]])
    """

    @checked(
        margin=schedule(number(0, below=math.pi / 2)),
        scale=schedule(number(above=0)),
        subcenters=whole(1),
    )
    def __init__(
        self,
        margin: float | Callable[[float], float] = 0.2,
        scale: float | Callable[[float], float] = 30.0,
        subcenters: int = 1,
    ):
        super().__init__()
        self.margin, self.scale, self.subcenters = margin, scale, subcenters

    def nearest(self, cosines: torch.Tensor) -> torch.Tensor:
        """Cosines [batch, weights] to those of classes [batch, classes]."""
        if cosines.shape[1] % self.subcenters:
            raise ValueError(
                f"{cosines.shape[1]} cosines cannot be of {self.subcenters} "
                "subcenters per class. Give the Classifier the same number."
            )
        return cosines.float().unflatten(1, (-1, self.subcenters)).amax(-1)

    def forward(
        self, cosines: torch.Tensor, labels: torch.Tensor, epoch: float
    ) -> torch.Tensor:
        """Cosines [batch, weights] to float32 logits [batch, classes]."""
        logit, row = self.nearest(cosines), labels[:, None]
        margin, target = at(self.margin, epoch), logit.gather(1, row)
        farther = add_to_angle(target, margin)
        return at(self.scale, epoch) * logit.scatter(1, row, farther)


class GatedLoss(torch.nn.Module):
    """Classification of selected and of corrected labels.

    Confidence is computed from cosines; the public code of WavLM with
    pseudo-labels computes it from dot products.

    Arguments
    ---------
    aam : AAMSoftmax
        Makes the logits.
    gate_from : float
        Epoch before which all labels are selected.
    correct_from : float
        Epoch from which labels are corrected; infinity: never (LGL).
    target : str
        ``hard``: the class nearest to the clean view; ``soft``: the clean
        twin's probabilities of all classes.
    temperature : float
        Divides the clean view's scaled cosines; small ones sharpen.
    threshold : float
        Probability above which the class of the clean view is taken.
    margin_on : str
        Class with the margin where a label is corrected: ``learned``, or
        ``given`` (the pseudo-label, as in the public code).
    mean_over : str
        ``learned``: mean of the loss over the learned utterances. ``batch``:
        over all utterances once labels are corrected, as in the public code.

    Example
    -------
    >>> cosines, labels = torch.eye(3), torch.tensor([0, 1, 0])
    >>> lowest = lambda loss_logs: loss_logs < 0
    >>> learn = GatedLoss(AAMSoftmax(), correct_from=0.0)
    >>> loss, _, stats = learn(cosines, labels, cosines, lowest, epoch=0.0)
    >>> bool(loss < 1e-6), round(stats["label_changed"].item(), 2)
    (True, 0.33)
    """

    stats_help = {
        "selected": "Share of the utterances whose pseudo-label is learned.",
        "corrected": (
            "Share of the utterances that learn the class of their clean view "
            "instead."
        ),
        "label_changed": (
            "Share of the utterances that are corrected to another class than "
            "their pseudo-label."
        ),
        "accuracy": (
            "Share of the utterances whose pseudo-label has the highest cosine."
        ),
        "label_loss": (
            "Mean loss of the pseudo-labels of all utterances, learned or not."
        ),
        "confidence": (
            "Mean probability of the most probable class of the clean views; 0 "
            "before labels are corrected."
        ),
        "nothing_selected": (
            "Share of the steps without any utterance to learn from."
        ),
    }

    @checked(
        gate_from=number(0),
        correct_from=number(0),
        target=one_of("hard", "soft"),
        temperature=number(above=0),
        threshold=number(0, 1),
        margin_on=one_of("learned", "given"),
        mean_over=one_of("learned", "batch"),
    )
    def __init__(
        self,
        aam: AAMSoftmax,
        gate_from: float = 0.0,
        correct_from: float = math.inf,
        target: str = "hard",
        temperature: float = 0.1,
        threshold: float = 0.5,
        margin_on: str = "learned",
        mean_over: str = "learned",
    ):
        super().__init__()
        self.aam, self.target = aam, target
        self.gate_from, self.correct_from = gate_from, correct_from
        self.temperature, self.threshold = temperature, threshold
        self.margin_on, self.mean_over = margin_on, mean_over

    @torch.no_grad()
    def predict(
        self, clean_cosines: torch.Tensor, epoch: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Probabilities [batch, classes], the largest and its class [batch]."""
        logit = at(self.aam.scale, epoch) * self.aam.nearest(clean_cosines)
        probability = (logit / self.temperature).softmax(-1)
        return probability, *probability.max(-1)

    @torch.no_grad()
    def loss_logs(
        self,
        cosines: torch.Tensor,
        labels: torch.Tensor,
        epoch: float,
        offsets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logarithms of the losses of the pseudo-labels, for gates [batch]."""
        logit = self._logit(cosines, labels, epoch, offsets)
        return cross_entropy_per_utterance(logit, labels)[1]

    def _logit(self, cosines, labels, epoch, offsets, learned=None):
        """Logits with the margin on ``labels``.

        Offsets, if any, are added to all classes except the ``learned`` class
        of each utterance (None: its label).
        """
        logit = self.aam(cosines, labels, epoch)
        if offsets is None:
            return logit
        learned = labels if learned is None else learned
        return logit + offsets.scatter(1, learned[:, None], 0.0)

    def forward(
        self,
        cosines: torch.Tensor,
        labels: torch.Tensor,
        clean_cosines: torch.Tensor | None,
        selected: torch.Tensor | Callable,
        epoch: float,
        posterior: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, LabelDecisions, dict[str, torch.Tensor]]:
        """Loss of one batch.

        Arguments
        ---------
        cosines, clean_cosines : torch.Tensor
            Of the augmented segments and their clean views [batch, weights];
            the latter are None where nothing is corrected.
        labels : torch.Tensor
            int64 pseudo-labels [batch].
        selected : torch.Tensor or callable
            bool [batch], or a gate that computes it from the logarithms of
            the losses [batch].
        epoch : float
            Training time.
        posterior : torch.Tensor
            Probabilities that correct labels [batch, classes]; None: those of
            the clean views.
        present : torch.Tensor
            bool, which rows there are: the others are neither learned nor
            counted, and the logarithm of their loss is NaN [batch]. None: all.
        offsets : torch.Tensor
            Added to the logits of the classes that are not learned, such as
            the logarithms of their weights [batch, classes]. None: zeros.

        Returns
        -------
        loss : torch.Tensor
            Scalar. Its mean over processes is that of one process with all
            their utterances: 0 if none is selected, not finite if one of
            their losses is not.
        decisions : LabelDecisions
            What is learned of each utterance.
        stats : dict of torch.Tensor
            See ``stats_help``. ``nothing_selected`` is 1 if no process has an
            utterance to learn from: make no step.

        Raises
        ------
        ValueError
            If labels are to be corrected and there is no clean view.
        """
        logit = self._logit(cosines, labels, epoch, offsets)
        loss, loss_logs = cross_entropy_per_utterance(logit, labels)
        loss_logs = loss_logs.detach()
        selected = selected(loss_logs) if callable(selected) else selected
        selected = selected | (epoch < self.gate_from)
        here = torch.ones_like(selected) if present is None else present
        selected = selected & here
        corrected, learned = torch.zeros_like(selected), labels
        confidence = torch.zeros_like(loss_logs)
        # a product, not a choice: NaN must show in it as in its gradient
        used = loss * selected
        if epoch >= self.correct_from:
            if posterior is None:
                if clean_cosines is None:
                    raise ValueError(
                        "Labels are corrected from epoch "
                        f"{self.correct_from} on: clean_cosines are needed, "
                        "got None. Sample clean views, or set correct_from to "
                        ".inf."
                    )
                posterior = self.predict(clean_cosines, epoch)[0]
            confidence, new = posterior.max(-1)
            corrected = ~selected & (confidence > self.threshold) & here
            learned = torch.where(corrected, new, labels)
            if self.margin_on == "learned":
                logit = self._logit(cosines, new, epoch, offsets)
            elif offsets is not None:
                logit = self._logit(cosines, labels, epoch, offsets, new)
            again, _ = cross_entropy_per_utterance(logit, new)
            if self.target == "soft":
                again = -(posterior * logit.log_softmax(-1)).sum(-1)
            used = used + again * corrected
        with torch.no_grad():
            # divided by the processes' mean, DDP's mean is the global one
            count = distributed.mean((selected | corrected).sum().float())
            found = self.aam.nearest(cosines).argmax(-1) == labels
            rows = here.sum().clamp(min=1)
            stats = {
                "selected": selected.sum() / rows,
                "corrected": corrected.sum() / rows,
                "label_changed": (learned != labels).sum() / rows,
                "accuracy": (found & here).sum() / rows,
                "label_loss": (loss.detach() * here).sum() / rows,
                "confidence": (confidence * here).sum() / rows,
                "nothing_selected": (count == 0).float(),
            }
        if self.mean_over == "batch" and epoch >= self.correct_from:
            everyone = distributed.mean(here.sum().float())
            count = torch.where(count > 0, everyone, count)
        loss = used.sum() / count.masked_fill(count == 0, 1)
        loss_logs = loss_logs.masked_fill(~here, math.nan)
        decisions = LabelDecisions(loss_logs, selected, corrected, learned)
        return loss, decisions, stats
