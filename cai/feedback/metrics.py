"""The metrics of a run: one name, one meaning and one function each, for every place that shows them.

One rule aggregates all of them. The unit is the prompt: a metric is the mean over a prompt's rows, then the mean over
prompts, because every interval and test of this package draws prompts (a prompt with ten pairs is one observation, not
ten). A row that says nothing about a metric (None), such as a verdict asked in one order, is in neither mean.

A run's metrics are in RUN_METRICS, by the kind of row they are computed from; those of one principle in
ROUND_METRICS and VERDICT_METRICS.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from cai.constitution.difference import word_distance
from cai.data.filters import FILTERS, repeats_itself
from cai.data.records import BeforeAfter, Preference, Revision, Verdict
from cai.stats.agreement import hit
from cai.stats.formatting import number
from cai.stats.intervals import Estimate, share
from cai.stats.win_rate import FOLLOWS_POSITION, win

Unit = Literal["share", "words"]
"""`share`: in [0, 1], shown with three decimals; `words`: with one."""


class _RowOfPrompt(Protocol):
    @property
    def prompt_id(self) -> str: ...


RowT = TypeVar("RowT")
PromptRow = TypeVar("PromptRow", bound=_RowOfPrompt)


@dataclass(frozen=True)
class Metric(Generic[RowT]):
    """One metric: its key in JSON, its name wherever it is shown, and its value for one row."""

    key: str
    name: str
    meaning: str
    unit: Unit
    value: Callable[[RowT], float | None]
    last_round: bool = False  # of a prompt's rows only the last counts
    interval: Callable[[Sequence[float]], Estimate] | None = None  # over one value a prompt
    warn_from: float | None = None  # a mean from here on is worth a warning
    remedy: str = ""  # what helps where it warns
    equal: Callable[[RowT], bool] | None = None  # a row with nothing to compare; where all are, there is no value

    def text(self, value: float | None) -> str:
        """A value of this metric as text; a dash where there is none."""
        return number(value, 1 if self.unit == "words" else 3)

    def estimate(self, values: Sequence[float]) -> Estimate:
        """The mean of one or more values, one a prompt, with its 95 % interval where the metric has one."""
        mean = fmean(values)
        if self.interval is None:
            return Estimate(mean, None, None, len(values))
        return self.interval(values)._replace(mean=mean)

    def warns(self, mean: float) -> bool:
        """Whether a mean is worth a warning."""
        return self.warn_from is not None and mean >= self.warn_from

    def shown(self, estimate: Estimate) -> str:
        """An estimate as text, with its interval where there is one."""
        return self.text(estimate.mean) if estimate.low is None else str(estimate)


class PromptMeans(Generic[PromptRow]):
    """Rows as they pass by, of which a sum and a count by metric and prompt are kept: 12 bytes each, and the id."""

    def __init__(self, metrics: Sequence[Metric[PromptRow]]) -> None:
        self.metrics = tuple(metrics)
        self._prompts: dict[str, int] = {}  # the place of each prompt's sums and counts, which are one array for all
        self._sums, self._counts = array("d"), array("I")
        self._undefined = {metric.key for metric in metrics if metric.equal is not None}

    def add(self, row: PromptRow) -> None:
        """Count one row; the rounds of a prompt come in order."""
        first = self._prompts.get(row.prompt_id)
        if first is None:
            first = self._prompts[row.prompt_id] = len(self._sums)
            self._sums.extend(0.0 for _ in self.metrics)
            self._counts.extend(0 for _ in self.metrics)
        if self._undefined:
            compared = (m.key for m in self.metrics if m.equal is not None and not m.equal(row))
            self._undefined.difference_update(compared)
        for place, metric in enumerate(self.metrics, start=first):
            value = metric.value(row)
            if metric.last_round:
                self._sums[place], self._counts[place] = value or 0.0, value is not None
            elif value is not None:
                self._sums[place] += value
                self._counts[place] += 1

    def add_all(self, rows: Iterable[PromptRow]) -> "PromptMeans[PromptRow]":
        """Count all rows; returns itself."""
        for row in rows:
            self.add(row)
        return self

    def defined(self, metric: Metric[PromptRow]) -> bool:
        """Whether the metric is of anything: a win rate is not where the two answers to every prompt are equal."""
        return metric.key not in self._undefined

    def by_prompt(self, metric: Metric[PromptRow]) -> dict[str, float]:
        """The mean over each prompt's rows, without the prompts whose rows say nothing; also where it is undefined."""
        column, sums, counts = self.metrics.index(metric), self._sums, self._counts
        places = ((prompt_id, first + column) for prompt_id, first in self._prompts.items())
        return {prompt_id: sums[place] / counts[place] for prompt_id, place in places if counts[place]}

    def all_by_prompt(self) -> dict[str, dict[str, float]]:
        """`by_prompt` of every metric that is defined, by key; of the others, no prompt."""
        return {metric.key: self.by_prompt(metric) if self.defined(metric) else {} for metric in self.metrics}

    def means(self) -> dict[str, float]:
        """The metrics that any row says something about, by key, without intervals."""
        by_metric = ((metric.key, self._values(metric)) for metric in self.metrics)
        return {key: fmean(values) for key, values in by_metric if values}

    def estimates(self) -> dict[str, Estimate | None]:
        """Every metric by key, with intervals; None where no row says anything."""
        by_metric = ((metric, self._values(metric)) for metric in self.metrics)  # one metric's values at a time
        return {metric.key: metric.estimate(values) if values else None for metric, values in by_metric}

    def _values(self, metric: Metric[PromptRow]) -> "array[float]":
        """`by_prompt` without the prompts; empty where the metric is undefined."""
        if not self.defined(metric):
            return array("d")
        places = range(self.metrics.index(metric), len(self._sums), len(self.metrics))
        return array("d", (self._sums[place] / self._counts[place] for place in places if self._counts[place]))


