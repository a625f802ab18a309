"""Paired figures: on every prompt that two runs share, a value in each, and the difference."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from cai.compare.reading import Answered, Labelled, Labels, Revised, Round, RunData, mean
from cai.compare.record import (
    Example,
    Figure,
    Group,
    Kind,
    LabelAgreement,
    PrincipleComparison,
    PrincipleText,
    PrincipleUse,
    Unpaired,
    Wins,
)
from cai.constitution import principles
from cai.constitution.principles import Constitution, Principle, shares
from cai.data.records import Judgement
from cai.feedback.filters import FILTERS
from cai.inference.models import folder_fingerprint
from cai.stats.agreement import agreement
from cai.stats.edits import word_distance
from cai.stats.significance import Effect, contrasts, corrected, paired
from cai.stats.win_rate import win

REVISIONS: dict[str, Callable[[Revised], float | None]] = {
    "draft, words": lambda row: row.draft_words,
    "last revision, words": lambda row: row.text_words,
    "draft → revision, change": lambda row: row.edit,
}
HYGIENE: dict[str, Callable[[Revised], float | None]] = {
    **{
        f"revision {flag.replace('_', ' ')}": lambda row, flag=flag: mean([flag in r.flags for r in row.rounds])  # type: ignore[misc]
        for flag in FILTERS
    },
    "revision cut off": lambda row: mean([r.truncated for r in row.rounds]),
}
LABELS: dict[str, Callable[[list[Labelled]], float | None]] = {
    "label, P of the preferred": lambda pairs: mean([max(pair.p, 1 - pair.p) for pair in pairs]),
    "judge follows the position": lambda pairs: _mean(pair.position_bias for pair in pairs),
    "judge outside the letters": lambda pairs: mean([pair.non_option_mass for pair in pairs]),
}
VERDICTS_ON_REVISIONS: dict[str, Callable[[dict[str, float]], float | None]] = {
    "P(revision better than draft)": lambda said: mean(list(said.values())),
}
ANSWERS: dict[str, Callable[[Answered], float | None]] = {
    "answer before, words": lambda row: row.before_words,
    "answer after, words": lambda row: row.after_words,
    "answer after cut off": lambda row: row.truncated,
}
VERDICTS: dict[str, Callable[[Answered], float | None]] = {
    "win rate of after": lambda row: win(row.p),
    "mean p(after better)": lambda row: row.p,
    "eval judge follows the position": lambda row: row.position_bias,
}
COPIES = "revision copied critique"
Values = Mapping[str, Callable[[Any], float | None]]
"""What is measured in a row, by the figure's name."""
Rows = Mapping[str, Any] | None
"""A run's rows by prompt."""


def figures(a: RunData, b: RunData, shared: Iterable[str], same_eval_judge: bool) -> list[Figure]:
    """All figures that both runs have; those of the eval judge only when the same one labelled both."""
    ids = sorted(shared)
    return [
        figure
        for group, values, rows_a, rows_b in _measured(a, b, same_eval_judge)
        for figure in paired_figures(group, values, rows_a, rows_b, ids)
    ]


def unpaired_figures(a: RunData, b: RunData, same_eval_judge: bool) -> list[Unpaired]:
    """The same figures of runs that share no prompts, each on its own."""
    found = []
    for _, values, rows_a, rows_b in _measured(a, b, same_eval_judge):
        for name, value in values.items():
            sides = [[x for row in (rows or {}).values() if (x := value(row)) is not None] for rows in (rows_a, rows_b)]
            if all(sides):
                means = [mean(side) for side in sides]
                found.append(Unpaired(name=name, a=means[0], b=means[1], n_a=len(sides[0]), n_b=len(sides[1])))
    return found


def _measured(a: RunData, b: RunData, same_eval_judge: bool) -> Iterator[tuple[Group, Values, Rows, Rows]]:
    """Every group of figures with the rows of both runs, by prompt."""
    critiques = all(run.setting("revise", "critique") is not False for run in (a, b))
    yield "revisions", REVISIONS, a.revised, b.revised
    yield "hygiene", {k: v for k, v in HYGIENE.items() if critiques or k != COPIES}, a.revised, b.revised
    labels = [run.labels or Labels({}, {}, Counter(), Counter()) for run in (a, b)]
    yield "labels", LABELS, labels[0].pairs, labels[1].pairs
    yield "labels", VERDICTS_ON_REVISIONS, labels[0].revisions, labels[1].revisions
    yield "evaluation", ANSWERS | (VERDICTS if same_eval_judge else {}), a.answered, b.answered


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


