"""EER, costs and Cllr of verification scores, exact and in n log n.

SpeechBrain's ``EER`` walks over all thresholds in Python and its ``minDCF``
builds a matrix of targets times thresholds; with the 580,000 trials of
VoxCeleb1-E neither ends. Here one sort gives all operating points, in float64.
``eer`` and ``min_dcf`` sort anew; ``eer_at`` and ``min_dcf_at`` share the points
of one ``error_rates``.

All functions take the score of each trial, higher for targets [trials], or its
natural log-likelihood ratio, and ``targets``: 1 for target trials, 0 for
non-target trials [trials]. They raise a ValueError if there are no trials,
lengths differ, a score is NaN or infinite, a target is neither 0 nor 1, or one
of both classes is missing.
"""

import bisect
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import roc_curve

from speechbrain_ssl.checks import checked, number

# of p_target, the prior probability of a target trial: typically 0.01 or 0.05
PRIOR = number(above=0, below=1)


class OperatingPoints(NamedTuple):
    """Error rates of all decisions that a threshold can make.

    A trial is accepted if its score is at least the threshold. ``thresholds``
    fall; ``miss`` is the share of the targets that are rejected,
    ``false_alarm`` that of the non-targets that are accepted, in [0, 1]
    [points]. The first point accepts nothing, the last one everything.
    """

    thresholds: np.ndarray
    miss: np.ndarray
    false_alarm: np.ndarray


def error_rates(scores: ArrayLike, targets: ArrayLike) -> OperatingPoints:
    """Miss and false alarm rates at all thresholds, from the highest down.

    Trials of equal score are accepted together: no threshold can part them.

    Example
    -------
    >>> points = error_rates([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0])
    >>> points.miss.tolist(), points.false_alarm.tolist()
    ([1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0])
    """
    scores, targets = _checked(scores, targets)
    false_alarm, hit, thresholds = roc_curve(
        targets, scores, drop_intermediate=False
    )
    # a number just above all scores, because infinity is no valid JSON
    thresholds[0] = np.nextafter(thresholds[1], np.inf)
    return OperatingPoints(thresholds, 1.0 - hit, false_alarm)


