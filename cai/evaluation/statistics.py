"""Means with intervals, over prompts as the unit of chance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEW = 5000  # values that are resampled; a bootstrap of more takes minutes to say what the normal distribution says
Z = 1.96  # standard errors that hold 95 % of a normal distribution


class Estimate(NamedTuple):
    """A mean over `n` prompts with its 95 % bootstrap interval; no interval for fewer than two prompts."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (n={self.n})"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value a prompt, with a percentile bootstrap interval (Efron 1979; scipy.stats.bootstrap).

    For more than FEW values the interval is mean ± Z standard errors, which the bootstrap's tends to.
    Raises: ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    if len(values) > FEW:
        margin = Z * float(np.std(values, ddof=1)) / len(values) ** 0.5
        return Estimate(mean, mean - margin, mean + margin, len(values))
    from scipy.stats import bootstrap

    interval = bootstrap(
        (np.asarray(values, dtype=float),), np.mean, n_resamples=9999, method="percentile", rng=seed, batch=1000
    ).confidence_interval
    # scipy interpolates between resampled means; rounding there must not turn the bounds round the mean inside out
    return Estimate(mean, min(mean, float(interval.low)), max(mean, float(interval.high)), len(values))
