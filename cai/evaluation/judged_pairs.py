"""Labelled pairs as a judge sees them, in numbers: what its report is computed from."""

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from cai.data.records import Preference, Verdict, flips
from cai.feedback.metrics import abstained
from cai.stats.intervals import Estimate, share


class Opinion(NamedTuple):
    """The verdict of one principle (in a panel: of one judge) on a pair; probabilities are of its first answer."""

    by: str
    p: float
    forward: float  # the first answer shown before the second
    reverse: float
    non_option_mass: float
    weight: float
    tie_mass: float | None = None  # probability of a tie, where that is an option

    @property
    def call(self) -> float:
        """`p`, or one half where it calls a tie."""
        return called(self.p, self.tie_mass)


def called(p: float, tie_mass: float | None) -> float:
    """P(first better) as a verdict: one half where a tie, whose mass is half in p, is likelier than either answer."""
    return 0.5 if tie_mass is not None and tie_mass > max(p, 1 - p) - tie_mass / 2 else p


class Judged(NamedTuple):
    """A labelled pair as a judge sees it, without its texts."""

    prompt_id: str
    label: float  # P(first better), by people
    p: float  # by the judge
    longer: int  # characters of the first answer less those of the second
    opinions: tuple[Opinion, ...]  # none of identical answers, which are never asked
    abstained: float | None = None  # share of its principles without a vote; None where that was not asked
    tie_mass: float | None = None  # mean over its verdicts, by weight; None where a tie is no option

    @property
    def call(self) -> float:
        """`p`, or one half where the judge calls a tie."""
        return called(self.p, self.tie_mass)


def judged(pair: Preference) -> Judged:
    """The numbers of a labelled pair that a judge labelled again.

    Raises: ValueError for a pair without a label of its own, or without both orders.
    """
    if pair.input_p is None:
        raise ValueError(f"{pair.prompt_id}: the pair came without a label")
    opinions = tuple(_opinion(verdict) for verdict in pair.verdicts)
    longer = len(pair.chosen) - len(pair.rejected)
    ties = [(opinion.weight, opinion.tie_mass) for opinion in opinions if opinion.tie_mass is not None]
    tie_mass = sum(weight * mass for weight, mass in ties) / sum(weight for weight, _ in ties) if ties else None
    return Judged(pair.prompt_id, pair.input_p, pair.p, longer, opinions, abstained(pair), tie_mass)


def _opinion(v: Verdict) -> Opinion:
    if v.p_forward is None or v.p_reverse is None:
        raise ValueError(f"{v.principle_id}: the pair was judged in one order alone")
    by = f"{v.principle_id} @{v.judge[:6]}" if v.judge else v.principle_id
    return Opinion(by, v.p, v.p_forward, v.p_reverse, v.non_option_mass, v.weight, v.tie_mass)


def over_prompts(values: Iterable[tuple[str, float]]) -> Estimate:
    """The mean over prompts of each prompt's mean of values in [0, 1]: pairs of one prompt are not independent."""
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in values:
        by_prompt.setdefault(prompt_id, []).append(value)
    return share([fmean(of_prompt) for of_prompt in by_prompt.values()])


def position_bias(opinion: Opinion) -> bool:
    """Whether the verdict flips when the order is swapped; as Verdict.position_bias."""
    return flips(opinion.forward, opinion.reverse)
