"""`cai judge-eval`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cai.cli.console import line, resumable
from cai.cli.judge import JudgeOptions, Out, label_job
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_SEED,
    DEFAULT_TEMPLATES,
    ConstitutionName,
    Data,
    JudgeNames,
    Limit,
    Replace,
    RunsFolder,
    Seed,
    Settings,
    TemplatesFolder,
)
from cai.data.manifest import Output
from cai.data.records import Skipped
from cai.evaluation import judge_report
from cai.evaluation.judge_eval import evaluate_judge
from cai.evaluation.judge_report import JudgeReport
from cai.feedback.label import JUDGE_JSON
from cai.feedback.metrics import POSITION_BIAS
from cai.inference.progress import Reporter
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted, number


def judge_eval(
    data: Data,
    judges: JudgeNames,
    constitution: ConstitutionName,
    out: Out,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    limit: Limit = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit a temperature on half of the prompts.")] = False,
    seed: Seed = DEFAULT_SEED,
    replace: Replace = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Evaluate a judge against labelled preferences.

    Reports accuracy, calibration and biases, for the judge and for each principle. --set takes settings of
    `judge:` in a run file. After an interrupt, the same command resumes.
    """
    options = JudgeOptions(data, judges, constitution, templates, settings or [], limit, seed, runs)
    job = label_job(options, ranked=True)
    console = Console()
    with resumable(console):
        evaluated = evaluate_judge(job, Output(out, replace), runs / CACHE_FILE, Reporter(console), calibrate)
    for part in judge_report_tables(evaluated.report, evaluated.skipped):
        console.print(part)
    line(console, f"  the page is {out / 'judge.html'}; figures and rows: {JUDGE_JSON}, verdicts.jsonl")


def judge_report_tables(report: JudgeReport, skipped: Sequence[Skipped]) -> Iterator[RenderableType]:
    """A judge's report: its figures, its principles, and what a reader must not miss."""
    yield Text(f"\n{counted(report.pairs, 'pairs')} of {counted(report.prompts, 'prompts')}", style="bold")
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for figure in judge_report.figures(report):
        table.add_row(Text(figure.name), Text(figure.value), Text(figure.meaning, style="dim"))
    yield table
    yield Text("\nPrinciples, each alone", style="bold")
    table = Table(box=None, padding=(0, 0, 0, 2))
    for column in ("", "accuracy", "pairs", POSITION_BIAS, "non-option mass"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for quality in report.principles:
        rates = (number(quality.position_bias), number(quality.non_option_mass))
        table.add_row(Text(quality.by), Text(str(quality.accuracy)), str(quality.pairs), *rates)
    yield table
    for note in report.notes:
        yield Text(f"  note: {note}", style="yellow")
    for reason, n in Counter(row.reason for row in skipped).items():
        yield Text(f"  skipped: {n} × {reason}")
