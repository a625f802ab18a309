"""Whether a probability of being preferred means what it says."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai.stats.logistic import logit, sigmoid

BINS = 10
COOLEST, HOTTEST = 0.01, 100.0  # temperatures that are tried


class Bin(NamedTuple):
    """Pairs whose predicted winner had a probability in [low, high): how sure the model was, how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    observed: float


def reliability(predicted: Sequence[float], labels: Sequence[float]) -> list[Bin]:
    """The reliability curve over ten equal bins of [0.5, 1]; empty bins are left out.

    Args: both P(first preferred) in [0, 1], a value a pair; labels may be soft. A pair is read from the side of its
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
    found = minimize_scalar(
        lambda x: loss(float(np.exp(x))),
        bounds=(np.log(COOLEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return min((COOLEST, HOTTEST, float(np.exp(found.x))), key=loss)


def tempered(p: float, temperature: float) -> float:
    """σ(logit(p) / T)."""
    return sigmoid(logit(p) / temperature)
