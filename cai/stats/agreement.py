"""Preferences against labels: agreement beyond chance, log loss and calibration.

A preference is P(first better) of a pair, in [0, 1]; labels may be soft. No function depends on which answer of a
pair stands first.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cai.stats.intervals import Estimate, share
from cai.stats.logistic import logit, sigmoid
from cai.stats.win_rate import TIE, win

BINS = 10
COOLEST, HOTTEST = 0.01, 100.0  # bounds of fitted temperatures
DRAWS = 2000  # of outcomes of all bins
HALVINGS = 10  # of [0, 1] in search of a bound, to 0.001


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
    eq. 3) is never 0 on few pairs: a perfectly calibrated judge has 0.15 on 40. So it is read by what chance makes of
    judges whose true error is known (consistency resampling, Bröcker & Smith 2007, Weather Forecast. 22, 651–661), here
    of those that are right less often than they say, or more often, by the same in every bin. The estimate is the least
    error for which the observed one is no larger than the median, and the interval has those for which it is within 95
    % of draws (Neyman 1937), of which equal ones count half (mid-p, Lancaster 1961, JASA 56, 223–234). A bootstrap,
    which has no more than the observed errors to draw from, is too narrow: at 64 pairs it holds an error of 0.2 that is
    over- and underconfidence mixed in 88 % of experiments.

    Args: as reliability's, and the prompt of each pair. Raises: ValueError for no pairs.
    """
    if not len(predicted):
        raise ValueError("no pairs to measure calibration on")
    confidence, observed = _winners(predicted, labels)
    index = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    gaps, opinion, numbers = confidence - observed, confidence > 0.5, _bin(confidence)
    error = float(np.abs(np.bincount(numbers, gaps)).sum() / len(gaps))
    if len(index) < 2 or not opinion.any():
        return Estimate(error, None, None, len(index))
    sizes = np.bincount(numbers[opinion])
    used = sizes > 0
    means = np.bincount(numbers[opinion], confidence[opinion])[used] / sizes[used]
    spread = _together(np.where(opinion, gaps - gaps[opinion].mean(), 0.0), [index[prompt] for prompt in prompts])
    chance = _Chance(sizes[used], means, len(gaps), spread)
    signs = (1.0, -1.0)
    low = min((low for s in signs if (low := chance.least_error(error, 0.025, s)) is not None), default=error)
    # an error smaller than chance makes of a calibrated judge's in all but 2.5 % of draws: one that is rarer still
    high = max(chance.most_error(error, 0.975, s) for s in signs) or max(
        chance.most_error(error, 1.0, s) for s in signs
    )
    if not high:
        return Estimate(0.0, None, None, len(index))
    middle = chance.least_error(error, 0.5, 1.0 if gaps.sum() >= 0 else -1.0, equal=1.0)
    mean = error if middle is None else middle
    return Estimate(mean, min(low, mean), max(high, mean), len(index))


def _together(residuals: np.ndarray, prompts: Sequence[int]) -> float:
    """How much wider a sum varies since pairs of one prompt are right together (Kish 1965, §5.4); at least 1."""
    alone = float((residuals**2).sum())
    of_prompts = float((np.bincount(prompts, residuals) ** 2).sum())
    return max(1.0, of_prompts / alone) ** 0.5 if alone > 0 else 1.0


class _Chance(NamedTuple):
    """What chance makes of judges with these confidences: pairs and mean confidence by bin, and pairs in all."""

    sizes: np.ndarray
    confidence: np.ndarray
    pairs: int
    spread: float  # of a bin's outcome, to that of independent pairs

    def error(self, shift: float) -> float:
        """The true error of a judge that is right less often than it says by `shift`, as far as shares allow."""
        return float(self.sizes @ np.abs(self.confidence - self._right(shift)) / self.pairs)

    def _right(self, shift: float) -> np.ndarray:
        right: NDArray[np.float64] = np.clip(self.confidence - shift, 0.0, 1.0)
        return right

    def _shows_more(self, shift: float, observed: float, equal: float) -> float:
        """How often such a judge shows a larger error than the observed one; an equal one counts `equal`."""
        right = self._right(shift)
        drawn = np.random.default_rng(0).binomial(self.sizes, right, size=(DRAWS, len(right)))
        noise = self.spread * (drawn - self.sizes * right)
        errors = np.abs(self.sizes * (self.confidence - right) - noise).sum(axis=1) / self.pairs
        return float(np.mean(errors > observed + TIE) + equal * np.mean(np.abs(errors - observed) <= TIE))

    def least_error(self, observed: float, share: float, sign: float, equal: float = 0.5) -> float | None:
        """The least true error, of shifts with a sign, that shows more than observed in so many draws; None: none."""
        if self._shows_more(0.0, observed, equal) >= share:
            return 0.0
        least, most = 0.0, 1.0
        if self._shows_more(sign * most, observed, equal) < share:
            return None
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            reached = self._shows_more(sign * middle, observed, equal) >= share
            least, most = (least, middle) if reached else (middle, most)
        return self.error(sign * most)

    def most_error(self, observed: float, share: float, sign: float) -> float:
        """The largest true error that shows more than observed in no more draws; 0 if a calibrated judge shows more."""
        above = self.least_error(observed, share, sign)
        return self.error(sign) if above is None else above


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