# Principle by principle: how often each was drawn, what its rounds did, and what changing it did.


CHANGED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "same")
OUTCOMES_OF_A_ROUND = ("changed", "edit", "words", "flagged", "truncated")
REST = "the rest"


def compare_principles(a: RunData, b: RunData, shared: Sequence[str]) -> list[PrincipleComparison]:
    """Every principle of either constitution, those that changed first; [] where a constitution cannot be read.

    Where no prompt is shared, what a principle did is told of each run's own prompts.
    """
    if a.constitution is None or b.constitution is None:
        return []
    before, after = ({p.id: p for p in c.principles} for c in (a.constitution, b.constitution))
    uses_a, uses_b = (
        _uses(run, c, shared or list(run.prompts)) for run, c in ((a, a.constitution), (b, b.constitution))
    )
    kinds = _kinds(a.constitution, b.constitution)
    changes = _changes(a, b, shared, kinds)
    effects = corrected({(i, outcome): e for i, change in changes.items() for outcome, e in change.effects.items()})
    return [
        PrincipleComparison(
            id=i,
            kind=kind,
            text_a=_text(before.get(i)),
            text_b=_text(after.get(i)),
            a=uses_a.get(i),
            b=uses_b.get(i),
            met=changes[i].met,
            controls=changes[i].controls,
            effects={outcome: effects[i, outcome] for outcome in changes[i].effects},
        )
        for i, kind in kinds.items()
    ]


def _kinds(a: Constitution, b: Constitution) -> dict[str, Kind]:
    """What happened to each principle; a reworded one may be reweighted too."""
    found: dict[str, Kind] = {}
    difference = principles.diff(a, b)
    for kind in CHANGED:
        for i in getattr(difference, kind):
            found.setdefault(i, kind)
    return found | {p.id: "same" for p in a.principles if p.id not in found}


def _text(principle: Principle | None) -> PrincipleText | None:
    if principle is None:
        return None
    p = principle
    return PrincipleText(critique=p.critique, revision=p.revision, judge=p.judge, weight=p.weight)


def _uses(run: RunData, principles: Constitution, prompts: Sequence[str]) -> dict[str, PrincipleUse]:
    """What each principle did in one run; {} in a run without revisions."""
    if run.revised is None:
        return {}
    revised = {i: run.revised[i] for i in prompts if i in run.revised}
    rounds = [this for row in revised.values() for this in row.rounds]
    said = run.labels.revisions if run.labels else {}
    verdicts = [(principle, p) for i in revised for principle, p in said.get(i, {}).items()]
    values: dict[str, dict[str, list[float]]] = {p.id: {} for p in principles.principles}
    for principle, outcome, value in (
        *((this.principle, name, _of_round(name, this)) for this in rounds for name in OUTCOMES_OF_A_ROUND),
        *((principle, "verdict", p) for principle, p in verdicts),
    ):
        values.setdefault(principle, {}).setdefault(outcome, []).append(value)
    against: dict[tuple[str, str], Effect] = {}
    if rounds:
        columns = {name: [_of_round(name, this) for this in rounds] for name in OUTCOMES_OF_A_ROUND}
        against = contrasts([this.principle for this in rounds], columns)
    if verdicts:
        against |= contrasts([principle for principle, _ in verdicts], {"verdict": [p for _, p in verdicts]})
    against = corrected(against)
    expected = shares(principles)
    uses = {}
    for p in principles.principles:
        drawn = len(values[p.id].get("changed", []))
        asked = run.labels.asked[p.id] if run.labels else 0
        uses[p.id] = PrincipleUse(
            drawn=drawn,
            share=drawn / len(rounds) if rounds else 0.0,
            expected=expected[p.id],
            means={outcome: mean(found) for outcome, found in values[p.id].items()},
            against_others={outcome: effect for (i, outcome), effect in against.items() if i == p.id},
            asked=asked,
            position_bias=run.labels.position_bias[p.id] / asked if run.labels and asked else None,
        )
    return uses


