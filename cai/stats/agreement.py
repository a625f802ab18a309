"""Preferences against labels: agreement beyond chance, log loss and calibration.

A preference is P(first better) of a pair, in [0, 1]; labels may be soft. No function depends on which answer of a
pair stands first.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cai.stats.intervals import RESAMPLES, Estimate, percentiles, resampled, share, wilson
from cai.stats.logistic import logit, sigmoid
from cai.stats.win_rate import win

BINS = 10
COOLEST, HOTTEST = 0.01, 100.0  # bounds of fitted temperatures
PARTS = 20  # of RESAMPLES, so that those of many prompts fit in memory


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


def agreement(a: Sequence[float], b: Sequence[float], prompts: Sequence[Hashable] | None = None) -> Agreement | None:
    """Between the winners that two judges' P(first better) name; a tie is a verdict of its own. None for no pairs.

    Every pair is read from both sides: which answer stands first says nothing, and if it were the better one in every
    row of a file, chance agreement would be 1 and κ undefined. Without ties chance agreement is then exactly one
    half, and κ = 2 · observed − 1. The interval is that of the observed share (`intervals.share`) on the scale of κ,
    over `prompts`, which each pair belongs to, or else over pairs: the pairs of one prompt agree together. Cohen's own
    (1960, Educ. Psychol. Meas. 20, eq. 7) takes κ = 1 of two pairs for certain.
    """
    if not a:
        return None
    first, second = [win(p) for p in a], [win(p) for p in b]
    same = share([float(x == y) for x, y in zip(first, second, strict=True)], prompts)
    observed = same.mean
    both = ([*first, *(1 - x for x in first)], [*second, *(1 - y for y in second)])
    by_chance, kappa = chance_agreement(*both), cohen_kappa(*both)
    if kappa is None:
        return Agreement(len(first), observed, None, None, None)
    low, high = ((bound - by_chance) / (1 - by_chance) for bound in (same.low or 0.0, same.high or 0.0))
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


class Bin(NamedTuple):
    """Pairs whose predicted winner had a probability in [low, high): how sure the model was, how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    observed: float


def reliability(predicted: Sequence[float], labels: Sequence[float]) -> list[Bin]:
    """The reliability curve over ten equal bins of [0.5, 1]; empty bins are skipped.

    Args: both P(first better) in [0, 1], a value a pair; labels may be soft. A pair is read from the side of its
    predicted winner, since which response stands first says nothing; where none is predicted, from both sides.
    """
    confidence, observed = _winners(predicted, labels)
    numbers = _bin(confidence)
    bins = []
    for i in range(BINS):
        inside = numbers == i
        if n := int(inside.sum()):
            low, high = 0.5 + 0.5 * i / BINS, 0.5 + 0.5 * (i + 1) / BINS
            bins.append(Bin(low, high, n, float(confidence[inside].mean()), float(observed[inside].mean())))
    return bins


