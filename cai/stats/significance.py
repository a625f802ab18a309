"""Paired and grouped differences: permutation tests with intervals, and one correction for all tests of an output.

`paired` compares two runs on the same prompts; `contrasts` compares groups of rows with the rest, where chance decided
which row came into which group; cai/stats/trainings.py compares policies, of which one training is one observation.
scipy.stats.permutation_test gives the same p for `paired` where all signs are enumerated
(tests/stats/test_significance.py), but no interval: the bounds here invert the same test, ties included, so that the
interval excludes 0 exactly where p ≤ 0.05. scipy.stats.bootstrap has neither the expanded percentile of
`intervals.percentiles` nor resampling of whole prompts (clusters) with a model refitted to each resample.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cai.stats.intervals import wilson
from cai.stats.power import (
    MANY_FLAGS,
    all_of_one_sign,
    attained_level,
    critical_value,
    detectable,
    detectable_flags,
    differing_share,
)

ALPHA = 0.05  # a difference is significant when, corrected for all others of the output, it is rarer than this
DRAWS = 10_000  # of signs or permutations, with what was observed as one of them (Phipson & Smyth 2010)
EXACT = 12  # prompts of which all 2^n signs are tried
SMALLEST = 6  # prompts that can establish anything alone: 2 of 2^6 sign patterns are below 5 %
FEW = 500  # differences other than 0 beyond which the normal distribution takes over
ROUNDING = 1e-9  # relative
Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)
_normal = NormalDist()


class Effect(BaseModel):
    """A mean difference over `n` prompts (of a contrast: rows), with its standard error.

    `low` to `high` holds the differences that the same test does not reject at 5 %, for this one number alone; None
    where the prompts are too few or too alike to say. `p` is how often chance brings a difference this large if there
    is none, `adjusted` the same after Holm's correction for everything tested in the output, `least_p` the smallest p
    that these prompts could have had, and `freedom` the degrees of freedom of `se` (None: many).
    `minimum_detectable` is the smallest true difference that the test finds with 80 % power at this n, spread and
    correction; see `minimum_detectable`. `undetectable`: it would be larger than any that there can be, such as 1
    between two shares. `flips`: how many prompts gain a flag and how many lose it, if all differences are −1, 0 or 1.

    Of trained policies, `trainings` has how many there are on either side, and `between_trainings` the share of the
    variance of the difference, in [0, 1], that comes of their trainings; `pooled_freedom` is `freedom` if those of both
    sides vary alike, as a plan supposes. With one training a side that variance is
    unknown: `note` says so, the interval is over prompts alone, and there is neither p nor minimum detectable.
    """

    mean: float
    se: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    adjusted: float | None = None
    minimum_detectable: float | None = None
    undetectable: bool = False
    least_p: float = 0.0
    freedom: float | None = None
    pooled_freedom: float | None = None
    flips: tuple[int, int] | None = None
    trainings: tuple[int, int] | None = None
    between_trainings: float | None = None
    note: str = ""

    @property
    def significant(self) -> bool:
        """Whether it may be called an effect, after correction."""
        return self.adjusted is not None and self.adjusted <= ALPHA


def paired(differences: Sequence[float] | Floats) -> Effect:
    """The mean of one difference a prompt, tested by flipping signs (Fisher 1935, §21).

    If the two runs did not differ, A and B could be swapped at every prompt, and each difference would
    have come with either sign equally often. The interval holds the θ for which the differences less θ pass the same
    test: those between the mean of a random half of the prompts and the mean of the rest, in more than 5 % of halves
    (Hartigan 1969, JASA 64). So it excludes 0 exactly where p ≤ 0.05.
    Raises: ValueError for no differences.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("no differences to average")
    mean = float(values.mean())
    if n == 1:
        return Effect(mean=mean, se=None, low=None, high=None, n=1, p=None)
    if np.ptp(values) == 0:  # without spread there is nothing to make an interval of
        least = _rarest(values)
        return Effect(mean=mean, se=0.0, low=None, high=None, n=n, p=least, least_p=least)
    se = float(values.std(ddof=1)) / math.sqrt(n)
    signed = values[values != 0]
    flips = (int(np.sum(values > 0)), int(np.sum(values < 0))) if np.all(np.abs(signed) == 1) else None
    if n > FEW and len(signed) > FEW:
        return by_normal(mean, se, n)
    inside, outside = _halves(values) if n <= FEW else _halves_with_ties(signed, n - len(signed))
    low, high = np.fmin(inside, outside), np.fmax(inside, outside)
    low[np.isnan(inside) | np.isnan(outside)] = -math.inf  # all prompts in one half: it rejects nothing
    high[np.isnan(inside) | np.isnan(outside)] = math.inf
    near = ROUNDING * float(np.abs(values).max())
    extreme = int(np.sum((low <= near) & (high >= -near)))
    p = extreme / len(low)
    if n > EXACT and extreme == 1:  # beyond all draws
        p = min(p, max(two_sided(mean / se), _rarest(values)))
    rank = math.floor(ALPHA * len(low)) + 1  # from the outside: that many draws still hold the bound
    bounds = float(np.partition(low, rank - 1)[rank - 1]), float(-np.partition(-high, rank - 1)[rank - 1])
    held = [bound if math.isfinite(bound) else None for bound in bounds]
    return Effect(
        mean=mean, se=se, low=held[0], high=held[1], n=n, p=p, least_p=_rarest(values), freedom=float(n - 1),
        flips=flips,
    )  # fmt: skip


