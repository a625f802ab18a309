"""Principle by principle: how often each was drawn, what its rounds did, and what changing it did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from cai.compare.reading import Revised, Round, RunData, mean
from cai.compare.record import Kind, PrincipleComparison, PrincipleText, PrincipleUse
from cai.constitution import principles
from cai.constitution.principles import Constitution, Principle, shares
from cai.feedback.metrics import ROUND_METRICS, mean_over_prompts
from cai.stats.significance import Effect, contrasts, corrected, paired

CHANGED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "same")
ROUND_OUTCOMES = tuple(metric.key for metric in ROUND_METRICS)
VERDICT = "verdict"
REST = "the rest"


def compare_principles(a: RunData, b: RunData, shared: Sequence[str]) -> list[PrincipleComparison]:
    """Every principle of either constitution, those that changed first; [] where a constitution cannot be read.

    Where no prompt is shared, what a principle did is computed over each run's own prompts.
    """
    if a.constitution is None or b.constitution is None:
        return []
    in_a, in_b = ({p.id: p for p in c.principles} for c in (a.constitution, b.constitution))
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
            text_a=_text(in_a.get(i)),
            text_b=_text(in_b.get(i)),
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
    kinds: dict[str, Kind] = {}
    difference = principles.diff(a, b)
    for kind in CHANGED:
        for i in getattr(difference, kind):
            kinds.setdefault(i, kind)
    return kinds | {p.id: "same" for p in a.principles if p.id not in kinds}


def _text(principle: Principle | None) -> PrincipleText | None:
    if principle is None:
        return None
    p = principle
    return PrincipleText(critique=p.critique, revision=p.revision, judge=p.judge, weight=p.weight)


def _uses(run: RunData, constitution: Constitution, prompts: Sequence[str]) -> dict[str, PrincipleUse]:
    """What each principle did in one run; {} in a run without revisions."""
    if run.revised is None:
        return {}
    labels, revised = run.labels, run.revised
    rounds = [(i, one_round) for i in prompts if i in revised for one_round in revised[i].rounds]
    verdicts = [
        (i, principle, p)
        for i in prompts
        if labels and i in revised
        for principle, p in labels.revisions.get(i, {}).items()
    ]
    against = corrected(_against_others([one_round for _, one_round in rounds], verdicts))
    expected = shares(constitution)
    uses = {}
    for i in (p.id for p in constitution.principles):
        own = [(prompt_id, one_round) for prompt_id, one_round in rounds if one_round.principle == i]
        means = {key: mean_over_prompts((of, r.values.get(key)) for of, r in own) for key in ROUND_OUTCOMES}
        means[VERDICT] = mean_over_prompts((prompt_id, p) for prompt_id, principle, p in verdicts if principle == i)
        of_pairs = labels.verdicts.get(i, []) if labels else []
        uses[i] = PrincipleUse(
            drawn=len(own),
            share=len(own) / len(rounds) if rounds else 0.0,
            expected=expected[i],
            means={outcome: value for outcome, value in means.items() if value is not None},
            against_others={outcome: effect for (of, outcome), effect in against.items() if of == i},
            pairs_judged=len(of_pairs),
            position_bias=mean_over_prompts((verdict.prompt_id, verdict.position_bias) for verdict in of_pairs),
        )
    return uses


def _against_others(
    rounds: Sequence[Round], verdicts: Sequence[tuple[str, str, float]]
) -> dict[tuple[str, str], Effect]:
    """By principle and outcome: its rounds against those that drew another, before correction."""
    effects: dict[tuple[str, str], Effect] = {}
    if rounds:
        columns = {key: [one_round.values[key] for one_round in rounds] for key in ROUND_OUTCOMES}
        effects |= contrasts([one_round.principle for one_round in rounds], columns)
    if verdicts:
        effects |= contrasts([principle for _, principle, _ in verdicts], {VERDICT: [p for *_, p in verdicts]})
    return effects


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
        of_a, of_b = _outcomes(a, prompt_id, in_a[prompt_id]), _outcomes(b, prompt_id, in_b[prompt_id])
        differences[prompt_id] = {outcome: of_b[outcome] - of_a[outcome] for outcome in of_a if outcome in of_b}
        drawn_a, drawn_b = ([one_round.principle for one_round in run[prompt_id].rounds] for run in (in_a, in_b))
        if drawn_a == drawn_b and all(kinds.get(i) in ("same", "reweighted") for i in drawn_a):
            same.add(prompt_id)
        for i in {*drawn_a, *drawn_b} & kinds.keys():
            met[i].append(prompt_id)
    return {i: _change(kind, met[i], same, differences) for i, kind in kinds.items()}


def _change(kind: Kind, met: Sequence[str], same: set[str], differences: Mapping[str, Mapping[str, float]]) -> _Change:
    """A principle's change over the prompts that met it; `same` are those that met the same in both runs."""
    prompts = [i for i in met if (i in same) == (kind == "same")]
    effects: dict[str, Effect] = {}
    used = 0
    for outcome in (*ROUND_OUTCOMES, VERDICT):
        values = [differences[i][outcome] for i in prompts if outcome in differences[i]]
        controls = [differences[i][outcome] for i in sorted(same) if kind != "same" and outcome in differences[i]]
        if any(controls):
            groups = ["met"] * len(values) + [REST] * len(controls)
            if contrast := contrasts(groups, {outcome: [*values, *controls]}).get(("met", outcome)):
                effects[outcome], used = contrast, len(controls)
        elif values and (kind != "same" or any(values)):
            effects[outcome] = paired(values)
    return _Change(len(prompts), used, effects)


def _outcomes(run: RunData, prompt_id: str, row: Revised) -> dict[str, float]:
    """A prompt's outcomes: the means over its rounds, and over the judge's verdicts on its revision."""
    outcomes = {key: mean([one_round.values[key] for one_round in row.rounds]) for key in ROUND_OUTCOMES}
    verdicts = run.labels.revisions.get(prompt_id) if run.labels else None
    return outcomes | ({VERDICT: mean(list(verdicts.values()))} if verdicts else {})