def mean_over_prompts(values: Iterable[tuple[str, float | None]]) -> float | None:
    """The mean over prompts of each prompt's mean, from (prompt id, value of a row); None where no row has a value."""
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in values:
        if value is not None:
            by_prompt.setdefault(prompt_id, []).append(value)
    return fmean(fmean(of_prompt) for of_prompt in by_prompt.values()) if by_prompt else None


def words(text: str) -> int:
    """How many words a text has, split at white space."""
    return len(text.split())


def position_bias(verdicts: Iterable[Verdict]) -> float | None:
    """The share of verdicts that prefer the same position in both orders; None where no verdict has both."""
    flips = [verdict.position_bias for verdict in verdicts if verdict.position_bias is not None]
    return sum(flips) / len(flips) if flips else None


def non_option_mass(verdicts: Sequence[Verdict]) -> float | None:
    """The mean probability that the judge assigns to anything but the options; None without verdicts."""
    return sum(verdict.non_option_mass for verdict in verdicts) / len(verdicts) if verdicts else None


def tie_mass(verdicts: Sequence[Verdict]) -> float | None:
    """The mean probability of a tie over verdicts; None where a tie was no option."""
    masses = [verdict.tie_mass for verdict in verdicts if verdict.tie_mass is not None]
    return sum(masses) / len(masses) if masses else None


def abstained(row: Preference) -> float | None:
    """The share of principles without a vote on a pair; None where none was asked whether it is at issue."""
    asked = [verdict for verdict in row.all_verdicts if verdict.at_issue is not None]
    return sum(not verdict.votes for verdict in asked) / len(asked) if asked else None


def mean_p(verdicts: Sequence[Verdict]) -> float | None:
    """The mean P(first better) over verdicts; None without verdicts."""
    return sum(verdict.p for verdict in verdicts) / len(verdicts) if verdicts else None


@lru_cache(maxsize=16)  # a round's distance is also that from the draft where it is the first
def edit_distance(before: str, after: str) -> float:
    """The word edit distance of two texts, in [0, 1]; see cai/constitution/difference.py."""
    return word_distance(before, after)