def _rarest(values: Floats) -> float:
    """The share of the sign patterns that two of them are: zeros have no sign. 1 for nothing but zeros."""
    return 2.0 ** (1 - min(max(1, int(np.count_nonzero(values))), 1000))


def _halves(values: Floats) -> tuple[Floats, Floats]:
    """The means of random halves of the values, and of the rest; NaN of none."""
    signs = _subsets(len(values))
    sizes, sums = signs.sum(axis=1), signs @ values
    return _ratio(sums, sizes), _ratio(values.sum() - sums, len(values) - sizes)


def _halves_with_ties(values: Floats, ties: int) -> tuple[Floats, Floats]:
    """As `_halves`, of few values among so many zeros that only their number in the half is drawn."""
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, size=(DRAWS, len(values)), dtype=np.uint8).astype(float)
    zeros = rng.binomial(ties, 0.5, size=DRAWS)
    signs[0], zeros[0] = 1, ties
    sizes, sums = signs.sum(axis=1) + zeros, signs @ values
    return _ratio(sums, sizes), _ratio(values.sum() - sums, len(values) + ties - sizes)


@lru_cache(maxsize=4)  # metrics on the same prompts draw the same halves
def _subsets(n: int) -> Floats:
    """Rows of 0 and 1, (draws, n): every subset of up to EXACT, else the whole and random ones."""
    if n <= EXACT:
        every: Floats = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(float)
        return every
    drawn = np.random.default_rng(n).integers(0, 2, size=(DRAWS, n), dtype=np.uint8).astype(float)
    drawn[0] = 1
    return drawn


def _ratio(sums: Any, sizes: Any) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sizes > 0, sums / sizes, np.nan)


def by_normal(mean: float, se: float, n: int) -> Effect:
    """The mean of so many values that it is normally distributed."""
    margin = _normal.inv_cdf(1 - ALPHA / 2) * se
    return Effect(mean=mean, se=se, low=mean - margin, high=mean + margin, n=n, p=two_sided(mean / se))


def two_sided(z: float) -> float:
    """P(|Z| ≥ |z|) of a standard normal Z; never quite 0."""
    return max(math.erfc(abs(z) / math.sqrt(2)), 1e-300)


