"""Joint-embedding losses written out with loops, from the papers' formulas.

``views[v][i][d]`` are lists of numbers; sums are taken in double precision.
"""

import itertools
import math

import numpy as np

from tests.objectives.reference.contrastive import cosine


def _mean(numbers):
    numbers = list(numbers)
    return math.fsum(numbers) / len(numbers)


def _columns(points):
    """Dimensions of points, less their means."""
    columns = [list(column) for column in zip(*points)]
    return [[x - _mean(column) for x in column] for column in columns]


def _dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def invariance(views):
    """Mean over pairs of views of the mean squared difference."""
    return _mean(
        _mean((x - y) ** 2 for p, q in zip(one, two) for x, y in zip(p, q))
        for one, two in itertools.combinations(views, 2)
    )


def variance(points):
    """Mean over dimensions of the hinge of one view."""
    deviations = [
        math.sqrt(_dot(c, c) / (len(points) - 1) + 1e-4)
        for c in _columns(points)
    ]
    return _mean(max(0.0, 1 - deviation) for deviation in deviations)


def covariance(points):
    """Squared covariances of different dimensions, over their number."""
    columns = _columns(points)
    squares = [
        (_dot(a, b) / (len(points) - 1)) ** 2
        for a, b in itertools.permutations(columns, 2)
    ]
    return math.fsum(squares) / len(columns)


def correlation(points):
    """Squared correlations of different dimensions, over dim * dim."""
    columns = _columns(points)
    squares = [
        _dot(a, b) ** 2 / (_dot(a, a) * _dot(b, b))
        for a, b in itertools.permutations(columns, 2)
    ]
    return math.fsum(squares) / len(columns) ** 2


def regularised(views, weights, redundancy):
    """Loss of VICReg and VIbCReg; two views count as in the papers."""
    each = 2 / len(views)
    return (
        weights[0] * invariance(views)
        + weights[1] * each * math.fsum(map(variance, views))
        + weights[2] * each * math.fsum(map(redundancy, views))
    )


def iterative_normalization(points, size, iterations, eps):
    """Whitening of groups of dimensions through their eigenvalues.

    The Newton-Schulz iteration keeps the eigenvectors, so that it can be done
    on one eigenvalue at a time.
    """
    points = np.array(points, dtype=np.float64)
    white = np.empty_like(points)
    for start in range(0, points.shape[1], size):
        group = points[:, start : start + size]
        group = group - group.mean(0)
        sigma = np.cov(group.T, bias=True).reshape(size, size)
        values, vectors = np.linalg.eigh(sigma + eps * np.eye(size))
        trace = values.sum()
        roots = []
        for value in values / trace:
            root = 1.0
            for _ in range(iterations):
                root = 1.5 * root - 0.5 * root**3 * value
            roots.append(root / math.sqrt(trace))
        white[:, start : start + size] = (
            group @ vectors @ np.diag(roots) @ vectors.T
        )
    return white.tolist()


def barlow_twins(views, weight, scale):
    """Mean over ordered pairs of views."""
    standard = []
    for points in views:
        columns = _columns(points)
        deviations = [
            math.sqrt(_dot(c, c) / len(points) + 1e-5) for c in columns
        ]
        standard.append(
            [[x / s for x in c] for c, s in zip(columns, deviations)]
        )
    losses = []
    for one, two in itertools.permutations(standard, 2):
        loss = 0.0
        for i, a in enumerate(one):
            for j, b in enumerate(two):
                c = _dot(a, b) / len(a)
                loss += (1 - c) ** 2 if i == j else weight * c**2
        losses.append(scale * loss)
    return _mean(losses)


def cholesky_whitening(points, eps):
    """Points whose covariance is the identity, dimension after dimension."""
    columns = _columns(points)
    dims, count = range(len(columns)), len(points)
    sigma = [
        [(1 - eps) * _dot(a, b) / (count - 1) for b in columns] for a in columns
    ]
    for d in dims:
        sigma[d][d] += eps
    root = [[0.0 for _ in dims] for _ in dims]
    for i in dims:
        for j in range(i + 1):
            rest = sigma[i][j] - _dot(root[i][:j], root[j][:j])
            root[i][j] = math.sqrt(rest) if i == j else rest / root[j][j]
    white = []
    for n in range(count):
        point = []
        for i in dims:
            rest = columns[i][n] - _dot(root[i][:i], point)
            point.append(rest / root[i][i])
        white.append(point)
    return white


def wmse(views, parts, eps=0.0):
    """2 - 2 cos after whitening each view within parts (lists of places)."""
    cosines = []
    for part in parts:
        white = [
            cholesky_whitening([points[i] for i in part], eps)
            for points in views
        ]
        for one, two in itertools.permutations(white, 2):
            cosines += [cosine(p, q) for p, q in zip(one, two)]
    return 2 - 2 * _mean(cosines)


def predict(point, layers):
    """A predictor of linear layers with ReLU between, in evaluation mode.

    ``layers`` are (weight, bias) and, for normalisation, (mean, variance,
    gain, bias).
    """
    for layer in layers:
        if len(layer) == 4:
            point = [
                (x - mean) / math.sqrt(variance + 1e-5) * gain + bias
                for x, mean, variance, gain, bias in zip(point, *layer)
            ]
            point = [max(0.0, x) for x in point]
        else:
            point = [_dot(row, point) + bias for row, bias in zip(*layer)]
    return point


def predictive_cosines(predictions, targets):
    """Mean cosines with the same and with other utterances, v != w."""
    same, others = [], []
    for v, said in enumerate(predictions):
        for w, meant in enumerate(targets):
            if v != w:
                for i, p in enumerate(said):
                    for j, z in enumerate(meant):
                        (same if i == j else others).append(cosine(p, z))
    return _mean(same), _mean(others)
