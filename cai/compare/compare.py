"""`cai compare`: runs against the first of them, metric by metric on the prompts they share.

All runs are read from their folders alone. Every paired difference is tested over prompts, and Holm's correction is
over the metrics of all pairs of runs together.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from cai.compare.findings import findings, high_metrics, pair_warnings, run_warnings
from cai.compare.head_to_head import examples, head_to_head, label_agreement, same_eval_judge
from cai.compare.principle_effects import compare_principles
from cai.compare.reading import RunData, read_run
from cai.compare.record import Curve, MetricDifference, PairComparison, RunComparison, RunPart, UnpairedMetric
from cai.config.errors import CaiError
from cai.data.manifest import differences
from cai.feedback.metrics import EVAL_JUDGE_METRICS, RUN_METRICS, Metric
from cai.runs.folder import RunFolder, stage_order
from cai.runs.metrics import CURVES
from cai.stats.significance import corrected, paired
from cai.training.metrics import read_metrics

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_runs(folders: Sequence[RunFolder], example_count: int = 5) -> RunComparison:
    """The first run against each of the others, from the folders alone; `warnings` name what a run lacks.

    Holm's correction is over the metrics of all pairs together, and over each table of principles and of win rates.
    Raises: CaiError for fewer than two runs, or more than there are letters.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise CaiError(f"expected 2 to {len(LETTERS)} runs to compare, found {len(folders)}")
    runs = [read_run(folder, number) for number, folder in enumerate(folders)]
    all_curves: list[Curve] = []
    warnings: list[str] = []
    for number, run in enumerate(runs):
        run_curves, unreadable = curves(run.folder, number)
        run.unreadable.extend(unreadable)
        warnings += [*run_warnings(run, run_curves), *high_metrics(run)]
        all_curves += run_curves
    pairs = []
    for number, other in enumerate(runs[1:], start=1):
        shared = _shared(runs[0], other)
        warnings += pair_warnings(runs[0], other, shared)
        pairs.append(_pair(runs[0], other, number, shared, example_count))
    comparison = RunComparison(
        runs=[_part(number, run) for number, run in enumerate(runs)],
        pairs=_corrected(pairs),
        curves=all_curves,
        flips=[flip for run in runs for flip in run.flips],
        warnings=list(dict.fromkeys(warnings)),
        findings=[],
    )
    return comparison.model_copy(update={"findings": findings(comparison)})


def _shared(a: RunData, b: RunData) -> list[str]:
    """The ids of prompts that are the same in both, in A's order."""
    return [i for i, prompt in a.prompts.items() if i in b.prompts and b.prompts[i].messages == prompt.messages]


def _pair(a: RunData, b: RunData, number: int, shared: Sequence[str], example_count: int) -> PairComparison:
    return PairComparison(
        b=number,
        settings=differences(a.manifest["config"], b.manifest["config"])
        if "config" in a.manifest and "config" in b.manifest
        else None,
        shared=len(shared),
        only=(len(a.prompts) - len(shared), len(b.prompts) - len(shared)),
        metrics=list(_metrics(a, b, shared)),
        unpaired=[] if shared else list(_unpaired(a, b)),
        principles=compare_principles(a, b, shared),
        head_to_head=head_to_head(a, b, shared),
        labels=label_agreement(a.labels, b.labels, shared) if shared else None,
        examples=examples(a, b, shared, example_count),
    )


def _comparable(a: RunData, b: RunData) -> Iterator[Metric[Any]]:
    """The metrics that mean the same in both runs: those of the eval judge only where it is the same one."""
    same = same_eval_judge(a, b)
    return (metric for metric in RUN_METRICS.values() if same or metric not in EVAL_JUDGE_METRICS)


def _metrics(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[MetricDifference]:
    """Every metric on the shared prompts that have it in both runs, before correction."""
    for metric in _comparable(a, b):
        in_a, in_b = a.metrics.get(metric.key, {}), b.metrics.get(metric.key, {})
        ids = sorted(i for i in shared if i in in_a and i in in_b)
        if ids:
            yield MetricDifference(
                key=metric.key,
                name=metric.name,
                a=fmean(in_a[i] for i in ids),
                b=fmean(in_b[i] for i in ids),
                effect=paired([in_b[i] - in_a[i] for i in ids]),
            )


def _unpaired(a: RunData, b: RunData) -> Iterator[UnpairedMetric]:
    """Every metric that both runs have, each on its own prompts."""
    for metric in _comparable(a, b):
        in_a, in_b = (list(run.metrics.get(metric.key, {}).values()) for run in (a, b))
        if in_a and in_b:
            yield UnpairedMetric(
                key=metric.key, name=metric.name, a=fmean(in_a), b=fmean(in_b), n_a=len(in_a), n_b=len(in_b)
            )


def _corrected(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """The pairs with the metrics of all of them corrected together."""
    effects = corrected({(pair.b, m.key): m.effect for pair in pairs for m in pair.metrics})
    return [
        pair.model_copy(
            update={"metrics": [m.model_copy(update={"effect": effects[pair.b, m.key]}) for m in pair.metrics]}
        )
        for pair in pairs
    ]


def _part(number: int, run: RunData) -> RunPart:
    return RunPart(
        letter=LETTERS[number],
        name=run.name,
        finished=run.folder.summary_json.exists(),
        constitution=run.constitution.name if run.constitution else "",
        principles=len(run.constitution.principles) if run.constitution else 0,
        prompts=len(run.prompts),
        rows=run.rows,
        skipped=run.skipped,
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