def corrected(
    tables: Mapping[str, Mapping[Key, Effect]], largest: Callable[[str, Key], float] = lambda table, key: math.inf
) -> dict[str, dict[Key, Effect]]:
    """The effects of everything that one output tests as one family, with `adjusted` and `minimum_detectable` for each.

    Args: `largest` is the largest difference that a test of a table can have, such as 1 between two shares.

    The chance that any of them is significant without an effect is at most ALPHA. Every table that has a test weighs
    the same, and so does every test of a table (Holm 1979 with weights: Benjamini & Hochberg 1997, Scand. J. Stat. 24,
    §3), so that hundreds of effects of principles cost the few metrics of a run a factor of the tables alone.

    A test that could not be significant even alone, because its prompts are equal or too few, is not counted (Tarone
    1990, Biometrics 46), and neither is an effect without p.
    """
    tested = {name: [key for key, effect in table.items() if counts(effect)] for name, table in tables.items()}
    places = [(name, key) for name, keys in tested.items() for key in keys]
    weights = [1 / len(tested[name]) for name, _ in places]
    p_values = [tables[name][key].p or 0.0 for name, key in places]
    adjusted = dict(zip(places, holm(p_values, weights), strict=True))
    family = sum(weights)  # the number of tables that have a test

    def complete(name: str, key: Key, effect: Effect) -> Effect:
        if effect.p is None:
            return effect
        tests = max(1.0, family * max(1, len(tested[name])))
        smallest = minimum_detectable(effect, tests)
        undetectable = smallest is not None and smallest > largest(name, key)
        updates = {
            "adjusted": adjusted.get((name, key), effect.p),
            "minimum_detectable": None if undetectable else smallest,
            "undetectable": undetectable,
        }
        return effect.model_copy(update=updates)

    return {name: {key: complete(name, key, effect) for key, effect in table.items()} for name, table in tables.items()}


