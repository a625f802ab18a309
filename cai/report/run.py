"""The report of one run: what it was made of, what came of it, every example."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from cai.constitution import Constitution
from cai.errors import CaiError
from cai.evaluation.judge_quality import JudgeReport
from cai.report.behaviour import Behaviour, Tally
from cai.report.configuration import as_yaml, configuration_files, made_of
from cai.report.evaluation import evaluation_grids, evaluation_plots
from cai.report.examples import Examples
from cai.report.html import report
from cai.report.plots import Plot, bars, curves, histogram, logged_curves, reliability
from cai.report.run_facts import told_of
from cai.report.run_table import COLUMNS, FACETS, run_detail, run_line
from cai.report.table import Detail, Table
from cai.runs.folder import RunFolder, read_json, stage_order, stage_settings
from cai.runs.judge_page import figures, number, percent
from cai.training.metrics import read_metrics

Found = TypeVar("Found")


class Contents(NamedTuple):
    """A run read through once, and what of it could not be read."""

    table: Table
    constitution: Constitution | None
    behaviours: list[Behaviour]
    missing: list[str]


class Stage(NamedTuple):
    """One stage of training: its settings, what came of it in words, and the numbers of its plots."""

    name: str
    settings: str
    lines: list[str]
    plots: list[int]


def read_run(folder: RunFolder) -> Contents:
    """Read every row of a run; where one is damaged or of another version, there are no examples."""
    missing: list[str] = []
    constitution = _part("Its constitution", folder.constitution, missing)
    found = _part("The examples", lambda: _examples(folder), missing)
    table, tally = found or (Table(COLUMNS, FACETS, [], lambda i: Detail([]), lambda i, text: False), Tally())
    return Contents(table, constitution, tally.behaviours(constitution), missing)


def _examples(folder: RunFolder) -> tuple[Table, Tally]:
    examples, tally, lines = Examples(folder), Tally(), []
    for prompt_id in examples.ids:
        example = examples.read(prompt_id)
        lines.append(run_line(example))
        tally.add(example)

    def holds(prompt_id: str, text: str) -> bool:
        return examples.may_hold(prompt_id, text) and run_detail(examples.read(prompt_id)).holds(text)

    return Table(COLUMNS, FACETS, lines, lambda i: run_detail(examples.read(i)), holds), tally


def _part(what: str, read: Callable[[], Found], missing: list[str]) -> Found | None:
    """A part of a run; one that cannot be read is told in `missing`, and the page does without it."""
    try:
        return read()
    except CaiError as error:
        missing.append(f"{what} cannot be shown: {error}")
        return None


def run_report(folder: RunFolder, contents: Contents, url: str | None = None) -> str:
    """The HTML of a run's report, with a note on each part that cannot be read; raises CaiError without a lock."""
    lock, missing = folder.lock(), list(contents.missing)
    told = told_of(folder, missing)
    plots = _overview_plots(contents)
    overview = list(range(len(plots)))
    gate = _part("The gate of its judge", lambda: _gate(folder), missing)
    if gate is not None:
        plots.append(
            reliability(
                "The judge on the labelled pairs of its gate", {"judge": [b._asdict() for b in gate.reliability]}
            )
        )
    evaluated, first = _part("The evaluation", folder.policy_report, missing), len(plots)
    plots += evaluation_plots(evaluated) if evaluated else []
    of_policies = list(range(first, len(plots)))
    stages = []
    for path in sorted((p for p in folder.train.glob("*") if p.is_dir()), key=stage_order):
        first, of_stage = len(plots), f"All of {path.name}"
        plots += _part(of_stage, partial(_stage_plots, path, told.calibration.get(path.name)), missing) or []
        settings = _part(of_stage, partial(stage_settings, path), missing)
        lines, drawn = told.training.get(path.name, []), list(range(first, len(plots)))
        stages.append(Stage(path.name, as_yaml(settings) if settings else "", lines, drawn))
    return report(
        "run.html.jinja",
        contents.table,
        plots,
        url,
        name=folder.name,
        made_of=made_of(lock),
        notes=[*missing, *told.notes],
        facts=told.facts,
        constitution=contents.constitution,
        behaviours=contents.behaviours,
        overview=overview,
        judge=told.judge,
        gate=figures(gate) if gate else [],
        gate_notes=gate.notes if gate else [],
        gate_plot=len(overview) if gate else None,
        evaluated=evaluation_grids(evaluated) if evaluated else [],
        evaluated_notes=evaluated.notes if evaluated else [],
        evaluated_plots=of_policies,
        monitors=told.monitors,
        stages=stages,
        files=configuration_files(folder, lock),
        left_out=told.left_out,
        percent=percent,
        number=number,
    )


def _overview_plots(contents: Contents) -> list[Plot]:
    plots = []
    column = {c.title: at for at, c in enumerate(COLUMNS)}

    def values(title: str) -> list[float]:
        return [v for line in contents.table.lines if isinstance(v := line.cells[column[title]], int | float)]

    drafts, revised, judge, after = (values(title) for title in ("words", "revised", "judge", "after"))
    if drafts:
        most = float(max(*drafts, *revised))
        plots.append(
            histogram("Words of draft and last revision", "words", {"draft": drafts, "revision": revised}, 0, most)
        )
    labels = {name: found for name, found in (("judge, of the chosen", judge), ("referee, of after", after)) if found}
    if labels:
        plots.append(histogram("What judge and referee say", "p", labels, 0, 1))
    met = [b for b in contents.behaviours if b.revisions]
    if met:
        flagged = [round((b.flagged or 0) * b.revisions) for b in met]
        fit = [b.revisions - n for b, n in zip(met, flagged, strict=True)]
        plots.append(
            bars(
                "Revisions by principle",
                "revisions",
                [b.id for b in met],
                {"fit": fit, "flagged": flagged},
                stacked=True,
            )
        )
    return plots


def _stage_plots(path: Path, bins: list[dict[str, float]] | None) -> list[Plot]:
    logged = logged_curves(read_metrics(path / "metrics.jsonl"))
    plots = [curves(f"{path.name}: {name}", {name: points}) for name, points in logged.items()]
    if bins:
        plots.append(reliability(f"{path.name}: calibration on held-out pairs", {"reward model": bins}))
    return plots


def _gate(folder: RunFolder) -> JudgeReport | None:
    file = folder.judge / "judge.json"
    if not file.exists():
        return None
    found = read_json(file)
    try:
        return JudgeReport.model_validate({name: found[name] for name in JudgeReport.model_fields})
    except (KeyError, ValueError) as error:
        raise CaiError(f"{file}: expected the report of a judge: {error}") from None
