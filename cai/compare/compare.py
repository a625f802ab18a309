"""`cai compare`: runs against the first of them, metric by metric on the prompts they share.

All runs are read from their folders alone. What a run did to its prompts is tested over prompts; what its policies
answer, over trainings and prompts. All tests of the output are one family for Holm's correction. Principle by
principle: how often each was sampled, what its rounds did, and what changing it did.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, get_args

from cai.compare.findings import findings, high_metrics, pair_warnings, run_warnings
from cai.compare.head_to_head import comparable, examples, head_to_head
from cai.compare.labels import label_agreement, label_flips
from cai.compare.reading import Revised, Round, RunData, mean, read_run, shared_prompts
from cai.compare.record import (
    AGAINST_TABLE,
    EFFECT_TABLE,
    METRIC_TABLE,
    REVISION_TABLE,
    WIN_TABLE,
    Curve,
    Kind,
    MetricDifference,
    PairComparison,
    PrincipleComparison,
    PrincipleText,
    PrincipleUse,
    RevisionHeadToHead,
    RunComparison,
    RunPart,
    UnpairedMetric,
)
from cai.config.errors import CaiError
from cai.constitution.difference import principle_changes
from cai.constitution.principles import Constitution, Principle, shares
from cai.data.manifest import differences
from cai.feedback.metrics import (
    POLICY_METRICS,
    ROUND_METRICS,
    RUN_METRICS,
    Metric,
    mean_over_prompts,
)
from cai.runs.folder import RunFolder, stage_order
from cai.runs.metrics import CURVES
from cai.stats.formatting import counted
from cai.stats.significance import Effect, contrasts, corrected, counts, paired
from cai.stats.trainings import between_policies
from cai.training.tracking import read_metrics

CHANGED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "same")
ROUND_OUTCOMES = tuple(metric.key for metric in ROUND_METRICS)
VERDICT = "verdict"
REST = "the rest"


def compare_principles(a: RunData, b: RunData, shared: Sequence[str]) -> list[PrincipleComparison]:
    """Every principle of either constitution, those that changed first; [] where a constitution cannot be read.

    Effects are not corrected yet. Where no prompt is shared, what a principle did is computed over each run's own
    prompts.
    """
    if a.constitution is None or b.constitution is None:
        return []
    in_a, in_b = ({p.id: p for p in c.principles} for c in (a.constitution, b.constitution))
    uses_a, uses_b = (
        _uses(run, c, shared or list(run.prompts)) for run, c in ((a, a.constitution), (b, b.constitution))
    )
    kinds = _kinds(a.constitution, b.constitution)
    changes = _changes(a, b, shared, kinds)
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
            effects=changes[i].effects,
        )
        for i, kind in kinds.items()
    ]


def _kinds(a: Constitution, b: Constitution) -> dict[str, Kind]:
    """What happened to each principle; a reworded one may be reweighted or rescoped too."""
    kinds: dict[str, Kind] = {}
    difference = principle_changes(a, b)
    for kind in CHANGED:
        for i in getattr(difference, kind):
            kinds.setdefault(i, kind)
    return kinds | {p.id: "same" for p in a.principles if p.id not in kinds}


def _text(principle: Principle | None) -> PrincipleText | None:
    if principle is None:
        return None
    p = principle
    where = str(p.applies_to or "")
    return PrincipleText(critique=p.critique, revision=p.revision, judge=p.judge, weight=p.weight, applies_to=where)


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
    everywhere = all(p.applies_to is None for p in constitution.principles)  # or prompts differ by principle
    against = _against_others([one_round for _, one_round in rounds], verdicts) if everywhere else {}
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
        if drawn_a == drawn_b and all(kinds.get(i) in ("same", "reweighted", "rescoped") for i in drawn_a):
            same.add(prompt_id)
        for i in {*drawn_a, *drawn_b} & kinds.keys():
            met[i].append(prompt_id)
    return {i: _change(kind, met[i], same, differences) for i, kind in kinds.items()}


def _change(kind: Kind, met: Sequence[str], same: set[str], differences: Mapping[str, Mapping[str, float]]) -> _Change:
    """A principle's change over the prompts that sampled it; `same` are those that sampled the same in both runs."""
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


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


JudgeRevisions = Callable[[Sequence[RunData]], Mapping[int, RevisionHeadToHead]]
"""The runs' revisions head to head, by the place of the run that is compared with the first."""