def counts(effect: Effect) -> bool:
    """Whether an effect is one of the tests of its family."""
    return effect.p is not None and effect.least_p <= ALPHA and bool(effect.se or effect.mean)


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Adjusted p values that may all be compared with α, in the order of the arguments (Holm 1979, Scand. J. Stat. 6).

    Sorted by p/w, each p is multiplied by the sum of its own weight and those after it, divided by its own: without
    weights the smallest of m by m, the next by m − 1 … Each is at least the one before and at most 1. scipy has no Holm
    correction (false_discovery_control controls another rate), and statsmodels would add 67 MB for these lines; a test
    compares them with the values of statsmodels.stats.multitest.multipletests.
    """
    weighing = [1.0] * len(p_values) if weights is None else list(weights)
    adjusted, largest, left = [0.0] * len(p_values), 0.0, math.fsum(weighing)
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i] / weighing[i]):
        largest = max(largest, min(1.0, p_values[index] * max(left / weighing[index], 1.0)))
        adjusted[index] = largest
        left -= weighing[index]
    return adjusted


def minimum_detectable(effect: Effect, tests: float = 1) -> float | None:
    """The smallest true difference that a test of this n and spread finds with 80 % power, as one of `tests` in all.

    In the unit of the effect, at Holm's first and strictest step, α/tests. See cai/stats/power.py for the formula; the
    level is the one that the test attains, since the p of few prompts has few possible values. None without a spread,
    for fewer than SMALLEST prompts, whose spread says little, and where no p of so many prompts is as small as α/tests.
    """
    if not effect.se or effect.n < SMALLEST:
        return None
    if effect.flips is not None and effect.n <= MANY_FLAGS:
        return detectable_flags(effect.n, differing_share(sum(effect.flips), effect.n), ALPHA / tests)
    level = attained_level(ALPHA / tests, effect.least_p)
    if level is None:
        return None
    errors = detectable(level, effect.freedom)
    if level < 2 * effect.least_p:
        errors = max(errors, all_of_one_sign(effect.least_p))
    return errors * effect.se


CHUNK = 500  # permutations at once: what fits in a few tens of megabytes


def contrasts(groups: Sequence[str], outcomes: Mapping[str, Sequence[float] | Floats]) -> dict[tuple[str, str], Effect]:
    """By group and outcome: the mean over the rows of the group less the mean over all other rows.

    Args: a group, and a value of each outcome, for every row; at least one of each.

    Tested by drawing the groups anew, of the same sizes: an outcome of two values by how far the means lie apart, in
    closed form (Fisher's exact test); any other by Welch's t, so that a group of few rows with a wider spread does not
    pass for one with another mean (Janssen 1997, Stat. Probab. Lett. 36), over DRAWS permutations, or for more than FEW
    rows by Student's distribution, with an interval of as many standard errors as 5 % of the draws exceed. Where
    Welch's own distribution says less, it counts: of 3 rows against 5 of half their spread the permutations' interval
    holds the truth in 92.7 % of experiments, the wider of both in 95 %.
    A group of one row, or of all rows but one, is skipped.
    """
    names, labels = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    n = len(labels)
    columns = np.column_stack([np.asarray(values, dtype=float) for values in outcomes.values()])
    columns -= columns.mean(axis=0)
    both = np.hstack([columns, columns**2])
    drawn, totals = _sums_by_group(labels, both, DRAWS if n <= FEW else 1), both.sum(axis=0)
    effects: dict[tuple[str, str], Effect] = {}
    for group, size in enumerate(np.bincount(labels).tolist()):
        if size < 2 or n - size < 2:
            continue
        for column, outcome in enumerate(outcomes):
            key = str(names[group]), outcome
            distinct = np.unique(columns[:, column])
            if len(distinct) == 2:
                has = columns[:, column] == distinct[1]
                effects[key] = _two_valued(
                    float(np.ptp(distinct)), int(has[labels == group].sum()), int(has.sum()), size, n
                )
            else:
                pick = [column, column + len(outcomes)]
                effects[key] = _by_t(drawn[:, group, pick], totals[pick], size, n)
    return effects


def _two_valued(unit: float, inside: int, all_of_them: int, size: int, n: int) -> Effect:
    """A contrast of a flag, worth `unit`, that `inside` of the group's rows have and `all_of_them` of n.

    The interval is made of the Wilson intervals of both shares (Newcombe 1998, Stat. Med. 17, method 10), and reaches
    to 0 where the test, which is the stricter one, does not reject 0.
    """
    from scipy.special import gammaln

    def log_choose(of: Floats | int, these: Floats) -> Floats:
        choices: Floats = gammaln(of + 1) - gammaln(these + 1) - gammaln(of - these + 1)
        return choices

    could = np.arange(max(0, size + all_of_them - n), min(size, all_of_them) + 1, dtype=float)
    log_p = log_choose(all_of_them, could) + log_choose(n - all_of_them, size - could)
    probability = np.exp(log_p - log_p.max())
    probability /= probability.sum()
    apart = np.abs(could / size - (all_of_them - could) / (n - size))
    share, other = inside / size, (all_of_them - inside) / (n - size)
    p = min(1.0, float(probability[apart >= abs(share - other) - ROUNDING].sum()))
    (low, high), (other_low, other_high) = wilson(share, size), wilson(other, n - size)
    bounds = (
        share - other - math.hypot(share - low, other_high - other),
        share - other + math.hypot(high - share, other - other_low),
    )
    if p > ALPHA:
        bounds = min(0.0, bounds[0]), max(0.0, bounds[1])
    pooled = all_of_them / n
    se = math.sqrt(pooled * (1 - pooled) * (1 / size + 1 / (n - size)))
    least = min(1.0, float(probability[apart >= apart.max() - ROUNDING].sum()))
    return Effect(
        mean=unit * (share - other), se=unit * se, low=unit * bounds[0], high=unit * bounds[1], n=n, p=p, least_p=least
    )


def _sums_by_group(labels: NDArray[np.int64], columns: Floats, draws: int) -> Floats:
    """(draws, groups, columns): each group's sums, of the labels as they are and then of permuted ones."""
    rng, groups = np.random.default_rng(0), int(labels.max()) + 1
    sums = np.empty((draws, groups, columns.shape[1]))
    for start in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - start)
        drawn = np.tile(labels, (rows, 1))
        first = 0 if start else 1
        drawn[first:] = rng.permuted(drawn[first:], axis=1)
        cells = (drawn + groups * np.arange(rows)[:, None]).ravel()
        for column in range(columns.shape[1]):
            group_sums = np.bincount(cells, np.tile(columns[:, column], rows), minlength=rows * groups)
            sums[start : start + rows, :, column] = group_sums.reshape(rows, groups)
    return sums


