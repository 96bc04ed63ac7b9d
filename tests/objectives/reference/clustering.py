"""SwAV written out with loops, from the paper's formulas and listing."""

import math

from tests.objectives.reference.contrastive import cosine


def sinkhorn(scores, epsilon, iterations):
    """Assignments of scores[i][k], columns and rows evened out in turn."""
    q = [[math.exp(score / epsilon) for score in row] for row in scores]
    rows, columns = len(q), len(q[0])
    for _ in range(iterations):
        for k in range(columns):
            mass = sum(q[i][k] for i in range(rows))
            for i in range(rows):
                q[i][k] /= mass * columns
        for i in range(rows):
            mass = sum(q[i])
            q[i] = [x / (mass * rows) for x in q[i]]
    return [[x * rows for x in row] for row in q]


def targets(batch, prototypes, epsilon, iterations, queue=()):
    """Assignments of batch[i], along with those of queue[j]."""
    scores = [
        [cosine(x, prototype) for prototype in prototypes]
        for x in [*batch, *queue]
    ]
    return sinkhorn(scores, epsilon, iterations)[: len(batch)]


def predictions(batch, prototypes, temperature):
    """Distributions over prototypes of batch[i]."""
    found = []
    for x in batch:
        weights = [math.exp(cosine(x, p) / temperature) for p in prototypes]
        found.append([weight / sum(weights) for weight in weights])
    return found


def swav(
    views,
    prototypes,
    temperature,
    epsilon,
    iterations,
    target_views,
    queues=None,
):
    """Loss of views[v][i], and mean entropy of the targets.

    queues[v] holds past projections of view v.
    """
    losses, entropies = [], []
    for t in range(min(target_views, len(views))):
        queue = queues[t] if queues else ()
        target = targets(views[t], prototypes, epsilon, iterations, queue)
        for s in range(len(views)):
            if s == t:
                continue
            predicted = predictions(views[s], prototypes, temperature)
            for q, p in zip(target, predicted):
                losses.append(-sum(a * math.log(b) for a, b in zip(q, p)))
                entropies.append(-sum(a * math.log(a) for a in q))
    return sum(losses) / len(losses), sum(entropies) / len(entropies)
