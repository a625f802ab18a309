"""How far two judges of the same pairs agree, beyond what chance would bring."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from cai.stats.intervals import wilson
from cai.stats.win_rate import win


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
    """Between the winners that two judges' P(first is better) name; a tie is a verdict of its own. None for no pairs.

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
