"""Self-distillation losses with loops over numbers, from the papers."""

import math

import numpy as np


def softmax(scores, temperature):
    """Of a list of numbers."""
    top = max(scores)
    powers = [math.exp((score - top) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def cross_entropy(target, probability):
    """Of two distributions."""
    return -sum(q * math.log(p) for q, p in zip(target, probability))


def dino(student, teacher, center, tau_s, tau_t, pairs):
    """Mean over pairs (s, t) and utterances of student[s][i], teacher[t][i]."""
    losses = []
    for s, t in pairs:
        for mine, theirs in zip(student[s], teacher[t]):
            centered = [x - c for x, c in zip(theirs, center)]
            target = softmax(centered, tau_t)
            losses.append(cross_entropy(target, softmax(mine, tau_s)))
    return sum(losses) / len(losses)


def sinkhorn(assignment, iterations):
    """3D-Speaker's order: prototypes first, utterances last [B, K]."""
    q = np.array(assignment, dtype=np.float64).T
    q /= q.sum()
    prototypes, batch = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * prototypes
        q /= q.sum(0, keepdims=True) * batch
    return (q * batch).T


def koleo(points):
    """Mean of -log distance to the nearest other point."""
    unit = [np.array(p) / np.linalg.norm(p) for p in points]
    losses = []
    for i, x in enumerate(unit):
        distances = [
            np.linalg.norm(x - y) for j, y in enumerate(unit) if j != i
        ]
        losses.append(-math.log(min(distances) + 1e-8))
    return sum(losses) / len(losses)


def sdpn(
    student,
    teacher,
    prototypes,
    embeddings,
    teacher_embeddings,
    tau,
    sharpening,
    weights,
    same=(),
):
    """Loss of student[v][i], teacher[w][i] but for pairs (v, w) in same.

    weights: entropy, KoLeo, moments, consistency.
    """
    rows = [np.array(p) / np.linalg.norm(p) for p in prototypes]

    def cosines(point):
        point = np.array(point) / np.linalg.norm(point)
        return [float(point @ row) for row in rows]

    guesses = [[softmax(cosines(x), tau) for x in view] for view in student]
    sharp = [
        softmax(cosines(x), tau * sharpening) for view in teacher for x in view
    ]
    targets = sinkhorn(sharp, 3)
    batch = len(student[0])
    pairs = [
        (v, w)
        for v in range(len(student))
        for w in range(len(teacher))
        if (v, w) not in same
    ]
    cross = [
        cross_entropy(targets[w * batch + i], guess)
        for v, w in pairs
        for i, guess in enumerate(guesses[v])
    ]
    apart = [
        1 - float(np.dot(a, b)) / (np.linalg.norm(a) * np.linalg.norm(b))
        for v, w in pairs
        for a, b in zip(embeddings[v], teacher_embeddings[w])
    ]
    mean = np.mean([guess for view in guesses for guess in view], axis=0)
    gap = math.log(len(rows)) + sum(p * math.log(p) for p in mean)
    unit = [
        np.array(e) / np.linalg.norm(e) for view in embeddings for e in view
    ]
    moments = sum(np.outer(e, e) for e in unit) / len(unit)
    return (
        sum(cross) / len(cross)
        + weights[0] * gap
        + weights[1] * sum(koleo(view) for view in embeddings)
        + weights[2] * (moments**2).sum()
        + weights[3] * sum(apart) / len(apart)
    )
