"""`cai attribute`: the effect of each principle of a sweep on each outcome, from runs without it or with it alone.

All effects of all matrices are one family for Holm's correction: the chance that any cell of the output is significant
without an effect is at most 5 %. What the trained policies answer is not tested where each run trained one.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from cai.compare.compare import metric_effect
from cai.compare.findings import (
    LINES,
    UNTESTABLE,
    detected_share,
    high_metrics,
    insignificance,
    pair_warnings,
    run_warnings,
)
from cai.compare.head_to_head import comparable, indirect_wins
from cai.compare.reading import RunData, read_run
from cai.compare.record import Attributed, Attribution
from cai.config.errors import CaiError
from cai.feedback.metrics import (
    AFTER_BETTER,
    AFTER_WORDS,
    EDIT_DISTANCE,
    FILTERED,
    REVISION_BETTER,
    REVISION_TRUNCATED,
    REVISION_WORDS,
)
from cai.runs.folder import SWEEP_JSON, RunFolder
from cai.runs.sweep import IndexedRun, SweepIndex, read_index
from cai.stats.formatting import counted, difference
from cai.stats.significance import Effect, corrected, counts
from cai.stats.trainings import PROMPTS_ONLY, wins_between_policies

How = Literal["leave-one-out", "one-at-a-time"]
METRICS = (EDIT_DISTANCE, REVISION_WORDS, FILTERED, REVISION_TRUNCATED, REVISION_BETTER, AFTER_WORDS, AFTER_BETTER)
HEAD_TO_HEAD = "head-to-head"
OUTCOMES = {
    **{metric.name: metric.meaning for metric in METRICS},
    HEAD_TO_HEAD: "win rate on held-out prompts against the other run, less ½",
}
"""Columns of the matrix: name → meaning."""


def attribute(folder: Path) -> list[Attribution]:
    """One matrix for each combination of the sweep's other settings.

    Raises: CaiError for a folder that is no sweep, or one in which no principles are omitted or alone.
    """
    index = read_index(folder)
    matrices = []
    for varies in _combinations(index):
        members = [member for member in index.runs if member.varies == varies]
        base = next((member for member in members if member.principles.how == "all"), None)
        for how in ("leave-one-out", "one-at-a-time"):
            single = [member for member in members if member.principles.how == how]
            if single and base:
                matrices.append(_attribute(index.name, folder, how, base, single))
    if not matrices:
        raise CaiError(
            f"{folder / SWEEP_JSON}: no runs with all principles beside runs without one, or with one alone; a sweep "
            "has them with `principles: leave-one-out` or `one-at-a-time`"
        )
    return _corrected(matrices)


def _corrected(matrices: Sequence[Attribution]) -> list[Attribution]:
    """The matrices with the effects of all of them corrected together, and their findings."""
    cells = {
        (number, row.run, name): effect
        for number, matrix in enumerate(matrices)
        for row in matrix.rows
        for name, effect in row.effects.items()
    }
    words = {metric.name for metric in METRICS if metric.unit == "words"}

    def largest(table: str, cell: tuple[int, str, str]) -> float:
        return math.inf if cell[-1] in words else 0.5 if cell[-1] == HEAD_TO_HEAD else 1.0

    effects = corrected({"effects": cells}, largest)["effects"]
    complete = []
    for number, matrix in enumerate(matrices):
        rows = [
            row.model_copy(update={"effects": {name: effects[number, row.run, name] for name in row.effects}})
            for row in matrix.rows
        ]
        updates = {"rows": rows, "tests": sum(map(counts, cells.values()))}
        matrix = matrix.model_copy(update=updates)
        complete.append(matrix.model_copy(update={"findings": list(_findings(matrix))}))
    return complete


def _combinations(index: SweepIndex) -> list[dict[str, Any]]:
    """The combinations of settings that vary, in order."""
    return list({json.dumps(member.varies): member.varies for member in index.runs}.values())


class _SingleRun(NamedTuple):
    """A principle's run: its effects before correction."""

    member: IndexedRun
    shared: int
    effects: dict[str, Effect]