def _by_t(sums: Floats, totals: Floats, size: int, n: int) -> Effect:
    """A contrast by Welch's t, from sum and sum of squares of the group in each draw, (draws, 2), and of all rows."""
    from scipy.special import stdtr

    others, rest = totals - sums, n - size
    difference = sums[:, 0] / size - others[:, 0] / rest
    difference[np.abs(difference) <= ROUNDING * math.sqrt(totals[1])] = 0.0
    parts = (_variance_of_mean(sums, size, totals[1]), _variance_of_mean(others, rest, totals[1]))
    se = np.sqrt(parts[0] + parts[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(difference == 0, 0.0, np.abs(difference) / se)  # without spread, any difference is infinite
    observed, error = float(difference[0]), float(se[0])
    if len(t) == 1:
        return _students(observed, error, size, n)
    freedom = _welch_freedom(float(parts[0][0]), size, float(parts[1][0]), rest)
    least = 1 / math.comb(n, size)
    extreme = int(np.sum(t >= t[0] * (1 - ROUNDING)))
    p = extreme / len(t)
    if extreme == 1 and error > 0:  # beyond all draws
        p = min(p, max(two_sided(observed / error), least))
    rank = math.floor(ALPHA * len(t)) + 1
    exceeded = float(-np.partition(-t, rank - 1)[rank - 1])
    if freedom and error > 0:
        p = max(p, 2 * float(stdtr(freedom, -abs(observed) / error)))
        exceeded = max(exceeded, critical_value(ALPHA, freedom))
    effect = _effect(observed, error, exceeded * error, n, p)
    return effect.model_copy(update={"least_p": least, "freedom": freedom})


def _welch_freedom(variance: float, size: int, other: float, rest: int) -> float | None:
    """Degrees of freedom of a sum of two variances of means (Welch 1947, Biometrika 34); None without variance."""
    parts = variance**2 / (size - 1) + other**2 / (rest - 1)
    return (variance + other) ** 2 / parts if parts else None


def _variance_of_mean(sums: Floats, count: int, scale: float) -> Floats:
    spread = sums[:, 1] - sums[:, 0] ** 2 / count
    spread[spread < ROUNDING * scale] = 0.0
    return spread / (count - 1) / count


def _students(difference: float, se: float, size: int, n: int) -> Effect:
    """A contrast by Student's t, of as many degrees of freedom as the smaller group has: Welch's are never fewer."""
    from scipy.special import stdtr, stdtrit

    if se == 0:
        return _effect(difference, se, math.inf, n, 1.0 if difference == 0 else None)
    freedom = min(size, n - size) - 1
    p = max(2 * float(stdtr(freedom, -abs(difference) / se)), 1e-300)
    effect = _effect(difference, se, float(stdtrit(freedom, 1 - ALPHA / 2)) * se, n, p)
    return effect.model_copy(update={"freedom": float(freedom)})


def _effect(difference: float, se: float, margin: float, n: int, p: float | None) -> Effect:
    low, high = (difference - margin, difference + margin) if 0 < margin < math.inf else (None, None)
    return Effect(mean=difference, se=se, low=low, high=high, n=n, p=p)
