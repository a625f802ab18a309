"""Whether a probability of being preferred means what it says."""

from collections.abc import Sequence
from typing import NamedTuple

BINS = 10


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
    predicted winner, since which response stands first says nothing.
    """
    sides = [(q, p) if q >= 0.5 else (1 - q, 1 - p) for q, p in zip(predicted, labels, strict=True)]
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
