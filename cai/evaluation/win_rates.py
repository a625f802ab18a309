"""Win rates between policies by axis and tag, Elo ratings of all of them, and who is better on both axes.

Elo points come from a Bradley–Terry fit to all comparisons.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from cai.data.records import Judgement, Prompt, Row
from cai.evaluation.judge_report import Interval
from cai.evaluation.monitors import LEAST
from cai.feedback.metrics import mean_over_prompts, non_option_mass, position_bias, words
from cai.stats.intervals import RESAMPLES, interval_of, resampled, share
from cai.stats.logistic import fit_logistic
from cai.stats.trainings import PROMPTS_ONLY
from cai.stats.win_rate import length_controlled_win_rate, win

ELO = 400 / math.log(10)  # points a log-odd: 400 points are ten wins to one loss (Elo 1978, The Rating of Chessplayers)
EVEN = 1e-6  # log-odds that rounding may leave between two that are even
RIDGE = 1e-6  # of a comparison, on each squared strength, which makes strengths unique


class Rating(Row):
    """A policy's Elo points on an axis, by a Bradley–Terry fit to all comparisons; the reference has 0."""

    axis: str
    policy: str
    elo: float | None
    low: float | None = None
    high: float | None = None
    prompts: int
    missing: str = ""  # why there is no rating or no interval


class Dominated(Row):
    """Another policy is better on both axes; `share` of the bootstrap's resamples agree, None of few prompts."""

    by: str
    share: float | None


class Standing(Row):
    """A policy on the two axes, in Elo points against the reference, and the policies that are better on both."""

    policy: str
    helpful: Rating
    safe: Rating
    dominated: list[Dominated]  # none: it is on the Pareto front


class Outcome(NamedTuple):
    """One comparison: 1 where the answer of `policy` is better, 0 where the other's is, one half for a tie."""

    prompt_id: str
    policy: str
    against: str
    win: float


class Rated(NamedTuple):
    """Ratings of all policies, and their strengths, of all prompts and of every resample: log-odds against the first,
    ±inf, or nan where the comparisons do not connect the two.
    """

    ratings: list[Rating]
    strengths: np.ndarray  # (policies,)
    samples: np.ndarray  # (resamples, policies)