POSITION_BIAS = "position bias"
POSITION_BIAS_MEANING = "verdicts that prefer the same position in both orders"
NON_OPTION_MASS = "non-option probability mass"
NON_OPTION_MASS_MEANING = "probability on anything but the options"
TIE_MASS = "tie probability mass"
TIE_MASS_MEANING = "half of it is each answer's"
ABSTAINED = "principles without a vote"
ABSTAINED_MEANING = "do not tell the answers apart"
TRUNCATED = "texts truncated at max_tokens"
MOST = 0.5  # of texts or of the probability
MANY_TRUNCATED = 0.2  # of texts: the pairs of these prompts are lost


def _filter(flag: str, name: str) -> Metric[Revision]:
    def value(row: Revision) -> float | None:
        if flag == "copied_critique" and row.critique is None:
            return None
        return flag in row.flags

    return Metric(flag, name, FILTERS[flag], "share", value, warn_from=0.25)


def _truncated_revision(text: Literal["draft", "critique", "revision"]) -> Metric[Revision]:
    def value(row: Revision) -> float | None:
        if text == "critique" and row.critique is None:
            return None
        return text in row.truncated

    return Metric(
        f"{text}_truncated",
        f"truncated {text}",
        TRUNCATED,
        "share",
        value,
        warn_from=MANY_TRUNCATED,
        remedy="raise revise.max_tokens",
    )


def _truncated_answer(which: Literal["before", "after"]) -> Metric[BeforeAfter]:
    name = f"truncated {which} training"
    return Metric(f"{which}_truncated", name, TRUNCATED, "share", lambda row: which in row.truncated,
                  warn_from=MANY_TRUNCATED, remedy="raise evaluate.max_tokens")  # fmt: skip


DRAFT_WORDS = Metric[Revision](
    "draft_words", "words in the draft", "before round 1", "words", lambda row: words(row.draft), last_round=True
)
REVISION_WORDS = Metric[Revision](
    "revision_words", "words in the revision", "of the last round", "words", lambda row: words(row.revision),
    last_round=True,
)  # fmt: skip
EDIT_DISTANCE = Metric[Revision](
    "edit_distance", "edit distance", "words that differ between draft and revision", "share",
    lambda row: edit_distance(row.draft, row.revision), last_round=True,
)  # fmt: skip
FILTERED = Metric[Revision](
    "filtered", "fails a filter", "revisions kept out of training", "share", lambda row: bool(row.flags)
)
REVISION_TRUNCATED = _truncated_revision("revision")
REVISION_METRICS: tuple[Metric[Revision], ...] = (
    DRAFT_WORDS,
    REVISION_WORDS,
    EDIT_DISTANCE,
    FILTERED,
    _filter("empty", "empty revision"),
    _filter("unchanged", "unchanged revision"),
    _filter("copied_critique", "copied critique"),
    Metric(
        "stays",
        "nothing to revise",
        "rounds whose critique finds no problem, of runs with revise.when: finds",
        "share",
        lambda row: row.stays,
        warn_from=0.9,
    ),
    _filter("repeats_itself", "revision repeats itself"),
    _filter("parrots_instruction", "parrots the instruction"),
    _filter("leaked_critique", "speaks of the critique"),
    _filter("announces_itself", "announces a new answer"),
    _filter("other_language", "switches the language"),
    _truncated_revision("draft"),
    _truncated_revision("critique"),
    REVISION_TRUNCATED,
)
"""Of rows of revisions.jsonl."""

