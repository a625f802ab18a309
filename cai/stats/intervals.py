"""Means with intervals, over prompts as the unit of chance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai.stats.formatting import estimate

FEW = 5000  # values that are resampled; beyond, the bootstrap takes minutes and agrees with the normal distribution
Z = 1.96  # standard errors that hold 95 % of a normal distribution
RESAMPLES = 1000  # of prompts, where a model is fitted to each


class Estimate(NamedTuple):
    """A mean (or what its name says) over `n` prompts with its 95 % interval; no interval where n is too small."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return estimate(self)


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


def share(values: Sequence[float]) -> Estimate:
    """The mean of one value a prompt in [0, 1], such as 1 for a win and one half for a tie, with Wilson's interval.

    Few prompts with one outcome still have an interval: 8 wins of 8 are [0.68, 1], where a bootstrap says [1, 1], and
    holds the truth in 55 % of experiments of 8 prompts won 9 in 10 times. With ties it is wider than it need be, since
    they vary less. Raises: ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    return Estimate(mean, *wilson(mean, len(values)), len(values))


def wilson(mean: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, in [0, 1], of n trials (Wilson 1927, J. Am. Stat. Assoc. 22, 209–212)."""
    middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    margin = Z / (1 + Z**2 / n) * float(np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2)))
    # at 0 and 1 the bound is the mean itself, but for rounding
    return min(mean, max(0.0, middle - margin)), max(mean, min(1.0, middle + margin))


def paired_change(values: Sequence[float]) -> Estimate:
    """The mean of one difference a prompt in [−1, 1], such as that of two answers' being refusals.

    The interval is that of Agresti & Min 2005 (Stat. Med. 24, 729–740) for matched pairs: normal, after half a change
    to either side and one pair without change are added; so 8 pairs without change are [−0.20, 0.20], not [0, 0].
    Raises: ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    changes = np.asarray(values, dtype=float)
    n, mean = len(changes) + 2, float(changes.mean())
    shrunk = float(changes.sum()) / n
    margin = Z * float(np.sqrt((np.sum(changes**2) + 1) / n - shrunk**2) / np.sqrt(n))
    return Estimate(mean, min(mean, max(-1.0, shrunk - margin)), max(mean, min(1.0, shrunk + margin)), len(changes))


def predicted(differences: Sequence[Sequence[float]]) -> Estimate:
    """The mean of differences between one thing and others of its kind, such as ways to spell a text; a list for each.

    The interval is Student's for a further draw, mean ± t · s · √(1 + 1/k), where s is the deviation of the means of
    the k lists: it holds 0 in 95 % of cases where the one thing is drawn as the others are, however many differences
    there are. None where k is below 2. Raises: ValueError for no differences.
    """
    values = [value for of_one in differences for value in of_one]
    if not values:
        raise ValueError("no differences to average")
    from scipy.stats import t

    k, mean = len(differences), float(np.mean(values))
    if k < 2:
        return Estimate(mean, None, None, len(values))
    means = [np.mean(of_one) for of_one in differences]
    margin = float(t.ppf(0.975, k - 1) * np.std(means, ddof=1) * np.sqrt(1 + 1 / k))
    return Estimate(mean, mean - margin, mean + margin, len(values))


def resampled(rows: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each row is drawn in each resample of all rows with replacement, shape (resamples, rows)."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)


def percentiles(values: np.ndarray, rows: int) -> tuple[float, float]:
    """The bounds of a 95 % interval among the values of resamples of so many rows, which may be infinite.

    They lie further out than 2.5 and 97.5 %, by what makes a percentile interval of a mean as wide as Student's:
    bootstraps of few rows are too narrow otherwise (Hesterberg 2015, Am. Stat. 69, 371–386, "expanded percentile").
    """
    from scipy.stats import norm, t

    tail = float(norm.cdf(-t.ppf(0.975, rows - 1) * np.sqrt(rows / (rows - 1)))) if rows > 1 else 0.0
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # of infinite values there is no mean
    return float(low), float(high)