def rate(
    outcomes: Sequence[Outcome],
    policies: Sequence[str],
    prompts: Sequence[str],
    axis: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Rated:
    """Ratings with bootstrap intervals over prompts; the first policy is the reference and has 0.

    Args: `prompts` are all that may be drawn; the same ones and the same seed give the same resamples on every axis.
    Where a policy never lost against (or never won from) the others, no finite rating fits best (Ford 1957, Am. Math.
    Mon. 64, 28–33), and there is none; the same of a bound.
    """
    place, row = ({name: i for i, name in enumerate(names)} for names in (policies, prompts))
    pairs = sorted({tuple(sorted((place[o.policy], place[o.against]))) for o in outcomes})
    column = {pair: i for i, pair in enumerate(pairs)}
    counts, wins = np.zeros((2, len(prompts), len(pairs)))
    for o in outcomes:
        i, j = place[o.policy], place[o.against]
        counts[row[o.prompt_id], column[min(i, j), max(i, j)]] += 1
        wins[row[o.prompt_id], column[min(i, j), max(i, j)]] += o.win if i < j else 1 - o.win
    if not pairs:
        strengths = np.full((resamples + 1, len(policies)), np.nan)
        strengths[:, 0] = 0.0
    else:
        drawn = np.concatenate([np.ones((1, len(prompts))), resampled(len(prompts), resamples, seed)])
        strengths = _strengths(drawn @ counts, drawn @ wins, pairs, len(policies))
    compared = [len({o.prompt_id for o in outcomes if name in (o.policy, o.against)}) for name in policies]
    ratings = [
        _rating(axis, name, strengths[:, i], n, reference=i == 0)
        for i, (name, n) in enumerate(zip(policies, compared, strict=True))
    ]
    return Rated(ratings, strengths[0], strengths[1:])


def _strengths(counts: np.ndarray, wins: np.ndarray, pairs: Sequence[tuple[int, ...]], policies: int) -> np.ndarray:
    """Log-odds against policy 0 of every policy in every resample; counts and wins are of shape (resamples, pairs)."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    sides = np.eye(policies)[first] - np.eye(policies)[second]
    labels = np.divide(wins, counts, out=np.full_like(wins, 0.5), where=counts > 0)
    fitted = fit_logistic(sides, labels, counts, RIDGE)
    beats = np.zeros((len(counts), policies, policies), dtype=bool)  # whether one ever won, or drew, against another
    beats[:, first, second] = wins > 0
    beats[:, second, first] = counts - wins > 0
    beats |= np.eye(policies, dtype=bool)
    for _ in range(max(1, policies.bit_length())):  # chains of wins, of twice the length each time
        beats = (beats.astype(np.int16) @ beats.astype(np.int16)) > 0
    above, below = beats[:, :, 0], beats[:, 0, :]
    strengths = np.where(above & below, fitted - fitted[:, :1], np.nan)
    strengths[above & ~below] = np.inf
    strengths[below & ~above] = -np.inf
    return np.asarray(strengths)


def _rating(axis: str, policy: str, strengths: np.ndarray, prompts: int, reference: bool) -> Rating:
    if reference:
        return Rating(axis=axis, policy=policy, elo=0.0, low=0.0, high=0.0, prompts=prompts)
    best, samples = float(strengths[0]), strengths[1:]
    defined = samples[~np.isnan(samples)]
    connected = len(defined) > len(samples) / 2 and math.isfinite(best)
    held = interval_of(best, defined, prompts, of_mean=False) if connected else None
    missing = ""
    if math.isnan(best):
        missing = "no comparison with the reference, directly or through other policies"
    elif math.isinf(best):
        missing = (
            f"it never {'lost' if best > 0 else 'won'}, directly or through other policies: its rating is unbounded"
        )
    elif prompts < 2:
        missing = "one prompt has no interval"
    elif held is not None and held.low is None and held.high is None:
        missing = "all prompts are equal, so it has no interval"
    elif held is None:
        missing = "in most resamples nothing connects it with the reference, so it has no interval"
    bounds = zip(("elo", "low", "high"), (held.mean, held.low, held.high) if held else (best, None, None), strict=True)
    points = {name: ELO * x if x is not None and math.isfinite(x) else None for name, x in bounds}
    return Rating(axis=axis, policy=policy, prompts=prompts, missing=missing, **points)


def format_elo(rating: Rating) -> str:
    """Elo points with their interval; an infinite bound is a dash."""
    if rating.elo is None:
        return "–"
    if rating.low == rating.high == rating.elo:  # the reference
        return "0"
    points, low, high = (
        "–" if value is None else f"{value:+.0f}" if round(value) else "0"
        for value in (rating.elo, rating.low, rating.high)
    )
    return f"{points} [{low}, {high}]" if (rating.low, rating.high) != (None, None) else f"{points} (no interval)"


def format_dominated(standing: Standing) -> str:
    """The policies that are better on both axes, with the share of resamples that agree."""

    def sure(share: float | None) -> str:
        return "too few prompts" if share is None else f"{100 * share:.0f} % of resamples"

    return ", ".join(f"{d.by} ({sure(d.share)})" for d in standing.dominated) or "none"


def standings(policies: Sequence[str], helpful: Rated, safe: Rated) -> list[Standing]:
    """Each policy on both axes, and who dominates it: is better on both in the fit to all prompts.

    The axes' ratings must come from the same prompts and seed. A share of 0.95 or more is significant; of fewer than
    LEAST prompts there is none, since all resamples of three wins agree, which chance brings once in eight times.
    """
    standing = []
    for i, name in enumerate(policies):
        dominated = []
        for j, other in enumerate(policies):
            if all(rated.strengths[j] > rated.strengths[i] + EVEN for rated in (helpful, safe)):
                both = [rated.samples[:, j] > rated.samples[:, i] + EVEN for rated in (helpful, safe)]
                few = min(rated.ratings[k].prompts for rated in (helpful, safe) for k in (i, j)) < LEAST
                dominated.append(Dominated(by=other, share=None if few else float(np.mean(both[0] & both[1]))))
        standing.append(Standing(policy=name, helpful=helpful.ratings[i], safe=safe.ratings[i], dominated=dominated))
    return standing


TAGGED = 8  # prompts of a tag, below which it has no win rate of its own
Texts = Mapping[tuple[str, str], str]
"""Answers by policy and prompt id."""


class PolicyComparison(Row):
    """One policy against another on one axis, on all prompts or those with a tag; metrics are those of `policy`."""

    axis: str
    tag: str | None  # None: all prompts
    policy: str
    against: str
    prompts: int
    identical: int  # prompts with equal answers: ties without verdicts
    ties: int | None = None  # prompts without a winner, with those; None in reports of earlier versions
    win_rate: Interval | None  # ties count one half
    mean_p: Interval | None
    length_controlled_win_rate: Interval | None  # the win rate a logistic regression predicts for answers of one length
    length_controlled_missing: str = ""  # why there is none
    words: tuple[float, float] | None  # mean, of `policy` and of `against`
    position_bias: float | None  # share of verdicts that flip when the order is swapped
    non_option_mass: float | None  # mean probability outside the options
    note: str = ""  # what limits the rates


def tags_of(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts have each tag, the most frequent first."""
    return dict(Counter(tag for prompt in prompts for tag in dict.fromkeys(prompt.tags)).most_common())


def tags_to_report(tags: Mapping[str, int], prompts: int) -> list[str]:
    """The tags of at least TAGGED prompts, but not of all."""
    return [tag for tag, count in tags.items() if TAGGED <= count < prompts]


def compare_policies(
    judgements: Sequence[Judgement], texts: Texts, tags: Sequence[str], trained: Collection[str] = ()
) -> list[PolicyComparison]:
    """Every pair of policies on every axis: on all prompts, and on those with each of the tags.

    Rows of two `trained` policies say in their note that these are of one training each.
    """
    couples = dict.fromkeys((row.axis, row.policy, row.against) for row in judgements)
    comparisons = []
    for axis, policy, other in couples:
        rows = [row for row in judgements if (row.axis, row.policy, row.against) == (axis, policy, other)]
        for tag in (None, *tags):
            own = [row for row in rows if tag is None or tag in row.tags]
            if own:
                note = PROMPTS_ONLY if policy in trained and other in trained else ""
                comparisons.append(compare_pair(own, texts, tag).model_copy(update={"note": note}))
    return comparisons


def compare_pair(rows: Sequence[Judgement], texts: Texts, tag: str | None) -> PolicyComparison:
    """One pair of policies on one axis; there is no win rate where all answers are equal."""
    axis, policy, other = rows[0].axis, rows[0].policy, rows[0].against
    wins = [win(row.p) for row in rows]
    own, theirs = ([texts[name, row.prompt_id] for row in rows] for name in (policy, other))
    verdicts = any(row.verdicts for row in rows)
    nothing = "" if verdicts else "all answers are equal: there is nothing to compare"
    longer = [float(len(a) - len(b)) for a, b in zip(own, theirs, strict=True)]
    equal = length_controlled_win_rate(wins, longer) if verdicts else None
    return PolicyComparison(
        axis=axis,
        tag=tag,
        policy=policy,
        against=other,
        prompts=len(rows),
        identical=sum(not row.verdicts for row in rows),
        ties=wins.count(0.5),
        win_rate=share(wins) if verdicts else None,
        mean_p=share([row.p for row in rows]) if verdicts else None,
        length_controlled_win_rate=equal.win_rate if equal else None,
        length_controlled_missing=equal.missing if equal else nothing,
        words=(fmean(map(words, own)), fmean(map(words, theirs))),
        position_bias=mean_over_prompts((row.prompt_id, position_bias(row.verdicts)) for row in rows),
        non_option_mass=mean_over_prompts((row.prompt_id, non_option_mass(row.verdicts)) for row in rows),
    )


def outcomes(judgements: Iterable[Judgement], axis: str) -> list[Outcome]:
    """Who won, for ratings; two policies whose answers are all equal were not compared."""
    rows = [row for row in judgements if row.axis == axis]
    compared = {(row.policy, row.against) for row in rows if row.verdicts}
    return [Outcome(r.prompt_id, r.policy, r.against, win(r.p)) for r in rows if (r.policy, r.against) in compared]
