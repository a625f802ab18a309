"""A labelled pair as a judge sees it, and how often a judge is right over many."""

from collections.abc import Iterable
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import PlainSerializer

from cai.evaluation.statistics import Estimate, bootstrap_mean, share
from cai.evaluation.win_rate import win
from cai.records import Preference, Verdict

Interval = Annotated[Estimate, PlainSerializer(lambda e: e._asdict())]
"""An Estimate, written with the names of its figures."""


class Opinion(NamedTuple):
    """What one principle (in a panel: of one judge) says of a pair; the probabilities are those of its first answer."""

    by: str
    p: float
    forward: float  # the first answer shown before the second
    reverse: float
    outside: float
    weight: float


class Judged(NamedTuple):
    """A labelled pair as a judge sees it, without its texts."""

    prompt_id: str
    label: float  # P(first is better), by people
    p: float  # by the judge
    longer: int  # characters of the first answer less those of the second
    opinions: tuple[Opinion, ...]  # none of identical answers, which are never asked


def judged(pair: Preference) -> Judged:
    """The figures of a pair that a judge labelled anew.

    Raises: ValueError for a pair without a given label, or without both orders.
    """
    if pair.given is None:
        raise ValueError(f"{pair.prompt_id}: the pair came without a label")
    opinions = tuple(_opinion(verdict) for verdict in pair.verdicts)
    return Judged(pair.prompt_id, pair.given, pair.p, len(pair.chosen) - len(pair.rejected), opinions)


def _opinion(v: Verdict) -> Opinion:
    if v.p_forward is None or v.p_reverse is None:
        raise ValueError(f"{v.principle_id}: the pair was judged in one order alone")
    by = f"{v.principle_id} @{v.judge[:6]}" if v.judge else v.principle_id
    return Opinion(by, v.p, v.p_forward, v.p_reverse, v.outside, v.weight)


def hit(p: float, label: float) -> float:
    """1 where both name the same winner, 0 where they name different ones, one half where either calls it a tie."""
    return 1.0 - abs(win(p) - win(label))


def over_prompts(values: Iterable[tuple[str, float]]) -> Estimate:
    """The mean over prompts of each prompt's mean, with a bootstrap interval: pairs of one prompt are not independent.

    Where every prompt says 0, or every one 1, a bootstrap would be certain, and the interval is Wilson's.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in values:
        by_prompt.setdefault(prompt_id, []).append(value)
    means = [fmean(of_prompt) for of_prompt in by_prompt.values()]
    return share(means) if set(means) in ({0.0}, {1.0}) else bootstrap_mean(means)


def same_position(opinion: Opinion) -> bool:
    """Whether the same position wins in both orders; as Verdict.same_position."""
    return (opinion.forward > 0.5) != (opinion.reverse > 0.5)