def _attribute(sweep: str, folder: Path, how: How, base: IndexedRun, single: Sequence[IndexedRun]) -> Attribution:
    whole = read_run(RunFolder(folder / base.run))
    runs, warnings = _read_single(sweep, folder, how, whole, single)
    outcomes = {name: meaning for name, meaning in OUTCOMES.items() if any(name in run.effects for run in runs)}
    return Attribution(
        sweep=sweep,
        how=how,
        varies=base.varies,
        base=base.run,
        outcomes=outcomes,
        means={m.name: fmean(by_prompt.values()) for m in METRICS if (by_prompt := whole.metrics.get(m.key))},
        rows=[
            Attributed(
                principle_id=run.member.principles.id or "",
                run=run.member.run,
                shared=run.shared,
                effects={name: run.effects[name] for name in outcomes if name in run.effects},
            )
            for run in runs
        ],
        warnings=list(dict.fromkeys(warnings)),
        tests=0,
        findings=[],
    )


def _read_single(
    sweep: str, folder: Path, how: How, whole: RunData, single: Sequence[IndexedRun]
) -> tuple[list[_SingleRun], list[str]]:
    """The runs without one principle or with it alone, each against `whole`, and warnings: one for all runs alike."""
    warnings = [*run_warnings(whole, []), *high_metrics(whole)]
    known = {warning.removeprefix(whole.name) for warning in warnings}
    of_pairs: dict[str, list[str]] = {}  # the other runs by the warning about them and `whole`
    drawn = {one_round.principle for row in (whole.revised or {}).values() for one_round in row.rounds}
    runs: list[_SingleRun] = []
    for member in single:
        path = folder / member.run
        if not (path / "manifest.json").exists():
            warnings.append(f"{sweep}/{member.run} has not been started, so its row is missing")
            continue
        run = read_run(RunFolder(path))  # let go after its row: a sweep may hold more than fits in memory
        shared = [i for i, prompt in whole.prompts.items() if run.prompts.get(i) == prompt]
        warnings += [warning for warning in run_warnings(run, []) if warning.removeprefix(run.name) not in known]
        for warning in pair_warnings(whole, run, shared):
            of_pairs.setdefault(warning.removeprefix(f"{whole.name} and {run.name}"), []).append(run.name)
        if whole.revised and (id := member.principles.id) is not None and id not in drawn:
            warnings.append(f"no revision of {whole.name} sampled '{id}', so its row is its effect as a judge alone")
        sides = (whole, run) if how == "one-at-a-time" else (run, whole)
        runs.append(_SingleRun(member, whole.split(shared)[0], dict(outcome_effects(*sides, shared))))
    for warning, names in of_pairs.items():
        warnings.append(f"{whole.name} and {names[0] if len(names) == 1 else f'each of {len(names)} others'}{warning}")
    return runs, warnings


def outcome_effects(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[tuple[str, Effect]]:
    """The outcomes of `b` less those of `a`, paired, on the shared prompts that have them in both."""
    for metric in comparable(METRICS, a, b):
        in_a, in_b = a.metrics.get(metric.key, {}), b.metrics.get(metric.key, {})
        ids = [i for i in shared if i in in_a and i in in_b]
        if ids:
            yield metric.name, metric_effect(a, b, metric, ids)
    if wins := indirect_wins(a, b, shared).get(None):
        yield HEAD_TO_HEAD, wins_between_policies(wins)


def _findings(matrix: Attribution) -> Iterator[str]:
    """At most LINES lines: what is significant, the surest first, then the nearest of the rest."""
    effects = [(row.principle_id, name, effect) for row in matrix.rows for name, effect in row.effects.items()]
    significant = sorted((e for e in effects if e[2].significant), key=lambda e: e[2].adjusted or 0.0)
    if not significant:
        head = f"no effect of {counted(len(matrix.rows), 'principles')}"
        tested = any(counts(effect) for *_, effect in effects)
        tests = f"is significant, of {counted(matrix.tests, 'tests')}"
        yield f"{head} {tests if tested else f'can be tested: {UNTESTABLE}'}"
    for principle, name, effect in significant[: LINES - 3]:
        what = principle if matrix.how == "leave-one-out" else f"{principle} alone, against all together"
        yield f"{what}, {name}: significant, {difference(effect)}"
    if len(significant) > LINES - 3:
        yield f"{len(significant) - LINES + 3} more significant effects are in the matrix"
    rest = [e for e in effects if not e[2].significant and e[2].minimum_detectable]
    nearest = max(rest, key=lambda e: detected_share(e[2]), default=None)
    if nearest and len(significant) < LINES - 2:
        principle, name, effect = nearest
        yield f"closest to significance: {principle}, {name} {difference(effect)}; {insignificance(effect)}"
    untested = list(dict.fromkeys(name for _, name, effect in effects if effect.note == PROMPTS_ONLY))
    if untested:
        yield f"not tested, {PROMPTS_ONLY}: {', '.join(untested)}"
