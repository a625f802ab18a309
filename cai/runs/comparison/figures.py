"""Paired figures: on every prompt that two runs share, a value in each, and the difference."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cai.evaluation.effects import paired
from cai.evaluation.win_rate import win
from cai.feedback.hygiene import FLAGS
from cai.runs.comparison.reading import Answered, Labelled, Labels, Revised, RunData, mean
from cai.runs.comparison.record import Figure, Group, Unpaired

REVISIONS: dict[str, Callable[[Revised], float | None]] = {
    "draft, words": lambda row: row.draft_words,
    "last revision, words": lambda row: row.text_words,
    "draft → revision, change": lambda row: row.edit,
}
HYGIENE: dict[str, Callable[[Revised], float | None]] = {
    **{
        f"revision {flag.replace('_', ' ')}": lambda row, flag=flag: mean([flag in r.flags for r in row.rounds])  # type: ignore[misc]
        for flag in FLAGS
    },
    "revision cut off": lambda row: mean([r.cut_off for r in row.rounds]),
}
LABELS: dict[str, Callable[[list[Labelled]], float | None]] = {
    "label, P of the preferred": lambda pairs: mean([max(pair.p, 1 - pair.p) for pair in pairs]),
    "judge follows the position": lambda pairs: _mean(pair.same_position for pair in pairs),
    "judge outside the letters": lambda pairs: mean([pair.outside for pair in pairs]),
}
VERDICTS_ON_REVISIONS: dict[str, Callable[[dict[str, float]], float | None]] = {
    "P(revision better than draft)": lambda said: mean(list(said.values())),
}
ANSWERS: dict[str, Callable[[Answered], float | None]] = {
    "answer before, words": lambda row: row.before_words,
    "answer after, words": lambda row: row.after_words,
    "answer after cut off": lambda row: row.cut_off,
}
VERDICTS: dict[str, Callable[[Answered], float | None]] = {
    "win rate of after": lambda row: win(row.p),
    "mean p(after better)": lambda row: row.p,
    "referee follows the position": lambda row: row.same_position,
}
COPIES = "revision copies critique"


Values = Mapping[str, Callable[[Any], float | None]]
"""What is measured in a row, by the figure's name."""
Rows = Mapping[str, Any] | None
"""A run's rows by prompt."""


def figures(a: RunData, b: RunData, shared: Iterable[str], same_referee: bool) -> list[Figure]:
    """All figures that both runs have; without the referee's, whose labels compare only when the same one gave them."""
    ids = sorted(shared)
    return [
        figure
        for group, values, rows_a, rows_b in _measured(a, b, same_referee)
        for figure in paired_figures(group, values, rows_a, rows_b, ids)
    ]


def unpaired_figures(a: RunData, b: RunData, same_referee: bool) -> list[Unpaired]:
    """The same figures of runs that share no prompts, each on its own."""
    found = []
    for _, values, rows_a, rows_b in _measured(a, b, same_referee):
        for name, value in values.items():
            sides = [[x for row in (rows or {}).values() if (x := value(row)) is not None] for rows in (rows_a, rows_b)]
            if all(sides):
                means = [mean(side) for side in sides]
                found.append(Unpaired(name=name, a=means[0], b=means[1], n_a=len(sides[0]), n_b=len(sides[1])))
    return found


def _measured(a: RunData, b: RunData, same_referee: bool) -> Iterator[tuple[Group, Values, Rows, Rows]]:
    """Every group of figures with the rows of both runs, by prompt."""
    critiques = all(run.setting("revise", "critique") is not False for run in (a, b))
    yield "revisions", REVISIONS, a.revised, b.revised
    yield "hygiene", {k: v for k, v in HYGIENE.items() if critiques or k != COPIES}, a.revised, b.revised
    labels = [run.labels or Labels({}, {}, Counter(), Counter()) for run in (a, b)]
    yield "labels", LABELS, labels[0].pairs, labels[1].pairs
    yield "labels", VERDICTS_ON_REVISIONS, labels[0].revisions, labels[1].revisions
    yield "evaluation", ANSWERS | (VERDICTS if same_referee else {}), a.answered, b.answered


def paired_figures(
    group: Group,
    values: Values,
    rows_a: Rows,
    rows_b: Rows,
    ids: Sequence[str],
) -> list[Figure]:
    """One figure for each of `values`, on the ids that both have rows of; without those that no prompt has in both."""
    both = [(rows_a[i], rows_b[i]) for i in ids if i in rows_a and i in rows_b] if rows_a and rows_b else []
    found = []
    for name, value in values.items():
        measured = ((value(row_a), value(row_b)) for row_a, row_b in both)
        pairs = [(float(x), float(y)) for x, y in measured if x is not None and y is not None]
        if pairs:
            a, b = (mean(side) for side in zip(*pairs, strict=True))
            found.append(Figure(name=name, group=group, a=a, b=b, effect=paired([y - x for x, y in pairs])))
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return mean(told) if told else None