def _winners(predicted: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair the probability of its predicted winner, and how far the label says so."""
    q, p = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
    observed = np.where(q == 0.5, 0.5, np.where(q > 0.5, p, 1 - p))
    return np.maximum(q, 1 - q), observed


def _bin(confidence: np.ndarray) -> np.ndarray:
    numbers: NDArray[np.int_] = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return numbers


def calibration_error(predicted: Sequence[float], labels: Sequence[float], prompts: Sequence[Hashable]) -> Estimate:
    """The expected calibration error, corrected for its bias, in [0, 1], with a 95 % interval over prompts.

    The mean distance between confidence and outcome over the bins of `reliability` (Guo et al. 2017, arXiv:1706.04599
    eq. 3) is never 0 on few pairs: a perfectly calibrated judge has 0.15 on 40. So the bootstrap's estimate of the bias
    is taken off, 2 θ − mean(θ*), and the interval is the basic one (Efron & Tibshirani 1993, §10.6, §13.4), with
    prompts resampled; it reaches to 0 where outcomes drawn by the confidences alone have such an error more often than
    in 2.5 % of draws (consistency resampling, Bröcker & Smith 2007, Weather Forecast. 22, 651–661).

    Args: as reliability's, and the prompt of each pair. Raises: ValueError for no pairs.
    """
    if not len(predicted):
        raise ValueError("no pairs to measure calibration on")
    confidence, observed = _winners(predicted, labels)
    index = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    of_prompt, bins = np.array([index[prompt] for prompt in prompts]), _bin(confidence)
    gaps, pairs = np.zeros((len(index), BINS)), np.zeros(len(index))
    np.add.at(gaps, (of_prompt, bins), confidence - observed)
    np.add.at(pairs, of_prompt, 1)
    error = float(np.abs(gaps.sum(axis=0)).sum() / len(confidence))
    if len(index) < 2:
        return Estimate(error, None, None, len(index))
    errors = np.concatenate([_errors(gaps, pairs, seed) for seed in range(PARTS)])
    by_chance = np.concatenate([_errors_by_chance(confidence, of_prompt, bins, seed) for seed in range(PARTS)])
    if np.ptp(observed) == 0:  # all right, or all wrong: every resample is
        bounds = wilson(float(observed[0]), len(index))
        high = max(float(np.abs(confidence - bound).mean()) for bound in bounds)
        low, mean = error, error
    else:
        least, most = percentiles(errors, len(index))
        low, mean, high = 2 * error - most, 2 * error - float(errors.mean()), 2 * error - least
    if error <= np.quantile(by_chance, 0.975):
        low = 0.0
    mean = max(0.0, mean)
    return Estimate(mean, min(max(0.0, low), mean), max(mean, min(1.0, high)), len(index))


def _errors(gaps: np.ndarray, pairs: np.ndarray, seed: int) -> np.ndarray:
    """Of resampled prompts, a part of all resamples."""
    drawn = resampled(len(pairs), RESAMPLES // PARTS, seed)
    errors: NDArray[np.float64] = np.abs(drawn @ gaps).sum(axis=1) / (drawn @ pairs)
    return errors


def _errors_by_chance(confidence: np.ndarray, of_prompt: np.ndarray, bins: np.ndarray, seed: int) -> np.ndarray:
    """Of a calibrated judge with these confidences; pairs of one prompt are right together, which is the safe guess."""
    drawn = np.random.default_rng(seed).random((RESAMPLES // PARTS, int(of_prompt.max()) + 1))
    gaps = confidence - (drawn[:, of_prompt] < confidence)
    gaps[:, confidence == 0.5] = 0.0
    errors: NDArray[np.float64] = np.abs(gaps @ np.eye(BINS)[bins]).sum(axis=1) / len(confidence)
    return errors


def mean_log_loss(predicted: Sequence[float], labels: Sequence[float], temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats of σ(logit(predicted) / T) against labels in [0, 1], which may be soft."""
    odds = np.array([logit(q) for q in predicted]) / temperature
    return float(np.mean(np.logaddexp(0, odds) - np.asarray(labels) * odds))


def fit_temperature(predicted: Sequence[float], labels: Sequence[float]) -> float:
    """The T > 0 whose σ(logit(predicted) / T) has the least mean log loss (Guo et al. 2017, arXiv:1706.04599 §4.2).

    Args: as reliability's; at least one pair. Returns: T within [COOLEST, HOTTEST]. The coolest means that the
    predictions, however sure, are never wrong; the hottest that they are no better than chance.
    """
    from scipy.optimize import minimize_scalar

    def loss(t: float) -> float:
        return mean_log_loss(predicted, labels, t)

    # convex in 1 / T, and so with a single minimum in log T, where powers of ten lie evenly
    optimum = minimize_scalar(
        lambda x: loss(float(np.exp(x))),
        bounds=(np.log(COOLEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return min((COOLEST, HOTTEST, float(np.exp(optimum.x))), key=loss)


def tempered(p: float, temperature: float) -> float:
    """σ(logit(p) / T)."""
    return sigmoid(logit(p) / temperature)