def _of_round(outcome: str, this: Round) -> float:
    return bool(this.flags) if outcome == "flagged" else float(getattr(this, outcome))


class _Change(NamedTuple):
    met: int
    controls: int
    effects: dict[str, Effect]


def _changes(a: RunData, b: RunData, shared: Sequence[str], kinds: Mapping[str, Kind]) -> dict[str, _Change]:
    """By principle: B − A over the prompts that say what it did, before correction."""
    in_a, in_b = a.revised or {}, b.revised or {}
    differences: dict[str, dict[str, float]] = {}
    same, met = set[str](), {i: list[str]() for i in kinds}
    for prompt_id in (i for i in shared if i in in_a and i in in_b):
        of_a, of_b = _of_prompt(a, prompt_id, in_a[prompt_id]), _of_prompt(b, prompt_id, in_b[prompt_id])
        differences[prompt_id] = {outcome: of_b[outcome] - of_a[outcome] for outcome in of_a if outcome in of_b}
        drawn_a, drawn_b = ([this.principle for this in run[prompt_id].rounds] for run in (in_a, in_b))
        if drawn_a == drawn_b and all(kinds.get(i) in ("same", "reweighted") for i in drawn_a):
            same.add(prompt_id)
        for i in {*drawn_a, *drawn_b} & kinds.keys():
            met[i].append(prompt_id)
    return {i: _change(kind, met[i], same, differences) for i, kind in kinds.items()}


def _change(kind: Kind, met: Sequence[str], same: set[str], differences: Mapping[str, Mapping[str, float]]) -> _Change:
    """A principle's change over the prompts that met it; `same` are those that ask the same principles in both runs."""
    those = [i for i in met if (i in same) == (kind == "same")]
    found: dict[str, Effect] = {}
    used = 0
    for outcome in (*OUTCOMES_OF_A_ROUND, "verdict"):
        values = [differences[i][outcome] for i in those if outcome in differences[i]]
        controls = [differences[i][outcome] for i in sorted(same) if kind != "same" and outcome in differences[i]]
        if any(controls):
            groups = ["met"] * len(values) + [REST] * len(controls)
            if contrast := contrasts(groups, {outcome: [*values, *controls]}).get(("met", outcome)):
                found[outcome], used = contrast, len(controls)
        elif values and (kind != "same" or any(values)):
            found[outcome] = paired(values)
    return _Change(len(those), used, found)


def _of_prompt(run: RunData, prompt_id: str, row: Revised) -> dict[str, float]:
    """A prompt's outcomes: the means over its rounds, and over what the judge said of its revision."""
    found = {name: mean([_of_round(name, this) for this in row.rounds]) for name in OUTCOMES_OF_A_ROUND}
    said = run.labels.revisions.get(prompt_id) if run.labels else None
    return found | ({"verdict": mean(list(said.values()))} if said else {})


# The runs' answers and labels against each other: who wins, how far labels agree, which answers lie far apart.


Texts = Mapping[str, str]  # by prompt
WinsByTag = dict[tuple[str, str | None], list[float]]  # by axis and tag


def wins(a: RunData, b: RunData, shared: Sequence[str]) -> list[Wins]:
    """B against A, on all prompts and by tag: as `cai eval` found it, or else by the evaluations of both runs.

    The latter on held-out prompts whose answer before training is the same in both: the eval judge saw either answer
    beside that one. Where the runs have another eval judge, nothing compares: [].
    """
    values = _met(a, b)
    directly = bool(values)
    if not values and a.answered and b.answered and same_eval_judge(a, b):
        for i in shared:
            in_a, in_b = a.answered.get(i), b.answered.get(i)
            if in_a and in_b and in_a.before == in_b.before:
                _count(values, "overall", in_a.tags, win(0.5 + (in_b.p - in_a.p) / 2))
    effects = corrected({key: paired([v - 0.5 for v in found]) for key, found in values.items()})
    order = sorted(effects, key=lambda key: (key[0], key[1] is not None, -effects[key].n, key[1]))
    return [
        Wins(axis=axis, tag=tag, directly=directly, share=fmean(values[axis, tag]), effect=effects[axis, tag])
        for axis, tag in order
    ]


