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
from speechbrain_ssl.nnet.margins import add_to_angle, turn
from speechbrain_ssl.nnet.schedules import at

# below, log(softplus(x)) is x to float32's last bit
TINY = -15.0


class Learnt(NamedTuple):
    """What was learnt of each utterance of a batch.

    Arguments
    ---------
    log_loss : torch.Tensor
        Logarithm of the loss of the label given, for the gate [batch].
    trusted : torch.Tensor
        bool, whether the label given was learnt [batch].
    corrected : torch.Tensor
        bool, whether the class of the clean view was learnt [batch].
    label : torch.Tensor
        int64 label that was learnt; the one given if none was [batch].
    """

    log_loss: torch.Tensor
    trusted: torch.Tensor
    corrected: torch.Tensor
    label: torch.Tensor


def cross_entropy_per_utterance(logits, labels):
    """Cross-entropies and their logarithms, exact in float32.

    Log-softmax loses what is below 1e-7: most utterances that are well learnt.

    Arguments
    ---------
    logits : torch.Tensor
        [batch, classes].
    labels : torch.Tensor
        int64 [batch].

    Returns
    -------
    loss, log_loss : torch.Tensor
        float32, in nats and its logarithm (-inf for a single class) [batch].

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
    log_loss = F.softplus(x.clamp(min=TINY)).log()
    return F.softplus(x), torch.where(x < TINY, x, log_loss)


class Classifier(torch.nn.Module):
    """Cosines of embeddings to learnt centers of classes.

    Arguments
    ---------
    emb_dim : int
        Width of the embeddings.
    classes : int
        Number of clusters.
    subcenters : int
        Centers of a class; they follow one another.

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

    def forward(self, embeddings):
        """Embeddings [batch, emb_dim] to float32 cosines [batch, centers]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            point = F.normalize(embeddings.float(), dim=-1)
            return F.linear(point, F.normalize(self.weight.float(), dim=-1))


class AAMSoftmax(torch.nn.Module):
    """Logits with an additive angular margin on the labels.

    Sub-centers: J. Deng et al., "Sub-center ArcFace", ECCV 2020. Inter-top-k:
    M. Zhao et al., ICASSP 2022 (https://arxiv.org/abs/2110.05042).

    Arguments
    ---------
    margin : float or callable
        Added to the angle to the label, in radians, or a schedule of it.
    scale : float or callable
        Factor of the cosines, or a schedule of it.
    subcenters : int
        Centers of a class; the nearest one counts.
    topk : int
        Number of nearest other classes that get a margin too; 0: none.
    topk_margin : float
        Taken off the angle to those, in radians.

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
        topk=whole(0),
        topk_margin=number(0),
    )
    def __init__(
        self,
        margin: float | Callable[[float], float] = 0.2,
        scale: float | Callable[[float], float] = 30.0,
        subcenters: int = 1,
        topk: int = 0,
        topk_margin: float = 0.06,
    ):
        super().__init__()
        self.margin, self.scale, self.subcenters = margin, scale, subcenters
        self.topk, self.topk_margin = topk, topk_margin

    def nearest(self, cosines):
        """Cosines [batch, centers] to those of classes [batch, classes]."""
        if cosines.shape[1] % self.subcenters:
            raise ValueError(
                f"{cosines.shape[1]} cosines cannot be of {self.subcenters} "
                "subcenters per class. Give the Classifier the same number."
            )
        return cosines.float().unflatten(1, (-1, self.subcenters)).amax(-1)

    def forward(self, cosines, labels, epoch):
        """Cosines [batch, centers] to float32 logits [batch, classes]."""
        logit, row = self.nearest(cosines), labels[:, None]
        margin, target = at(self.margin, epoch), logit.gather(1, row)
        if self.topk:
            others = logit.detach().scatter(1, row, -math.inf)
            hard = others.topk(min(self.topk, logit.shape[1] - 1)).indices
            closer = turn(logit.gather(1, hard), -self.topk_margin)
            logit = logit.scatter(1, hard, closer)
        farther = add_to_angle(target, margin)
        return at(self.scale, epoch) * logit.scatter(1, row, farther)


