"""Preferences against labels: agreement beyond chance, log loss and calibration.

A preference is P(first better) of a pair, in [0, 1]; labels may be soft. No function depends on which answer of a
pair stands first.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cai.stats.intervals import wilson
from cai.stats.logistic import logit, sigmoid
from cai.stats.win_rate import win

BINS = 10
COOLEST, HOTTEST = 0.01, 100.0  # bounds of fitted temperatures


def hit(p: float, label: float) -> float:
    """1 where both name the same winner, 0 where they name different ones, one half where either calls it a tie."""
    return 1.0 - abs(win(p) - win(label))


class Agreement(NamedTuple):
    """Of two judges on `n` pairs: the share with the same winner, and Cohen's κ with its 95 % interval.

    κ is None where chance alone would have them agree always, as where both call every pair a tie.
    """

    n: int
    observed: float
    kappa: float | None
    low: float | None
    high: float | None


def agreement(a: Sequence[float], b: Sequence[float]) -> Agreement | None:
    """Between the winners that two judges' P(first better) name; a tie is a verdict of its own. None for no pairs.

    Every pair is read from both sides: which answer stands first says nothing, and if it were the better one in every
    row of a file, chance agreement would be 1 and κ undefined. Without ties chance agreement is then exactly one
    half, and κ = 2 · observed − 1. The interval is that of the observed share by Wilson, on the scale of κ: Cohen's own
    (1960, Educ. Psychol. Meas. 20, eq. 7) takes κ = 1 of two pairs for certain.
    """
    if not a:
        return None
    first, second = [win(p) for p in a], [win(p) for p in b]
    observed = sum(x == y for x, y in zip(first, second, strict=True)) / len(first)
    both = ([*first, *(1 - x for x in first)], [*second, *(1 - y for y in second)])
    by_chance, kappa = chance_agreement(*both), cohen_kappa(*both)
    if kappa is None:
        return Agreement(len(first), observed, None, None, None)
    low, high = ((bound - by_chance) / (1 - by_chance) for bound in wilson(observed, len(first)))
    return Agreement(len(first), observed, kappa, low, high)


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """(p_o − p_e) / (1 − p_e) of two raters' categories, in [−1, 1]; None where p_e is 1 (Cohen 1960, eq. 1)."""
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    by_chance = chance_agreement(a, b)
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def chance_agreement(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """p_e: how often two raters would agree who keep their shares of the categories but draw them independently."""
    counts_a, counts_b = Counter(a), Counter(b)
    return sum(counts_a[category] * counts_b[category] for category in counts_a) / len(a) ** 2


class Bin(NamedTuple):
    """Pairs whose predicted winner had a probability in [low, high): how sure the model was, how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    observed: float


def reliability(predicted: Sequence[float], labels: Sequence[float]) -> list[Bin]:
    """The reliability curve over ten equal bins of [0.5, 1]; empty bins are skipped.

    Args: both P(first better) in [0, 1], a value a pair; labels may be soft. A pair is read from the side of its
    predicted winner, since which response stands first says nothing; where none is predicted, from both sides.
    """
    sides = [
        (0.5, 0.5) if q == 0.5 else (q, p) if q > 0.5 else (1 - q, 1 - p)
        for q, p in zip(predicted, labels, strict=True)
    ]
    bins = []
    for i in range(BINS):
        low, high = 0.5 + 0.5 * i / BINS, 0.5 + 0.5 * (i + 1) / BINS
        inside = [(q, p) for q, p in sides if low <= q < high or (i == BINS - 1 and q == 1)]
        if inside:
            confidence, observed = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            bins.append(Bin(low, high, len(inside), confidence, observed))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and outcome, in [0, 1] (Guo et al. 2017, arXiv:1706.04599 eq. 3)."""
    return sum(b.n * abs(b.confidence - b.observed) for b in bins) / sum(b.n for b in bins)


def mean_log_loss(predicted: Sequence[float], labels: Sequence[float], temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats of σ(logit(predicted) / T) against labels in [0, 1], which may be soft."""
    odds = np.array([logit(q) for q in predicted]) / temperature
    return float(np.mean(np.logaddexp(0, odds) - np.asarray(labels) * odds))


def fit_temperature(predicted: Sequence[float], labels: Sequence[float]) -> float:
    """The T > 0 whose σ(logit(predicted) / T) has the least mean log loss (Guo et al. 2017, arXiv:1706.04599 §4.2).

    Args: as reliability's; at least one pair. Returns: T within [COOLEST, HOTTEST]. The coolest means that the
    predictions, however sure, are never wrong; the hottest that they are no better than chance.
    """
    from scipy.optimize import minimize_scalar

    def loss(t: float) -> float:
        return mean_log_loss(predicted, labels, t)

    # convex in 1 / T, and so with a single minimum in log T, where powers of ten lie evenly
    optimum = minimize_scalar(
        lambda x: loss(float(np.exp(x))),
        bounds=(np.log(COOLEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return min((COOLEST, HOTTEST, float(np.exp(optimum.x))), key=loss)


def tempered(p: float, temperature: float) -> float:
    """σ(logit(p) / T)."""
    return sigmoid(logit(p) / temperature)