LABEL_P = Metric[Preference](
    "label_p", "judge P(chosen better)", "of pairs it labelled; ½: unsure", "share", lambda row: max(row.p, 1 - row.p)
)
JUDGE_POSITION_BIAS = Metric[Preference](
    "position_bias", POSITION_BIAS, POSITION_BIAS_MEANING, "share", lambda row: position_bias(row.verdicts),
    warn_from=FOLLOWS_POSITION,
)  # fmt: skip
JUDGE_NON_OPTION_MASS = Metric[Preference](
    "non_option_mass", NON_OPTION_MASS, NON_OPTION_MASS_MEANING, "share", lambda row: non_option_mass(row.verdicts),
    warn_from=MOST,
)  # fmt: skip
JUDGE_TIE_MASS = Metric[Preference]("tie_mass", TIE_MASS, TIE_MASS_MEANING, "share", lambda row: tie_mass(row.verdicts))
JUDGE_ABSTAINED = Metric[Preference]("abstained", ABSTAINED, ABSTAINED_MEANING, "share", abstained)
LABEL_METRICS: tuple[Metric[Preference], ...] = (
    LABEL_P, JUDGE_POSITION_BIAS, JUDGE_NON_OPTION_MASS, JUDGE_TIE_MASS, JUDGE_ABSTAINED,
)  # fmt: skip
"""Of the pairs in preferences.jsonl that the judge labelled (`source: judge`)."""
AGREEMENT = Metric[Preference](
    "agreement", "agreement with the input labels", "same winner; ties count one half", "share",
    lambda pair: None if pair.input_p is None else hit(pair.p, pair.input_p),
)  # fmt: skip
JUDGE_METRICS = (*LABEL_METRICS, AGREEMENT)
"""Of the pairs that `cai judge` labels."""


def revision_better(row: Preference, principle_id: str | None = None) -> float | None:
    """The mean P(revision better than its draft) over the verdicts on a revision pair, of one principle or of all.

    None without verdicts.
    """
    p = mean_p([v for v in row.verdicts if principle_id in (None, v.principle_id)])
    return 1.0 - p if p is not None and row.draft_chosen else p


REVISION_BETTER = Metric[Preference](
    "revision_better", "P(revision better)", "than the draft, by the judge", "share", revision_better
)


def _judged_worse(row: Preference) -> float | None:
    p = revision_better(row)
    return None if p is None else p < 0.5


def _of_chosen(key: str, name: str, meaning: str, value: Callable[[Preference], float | None]) -> Metric[Preference]:
    """A metric of revisions that a pair teaches: those that are `chosen`."""
    return Metric(
        key, name, meaning, "share", lambda row: None if row.draft_chosen else value(row), warn_from=MUCH_TAUGHT
    )


MUCH_TAUGHT = 0.1  # of the chosen revisions
REVISION_PAIR_METRICS: tuple[Metric[Preference], ...] = (
    REVISION_BETTER,
    Metric("revision_worse", "revision judged worse", "P(revision better) below ½", "share", _judged_worse,
           warn_from=MOST),
    _of_chosen("chosen_worse", "chosen revision judged worse", "P(revision better) below ½", _judged_worse),
    _of_chosen("chosen_truncated", "chosen revision truncated", TRUNCATED, lambda row: "chosen" in row.truncated),
    _of_chosen("chosen_repeats", "chosen revision repeats itself", FILTERS["repeats_itself"],
               lambda row: repeats_itself(row.chosen)),
)  # fmt: skip
"""Of the pairs in preferences.jsonl that a revision made (`source: revision`)."""


def _equal(row: BeforeAfter) -> bool:
    return row.before == row.after


