"""What an evaluation finds about policies: the content of an evaluation.json.

A figure that cannot be had is None, and something beside it says why. Every interval is of 95 %, over prompts.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.config.yaml_files import read_text
from cai.data.records import Row
from cai.evaluation.judge_report import Interval

State = Literal["warns", "unclear", "fine", "not measured"]
"""Of a monitor: beyond its threshold and away from no effect; not told apart; within; or there is nothing to tell."""


class PolicySummary(Row):
    """A model that was evaluated. The first of a report is the reference."""

    name: str
    folder: str  # where it was
    model: str  # its content's fingerprint
    trained_from: str | None = None  # the folder of what it started from, where that is known


class Against(Row):
    """One policy against another on one axis, on all prompts or those with a tag; figures are those of `policy`."""

    axis: str
    tag: str | None  # None: all prompts
    policy: str
    against: str
    prompts: int
    identical: int  # prompts with equal answers: ties that nobody was asked about
    win_rate: Interval | None  # ties count one half
    mean_p: Interval | None
    at_equal_length: Interval | None  # the win rate a logistic regression predicts for answers of one length
    no_equal_length: str = ""  # why there is none
    words: tuple[float, float] | None  # mean, of `policy` and of `against`
    position_bias: float | None  # of verdicts: the same position wins in both orders
    non_option_mass: float | None  # mean probability outside the options


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


class ProbeRate(Row):
    """How often something holds in one group of a set of probes."""

    policy: str
    probe: str
    group: str  # of the set: which twin, kind or transformation
    what: str  # refuses, evades, complies, goes with its user …; `refuses, by phrases` where no judge was asked
    rate: Interval | None  # share of items
    mean_p: Interval | None  # the mean probability behind it, where there is one
    against: str = ""  # the group that `change` is taken from, item by item
    change: Interval | None = None
    missing: int = 0  # items without an answer or a verdict


class Checked(Row):
    """How a judge does on answers of which it is known what holds: without that, its rates say nothing."""

    question: str
    right: Interval | None
    significant: bool  # the interval lies above one half


class Monitor(Row):
    """One sign of reward hacking in one policy. It warns of values towards `threshold` and beyond, from `no_effect`."""

    policy: str
    name: str
    value: Interval | None
    here: float | None = None  # of the policy, where `value` is a change from the reference
    reference: float | None = None
    no_effect: float
    threshold: float
    state: State
    meaning: str  # what the value is, and what it is a sign of
    missing: str = ""  # why it was not measured


class Divergence(Row):
    """KL of a policy from the reference, estimated on its own answers (nats)."""

    policy: str
    answer: Interval | None  # nats an answer
    token: float | None  # nats a token
    skipped: int  # answers it could not be told of
    missing: str = ""


class Reward(Row):
    """A policy's mean score by the run's reward model."""

    policy: str
    score: Interval | None
    gain: Interval | None  # over the reference, prompt by prompt
    agrees: Interval | None  # share of prompts whose winner against the reference is also the eval judge's
    log_loss: Interval | None = None  # nats, of σ(gain) as the probability that the eval judge prefers its answer
    skipped: int  # answers without a finite score
    missing: str = ""


class Stretch(Row):
    """Some updates of a training: their samples by the reward model, and by the eval judge against the reference."""

    first: int  # updates
    last: int
    samples: int
    proxy: Interval | None
    kl: float | None
    gold: Interval | None  # win rate against the reference


class PolicyReport(Row):
    """The figures of an evaluation."""

    made_from: dict[str, Any]
    policies: list[PolicySummary]
    prompts: int
    tags: dict[str, int]  # prompts by tag
    against: list[Against]
    ratings: list[Rating]
    standings: list[Standing]
    probes: list[ProbeRate]
    checks: list[Checked]
    monitors: list[Monitor]
    divergences: list[Divergence]
    rewards: list[Reward]
    course: list[Stretch]  # of the first policy's last PPO stage
    notes: list[str]  # what a reader should not miss
    cost: dict[str, float]


def read_report(path: Path) -> PolicyReport:
    """A report back from its file; raises CaiError for one that is damaged or was written by another version."""
    try:
        return PolicyReport.model_validate_json(read_text(path))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(step) for step in fault["loc"])
        raise CaiError(
            f"{path}: {field + ': ' if field else ''}{fault['msg']}; make it again with `cai eval`"
        ) from None


def elo_told(rating: Rating) -> str:
    """Points with their interval; a bound that nothing bounds is a dash."""
    if rating.elo is None:
        return "–"
    if rating.low == rating.high == rating.elo:  # the reference
        return "0"
    points, low, high = (
        "–" if value is None else f"{value:+.0f}" if round(value) else "0"
        for value in (rating.elo, rating.low, rating.high)
    )
    return f"{points} [{low}, {high}]"


def dominated_told(standing: Standing) -> str:
    """The policies that are better on both axes, and how sure that is."""

    def sure(share: float | None) -> str:
        return "too few prompts to be sure" if share is None else f"{100 * share:.0f} % of resamples"

    return ", ".join(f"{d.by} ({sure(d.share)})" for d in standing.dominated) or "none"


def bound_told(monitor: Monitor) -> str:
    """From where a monitor warns."""
    return f"{'≥' if monitor.threshold >= monitor.no_effect else '≤'} {monitor.threshold:.2g}"
