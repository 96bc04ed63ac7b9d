"""Gates: selection of pseudo-labels by their loss.

Networks learn right labels before wrong ones (R. Tao et al., "Self-supervised
speaker recognition with loss-gated learning", ICASSP 2022,
https://arxiv.org/abs/2110.03869). A gate has ``fit(loss_logs)``, at the end
of an epoch, which returns a ``Decision``, and the call ``gate(loss_logs)``,
logarithms of losses [batch] to bool [batch].
"""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, whole

logger = logging.getLogger(__name__)

FEWEST = 10
# share of the losses above which a Gaussian is not marginal, and consecutive
# refused fits after which all labels are selected
MIN_WEIGHT, PATIENCE = 0.02, 3
# losses that a mixture is fitted to; more move the gate by less than 0.01
SAMPLE = 4000
# parts of the sorted losses that EM starts from: the lowest, or the middle
STARTS = [(0.0, 0.06), (0.0, 0.5), (0.0, 0.94), (0.25, 0.75)]


class Decision(NamedTuple):
    """What a gate decided, and why."""

    # largest logarithm of a loss that is selected; infinity: no gate
    threshold: float
    # whether it was computed from these losses
    accepted: bool
    reason: str
    # weights, means and deviations of two Gaussians, that of lower mean
    # first, accepted or not; None where there are none
    mixture: tuple | None = None


class FixedGate:
    """Selects losses up to a constant (LGL); it has no state.

    Arguments
    ---------
    thresholds : float or list of float
        Largest loss that is selected, in nats, or one for each round.
    round_index : int
        From 0; rounds beyond the list take its last threshold.

    Example
    -------
    >>> gate = FixedGate([1.0, 3.0, 3.0, 5.0, 6.0], round_index=1)
    >>> gate(torch.tensor([2.9, 3.1]).log())
    tensor([ True, False])
    """

    @checked(round_index=whole(0))
    def __init__(
        self, thresholds: float | Sequence[float], round_index: int = 0
    ):
        nats = np.atleast_1d(np.asarray(thresholds, dtype=float))
        if not nats.size or not (nats >= 0).all():
            raise ValueError(
                f"thresholds must be one or more losses from 0, not {thresholds}"
            )
        nat = float(nats[min(round_index, len(nats) - 1)])
        self.threshold = math.log(nat) if nat > 0 else -math.inf
        self.decision = Decision(self.threshold, True, f"fixed at {nat:g} nats")

    def fit(self, loss_logs: np.ndarray | torch.Tensor) -> Decision:
        """Returns the constant decision; ``loss_logs`` do not matter."""
        return self.decision

    def __call__(self, loss_logs: torch.Tensor) -> torch.Tensor:
        """Which utterances are selected."""
        return loss_logs <= self.threshold


