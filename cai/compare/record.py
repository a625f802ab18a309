"""The results of `cai compare` and `cai attribute` as typed records: printed, plotted and written as JSON from here.

Every difference is an Effect (cai/stats/significance.py); `effect.significant` says whether it is significant after
Holm's correction, for which all tests of one record are one family. Of what trained policies answer, `effect.note` says
how many trainings a difference is of; with one a side nothing is tested. What is None or empty could not be computed,
and `warnings` says why. Texts of models stand here as they were written.
"""

from typing import Any, Literal

from cai.data.records import Messages, Row, Source
from cai.feedback.metrics import REVISION_BETTER, ROUND_METRICS
from cai.feedback.pairs import Agreed
from cai.stats.significance import Effect

Kind = Literal["same", "added", "removed", "reworded", "reweighted", "rescoped"]
OUTCOMES = {
    **{metric.key: metric.meaning for metric in ROUND_METRICS},
    "verdict": f"{REVISION_BETTER.name}, {REVISION_BETTER.meaning} and this principle",
}
"""The outcomes of a principle, over the rounds of revision that drew it: key → meaning."""
OUTCOME_NAMES = {**{metric.key: metric.name for metric in ROUND_METRICS}, "verdict": REVISION_BETTER.name}


METRIC_TABLE, WIN_TABLE, EFFECT_TABLE, AGAINST_TABLE, REVISION_TABLE = (
    "metrics",
    "win rates",
    "effects of principles",
    "principles against others of their run",
    "preferences of one judge between revisions",
)
"""The tables of a comparison's family of tests."""


class RunPart(Row):
    """One run of a comparison; the first is the base, A, the others are B, C …"""

    letter: str
    name: str
    finished: bool
    constitution: str
    principles: int
    prompts: int  # of training
    held_out: int
    rows: dict[str, int | None]  # by file, such as `revisions`; None where the run does not have it, or in another form
    skipped: dict[str, int]  # by reason
    label_mass: dict[str, float]  # by source, in [0, 1]; see cai/feedback/pairs.py


class MetricDifference(Row):
    """One metric of RUN_METRICS on the prompts that two runs share: its means, and the paired difference B − A."""

    key: str
    name: str
    a: float
    b: float
    effect: Effect


class UnpairedMetric(Row):
    """One metric of two runs that share no prompts: each run's mean over its own, and how many; nothing is tested."""

    key: str
    name: str
    a: float
    b: float
    n_a: int
    n_b: int


class PrincipleUse(Row):
    """What a principle did in one run, over the rounds of revision on shared prompts (if any) that drew it.

    `share` of all rounds, beside the share `expected` by its weight where all principles apply, both in [0, 1].
    `means` has its outcomes without those that nobody measured. `against_others` has, by outcome, the mean of its
    rounds less that of the rounds which drew another principle: hashing decides which drew which, so that this is a
    randomized experiment; it is empty where a principle of the run applies to some prompts only. `pairs_judged` is
    how many pairs of samples the judge compared by it in both orders, `position_bias` the metric of that name on
    them.
    """

    drawn: int
    share: float
    expected: float
    means: dict[str, float]
    against_others: dict[str, Effect]
    pairs_judged: int
    position_bias: float | None


class PrincipleText(Row):
    """The texts of a principle that a model may see, its weight, and where it applies in words ("": everywhere)."""

    critique: str
    revision: str
    judge: str
    weight: float
    applies_to: str = ""


class PrincipleComparison(Row):
    """One principle in two runs; `a` or `b` is None in a run whose constitution lacks it, or that made no revisions.

    `effects` has, by outcome, the paired difference B − A over `met` shared prompts: for a principle that was
    added, removed, reworded, reweighted or applies to other prompts (rescoped), those that drew it in either run
    and were not revised by the same principles in both; for one that is the same, those that drew it and were.
    Where prompts revised by the same principles in both runs differ too (the runs differ in more than principles),
    a changed principle's difference is taken from the mean of those `controls`, and what is left is due to the
    principle.
    """

    id: str
    kind: Kind
    text_a: PrincipleText | None
    text_b: PrincipleText | None
    a: PrincipleUse | None
    b: PrincipleUse | None
    met: int
    controls: int
    effects: dict[str, Effect]


class HeadToHead(Row):
    """B's win rate against A, on prompts of one tag (None: all of them); ties count one half.

    `directly`: the judge of an evaluation by `cai eval` compared both answers, on one of its axes. Otherwise the runs'
    eval judge compared each with the same answer of the model before training, on shared held-out prompts, and the one
    it prefers to that by more counts as better. The effect is the win rate − ½.
    """

    axis: str
    tag: str | None
    directly: bool
    win_rate: float
    effect: Effect


class LabelAgreement(Row):
    """The labels both runs gave to pairs of the same two answers."""

    pairs: int
    agreement: Agreed | None
    mean_difference: float | None  # mean |p_B − p_A|, in [0, 1]


class RevisionPreference(Row):
    """Whose last revisions one judge prefers by the principles of one constitution; ties count one half.

    `a` and `b` are the mean P(the run's revision is better than the other run's), in [0, 1], with sum 1; `win_rate` is
    the share of prompts on which B's is preferred. The effect is `b` − ½.
    """

    by: list[str]  # whose constitution: `eval`, or letters of runs
    constitution: str
    a: float
    b: float
    win_rate: float
    effect: Effect


