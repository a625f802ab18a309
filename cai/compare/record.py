"""What `cai compare` and `cai attribute` found, as typed records: printed, drawn and written as JSON from here.

Every difference is an Effect (cai/stats/significance.py); `effect.significant` says whether it may be called one. What
is None or empty could not be computed, and `notes` says why. Texts of models stand here as they were written.
"""

from typing import Any, Literal

from cai.data.records import Messages, Row
from cai.evaluation.judge_report import Agreed
from cai.stats.significance import Effect

Group = Literal["revisions", "hygiene", "labels", "evaluation"]
Kind = Literal["same", "added", "removed", "reworded", "reweighted"]
OUTCOMES = {
    "changed": "revisions that differ from the answer they started from",
    "edit": "word edit distance from that answer, 0 to 1",
    "words": "words of the revision less those of that answer",
    "flagged": "revisions that hygiene flags",
    "truncated": "revisions cut off at max_tokens",
    "verdict": "P(revision better than draft) by the run's judge and this principle",
}
"""What a principle is measured by, in a round of revision that met it: name → meaning."""


class RunPart(Row):
    """One run of a comparison; the first is the base, A, the others are B, C …"""

    letter: str
    name: str
    finished: bool
    constitution: str
    principles: int
    prompts: int
    rows: dict[str, int | None]  # by file, such as `revisions`; None where the run does not have it, or in another form
    skipped: dict[str, int]  # by reason


class Figure(Row):
    """One figure on the prompts that two runs share: its mean in A, in B, and the paired difference B − A."""

    name: str
    group: Group
    a: float
    b: float
    effect: Effect


class Unpaired(Row):
    """One figure of two runs that share no prompts: each run's mean over its own, and how many; nothing is tested."""

    name: str
    a: float
    b: float
    n_a: int
    n_b: int


class PrincipleUse(Row):
    """What a principle did in one run, over the rounds of revision on shared prompts (if any) that drew it.

    `share` of all rounds, beside the share `expected` by its weight, both in [0, 1]. `means` has the outcomes of its
    rounds, and lacks those that nobody measured. `against_others` has, by outcome, the mean of its rounds less that of
    the rounds which drew another principle: hashing decides which drew which, so that this is a fair experiment.
    `asked` is how many pairs of samples the judge compared by it in both orders, `position_bias` the share of these in
    which the same position won in both.
    """

    drawn: int
    share: float
    expected: float
    means: dict[str, float]
    against_others: dict[str, Effect]
    asked: int
    position_bias: float | None


class PrincipleText(Row):
    """The texts of a principle that a model may see, and its weight."""

    critique: str
    revision: str
    judge: str
    weight: float


class PrincipleComparison(Row):
    """One principle in two runs; `a` or `b` is None in a run whose constitution lacks it, or that made no revisions.

    `effects` has, by outcome, the paired difference B − A over `met` shared prompts: for a principle that was added,
    removed, reworded or reweighted, those that drew it in either run and were not revised by the same principles in
    both; for one that is the same, those that drew it and were. Where prompts revised by the same principles in both
    runs differ too (the runs differ in more than principles), a changed principle's difference is taken from the mean
    of those `controls`, and what is left is due to the principle.
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


class Wins(Row):
    """How often B's answer is better than A's, on prompts of one tag (None: all of them).

    `directly`: the judge of an evaluation by `cai eval` saw both answers, on one of its axes. Otherwise the runs'
    eval judge saw each beside the same answer of the model before training, on shared held-out prompts, and the one it
    prefers to that by more counts as better. `share` is in [0, 1], ties one half; the effect is share − ½.
    """

    axis: str
    tag: str | None
    directly: bool
    share: float
    effect: Effect


class LabelAgreement(Row):
    """The labels both runs gave to pairs of the same two answers."""

    pairs: int
    agreement: Agreed | None
    mean_difference: float | None  # mean |p_B − p_A|, in [0, 1]


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
    shared: int
    only: tuple[int, int]  # prompts that only A, only B has
    figures: list[Figure]
    unpaired: list[Unpaired]  # in their place where no prompt is shared
    principles: list[PrincipleComparison]
    wins: list[Wins]
    labels: LabelAgreement | None
    examples: list[Example]


class Curve(Row):
    """One logged quantity of a training stage in one run, by update; values that are no number are left out."""

    stage: str  # such as 3-ppo
    name: str  # score, kl, length or loss
    run: int
    steps: list[int]
    values: list[float]
    missing: int  # updates whose value was not a finite number


class Doubt(Row):
    """Two answers of which a judge prefers another when their order changes."""

    run: int
    what: Literal["judged pair", "evaluation"]
    prompt_id: str
    messages: Messages
    first: str
    second: str
    principle_id: str
    p_forward: float  # P(first is better), shown first
    p_reverse: float  # P(first is better), shown second


class RunComparison(Row):
    """Everything `cai compare` says."""

    runs: list[RunPart]
    pairs: list[PairComparison]
    curves: list[Curve]
    doubts: list[Doubt]  # the widest apart first
    notes: list[str]  # what is missing or must not be read into the figures
    findings: list[str]  # at most ten lines: what is significant, and what is noise at this size


class Attributed(Row):
    """One principle of a sweep: the run without it, or with it alone, and its effect on each outcome.

    An outcome that could not be measured in both runs is not there.
    """

    principle_id: str
    run: str
    shared: int  # prompts of this run and of the one with all principles
    effects: dict[str, Effect]


class Attribution(Row):
    """What each principle does to each outcome: a matrix of effects, a row a principle.

    `leave-one-out`: the run with all principles less the run without this one, so what the principle adds.
    `one-at-a-time`: the run with this principle alone less the run with all of them.
    Means of paired differences over all shared prompts, also those that never met the principle; Holm's correction is
    over the principles of one outcome.
    """

    sweep: str
    how: Literal["leave-one-out", "one-at-a-time"]
    varies: dict[str, Any]  # the settings of the grid that these runs have in common, by name
    base: str  # the run with all principles
    outcomes: dict[str, str]  # name → meaning, in the order of columns; those that any row has
    means: dict[str, float]  # of the base
    rows: list[Attributed]
    notes: list[str]
    findings: list[str]