@register_checkpoint_hooks
class MixtureGate:
    """Selects losses of the lower of two Gaussians, if there are two (DLG).

    B. Han, Z. Chen and Y. Qian, "Self-supervised speaker verification using
    dynamic loss-gate and label correction", Interspeech 2022
    (https://arxiv.org/abs/2208.01928). Logarithms of losses are clipped to
    their 0.1 and 99.9 percentiles. Two Gaussians are accepted if they have a
    better BIC than one, are separate (Ashman's D), none is marginal, and their
    densities cross between the means. The threshold is where they cross. If
    they are refused, the previous threshold stays. There is no gate if there
    was none, or after ``PATIENCE`` refusals in a row.

    Of more than 4000 losses every n-th of the sorted ones is fitted, so that
    neither order nor chance matters. BIC is that of all losses.

    Arguments
    ---------
    min_separation : float
        Ashman's D above which two Gaussians are separate.

    Example
    -------
    >>> rng, gate = np.random.default_rng(0), MixtureGate()
    >>> groups = rng.normal(-3, 1, 600), rng.normal(2, 0.5, 400)
    >>> gate.fit(np.concatenate(groups)).accepted
    True
    >>> gate(torch.tensor([-3.0, 2.0]))
    tensor([ True, False])
    """

    @checked(min_separation=number(0))
    def __init__(self, min_separation: float = 2.0):
        self.min_separation = min_separation
        self.threshold: float = math.inf
        self.previous: float = math.inf
        self.failures = 0
        self.decisions = []

    def fit(self, loss_logs: np.ndarray | torch.Tensor) -> Decision:
        """Decides on the threshold of the next epoch, alike everywhere.

        Logarithms of the losses of all processes [n] are those of the first
        process; values that are not finite are left out. The decision is also
        the last of ``decisions``.
        """
        numbers = torch.full((9,), math.nan, dtype=torch.float64)
        if distributed.rank() == 0:
            _measure(loss_logs, numbers)
        count, bic1, bic2, *six = distributed.from_first(numbers).tolist()
        mixture: Any = None
        if not math.isnan(bic2):
            mixture = tuple(six[:2]), tuple(six[2:4]), tuple(six[4:])
        refusal = self._refusal(count, bic1, bic2, mixture)
        self.failures = self.failures + 1 if refusal else 0
        meeting = None if refusal else crossing(*mixture)
        if meeting is not None:
            self.previous = meeting
        opened = self.failures >= PATIENCE
        self.threshold = math.inf if opened else self.previous
        kept = f"threshold {self.threshold:.4f} stays"
        if self.threshold == math.inf:
            kept = "no gate"
        reason = f"two groups of losses meet at {self.threshold:.4f}"
        if refusal:
            reason = f"{kept}, refusal {self.failures} in a row: {refusal}"
        decision = Decision(self.threshold, not refusal, reason, mixture)
        self.decisions.append(decision)
        if distributed.rank() == 0:
            logger.info("Gate: %s", reason)
        return decision

    def _refusal(self, count, bic1, bic2, mixture):
        """Why a mixture is refused; empty if it is accepted."""
        if count < FEWEST:
            return f"{count:.0f} finite losses are less than {FEWEST}"
        if mixture is None:
            return "all losses are equal"
        weights, means, deviations = mixture
        gap = math.sqrt(2) * (means[1] - means[0]) / math.hypot(*deviations)
        if not bic2 < bic1:
            return f"one Gaussian is enough (BIC {bic1:.1f}, two: {bic2:.1f})"
        if not gap > self.min_separation:
            return f"D is {gap:.2f}, not above {self.min_separation}"
        # EM may give a share of exactly 0.02 as 0.0200000001
        if not min(weights) > MIN_WEIGHT + 1e-6:
            return f"a weight is {min(weights):.4f}, not above {MIN_WEIGHT}"
        if crossing(*mixture) is None:
            return "densities do not cross between the means"
        return ""

    def __call__(self, loss_logs: torch.Tensor) -> torch.Tensor:
        """Which utterances are selected; never one with NaN."""
        return loss_logs <= self.threshold

    @mark_as_saver
    def _save(self, path):
        """Writes thresholds and decisions as plain tuples."""
        rows = [tuple(decision) for decision in self.decisions]
        torch.save((self.threshold, self.previous, self.failures, rows), path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        """Reads what ``_save`` wrote."""
        state = torch.load(path, weights_only=True)
        self.threshold, self.previous, self.failures, rows = state
        self.decisions = [Decision(*row) for row in rows]


def crossing(
    weights: Sequence[float],
    means: Sequence[float],
    deviations: Sequence[float],
) -> float | None:
    """Where two weighted Gaussians are equal between their means.

    None if there is no such place. All arguments are pairs.

    Example
    -------
    >>> round(crossing((0.7, 0.3), (-2.0, 2.0), (1.0, 1.0)), 5)
    0.21182
    """
    (w1, w2), (m1, m2), (s1, s2) = weights, means, deviations
    a = 1 / (2 * s2**2) - 1 / (2 * s1**2)
    b = m1 / s1**2 - m2 / s2**2
    c = m2**2 / (2 * s2**2) - m1**2 / (2 * s1**2)
    c += math.log(w1 / w2) + math.log(s2 / s1)
    if b * b < 4 * a * c:
        return None
    # this form loses nothing where a is almost 0: equal deviations
    q = -(b + math.copysign(math.sqrt(b * b - 4 * a * c), b)) / 2
    roots = {n / d for n, d in ((q, a), (c, q)) if d}
    # at most one: between the means the density ratio only falls
    low, high = min(m1, m2), max(m1, m2)
    return next((x for x in roots if low < x < high), None)


def _measure(loss_logs, numbers):
    """Fills in count, BIC of one and two Gaussians, and these, as known."""
    # what float32 cannot hold is not finite
    x = torch.as_tensor(loss_logs).detach().float().double().cpu().numpy()
    x = np.sort(x[np.isfinite(x)])
    numbers[0] = count = len(x)
    if count < FEWEST:
        return
    x = x.clip(*np.percentile(x, (0.1, 99.9)))
    if x[-1] - x[0] < 1e-6:
        return
    if count > SAMPLE:
        x = x[((np.arange(SAMPLE) + 0.5) * count / SAMPLE).astype(int)]
    place = (np.arange(len(x)) + 0.5) / len(x)
    two = [_two(x, (low < place) & (place < high)) for low, high in STARTS]
    two = max(two, key=lambda mixture: mixture.lower_bound_)
    # the best one to its end: slow ones stop far from it at first
    _fit(two.set_params(warm_start=True, tol=1e-7), x)
    one = _fit(GaussianMixture(), x)
    for n, mixture, freedom in ((1, one, 2), (2, two, 5)):
        likelihood = count * mixture.score(x[:, None])
        numbers[n] = freedom * math.log(count) - 2 * likelihood
    order = two.means_[:, 0].argsort()
    six = two.weights_, two.means_[:, 0], two.covariances_[:, 0, 0] ** 0.5
    numbers[3:] = torch.from_numpy(np.concatenate([v[order] for v in six]))


def _two(x, part):
    """EM from the Gaussians of a part of the points and of the others."""
    parts = [x[part], x[~part]]
    mixture = GaussianMixture(
        n_components=2,
        tol=1e-5,
        max_iter=1000,
        weights_init=[len(p) / len(x) for p in parts],
        means_init=[[p.mean()] for p in parts],
        precisions_init=[[[1 / max(p.var(), 1e-6)]] for p in parts],
    )
    return _fit(mixture, x)


def _fit(mixture, x):
    """Fits; a mixture that did not converge is judged as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x[:, None])