class RevisionHeadToHead(Row):
    """The last revisions of two runs to the same prompts, judged against each other by one judge.

    The first of `preferences` is by the eval constitution, the others by that of A and that of B.
    """

    judge: str
    prompts: int  # that both runs revised
    equal: int  # of them with the same revision, a tie without a call
    preferences: list[RevisionPreference]
    skipped: dict[str, int]  # verdicts by reason: no principle applies, or a request failed
    failed: int = 0  # of these, verdicts whose request failed


class LabelFlip(Row):
    """A pair that both runs labelled and of which they prefer different answers; of a revision pair, one is the draft.

    Both p are P(the answer that A prefers is better), in [0, 1]: above ½ in A, below in B.
    """

    prompt_id: str
    messages: Messages
    source: Source
    preferred_a: str
    preferred_b: str
    p_a: float
    p_b: float


class LabelFlips(Row):
    """By source of the labels, how many pairs of the same two answers both runs labelled, and on how many they differ.

    `widest` are those whose labels lie furthest apart, with their texts.
    """

    pairs: dict[Source, int]
    flips: dict[Source, int]  # without sources that have none
    widest: list[LabelFlip]


class Example(Row):
    """A shared prompt answered by both runs; `change` is the word edit distance between the answers, in [0, 1]."""

    prompt_id: str
    messages: Messages
    what: Literal["trained policy", "last revision"]
    principles_a: list[str]  # of the rounds of revision, in order
    principles_b: list[str]
    a: str
    b: str
    change: float


class PairComparison(Row):
    """A, the first run, against one other, on the prompts they share."""

    b: int  # the other's place in `runs`
    settings: list[str] | None  # what differs, a line each; None where a manifest does not say
    shared: int  # training prompts in both
    shared_held_out: int  # prompts in both that at least one of them holds out
    only: tuple[int, int]  # training prompts that only A, only B has
    only_held_out: tuple[int, int]
    metrics: list[MetricDifference]
    unpaired: list[UnpairedMetric]  # in their place where no prompt is shared
    principles: list[PrincipleComparison]
    head_to_head: list[HeadToHead]
    labels: LabelAgreement | None
    label_flips: LabelFlips | None = None  # None where no pair has a label in both runs
    examples: list[Example]
    revisions: RevisionHeadToHead | None = None  # with `--judge`


class PlannedMetric(Row):
    """What it takes to find a `difference` of a metric between A and B with 80 % power, by the spread at `n` prompts.

    So many `prompts`, in each run; of policies of several trainings, with so many `trainings` in each run. None where
    no number is enough, or the spread is unknown, which `note` says.
    """

    b: int
    key: str
    name: str
    difference: float
    n: int
    prompts: int | None
    trainings: int | None
    note: str


class Curve(Row):
    """One logged quantity of a training stage in one run, by update; values that are not finite are skipped."""

    stage: str  # such as 3-ppo
    name: str  # score, kl, length or loss
    run: int
    steps: list[int]
    values: list[float]
    missing: int  # updates whose value was not a finite number


class PositionFlip(Row):
    """Two answers of which a judge prefers the other when their order is swapped."""

    run: int
    what: Literal["judged pair", "evaluation"]
    prompt_id: str
    messages: Messages
    first: str
    second: str
    principle_id: str
    p_forward: float  # P(first better), shown first
    p_reverse: float  # P(first better), shown second


class RunComparison(Row):
    """The result of `cai compare`."""

    runs: list[RunPart]
    pairs: list[PairComparison]
    family: dict[str, int]  # how many tests were corrected together, by table
    curves: list[Curve]
    flips: list[PositionFlip]  # the widest apart first
    warnings: list[str]  # what is missing, or limits what the metrics mean
    findings: list[str]  # at most ten lines: what is significant, and what is not at this size
    plan: list[PlannedMetric] = []  # with `--plan`


class Attributed(Row):
    """One principle of a sweep: the run without it, or with it alone, and its effect on each outcome.

    An outcome that could not be measured in both runs is not there.
    """

    principle_id: str
    run: str
    shared: int  # training prompts of this run and of the one with all principles
    effects: dict[str, Effect]


class Attribution(Row):
    """What each principle does to each outcome: a matrix of effects, a row a principle.

    `leave-one-out`: the run with all principles less the run without this one, so what the principle adds.
    `one-at-a-time`: the run with this principle alone less the run with all of them.
    Means of paired differences over all shared prompts, also those that never sampled the principle. Holm's correction
    is over all `tests` of all matrices of the sweep.
    """

    sweep: str
    how: Literal["leave-one-out", "one-at-a-time"]
    varies: dict[str, Any]  # the settings of the grid that these runs have in common, by name
    base: str  # the run with all principles
    outcomes: dict[str, str]  # the metrics that any row has, name → meaning, in the order of columns
    means: dict[str, float]  # of the base
    rows: list[Attributed]
    tests: int
    warnings: list[str]
    findings: list[str]
