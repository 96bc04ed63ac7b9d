"""Contrastive losses written out with loops, from the papers' formulas."""

import math


def cosine(a, b):
    """Cosine of two sequences of numbers."""
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def nt_xent(views, temperature, margin=0.0):
    """NT-Xent of views[v][i], mean over anchors and their positives."""
    points = [
        (v, i, x) for v, batch in enumerate(views) for i, x in enumerate(batch)
    ]
    losses = []
    for v, i, x in points:
        negative = sum(
            math.exp(cosine(x, z) / temperature) for _, j, z in points if j != i
        )
        for w, j, z in points:
            if j == i and w != v:
                positive = math.exp((cosine(x, z) - margin) / temperature)
                losses.append(-math.log(positive / (positive + negative)))
    return sum(losses) / len(losses)


def info_nce(queries, keys, queue, temperature, margin=0.0, symmetric=True):
    """MoCo's loss of queries[v][i] against keys[w][i], w != v."""
    losses = []
    pairs = [
        (v, w) for v in range(len(queries)) for w in range(len(keys)) if v != w
    ]
    for v, w in pairs if symmetric else [(0, 1)]:
        for query, key in zip(queries[v], keys[w]):
            positive = math.exp((cosine(query, key) - margin) / temperature)
            negative = sum(
                math.exp(cosine(query, old) / temperature) for old in queue
            )
            losses.append(-math.log(positive / (positive + negative)))
    return sum(losses) / len(losses)


def between(voices, faces, temperature):
    """Contrast of voices[v][i] with faces[w][i], mean over both directions."""
    means = []
    for anchors, others in ((voices, faces), (faces, voices)):
        losses = []
        for anchor in anchors:
            for other in others:
                for i, x in enumerate(anchor):
                    positive = math.exp(cosine(x, other[i]) / temperature)
                    negative = sum(
                        math.exp(cosine(x, z) / temperature)
                        for batch in others
                        for j, z in enumerate(batch)
                        if j != i
                    )
                    losses.append(-math.log(positive / (positive + negative)))
        means.append(sum(losses) / len(losses))
    return sum(means) / 2