def compare_runs(
    folders: Sequence[RunFolder], example_count: int = 5, judge_revisions: JudgeRevisions | None = None
) -> RunComparison:
    """The first run against each of the others, from the folders alone; `warnings` name what a run lacks.

    With `judge_revisions` the revisions of the runs meet too, which calls a model (cai/compare/revisions.py).

    Raises: CaiError for fewer than two runs, or more than there are letters.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise CaiError(f"expected 2 to {len(LETTERS)} runs to compare, found {len(folders)}")
    runs = [read_run(folder, number) for number, folder in enumerate(folders)]
    return compare_read(runs, example_count, judge_revisions(runs) if judge_revisions else None)


def compare_read(
    runs: Sequence[RunData], example_count: int = 5, revisions: Mapping[int, RevisionHeadToHead] | None = None
) -> RunComparison:
    """`compare_runs` of runs that were read, and whose revisions were judged, by the place of the other run."""
    judged = revisions or {}
    all_curves: list[Curve] = []
    warnings: list[str] = []
    for number, run in enumerate(runs):
        run_curves, unreadable = curves(run.folder, number)
        run.unreadable.extend(unreadable)
        warnings += [*run_warnings(run, run_curves), *high_metrics(run)]
        all_curves += run_curves
    pairs = []
    for number, other in enumerate(runs[1:], start=1):
        shared = shared_prompts(runs[0], other)
        warnings += pair_warnings(runs[0], other, shared)
        if revisions is not None and number not in judged:
            warnings.append(f"{runs[0].name} and {other.name} revised no prompt in common, so --judge compared nothing")
        if number in judged and judged[number].skipped:
            missing = counted(sum(judged[number].skipped.values()), "verdicts")
            warnings.append(f"{runs[0].name} and {other.name}: {missing} of --judge are missing; its table says why")
        pair = _pair(runs[0], other, number, shared, example_count)
        pairs.append(pair.model_copy(update={"revisions": judged.get(number)}))
    pairs, family = _corrected(pairs)
    comparison = RunComparison(
        runs=[_part(number, run) for number, run in enumerate(runs)],
        pairs=pairs,
        family=family,
        curves=all_curves,
        flips=[flip for run in runs for flip in run.flips],
        warnings=list(dict.fromkeys(warnings)),
        findings=[],
    )
    return comparison.model_copy(update={"findings": findings(comparison)})


def _pair(a: RunData, b: RunData, number: int, shared: Sequence[str], example_count: int) -> PairComparison:
    held_out, of_both = a.held_out | b.held_out, set(shared)
    only_a, only_b = (run.split(run.prompts.keys() - of_both) for run in (a, b))
    return PairComparison(
        b=number,
        settings=differences(a.manifest["config"], b.manifest["config"])
        if "config" in a.manifest and "config" in b.manifest
        else None,
        shared=len(of_both - held_out),
        shared_held_out=len(of_both & held_out),
        only=(only_a[0], only_b[0]),
        only_held_out=(only_a[1], only_b[1]),
        metrics=list(_metrics(a, b, shared)),
        unpaired=[] if shared else list(_unpaired(a, b)),
        principles=compare_principles(a, b, shared),
        head_to_head=head_to_head(a, b, shared),
        labels=label_agreement(a.labels, b.labels, shared) if shared else None,
        label_flips=label_flips(a, b, shared),
        examples=examples(a, b, shared, example_count),
    )


def _metrics(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[MetricDifference]:
    """Every metric on the shared prompts that have it in both runs, before correction."""
    for metric in comparable(RUN_METRICS.values(), a, b):
        in_a, in_b = a.metrics.get(metric.key, {}), b.metrics.get(metric.key, {})
        ids = sorted(i for i in shared if i in in_a and i in in_b)
        if ids:
            yield MetricDifference(
                key=metric.key,
                name=metric.name,
                a=fmean(in_a[i] for i in ids),
                b=fmean(in_b[i] for i in ids),
                effect=metric_effect(a, b, metric, ids),
            )


def metric_effect(a: RunData, b: RunData, metric: Metric[Any], ids: Sequence[str]) -> Effect:
    """B − A on prompts that have the metric in both runs: over prompts, or of a policy's answers over trainings too."""
    if metric in POLICY_METRICS:
        of_a, of_b = (
            [{i: policy.metrics[metric.key][i] for i in ids} for policy in run.policies or []] for run in (a, b)
        )
        return between_policies(of_a, of_b)
    return paired([b.metrics[metric.key][i] - a.metrics[metric.key][i] for i in ids])


def _unpaired(a: RunData, b: RunData) -> Iterator[UnpairedMetric]:
    """Every metric that both runs have, each on its own prompts."""
    for metric in comparable(RUN_METRICS.values(), a, b):
        in_a, in_b = (list(run.metrics.get(metric.key, {}).values()) for run in (a, b))
        if in_a and in_b:
            yield UnpairedMetric(
                key=metric.key, name=metric.name, a=fmean(in_a), b=fmean(in_b), n_a=len(in_a), n_b=len(in_b)
            )


Place = tuple[object, ...]


