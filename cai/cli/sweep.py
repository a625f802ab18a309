"""`cai sweep`."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cai.cli.console import Grid, command, end_with_failures, line, resumable, show
from cai.cli.options import DEFAULT_RUNS, DryRun, Replace, RunsFolder, Settings
from cai.cli.run import NOT_MEASURED, execute_with_pages, time_text
from cai.config.characters import Terminal
from cai.config.errors import CaiError
from cai.inference.cache import Cache
from cai.inference.reporter import Reporter
from cai.runs.dry_run import Line
from cai.runs.dry_run import dry_run as forecast
from cai.runs.sweep import (
    SWEEP_METRICS,
    Member,
    folders,
    last_folder,
    make_sweep,
    refuse_other_runs,
    run_members,
    sweep_metric_texts,
)
from cai.runs.training_estimates import sum_of_ranges
from cai.stats.formatting import NONE, counted


def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="YAML file: the run file to vary, and how.")],
    settings: Settings = None,
    replace: Replace = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run finished runs with failed rows again.")
    ] = False,
    dry_run: DryRun = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Run variants of a run file (settings or principles).

    --set changes a setting of all runs. After an interrupt, the same command resumes. Exit status: 1
    when a run failed, or rows of one; the others are run all the same.
    """
    if dry_run:
        _forecast(sweep_file, settings or [], runs)
    elif not _run_all(sweep_file, settings or [], replace, runs, retry_failed):
        raise typer.Exit(1)


def _run_all(file: Path, settings: list[str], replace: bool, runs: Path, retry_failed: bool) -> bool:
    """Run a sweep and print its runs side by side; whether all of them succeeded."""
    console = Terminal()
    name, members = make_sweep(file, settings, runs)
    if not replace:
        refuse_other_runs(file, name, members)
    reporter = Reporter(console)
    with resumable(console, reporter):
        failed = run_members(
            name,
            members,
            runs,
            lambda plan: execute_with_pages(plan, reporter, replace),
            lambda text: line(console, text),
            retry_failed,
        )
    results = _results(members)
    show(console, results)
    if results.holds(NONE):
        show(console, Text(f"  {NO_PART}", style="dim"))
    line(console, f"  runs and index: {runs / name}/")
    finished = [last_folder(m.plan).path.relative_to(runs) for m in members if m.name not in failed]
    kinds = {member.principles.how for member in members if member.name not in failed}
    if "all" in kinds and kinds & {"leave-one-out", "one-at-a-time"}:
        line(console, f"  {command('attribute', name, runs=runs)}")
    if len(finished) > 1:
        line(console, f"  {command('compare', *finished[:COMPARED], runs=runs)}")
    places = [place for member in members for folder in folders(member.plan) for place in (folder.judge, folder.path)]
    end_with_failures(*places, option="--retry-failed")
    return not failed


UNKNOWN = "unknown"
NO_PART = f"{NONE}: the run has no such part, such as pairs labelled by a judge"
COMPARED = 4  # runs in the command that is suggested


def _results(members: list[Member]) -> Grid:
    grid = Grid(["run", *(metric.name for metric in SWEEP_METRICS)], broken=0)
    for member in members:
        try:
            summary = last_folder(member.plan).summary()
            texts = sweep_metric_texts(summary)
            if not summary:
                texts[0] = "unfinished"
        except (CaiError, LookupError, TypeError, AttributeError):  # the other runs' metrics are shown all the same
            texts = ["damaged", *sweep_metric_texts(None)[1:]]
        grid.add(member.name, *texts)
    return grid


def _forecast(file: Path, settings: list[str], runs: Path) -> None:
    """Print the runs of a sweep with the calls each adds to those before it; run and write nothing."""
    console = Terminal()
    with tempfile.TemporaryDirectory(prefix="cai-") as aside:
        name, members = make_sweep(file, settings, runs, Path(aside))
        headings = [f"run of {name}", "calls", "cache hits", "new calls", "tokens", "time"]
        grid = Grid(headings, optional=[1, 2, 4], broken=0)
        with closing(Cache(Path(aside) / "counted.sqlite")) as cache:
            forecasts = [forecast(member.plan, cache) for member in members]
        for member, expected in zip(members, forecasts, strict=True):
            grid.add(member.name, *_counts(expected.lines), time_text(expected.time_range(), UNKNOWN))
        counts = _counts([calls for expected in forecasts for calls in expected.lines])
        time = time_text(sum_of_ranges([expected.time_range() for expected in forecasts]), UNKNOWN)
        grid.add(*(Text(cell, style="bold") for cell in ("total", *counts, time)))
        show(console, grid)
        if any(expected.measured == 1 for expected in forecasts):
            line(console, "  time: some of it by one measurement of a model here")
        stages = [stage for expected in forecasts for stage in expected.training]
        if stages:
            updates = sum(stage.updates for stage in stages)
            time = time_text(sum_of_ranges([stage.time_range() for stage in stages]), NOT_MEASURED)
            trained = f"{counted(len(stages), 'training stages')}, {counted(updates, 'updates')} at most"
            line(console, f"  not included: {trained}; time: {time}")


def _counts(lines: Sequence[Line]) -> tuple[str, ...]:
    misses, hits = sum(calls.cache_misses for calls in lines), sum(calls.cache_hits for calls in lines)
    return tuple(f"{n:,.0f}" for n in (misses + hits, hits, misses, sum(calls.tokens for calls in lines)))