def _met(a: RunData, b: RunData) -> WinsByTag:
    """B's wins where a judge saw answers of both policies, in the evaluation of either run."""
    values: WinsByTag = {}
    for run in (a, b):
        for row in judged_together(run, a, b) if not outdated(run, a, b) else ():
            _count(values, row.axis, row.tags, win(row.p if row.policy == b.name else 1 - row.p))
        if values:
            break  # the other run's folder may hold the same evaluation
    return values


def judged_together(run: RunData, a: RunData, b: RunData) -> list[Judgement]:
    """What the evaluation of `run` says of answers of both policies."""
    both = ((a.name, b.name), (b.name, a.name)) if a.name != b.name else ()
    return [row for row in run.judgements if (row.policy, row.against) in both]


def outdated(run: RunData, a: RunData, b: RunData) -> bool:
    """Whether a policy was trained anew since the evaluation of `run`, as far as the models are there to tell."""
    known = [(run.evaluated.get(side.name), side.folder.policy()) for side in (a, b)]
    return any(content and model and folder_fingerprint(model) != content for content, model in known)


def _count(values: WinsByTag, axis: str, tags: Sequence[str], value: float) -> None:
    for tag in (None, *dict.fromkeys(tags)):
        values.setdefault((axis, tag), []).append(value)


def same_eval_judge(a: RunData, b: RunData) -> bool:
    """Whether both runs' held-out answers were compared by the same model under the same constitution."""
    eval_constitutions = [(run.manifest.get("eval_constitution") or {}).get("fingerprint") for run in (a, b)]
    judges = [{row.judge for row in (run.answered or {}).values()} for run in (a, b)]
    return (
        eval_constitutions[0] == eval_constitutions[1] and eval_constitutions[0] is not None and judges[0] == judges[1]
    )


def label_agreement(a: Labels | None, b: Labels | None, shared: Sequence[str]) -> LabelAgreement | None:
    """On pairs of the same two texts; None where a run labelled none."""
    if a is None or b is None or not a.pairs or not b.pairs:
        return None
    of_a, of_b = [], []
    for i in shared:
        labels_b = {label.pair: label.p for label in b.pairs.get(i, [])}
        for label in a.pairs.get(i, []):
            if label.pair in labels_b:
                of_a.append(label.p)
                of_b.append(labels_b[label.pair])
    apart = fmean(abs(x - y) for x, y in zip(of_a, of_b, strict=True)) if of_a else None
    return LabelAgreement(pairs=len(of_a), agreement=agreement(of_a, of_b), mean_difference=apart)


def examples(a: RunData, b: RunData, shared: Sequence[str], count: int) -> list[Example]:
    """The shared prompts whose answers have least in common: `count` of the trained policies, and of last revisions.

    They are found by the words they do not share, in any order, which is a hundred times as fast as their distance.
    """

    def most(what: Literal["trained policy", "last revision"], of_a: Texts, of_b: Texts) -> list[Example]:
        both = (i for i in shared if i in of_a and i in of_b and of_a[i] != of_b[i])
        apart = ((_unlike(of_a[i], of_b[i]), i) for i in both)
        return [
            Example(
                prompt_id=i,
                messages=a.prompts[i].messages,
                what=what,
                principles_a=_principles(a, i),
                principles_b=_principles(b, i),
                a=of_a[i],
                b=of_b[i],
                change=word_distance(of_a[i], of_b[i]),
            )
            for _, i in heapq.nsmallest(count, apart, key=lambda found: (-found[0], found[1]))
        ]

    answers = ({i: row.after for i, row in (run.answered or {}).items()} for run in (a, b))
    revisions = ({i: row.text for i, row in (run.revised or {}).items()} for run in (a, b))
    return [*most("trained policy", *answers), *most("last revision", *revisions)]


def _unlike(a: str, b: str) -> float:
    """The share of the different words of two texts that only one of them has."""
    ours, theirs = set(a.split()), set(b.split())
    return len(ours ^ theirs) / len(ours | theirs) if ours or theirs else 0.0


def _principles(run: RunData, prompt_id: str) -> list[str]:
    row = (run.revised or {}).get(prompt_id)
    return [this.principle for this in row.rounds] if row else []
