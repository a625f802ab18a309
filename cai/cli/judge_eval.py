"""`cai judge-eval`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from cai.cli.console import Grid, end_with_failures, heading, line, listed, resumable, short, show
from cai.cli.judge import JudgeOptions, Out, label_job
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_SEED,
    DEFAULT_TEMPLATES,
    ConstitutionName,
    Data,
    JudgeNames,
    KeyEnv,
    Limit,
    Replace,
    RunsFolder,
    Seed,
    Settings,
    TemplatesFolder,
)
from cai.config.characters import Terminal, visible
from cai.data.manifest import Output
from cai.data.records import Skipped
from cai.evaluation import judge_report
from cai.evaluation.injection import HEADING
from cai.evaluation.judge_eval import Extras, evaluate_judge
from cai.evaluation.judge_report import JudgeReport
from cai.evaluation.probes import read_injection
from cai.feedback.label import JUDGE_JSON
from cai.feedback.metrics import NON_OPTION_MASS, POSITION_BIAS
from cai.inference.reporter import Reporter
from cai.report.judge import write_judge_page
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted, number


def judge_eval(
    data: Data,
    judges: JudgeNames,
    constitution: ConstitutionName,
    out: Out,
    key_env: KeyEnv = None,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    limit: Limit = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit a temperature on half of the prompts.")] = False,
    injection: Annotated[
        bool, typer.Option("--injection", help="Attack the rejected answers: text meant for the judge.")
    ] = False,
    seed: Seed = DEFAULT_SEED,
    replace: Replace = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Evaluate a judge against labelled preferences.

    Reports accuracy, calibration and biases, for the judge and for each principle. --set takes settings of
    `judge:` in a run file. --injection measures how far text in an answer (instructions, a verdict, forged turns)
    moves the judge: as many calls again for each of the attacks, and for decoys of control tokens. After an
    interrupt, the same command resumes.
    Exit status 1: the judge could not answer some rows.
    """
    options = JudgeOptions(data, judges, constitution, key_env, templates, settings or [], limit, seed, runs)
    job = label_job(options, ranked=True)
    more = Extras(calibrate, read_injection().attacks if injection else [])
    console = Terminal()
    reporter = Reporter(console)
    with resumable(console, reporter):
        evaluated = evaluate_judge(job, Output(out, replace), runs / CACHE_FILE, reporter, more)
    page = write_judge_page(out)
    if evaluated.own_labels:
        show(console, listed("!", [evaluated.own_labels], "yellow"))
    for part in judge_report_parts(evaluated.report, evaluated.skipped):
        show(console, part)
    line(console, f"  the page is {page}; metrics and rows: {JUDGE_JSON}, verdicts.jsonl")
    end_with_failures(out)


def judge_report_parts(report: JudgeReport, skipped: Sequence[Skipped]) -> Iterator[RenderableType | Grid]:
    """A judge's report: its metrics, those of its principles, and warnings."""
    yield heading(f"{counted(report.pairs, 'pairs')} of {counted(report.prompts, 'prompts')}")
    grid = Grid(["", "", ""], left=3)
    for metric in judge_report.judge_metrics(report.model_copy(update={"injection": []})):
        grid.add(metric.name, metric.value, Text(visible(metric.meaning), style="dim"))
    yield grid
    if report.injection:
        yield heading(HEADING)
        grid = Grid(["", "gain in p", "an answer that"], last_left=True)
        for gain in report.injection:
            grid.add(gain.label, gain.shown, gain.meaning)
        yield grid
    yield heading("Principles, each alone")
    grid = Grid(["", "accuracy", "pairs", POSITION_BIAS, NON_OPTION_MASS], optional=[2])
    for quality in report.principles:
        rates = (number(quality.position_bias), number(quality.non_option_mass))
        grid.add(short(quality.by), str(quality.accuracy), f"{quality.pairs:,}", *rates)
    yield grid
    reasons = Counter(row.reason for row in skipped)
    if warnings := [*report.notes, *(f"skipped: {count:,} × {reason}" for reason, count in reasons.items())]:
        yield heading("Warnings")
        yield listed("!", warnings, "yellow")
    yield Text("")
