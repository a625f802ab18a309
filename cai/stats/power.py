"""What a test can find: its smallest detectable difference, and how many prompts a difference needs.

Both are of Student's t, whose power is that of the sign-flip and permutation tests of cai/stats/significance.py up to
a few points (Hoeffding 1952, Ann. Math. Stat. 23; tests/stats/test_power.py simulates it). With few prompts and many
tests the normal approximation of Cohen 1988, §2.4, asks for far too little: 8 prompts among 5 tests find 4.7 standard
errors with 80 % power, and not 3.4.

Flags, whose differences are −1, 0 or 1, are no such values: if few prompts differ, their spread is small, and so is the
smallest p they can have. Their test is the exact one of McNemar 1947 (Psychometrika 12, 153–157), and its power is
summed over how many prompts may differ (Duffy 1984, Biometrics 40, 1005–1015).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

POWER = 0.8  # the convention of Cohen 1988, §2.4
MANY = 1e5  # degrees of freedom from which Student's t is the normal distribution
MOST_PROMPTS = 10_000_000  # of a plan
ROUNDING = 1e-9  # relative
_normal = NormalDist()


def attained_level(alpha: float, least_p: float) -> float | None:
    """The largest level ≤ alpha of a test whose p values are multiples of `least_p`; None where there is none."""
    if least_p > alpha * (1 + ROUNDING):
        return None
    return least_p * math.floor(alpha / least_p * (1 + ROUNDING)) if least_p > alpha * 1e-3 else alpha


@lru_cache(maxsize=4096)  # metrics on the same prompts ask the same
def detectable(alpha: float, freedom: float | None = None, power: float = POWER) -> float:
    """The difference, in standard errors, that a two-sided t test at level `alpha` finds with this power.

    The non-centrality c with P(T(freedom, c) > t_{1−α/2}) = power (Cohen 1988, §2.2; the other tail is below 10⁻⁵).
    Freedom None is the normal distribution: z_{1−α/2} + z_{power}.
    """
    from scipy.special import nctdtrinc

    critical = critical_value(alpha, freedom)
    if freedom is None or freedom >= MANY:
        return critical + _normal.inv_cdf(power)
    return float(nctdtrinc(freedom, 1 - power, critical))


def all_of_one_sign(least_p: float, power: float = POWER) -> float:
    """The difference, in standard errors, at which all of the differences by prompt have its sign with this power.

    That is what a sign-flip test needs where no other pattern of signs is rare enough: √m · z of power^(1/m), for the m
    prompts of which 2^(1−m) is the smallest p.
    """
    signs = 1 - math.log2(least_p)
    return math.sqrt(signs) * _normal.inv_cdf(power ** (1 / signs))


def critical_value(alpha: float, freedom: float | None) -> float:
    """t_{1−α/2} of so many degrees of freedom; None: of the normal distribution."""
    from scipy.special import stdtrit

    if freedom is None or freedom >= MANY:
        return _normal.inv_cdf(1 - alpha / 2)
    return float(stdtrit(freedom, 1 - alpha / 2))


def planned_errors(alpha: float, freedom: float, known: float) -> float:
    """`detectable` of a planned test of so much freedom, where the standard error was estimated with `known` freedom.

    The 80 % quantile of a non-central t of freedom `known` and non-centrality t_{1−α/2} (Julious & Owen 2006, Pharm.
    Stat. 5, 29–37): a standard error of few prompts or trainings is uncertain, and with this the power is 80 % on
    average over such pilots, where the usual formula has less.
    """
    from scipy.stats import nct

    critical = critical_value(alpha, freedom)
    return critical + _normal.inv_cdf(POWER) if known >= MANY else float(nct.ppf(POWER, known, critical))


def planned_prompts(deviation: float, freedom: float, difference: float, alpha: float = 0.05) -> int | None:
    """How many prompts a test at level `alpha` needs to find a difference with 80 % power.

    Args: the standard deviation of the differences by prompt, with the degrees of freedom it was estimated with, in the
    unit of `difference`, which is above 0.

    The smallest n with √n · difference / deviation ≥ `planned_errors`. At least so many that 2^(1−n), the smallest p of
    a sign-flip test, is below alpha / 2. None beyond MOST_PROMPTS.
    """
    if difference <= 0:
        raise ValueError(f"expected a difference above 0, found {difference}")

    def enough(n: int) -> bool:
        return math.sqrt(n) * difference >= planned_errors(alpha, n - 1, freedom) * deviation

    return _least_enough(max(2, math.ceil(2 - math.log2(alpha))), enough)


def _least_enough(least: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest number of prompts from `least` on that is enough; None beyond MOST_PROMPTS."""
    low, high = least - 1, least
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_PROMPTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


MANY_FLAGS = 20_000  # prompts, beyond which shares are as good as normally distributed
NEGLIGIBLE = 1e-9  # a probability


def flag_power(n: int, up: float, down: float, alpha: float) -> float:
    """How often the exact test finds that of n prompts a share `up` gains a flag and a share `down` loses it.

    Both are above 0 together. The other direction's part, below alpha / 2, is left out.
    """
    from scipy.special import bdtrc
    from scipy.stats import binom

    differing = np.arange(n + 1)
    likely = binom.pmf(differing, n, up + down)
    differing, likely = differing[likely > NEGLIGIBLE], likely[likely > NEGLIGIBLE]
    needed = np.array([_rare_majority(int(m), alpha) for m in differing])
    possible = needed <= differing
    found = bdtrc(needed[possible] - 1.0, differing[possible], up / (up + down))
    return float(likely[possible] @ found)


@lru_cache(maxsize=65536)
def _rare_majority(m: int, alpha: float) -> int:
    """The least number of m fair coins to one side that is rarer than alpha, both sides counted; m + 1 for none."""
    from scipy.stats import binom

    return min(m + 1, max(int(binom.isf(alpha / 2 * (1 + ROUNDING), m, 0.5)) + 1, 1))


def _split(share: float, difference: float) -> tuple[float, float]:
    """The shares of prompts that gain and lose a flag, if a share differs, or as many as the difference takes."""
    differing = min(1.0, max(share, difference))
    return (differing + difference) / 2, (differing - difference) / 2


def differing_share(differing: int, n: int) -> float:
    """Of prompts: Laplace's estimate, since of few prompts none that differs does not make the next ones equal."""
    return (differing + 1) / (n + 2)


def detectable_flags(n: int, share: float, alpha: float) -> float | None:
    """The smallest difference of flags that n prompts find with 80 % power, where a share of them differs.

    None where even a flag that every prompt gains is not found. Args: n up to MANY_FLAGS.
    """
    low, high = 0.0, 1.0
    if flag_power(n, 1.0, 0.0, alpha) < POWER:
        return None
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if flag_power(n, *_split(share, middle), alpha) >= POWER else (middle, high)
    return high


def planned_flags(share: float, difference: float, alpha: float) -> int | None:
    """How many prompts find a difference of flags with 80 % power, where a share of prompts differs.

    Args: a difference in (0, 1]. None beyond MANY_FLAGS.
    """
    if not 0 < difference <= 1:
        raise ValueError(f"expected a difference above 0 and at most 1, found {difference}")

    def enough(n: int) -> bool:
        return n > MANY_FLAGS or flag_power(n, *_split(share, difference), alpha) >= POWER

    found = _least_enough(max(2, math.ceil(1 - math.log2(alpha))), enough)
    return None if found is None or found > MANY_FLAGS else found
