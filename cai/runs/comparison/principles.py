"""Principle by principle: how often each was drawn, what its rounds did, and what changing it did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from cai import constitution
from cai.constitution import Constitution, Principle
from cai.evaluation.contrasts import contrasts
from cai.evaluation.effects import Effect, corrected, paired
from cai.runs.comparison.reading import Revised, Round, RunData, mean
from cai.runs.comparison.record import Kind, PrincipleComparison, PrincipleText, PrincipleUse

CHANGED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "same")
OUTCOMES_OF_A_ROUND = ("changed", "edit", "words", "flagged", "cut_off")
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
    difference = constitution.diff(a, b)
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
    expected = constitution.shares(principles)
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
            same_position=run.labels.same_position[p.id] / asked if run.labels and asked else None,
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
