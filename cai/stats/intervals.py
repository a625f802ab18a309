"""Means with intervals, over prompts as the unit of chance, and tests against a variance that is a sum less a part.

For the latter, Student's t with Satterthwaite's degrees of freedom fails where a variance of one or two degrees of
freedom decides: the less it happens to be, the more freedom the whole seems to have. The generalized pivot of
Weerahandi 1993 (JASA 88, 899–905) draws each variance from what its estimate leaves open, V · f / χ²_f, and is
Student's t where there is one.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cai.stats.formatting import estimate
from cai.stats.power import MANY, critical_value

FEW = 5000  # values that are resampled; beyond, the bootstrap takes minutes and agrees with the normal distribution
ADDED = 1 / 3  # of a 0 and a 1, to the variance of shares: of 8 prompts, 1/2 covers up to 98 %, 1/4 down to 93 %
SMALL = 6  # values whose resamples are too few: 462 of 6, 126 of 5
DRAWS = 10_000  # of resamples of a mean
CHUNK = 1000  # resamples at once
ROUNDING = 1e-12  # relative
Z = 1.96  # standard errors that hold 95 % of a normal distribution
RESAMPLES = 1000  # of prompts, where a model is fitted to each
KEPT_ROWS = (
    256  # at most, of resamples that are kept: to draw 10,000 of 64 rows takes thirty times as long as to use them
)


class Estimate(NamedTuple):
    """A mean (or what its name says) over `n` prompts with its 95 % interval; no interval where n is too small."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return estimate(self)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value a prompt, such as words or nats, with a bootstrap-t interval (Efron 1981; Hesterberg 2015).

    Of few values a percentile bootstrap is too narrow, and Student's interval of skewed ones too: at n = 8 they hold
    the mean of a gamma distribution of shape 2 in 92 % of experiments, and this in 94 %. Fewer than SMALL values have
    too few resamples, and Student's interval; more than FEW have mean ± Z standard errors, which both tend to. None for
    one value, and for equal ones, whose spread is unknown. Values in [0, 1] have `share`. Raises: ValueError for no
    values.
    """
    if not len(values):
        raise ValueError("no values to average")
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(np.mean(x))
    if n < 2 or np.ptp(x) <= ROUNDING * float(np.abs(x).max()):
        return Estimate(mean, None, None, n)
    error = float(np.std(x, ddof=1)) / n**0.5
    if n < SMALL or n > FEW:
        from scipy.special import stdtrit

        margin = (Z if n > FEW else float(stdtrit(n - 1, 0.975))) * error
        return Estimate(mean, mean - margin, mean + margin, n)
    t = np.sort(_studentized(x - mean, seed))
    low, high = float(t[round(0.025 * len(t))]), float(t[-1 - round(0.025 * len(t))])
    return Estimate(mean, min(mean, mean - high * error), max(mean, mean - low * error), n)


def _studentized(centred: np.ndarray, seed: int) -> np.ndarray:
    """Student's t of the mean of each resample that has a spread, for values of mean 0."""
    n, t = len(centred), []
    for part in range(DRAWS // CHUNK):
        weights = resampled(n, CHUNK, seed + part)
        means = weights @ centred / n
        variances = (weights @ centred**2 / n - means**2) / (n - 1)
        known = variances > ROUNDING * float((centred**2).max())
        t.append(means[known] / np.sqrt(variances[known]))
    return np.concatenate(t)


def share(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of values in [0, 1], such as 1 for a win and one half for a tie, with Wilson's interval.

    Args: one value a prompt; or any number, with what each belongs to as `clusters`, such as the prompts of pairs.

    Wilson's n is the number of trials that have the variance of this mean (the effective sample size of Korn & Graubard
    1998, Surv. Methodol. 24, 193–201): more than there are values where they lie between 0 and 1, fewer than there are
    pairs where those of a prompt go together (Kish 1965, Survey Sampling, §6.4). The variance is measured with ADDED
    of a 0 and of a 1 more, since 8 equal values are not certain. Of one win or loss a prompt it is Wilson's: 8 wins of
    8 are [0.68, 1], where a bootstrap says [1, 1], and holds the truth in 55 % of experiments of 8 prompts won 9 in 10
    times. The `n` of the result is that of prompts. Raises: ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    totals = np.asarray(values, dtype=float)
    sizes = np.ones(len(totals))
    if clusters is not None:
        places = np.unique(np.fromiter(map(_numbered(), clusters), dtype=int), return_inverse=True)[1]
        totals, sizes = np.bincount(places, totals), np.bincount(places).astype(float)
    n, size, mean = len(totals), float(sizes.mean()), float(totals.sum() / sizes.sum())
    middle = (float(totals.sum()) + ADDED * size) / (float(sizes.sum()) + 2 * ADDED * size)
    squares = float(((totals - middle * sizes) ** 2).sum()) + ADDED * size**2 * ((1 - middle) ** 2 + middle**2)
    relative = squares / (size**2 * (n + 2 * ADDED)) / (middle * (1 - middle))  # to the variance of n trials
    return Estimate(mean, *wilson(mean, n / relative), n)


def _numbered() -> Callable[[Hashable], int]:
    """A function that numbers what it sees, the same the same."""
    numbers: dict[Hashable, int] = {}
    return lambda thing: numbers.setdefault(thing, len(numbers))


def wilson(mean: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a share, in [0, 1], of n trials (Wilson 1927, J. Am. Stat. Assoc. 22, 209–212)."""
    middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    margin = Z / (1 + Z**2 / n) * float(np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2)))
    # at 0 and 1 the bound is the mean itself, but for rounding
    return min(mean, max(0.0, middle - margin)), max(mean, min(1.0, middle + margin))


def paired_change(values: Sequence[float]) -> Estimate:
    """The mean of one difference a prompt in [−1, 1], such as that of two answers' being refusals.

    The interval is that of Agresti & Min 2005 (Stat. Med. 24, 729–740) for matched pairs: normal, after half a change
    to either side and one pair without change are added; so 8 pairs without change are [−0.20, 0.20], not [0, 0]. Means
    of several pairs, such as forms of a request, are rarely as large as ±1: what they add is of their own mean square,
    Σx² / Σ|x|, which is 1 for single pairs. With 1 for all, 8 means of 13 pairs hold the truth in 99 %, with this in
    95 %. Raises: ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    changes = np.asarray(values, dtype=float)
    n, mean, squares = len(changes) + 2, float(changes.mean()), float(np.sum(changes**2))
    added = squares / float(np.sum(np.abs(changes))) if squares else 1.0
    shrunk = float(changes.sum()) / n
    margin = Z * float(np.sqrt((squares + added) / n - shrunk**2) / np.sqrt(n))
    return Estimate(mean, min(mean, max(-1.0, shrunk - margin)), max(mean, min(1.0, shrunk + margin)), len(changes))


def predicted(differences: Sequence[Sequence[float]]) -> Estimate:
    """The mean of differences between one thing and others of its kind, such as ways to spell a text; a list for each.

    The interval is for a further draw (cai/stats/intervals.py): its variance is that between the k lists' means times
    1 + 1/k, less what the differences within a list, of variance W, make of it, and at least W/n of all n. It holds 0
    in 95 % of cases where the one thing is drawn as the others are, however many differences there are. None where k is
    below 2 or no list has two differences, which cannot tell the lists from what is in them. Raises: ValueError for no
    differences.
    """
    lists = [np.asarray(of_one, dtype=float) for of_one in differences if len(of_one)]
    if not lists:
        raise ValueError("no differences to average")
    values, k = np.concatenate(lists), len(lists)
    n, mean = len(values), float(values.mean())
    if k < 2 or n == k:
        return Estimate(mean, None, None, n)
    within = sum(float(((of_one - of_one.mean()) ** 2).sum()) for of_one in lists) / (n - k)
    between = float(np.var([of_one.mean() for of_one in lists], ddof=1)) * (1 + 1 / k)
    contained = float(np.mean([1 / len(of_one) for of_one in lists])) * (1 + 1 / k) - 1 / n
    errors = pivotal_errors([Variance(between, k - 1)], Variance(within * contained, n - k), 1 / n / contained)
    if not len(errors):
        return Estimate(mean, None, None, n)
    return Estimate(mean, mean - margin(errors), mean + margin(errors), n)


def resampled(rows: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each row is drawn in each resample of all rows with replacement, shape (resamples, rows); read-only."""
    return (_drawn if rows <= KEPT_ROWS else _drawn.__wrapped__)(rows, resamples, seed)


@lru_cache(maxsize=32)  # the metrics of a report resample as many prompts with the same seeds; 64 MiB at most
def _drawn(rows: int, resamples: int, seed: int) -> np.ndarray:
    counts = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    counts.flags.writeable = False
    return counts


def percentiles(values: np.ndarray, rows: int, of_mean: bool = True) -> tuple[float, float]:
    """The bounds of a 95 % interval among the values of resamples of so many rows, which may be infinite.

    They lie further out than 2.5 and 97.5 %, by what makes a percentile interval of a mean as wide as Student's:
    bootstraps of few rows are too narrow otherwise (Hesterberg 2015, Am. Stat. 69, 371–386, "expanded percentile").
    Part of that is for the variance of a resampled mean, (n − 1)/n of the mean's own. That of log-odds and correlations
    is no smaller than their own (`of_mean` False): with it, 8 rows hold the truth in 98 to 99 %.
    """
    from scipy.stats import norm, t

    corrected = np.sqrt(rows / (rows - 1)) if of_mean and rows > 1 else 1.0
    tail = float(norm.cdf(-t.ppf(0.975, rows - 1) * corrected)) if rows > 1 else 0.0
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # of infinite values there is no mean
    return float(low), float(high)


def interval_of(value: float, samples: np.ndarray, rows: int, of_mean: bool = True) -> Estimate:
    """A value with the `percentiles` of its resamples; None for an infinite bound.

    Without an interval for one row, and where all resamples agree: few rows that are alike make nothing certain.
    """
    finite = samples[np.isfinite(samples)]
    if rows < 2 or not len(finite) or (len(finite) == len(samples) and np.ptp(finite) <= 1e-9 * (1 + abs(value))):
        return Estimate(value, None, None, rows)
    low, high = percentiles(samples, rows, of_mean)
    held = [bound if np.isfinite(bound) else None for bound in (min(value, low), max(value, high))]
    return Estimate(value, held[0], held[1], rows)


ALPHA = 0.05
LOG2_DRAWS = 12  # 2¹²
LEAST_FREEDOM = 0.5


class Variance(NamedTuple):
    """A variance of a mean, and the degrees of freedom it is estimated with; a value of 0 may have none."""

    value: float
    freedom: int


def pivotal_errors(parts: Sequence[Variance], less: Variance, least: float) -> np.ndarray:
    """The standard error in each draw: √ of the sum of `parts`, less `less`, which they contain.

    Args: at most two parts. The variance of a draw is at least `least` times that of `less`. Draws of 0 are left out.
    """
    drawn = [v.value * _inverse_chi_squared(place, v.freedom) if v.value else 0.0 for place, v in enumerate(parts)]
    contained = less.value * _inverse_chi_squared(2, less.freedom) if less.value else 0.0
    variances = np.atleast_1d(np.maximum(sum(drawn) - contained, least * contained))
    return np.asarray(np.sqrt(variances[variances > 0]))


@lru_cache(maxsize=64)
def _inverse_chi_squared(place: int, freedom: int) -> np.ndarray:
    """f / χ²_f in each draw, which are the points of a Sobol sequence: the same each time, and smoother than chance."""
    from scipy.special import gammaincinv
    from scipy.stats import qmc

    uniform = qmc.Sobol(3, rng=0).random_base2(LOG2_DRAWS)[:, place]
    return np.asarray(freedom / (2 * gammaincinv(freedom / 2, uniform)))


def p_value(distance: float, errors: np.ndarray) -> float:
    """How often a normal distribution of such errors lies further from its mean, to either side; above 0."""
    from scipy.special import ndtr

    return max(float(np.mean(2 * ndtr(-abs(distance) / errors))), 1e-300)


def margin(errors: np.ndarray) -> float:
    """The distance whose `p_value` is ALPHA: half of a 95 % interval."""
    from scipy.optimize import brentq

    return float(brentq(lambda distance: p_value(distance, errors) - ALPHA, 0.0, 40 * float(errors.max())))


def students_freedom(errors: float) -> float:
    """The degrees of freedom whose 95 % t interval reaches so many standard errors to either side; at most MANY."""
    from scipy.optimize import brentq

    if errors <= critical_value(ALPHA, MANY):
        return MANY
    if errors >= critical_value(ALPHA, LEAST_FREEDOM):
        return LEAST_FREEDOM
    return float(brentq(lambda freedom: critical_value(ALPHA, freedom) - errors, LEAST_FREEDOM, MANY))
