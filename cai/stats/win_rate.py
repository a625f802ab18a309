"""Win rates, and the length-controlled win rate: the predicted one for answers of equal length (Dubois et al. 2024).

Their regression (arXiv:2404.04475 §3) has a term for the model, one for the difference in length and one for the
difficulty of the instruction. The last is omitted: separating it from the first needs many models that answer the same
instructions, and this compares two. At equal lengths its mean is 0, so it would change the interval and not the
meaning of the rate. The outcome regressed here is the winner, so that the rate is comparable with the win rate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai.stats.intervals import RESAMPLES, Estimate, interval_of, resampled
from cai.stats.logistic import fit_logistic

FEW_PROMPTS = 30  # a win rate of fewer has an interval wider than ± 0.18
FOLLOWS_POSITION = (
    0.5  # position bias from which win rates say little; the smallest judges of Lee et al. 2023 (§2.2) reach 0.56
)
TIE = 1e-9  # what rounding may leave of an exact tie between two orders


def win(p: float) -> float:
    """1 for a win, 0 for a loss, one half for a tie."""
    return 0.5 if abs(p - 0.5) < TIE else float(p > 0.5)


SIDES = 5  # prompts at least on which the answer is the longer one, and on which it is the shorter
RIDGE = np.array([1e-6, 0.1])  # on the policy's log-odds, none to speak of; on length, a normal prior of deviation 3.2


class LengthControlled(NamedTuple):
    """A length-controlled win rate, or the reason why there is none."""

    win_rate: Estimate | None
    missing: str = ""


def length_controlled_win_rate(
    wins: Sequence[float], longer: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> LengthControlled:
    """σ(θ) of the fit σ(θ + φ · tanh(d / sd)), with a percentile bootstrap over prompts that fits anew each time.

    Args: for each prompt who won (1, 0, ties one half) and d, the answer's length less that of the other, in any unit;
    sd is the root mean square of d about its mean. Without differences in length it is the mean of `wins`.
    """
    won, lengths = np.asarray(wins, dtype=float), np.asarray(longer, dtype=float)
    if len(won) < 2 * SIDES:
        return LengthControlled(None, f"{len(won)} prompts are too few, at least {2 * SIDES} are needed")
    counts = {"longer": int((lengths > 0).sum()), "shorter": int((lengths < 0).sum())}
    if not any(counts.values()):
        design = np.zeros((len(won), 2))
    else:
        for side, count in counts.items():
            if count < SIDES:
                return LengthControlled(
                    None,
                    f"its answers are {side} on {count} of {len(won)} prompts only, too few to separate length from "
                    f"quality; at least {SIDES} are needed",
                )
        design = np.tanh(lengths / lengths.std())
        design = np.stack([np.zeros(len(won)), design], axis=1)
    design[:, 0] = 1.0
    weights = np.concatenate([np.ones((1, len(won))), resampled(len(won), resamples, seed)])
    rates = 1 / (1 + np.exp(-fit_logistic(design, won, weights, RIDGE)[:, 0]))
    return LengthControlled(interval_of(float(rates[0]), rates[1:], len(won)))