def eer(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Equal error rate, a fraction, and the threshold of its operating point.

    It is the mean of miss and false alarm at the operating point with the
    smallest difference of the two; nothing is interpolated between operating
    points.

    Example
    -------
    >>> eer([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
    (0.5, 0.6)
    """
    return eer_at(error_rates(scores, targets))


def eer_at(points: OperatingPoints) -> tuple[float, float]:
    """``eer`` of operating points."""
    best = np.argmin(np.abs(points.miss - points.false_alarm))
    rate = (points.miss[best] + points.false_alarm[best]) / 2
    return float(rate), float(points.thresholds[best])


def min_dcf(
    scores: ArrayLike,
    targets: ArrayLike,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Smallest detection cost over all thresholds, as NIST normalizes it.

    The prior of a target trial is between 0 and 1, costs of a miss and of a
    false alarm are above 0. The result is divided by the cost of the better of
    the two systems which accept all or nothing: 1.0 means useless.

    Example
    -------
    >>> min_dcf([0.9, 0.8, 0.4, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0], 0.5)
    0.3333333333333333
    """
    return min_dcf_at(error_rates(scores, targets), p_target, c_miss, c_fa)


@checked(p_target=PRIOR, c_miss=number(above=0), c_fa=number(above=0))
def min_dcf_at(
    points: OperatingPoints,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """``min_dcf`` of operating points."""
    miss, false_alarm = p_target * c_miss, (1.0 - p_target) * c_fa
    cost = miss * points.miss + false_alarm * points.false_alarm
    return float(cost.min() / min(miss, false_alarm))


@checked(p_target=PRIOR)
def act_dcf(llrs: ArrayLike, targets: ArrayLike, p_target: float) -> float:
    """Detection cost at the threshold that log-likelihood ratios imply.

    Accepting all trials whose natural log-likelihood ratio is at least ``log((1
    - p_target) / p_target)`` costs least if the ratios are right. The cost is
    normalized as in ``min_dcf``, which it is never below; above 1.0 it is worse
    than no system at all.

    Example
    -------
    >>> act_dcf([2.0, -1.0, 1.0, -3.0], [1, 1, 0, 0], 0.5)
    1.0
    """
    llrs, targets = _checked(llrs, targets)
    accepted = llrs >= np.log((1.0 - p_target) / p_target)
    miss = 1.0 - accepted[targets == 1].mean()
    false_alarm = accepted[targets == 0].mean()
    cost = p_target * miss + (1.0 - p_target) * false_alarm
    return float(cost / min(p_target, 1.0 - p_target))


def cllr(llrs: ArrayLike, targets: ArrayLike) -> float:
    """Cost of natural log-likelihood ratios in bits, over all priors at once.

    Brummer and du Preez, "Application-independent evaluation of speaker
    detection", Computer Speech and Language 2006. 0 is perfect; 1 is the cost
    of ratios that are all 0.

    Example
    -------
    >>> cllr([0.0, 0.0, 0.0], [1, 0, 0])
    1.0
    """
    llrs, targets = _checked(llrs, targets)
    target_cost = np.logaddexp(0.0, -llrs[targets == 1]).mean()
    other_cost = np.logaddexp(0.0, llrs[targets == 0]).mean()
    return float((target_cost + other_cost) / (2.0 * np.log(2.0)))


def min_cllr(scores: ArrayLike, targets: ArrayLike) -> float:
    """Cllr of the scores, in bits, after the best non-decreasing calibration.

    The calibration is found by isotonic regression on the same labels. ``cllr``
    minus this value is the loss due to calibration.

    Example
    -------
    >>> min_cllr([0.9, 0.8, 0.1], [1, 1, 0]), min_cllr([5, 5], [1, 0])
    (0.0, 1.0)
    """
    scores, targets = _checked(scores, targets)
    order = np.argsort(scores)
    ends = _last_of_each_score(scores[order])
    # trials of one score share what they are mapped to
    trials = np.diff(ends, prepend=-1)
    hits = np.diff(np.cumsum(targets[order])[ends], prepend=0)
    share = isotonic_regression(hits / trials, sample_weight=trials * 1.0)
    positives = hits.sum()
    negatives = len(scores) - positives
    with np.errstate(divide="ignore"):  # shares of 0 and 1 are infinite
        llrs = np.log(share) - np.log1p(-share) - np.log(positives / negatives)
    # not 0 * inf, where a score has no trial of this class
    target_cost = np.logaddexp(0.0, -llrs[hits > 0]) @ hits[hits > 0]
    others = trials - hits
    other_cost = np.logaddexp(0.0, llrs[others > 0]) @ others[others > 0]
    bits = target_cost / positives + other_cost / negatives
    return float(bits / (2.0 * np.log(2.0)))


def bootstrap(
    scores: ArrayLike,
    targets: ArrayLike,
    enrol_group: np.ndarray | list,
    test_group: np.ndarray | list,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval of the EER, from drawing groups again with replacement.

    Trials that share a speaker are not independent, so groups (speakers if they
    are known, else files) are drawn, not trials. A target trial counts as often
    as its enrol group was drawn, a non-target trial as often as the product of
    both groups. Draws that leave no target or no non-target are skipped.

    Groups of both sides are numbers or names [trials]. Gives the 2.5th and the
    97.5th percentile of the EER, as fractions.
    """
    rates = _resampled([scores], targets, enrol_group, test_group, draws, seed)
    low, high = np.percentile(rates[:, 0], [2.5, 97.5])
    return float(low), float(high)


def bootstrap_difference(
    before: ArrayLike,
    after: ArrayLike,
    targets: ArrayLike,
    enrol_group: np.ndarray | list,
    test_group: np.ndarray | list,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval of the difference of two EERs on the same trials.

    Both EERs are computed on the same draws of groups (paired bootstrap), so
    that the difficulty of the drawn speakers cancels out. Gives percentiles of
    EER after minus EER before, as fractions; the other arguments are those of
    ``bootstrap``.

    Example
    -------
    >>> bootstrap_difference([1, 0], [0, 1], [1, 0], [5, 6], [5, 7])
    (1.0, 1.0)
    """
    both = [before, after]
    rates = _resampled(both, targets, enrol_group, test_group, draws, seed)
    low, high = np.percentile(rates[:, 1] - rates[:, 0], [2.5, 97.5])
    return float(low), float(high)


def _resampled(models, targets, enrol_group, test_group, draws, seed):
    """EER of each model in each draw of the groups [draws, models]."""
    checked = [_checked(scores, targets) for scores in models]
    trials = len(checked[0][1])
    if not len(enrol_group) == len(test_group) == trials:
        raise ValueError(
            f"Expected one enrol and one test group per trial, found "
            f"{len(enrol_group)} and {len(test_group)} for {trials}."
        )
    groups, index = _numbered(np.concatenate([enrol_group, test_group]))
    weighted = []
    for scores, binary in checked:
        order = np.argsort(-scores)
        weighted.append(
            _weighted_eers(
                scores[order],
                binary[order],
                index[:trials][order],
                index[trials:][order],
                groups,
            )
        )
    generator = np.random.default_rng(seed)
    rates = np.empty((draws, len(models)))
    for draw in range(draws):
        drawn = generator.integers(0, groups, groups)
        weight = np.bincount(drawn, minlength=groups).astype(float)
        rates[draw] = [weighted_eer(weight) for weighted_eer in weighted]
    rates = rates[~np.isnan(rates).any(1)]
    if not len(rates):
        raise ValueError(
            f"None of {draws} draws of {groups} groups had targets and "
            "non-targets. Use more draws or smaller groups."
        )
    return rates


def _numbered(groups):
    """Number of different groups, and their places in order [sides]."""
    if groups.dtype.kind in "iu" and 0 <= groups.min():
        top = int(groups.max())
        if top < 10 * len(groups):  # much faster than np.unique
            there = np.zeros(top + 1, dtype=bool)
            there[groups] = True
            return int(there.sum()), (np.cumsum(there) - 1)[groups]
    names, index = np.unique(groups, return_inverse=True)
    return len(names), index


def effective_rank(covariance: np.ndarray) -> float:
    """Effective number of dimensions: exponential of the spectrum's entropy.

    From a covariance [emb_dim, emb_dim]; 1 also if all embeddings are equal.

    Example
    -------
    >>> round(effective_rank(np.diag([1.0, 1.0, 0.0])), 3)
    2.0
    """
    spectrum = np.linalg.eigvalsh(covariance).clip(min=0.0)
    share = spectrum / max(spectrum.sum(), 1e-20)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _weighted_eers(scores, targets, enrol, test, groups):
    """Prepares the EER of sorted trials for many weightings of the groups.

    Gives a function of one weighting [groups]; its EER is NaN if a class has
    no weight. Miss minus false alarm never grows along the operating points,
    so that a bisection finds the EER. It starts at the EER without weights and
    sums only what lies between the points that it compares. Weights are whole,
    so that sums are exact.
    """
    ends = _last_of_each_score(scores)
    is_target = targets == 1
    target_enrol = enrol[is_target]
    sides = enrol[~is_target], test[~is_target]
    target_count = np.bincount(target_enrol, minlength=groups)
    # accepted trials of each class at each operating point
    targets_in = np.r_[0, np.cumsum(is_target)[ends]]
    others_in = np.r_[0, ends + 1] - targets_in
    start = bisect.bisect_left(
        range(len(ends)),
        1.0,
        key=lambda n: targets_in[n] / targets_in[-1]
        + others_in[n] / others_in[-1],
    )
    # the same memory for all weightings: new memory costs more than the sums
    factors = [np.empty(len(side)) for side in sides]

    def weighted_eer(weight):
        for side, factor in zip(sides, factors):
            # indices are right: "clip" only saves a copy
            weight.take(side, out=factor, mode="clip")

        def between(first, last):
            """Weights of targets and of others between two points."""
            some = slice(targets_in[first], targets_in[last])
            hits = weight.take(target_enrol[some]).sum()
            some = slice(others_in[first], others_in[last])
            return hits, factors[0][some] @ factors[1][some]

        all_hits, all_alarms = target_count @ weight, factors[0] @ factors[1]
        if all_hits == 0 or all_alarms == 0:
            return np.nan
        before, after, point = 0, len(ends), start
        rates_before, rates_after = (1.0, 0.0), (0.0, 1.0)
        step = 1 + len(ends) // 512
        missed, not_alarmed = between(point, after)
        hits, alarms = all_hits - missed, all_alarms - not_alarmed
        while True:
            rates = 1.0 - hits / all_hits, alarms / all_alarms
            if rates[0] <= rates[1]:
                after, rates_after = point, rates
            else:
                before, rates_before = point, rates
            if after - before == 1:
                break
            middle = (before + after) // 2
            # no step is longer than twice the one before
            following = min(max(middle, point - step), point + step)
            sign = 1 if following > point else -1
            more_hits, more_alarms = between(*sorted((point, following)))
            hits, alarms = hits + sign * more_hits, alarms + sign * more_alarms
            point, step = following, 2 * step
        miss, false_alarm = min(
            (rates_before, rates_after), key=lambda pair: abs(pair[0] - pair[1])
        )
        return (miss + false_alarm) / 2

    return weighted_eer


def _last_of_each_score(sorted_scores):
    """Where each stretch of equal scores ends [distinct scores]."""
    changes = np.flatnonzero(np.diff(sorted_scores))
    return np.append(changes, len(sorted_scores) - 1)


def _checked(scores, targets):
    """Scores as float64, targets as int64, or a clear ValueError."""
    scores, targets = _vector(scores, "scores"), _vector(targets, "targets")
    if len(scores) != len(targets):
        raise ValueError(
            "Expected one target per score, found "
            f"{len(scores)} scores and {len(targets)} targets."
        )
    if not len(scores):
        raise ValueError("Expected scores of at least two trials, found none.")
    _refuse(
        ~np.isfinite(scores), scores, "finite scores", "Check the embeddings."
    )
    _refuse(
        (targets != 0) & (targets != 1),
        targets,
        "targets of 0 or 1",
        "Targets are 1 for the same speaker and 0 for different speakers.",
    )
    positives = int(targets.sum())
    if positives in (0, len(targets)):
        raise ValueError(
            "Error rates need target and non-target trials, found "
            f"{positives} targets and {len(targets) - positives} non-targets."
        )
    return scores, targets.astype(np.int64)


def _vector(values, name):
    """Anything list-like as float64 [trials]."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"Expected {name} with one axis [trials], found shape "
            f"{values.shape}."
        )
    return values


def _refuse(wrong, values, expected, advice):
    """Raises if any value is wrong, naming the first one."""
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"Expected {expected}, found {values[first]} at trial {first} "
            f"(counted from 0); {int(wrong.sum())} of {len(values)} are "
            f"wrong. {advice}"
        )
