"""Probabilities and their log-odds."""

import math

NEAREST = 1e-12  # to 0 and 1: log-odds beyond carry no more opinion


def logit(p: float) -> float:
    """log(p / (1 − p)) of a probability, within ±28."""
    p = min(max(p, NEAREST), 1 - NEAREST)
    return math.log(p) - math.log1p(-p)


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), whatever the size of x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
