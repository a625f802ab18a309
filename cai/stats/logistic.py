"""Log-odds, and logistic regression on soft labels, for one weighting of the rows or for the many of a bootstrap."""

import math
from collections.abc import Mapping

import numpy as np

NEAREST = 1e-12  # to 0 and 1: log-odds are clipped beyond


def logit(p: float) -> float:
    """log(p / (1 − p)) of a probability, within ±28."""
    p = min(max(p, NEAREST), 1 - NEAREST)
    return math.log(p) - math.log1p(-p)


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), whatever the size of x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


STEPS = 100  # of Newton's method; two answers of which one always wins take about twenty
HALVINGS = 40  # of a step that goes too far
ROUNDING = 1e-12  # of a loss: near the optimum a good step may not be seen in it
FLAT = 1e-10  # of a gradient, a row: as good as zero


def fit_logistic(
    design: np.ndarray, labels: np.ndarray, weights: np.ndarray, ridge: np.ndarray | float = 0.0
) -> np.ndarray:
    """The coefficients β that minimise Σ w·(log(1 + e^xβ) − y·xβ) + ½ Σ ridge·β², by Newton's method.

    Args: design of shape (rows, k); labels y in [0, 1] and weights w ≥ 0, each of shape (rows,) or (fits, rows); ridge
    ≥ 0, of shape (k,) or one for all; where rows do not decide every coefficient, it must be above 0.
    Returns: β of shape (fits, k), one row for each weighting; (1, k) where there is one.
    """
    weights, labels = np.atleast_2d(weights), np.atleast_2d(labels)
    fits, k = max(len(weights), len(labels)), design.shape[1]
    weights, labels = np.broadcast_to(weights, (fits, len(design))), np.broadcast_to(labels, (fits, len(design)))
    penalty = np.broadcast_to(np.asarray(ridge, dtype=float), (k,))

    def loss(beta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x = beta @ design.T
        each: np.ndarray = (weights[rows] * (np.logaddexp(0, x) - labels[rows] * x)).sum(1) + (beta**2) @ penalty / 2
        return each

    beta = np.zeros((fits, k))
    if fits > 1:  # resamples of the same rows end near each other
        total = weights.sum(0)
        mean = np.divide((weights * labels).sum(0), total, out=np.full(len(design), 0.5), where=total > 0)
        beta[:] = fit_logistic(design, mean, total / fits, penalty)
    going = np.arange(fits)
    for _ in range(STEPS):
        now = beta[going]
        p = np.exp(-np.logaddexp(0, -(now @ design.T)))
        gradient = (weights[going] * (p - labels[going])) @ design + penalty * now
        steep = np.abs(gradient).max(axis=1) > FLAT * np.maximum(1, weights[going].sum(1))
        going, now, p, gradient = going[steep], now[steep], p[steep], gradient[steep]
        if not len(going):
            break
        curvature = np.einsum("fr,ri,rj->fij", weights[going] * p * (1 - p), design, design, optimize=True)
        curvature[:, range(k), range(k)] += penalty
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        size, before = np.ones(len(going)), loss(now, going)
        before += ROUNDING * (1 + before)
        for _ in range(HALVINGS):
            too_far = loss(now - size[:, None] * step, going) > before
            if not too_far.any():
                break
            size[too_far] /= 2
        beta[going] = now - size[:, None] * step
    return beta


STRENGTH_RIDGE = 1e-6  # of a comparison: what each answer's squared strength costs


def bradley_terry(labels: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Strengths s, in log-odds, such that σ(s_i − s_j) comes closest to each label P(i is better than j).

    Closest in cross-entropy, summed over pairs: with labels of 0 and 1 the maximum likelihood of Bradley & Terry 1952,
    with soft labels its expectation. The penalty STRENGTH_RIDGE/2 · Σ s² makes strengths unique and of mean 0, keeps
    those of an answer that always wins finite (near 12 for two answers), places groups of answers without a comparison
    between them side by side, each around 0, and moves two answers labelled within [0.01, 0.99] by less than 0.001.

    Args: P in [0, 1] by pair of answers' numbers; at least one. Returns: a strength for each answer that is named.
    """
    numbers = sorted({number for pair in labels for number in pair})
    place = {number: index for index, number in enumerate(numbers)}
    i, j = ([place[pair[side]] for pair in labels] for side in (0, 1))
    sides = np.eye(len(numbers))[i] - np.eye(len(numbers))[j]  # (pairs, answers): 1 for i, −1 for j
    [strengths] = fit_logistic(sides, np.fromiter(labels.values(), dtype=float), np.ones(len(labels)), STRENGTH_RIDGE)
    return dict(zip(numbers, map(float, strengths - strengths.mean()), strict=True))