def _corrected(pairs: Sequence[PairComparison]) -> tuple[list[PairComparison], dict[str, int]]:
    """The pairs with all of their effects corrected as one family, and how many tests it has by table."""
    tables: dict[str, dict[Place, Effect]] = {
        METRIC_TABLE: {(pair.b, m.key): m.effect for pair in pairs for m in pair.metrics},
        WIN_TABLE: {(pair.b, row.axis, row.tag): row.effect for pair in pairs for row in pair.head_to_head},
        EFFECT_TABLE: {
            (pair.b, p.id, outcome): e for pair in pairs for p in pair.principles for outcome, e in p.effects.items()
        },
        AGAINST_TABLE: {
            (pair.b, p.id, side, outcome): e
            for pair in pairs
            for p in pair.principles
            for side, use in (("a", p.a), ("b", p.b))
            if use
            for outcome, e in use.against_others.items()
        },
        REVISION_TABLE: {
            (pair.b, place): row.effect
            for pair in pairs
            if pair.revisions
            for place, row in enumerate(pair.revisions.preferences)
        },
    }
    effects = corrected(tables, _largest)
    family = {name: number for name, table in tables.items() if (number := sum(map(counts, table.values())))}
    return [_with_effects(pair, effects) for pair in pairs], family


def _largest(table: str, place: Place) -> float:
    """The largest difference there can be: 1 between two shares, ½ from ½, and none of words."""
    if table in (WIN_TABLE, REVISION_TABLE):
        return 0.5
    metrics: Mapping[str, Metric[Any]] = RUN_METRICS if table == METRIC_TABLE else {m.key: m for m in ROUND_METRICS}
    metric = metrics.get(str(place[-1]))
    return math.inf if metric is not None and metric.unit == "words" else 1.0


def _with_effects(pair: PairComparison, effects: Mapping[str, Mapping[Place, Effect]]) -> PairComparison:
    def use(p: PrincipleComparison, side: str) -> PrincipleUse | None:
        before: PrincipleUse | None = getattr(p, side)
        if before is None:
            return None
        against = {outcome: effects[AGAINST_TABLE][pair.b, p.id, side, outcome] for outcome in before.against_others}
        return before.model_copy(update={"against_others": against})

    metrics = [m.model_copy(update={"effect": effects[METRIC_TABLE][pair.b, m.key]}) for m in pair.metrics]
    wins = [
        row.model_copy(update={"effect": effects[WIN_TABLE][pair.b, row.axis, row.tag]}) for row in pair.head_to_head
    ]
    principles = [
        p.model_copy(
            update={
                "a": use(p, "a"),
                "b": use(p, "b"),
                "effects": {outcome: effects[EFFECT_TABLE][pair.b, p.id, outcome] for outcome in p.effects},
            }
        )
        for p in pair.principles
    ]
    revisions = pair.revisions and pair.revisions.model_copy(
        update={
            "preferences": [
                row.model_copy(update={"effect": effects[REVISION_TABLE][pair.b, place]})
                for place, row in enumerate(pair.revisions.preferences)
            ]
        }
    )
    changed = {"metrics": metrics, "head_to_head": wins, "principles": principles, "revisions": revisions}
    return pair.model_copy(update=changed)


def _part(number: int, run: RunData) -> RunPart:
    training, held_out = run.split(run.prompts)
    return RunPart(
        letter=LETTERS[number],
        name=run.name,
        finished=run.folder.summary_json.exists(),
        constitution=run.constitution.name if run.constitution else "",
        principles=len(run.constitution.principles) if run.constitution else 0,
        prompts=training,
        held_out=held_out,
        rows=run.rows,
        skipped=run.skipped,
        label_mass={**run.labels.mass.shares()} if run.labels else {},
    )


def by_kind(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """The curves that have values, of one kind of stage (such as ppo) and one name together."""
    kinds: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        if curve.values:
            kinds.setdefault((curve.stage.partition("-")[2] or curve.stage, curve.name), []).append(curve)
    return kinds


def curves(folder: RunFolder, run: int) -> tuple[list[Curve], list[str]]:
    """The curves of a run, the `run`-th of its comparison, and what could not be read."""
    read, unreadable = [], []
    for path in sorted(folder.train.glob("*/metrics.jsonl"), key=lambda path: stage_order(path.parent)):
        try:
            lines = read_metrics(path)
        except CaiError as error:
            unreadable.append(str(error))
            continue
        for name, logged in CURVES.items():
            points = [
                (line["step"], next(line[key] for key in logged if line.get(key) is not None))
                for line in lines
                if any(line.get(key) is not None for key in logged)
            ]
            finite = [
                (step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)
            ]
            if points:
                read.append(
                    Curve(
                        stage=path.parent.name,
                        name=name,
                        run=run,
                        steps=[step for step, _ in finite],
                        values=[float(value) for _, value in finite],
                        missing=len(points) - len(finite),
                    )
                )
    return read, unreadable
