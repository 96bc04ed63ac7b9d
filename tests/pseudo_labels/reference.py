"""Margins, gated losses and mixtures written out with loops, in float64."""

import math

import numpy as np


def aam_logits(cosines, label, margin, scale, subcenters=1):
    """Logits of one utterance from cosines to all centers."""
    best = [
        max(cosines[first : first + subcenters])
        for first in range(0, len(cosines), subcenters)
    ]
    logits = []
    for c, cosine in enumerate(best):
        angle = math.acos(cosine)
        if c == label and angle < math.pi - margin:
            cosine = math.cos(angle + margin)
        elif c == label:
            cosine -= margin * math.sin(math.pi - margin)
        logits.append(scale * cosine)
    return logits


def cross_entropy(logits, label):
    """Loss of one utterance and its logarithm, without cancellation."""
    rest = sum(
        math.exp(x - logits[label]) for c, x in enumerate(logits) if c != label
    )
    return math.log1p(rest), math.log(math.log1p(rest))


def softmax(logits):
    """Probabilities of one utterance."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def gated(rows, correct, target, temperature, threshold, margin, scale):
    """Mean loss of rows (cosines, label, clean cosines, selected)."""
    losses = []
    for cosines, label, clean, selected in rows:
        if selected:
            logits = aam_logits(cosines, label, margin, scale)
            losses.append(cross_entropy(logits, label)[0])
        elif correct:
            share = softmax([scale * c / temperature for c in clean])
            new = share.index(max(share))
            if share[new] <= threshold:
                continue
            logits = aam_logits(cosines, new, margin, scale)
            if target == "hard":
                share = [float(c == new) for c in range(len(share))]
            losses.append(
                sum(
                    p * -math.log(q)
                    for p, q in zip(share, softmax(logits))
                    if p > 0
                )
            )
    return sum(losses) / len(losses) if losses else 0.0


def weighted_density(x, weight, mean, deviation):
    """Of one Gaussian of a mixture."""
    spread = deviation * math.sqrt(2 * math.pi)
    return weight * math.exp(-(((x - mean) / deviation) ** 2) / 2) / spread


def crossing(weights, means, deviations):
    """By bisection between the means, where the lower Gaussian must win."""
    low, high = means
    for _ in range(60):
        middle = (low + high) / 2
        one, two = (
            weighted_density(middle, *numbers)
            for numbers in zip(weights, means, deviations)
        )
        low, high = (middle, high) if one > two else (low, middle)
    return low


def two_gaussians(x, rounds=2000):
    """EM for two Gaussians from the halves of all the numbers."""
    x = np.sort(np.asarray(x))
    x = x.clip(*np.percentile(x, (0.1, 99.9)))
    first = (np.arange(len(x)) < len(x) / 2).astype(float)
    for _ in range(rounds):
        belongs = np.stack([first, 1 - first])
        size = belongs.sum(1)
        means = belongs @ x / size
        spread = [p @ (x - m) ** 2 for p, m in zip(belongs, means)] / size
        chances = np.stack(
            [
                n * np.exp(-((x - m) ** 2) / 2 / v) / np.sqrt(v)
                for n, m, v in zip(size, means, spread)
            ]
        )
        first = chances[0] / chances.sum(0)
    return size / len(x), means, np.sqrt(spread)
