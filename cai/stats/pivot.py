"""Tests against a variance that is a sum less a part of it, as estimated with few degrees of freedom.

Student's t with Satterthwaite's degrees of freedom fails where a variance of one or two degrees of freedom decides: the
less it happens to be, the more freedom the whole seems to have. The generalized pivot of Weerahandi 1993 (JASA 88,
899–905) draws each variance from what its estimate leaves open, V · f / χ²_f, and is Student's t where there is one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cai.stats.power import MANY, critical_value

ALPHA = 0.05
DRAWS = 12  # 2¹²
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

    uniform = qmc.Sobol(3, rng=0).random_base2(DRAWS)[:, place]
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
