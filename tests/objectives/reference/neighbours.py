"""NNCLR and LIM written out with loops, from the papers' formulas."""

import math

from tests.objectives.reference.contrastive import cosine


def nearest(point, queue):
    """The entry of queue with the largest cosine to a point."""
    best = queue[0]
    for entry in queue:
        if cosine(point, entry) > cosine(point, best):
            best = entry
    return best


def nnclr(views, predictions, queue, temperature):
    """Loss of views[v][i] with predictions[v][i]."""
    losses = []
    for s, view in enumerate(views):
        for t, predicted in enumerate(predictions):
            if s == t:
                continue
            for i, point in enumerate(view):
                neighbour = nearest(point, queue)
                weights = [
                    math.exp(cosine(neighbour, p) / temperature)
                    for p in predicted
                ]
                losses.append(-math.log(weights[i] / sum(weights)))
    return sum(losses) / len(losses)


def lim(views, kind):
    """Loss of views[v][i], the negative of i being i + 1."""
    losses = []
    count = len(views[0])
    for s, view in enumerate(views):
        for t, other in enumerate(views):
            if s == t:
                continue
            p = [cosine(view[i], other[i]) for i in range(count)]
            n = [cosine(view[i], other[(i + 1) % count]) for i in range(count)]
            if kind == "bce":
                losses += [
                    -math.log(1 / (1 + math.exp(-p[i])))
                    - math.log(1 - 1 / (1 + math.exp(-n[i])))
                    for i in range(count)
                ]
            elif kind == "mine":
                mass = sum(math.exp(x) for x in n) / count
                losses.append(math.log(mass) - sum(p) / count)
            else:
                mass = sum(math.exp(x) for x in n)
                losses.append(
                    -sum(x - math.log(math.exp(x) + mass) for x in p) / count
                )
    return sum(losses) / len(losses)