class GatedLoss(torch.nn.Module):
    """Learns trusted labels, and those of the others that it can correct.

    Unlike the public code, the margin is on the label that is learnt, also
    where it is corrected; confidence is one of cosines, whatever the lengths
    of embeddings; the mean is over the utterances learnt in all phases.

    Arguments
    ---------
    aam : AAMSoftmax
        Makes the logits.
    gate_from : float
        Epoch before which every label is trusted.
    correct_from : float
        Epoch from which labels are corrected; infinity: never (LGL).
    target : str
        ``hard``: the class nearest to the clean view; ``soft``: the clean
        twin's probabilities of all classes.
    temperature : float
        Divides the clean view's scaled cosines; small ones sharpen.
    threshold : float
        Probability above which the clean view is believed.

    Example
    -------
    >>> cosines, labels = torch.eye(3), torch.tensor([0, 1, 0])
    >>> lowest = lambda log_losses: log_losses < 0
    >>> learn = GatedLoss(AAMSoftmax(), correct_from=0.0)
    >>> loss, _, stats = learn(cosines, labels, cosines, lowest, epoch=0.0)
    >>> bool(loss < 1e-6), round(stats["relabeled"].item(), 2)
    (True, 0.33)
    """

    stats_help = {
        "trusted": "Share of the utterances whose pseudo-label is learned.",
        "corrected": (
            "Share of the utterances that learn the class of their clean view "
            "instead."
        ),
        "relabeled": (
            "Share of the utterances that learn another class than their "
            "pseudo-label."
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
    )
    def __init__(
        self,
        aam: AAMSoftmax,
        gate_from: float = 0.0,
        correct_from: float = math.inf,
        target: str = "hard",
        temperature: float = 0.1,
        threshold: float = 0.5,
    ):
        super().__init__()
        self.aam, self.target = aam, target
        self.gate_from, self.correct_from = gate_from, correct_from
        self.temperature, self.threshold = temperature, threshold

    @torch.no_grad()
    def predict(self, clean_cosines, epoch):
        """Probabilities [batch, classes], the largest and its class [batch]."""
        logit = at(self.aam.scale, epoch) * self.aam.nearest(clean_cosines)
        probability = (logit / self.temperature).softmax(-1)
        return probability, *probability.max(-1)

    def forward(self, cosines, labels, clean_cosines, trusted, epoch):
        """Loss of one batch.

        Arguments
        ---------
        cosines, clean_cosines : torch.Tensor
            Of the augmented segments and their clean views [batch,
            centers]; the twins are None where nothing is corrected.
        labels : torch.Tensor
            int64 pseudo-labels [batch].
        trusted : torch.Tensor or callable
            bool [batch], or a gate that makes it of log-losses [batch].
        epoch : float
            Training time.

        Returns
        -------
        loss : torch.Tensor
            Its mean over processes is that of one process with all their
            utterances: 0 if none is selected, not finite if one of all is not.
        learnt : Learnt
            What happened to each utterance.
        stats : dict of torch.Tensor
            Shares of utterances ``trusted``, ``corrected`` and ``relabeled``
            (corrected to another label); ``accuracy`` without margin; mean
            ``label_loss`` of all labels and ``confidence`` of clean views;
            ``nothing_selected``, 1 if so in all processes: make no step.

        Raises
        ------
        ValueError
            If labels are to be corrected and there is no clean view.
        """
        logit = self.aam(cosines, labels, epoch)
        loss, log_losses = cross_entropy_per_utterance(logit, labels)
        log_losses = log_losses.detach()
        trusted = trusted(log_losses) if callable(trusted) else trusted
        trusted = trusted | (epoch < self.gate_from)
        corrected, learnt = torch.zeros_like(trusted), labels
        confidence = torch.zeros_like(log_losses)
        # a product, not a choice: NaN must show in it as in its gradient
        used = loss * trusted
        if epoch >= self.correct_from:
            if clean_cosines is None:
                raise ValueError(
                    f"Labels are corrected from epoch {self.correct_from} on: "
                    "clean_cosines are needed, got None. Sample clean views, "
                    "or set correct_from to .inf."
                )
            probability, confidence, new = self.predict(clean_cosines, epoch)
            corrected = ~trusted & (confidence > self.threshold)
            learnt = torch.where(corrected, new, labels)
            logit = self.aam(cosines, new, epoch)
            again, _ = cross_entropy_per_utterance(logit, new)
            if self.target == "soft":
                again = -(probability * logit.log_softmax(-1)).sum(-1)
            used = used + again * corrected
        with torch.no_grad():
            # divided by the processes' mean, DDP's mean is the global one
            count = distributed.mean((trusted | corrected).sum().float())
            found = self.aam.nearest(cosines).argmax(-1) == labels
            stats = {
                "trusted": trusted.float().mean(),
                "corrected": corrected.float().mean(),
                "relabeled": (learnt != labels).float().mean(),
                "accuracy": found.float().mean(),
                "label_loss": loss.detach().mean(),
                "confidence": confidence.mean(),
                "nothing_selected": (count == 0).float(),
            }
        loss = used.sum() / count.masked_fill(count == 0, 1)
        return loss, Learnt(log_losses, trusted, corrected, learnt), stats