WIN_RATE = Metric[BeforeAfter](
    "win_rate", "win rate", "after against before training, ties ½", "share",
    lambda row: None if row.p is None else win(row.p), interval=share, equal=_equal,
)  # fmt: skip
AFTER_BETTER = Metric[BeforeAfter](
    "after_better", "P(after better)", "than before training, by the eval judge", "share", lambda row: row.p,
    interval=share, equal=_equal,
)  # fmt: skip
HELPFUL_WIN_RATE = Metric[BeforeAfter](
    "helpful_win_rate", "win rate, helpful", "by what the answer does for the person who asked", "share",
    lambda row: None if row.p_helpful is None else win(row.p_helpful), interval=share, equal=_equal,
)  # fmt: skip
SAFE_WIN_RATE = Metric[BeforeAfter](
    "safe_win_rate", "win rate, safe", "by what harm the answer may do", "share",
    lambda row: None if row.p_safe is None else win(row.p_safe), interval=share, equal=_equal,
)  # fmt: skip
EVAL_POSITION_BIAS = Metric[BeforeAfter](
    "eval_position_bias", f"eval judge {POSITION_BIAS}", POSITION_BIAS_MEANING, "share",
    lambda row: position_bias(row.verdicts), warn_from=FOLLOWS_POSITION,
)  # fmt: skip
EVAL_NON_OPTION_MASS = Metric[BeforeAfter](
    "eval_non_option_mass", "eval judge non-option mass", NON_OPTION_MASS_MEANING, "share",
    lambda row: non_option_mass(row.verdicts), warn_from=MOST,
)  # fmt: skip
BEFORE_WORDS = Metric[BeforeAfter](
    "before_words", "words before training", "of answers to held-out prompts", "words", lambda row: words(row.before)
)
AFTER_WORDS = Metric[BeforeAfter](
    "after_words", "words after training", "of answers to held-out prompts", "words", lambda row: words(row.after)
)
AFTER_TRUNCATED = _truncated_answer("after")
EVALUATION_METRICS: tuple[Metric[BeforeAfter], ...] = (
    WIN_RATE,
    AFTER_BETTER,
    HELPFUL_WIN_RATE,
    SAFE_WIN_RATE,
    EVAL_POSITION_BIAS,
    EVAL_NON_OPTION_MASS,
    BEFORE_WORDS,
    AFTER_WORDS,
    _truncated_answer("before"),
    AFTER_TRUNCATED,
)
"""Of held-out prompts, answered before and after training."""
POLICY_METRICS = (
    WIN_RATE, AFTER_BETTER, HELPFUL_WIN_RATE, SAFE_WIN_RATE, EVAL_POSITION_BIAS, EVAL_NON_OPTION_MASS, AFTER_WORDS,
    AFTER_TRUNCATED,
)  # fmt: skip
"""Those of what a trained policy answers, whose chance is that of its training as well as that of the prompts."""
EVAL_JUDGE_METRICS = (WIN_RATE, AFTER_BETTER, EVAL_POSITION_BIAS, EVAL_NON_OPTION_MASS)
"""Those that compare between runs only where the eval judge and its constitution are the same."""
AXIS_METRICS = (HELPFUL_WIN_RATE, SAFE_WIN_RATE)
"""Those that compare between runs only where the eval judge and the axes' constitutions are the same."""

ROUND_METRICS: tuple[Metric[Revision], ...] = (
    Metric("changed", "changed", "the revision differs from the answer it started from", "share",
           lambda row: row.before.split() != row.revision.split()),
    Metric("edit", "edit distance", "share of words that differ from the answer it started from", "share",
           lambda row: edit_distance(row.before, row.revision)),
    Metric("words", "words added", "words of the revision less those of that answer", "words",
           lambda row: words(row.revision) - words(row.before)),
    FILTERED,
    Metric("truncated", "truncated", "the revision was truncated at max_tokens", "share",
           lambda row: "revision" in row.truncated),
)  # fmt: skip
"""Of a principle, over the rounds of revision that drew it."""


class PrincipleVerdict(NamedTuple):
    """One principle's verdict on a pair of answers to a prompt."""

    prompt_id: str
    verdict: Verdict


TIES = Metric[PrincipleVerdict]("tie_mass", TIE_MASS, TIE_MASS_MEANING, "share", lambda row: row.verdict.tie_mass)
VERDICT_METRICS: tuple[Metric[PrincipleVerdict], ...] = (
    Metric("label_p", LABEL_P.name, "of the answer that it prefers; 0.5 is no opinion", "share",
           lambda row: max(row.verdict.p, 1 - row.verdict.p)),
    Metric("position_bias", POSITION_BIAS, POSITION_BIAS_MEANING, "share", lambda row: position_bias([row.verdict])),
    Metric("non_option_mass", NON_OPTION_MASS, NON_OPTION_MASS_MEANING, "share",
           lambda row: row.verdict.non_option_mass),
    TIES,
)  # fmt: skip
"""Of a principle, over its verdicts on the pairs that the judge labelled."""

RUN_METRICS: Mapping[str, Metric[Any]] = {
    metric.key: metric
    for group in (REVISION_METRICS, LABEL_METRICS, REVISION_PAIR_METRICS, EVALUATION_METRICS)
    for metric in group
}
