"""`cai run`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cai.cli.console import line, resumable
from cai.cli.options import DEFAULT_RUNS, DryRun, Replace, RunsFolder, Settings, setting
from cai.config.errors import CaiError
from cai.feedback.metrics import RUN_METRICS
from cai.inference.progress import Reporter
from cai.runs.dry_run import DryRun as Forecast
from cai.runs.dry_run import Line, account
from cai.runs.dry_run import dry_run as forecast
from cai.runs.folder import RunFolder
from cai.runs.metrics import summary_metrics, training_lines
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.run_file import RunConfig
from cai.stats.formatting import span


def run(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="YAML file that describes the run.")],
    settings: Settings = None,
    name: Annotated[str | None, setting(RunConfig, "name", "--name", "NAME")] = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    gpu_rate: Annotated[
        float | None, typer.Option("--gpu-rate", metavar="N", min=1, help="With --dry-run: tokens/s of a GPU.")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Run the pipeline of a run file, or resume it.

    Revisions, preferences, training and evaluation, as the file describes. After an interrupt, the same command
    resumes: cached model calls are not repeated.
    """
    if gpu_rate is not None and not dry_run:
        raise CaiError("--gpu-rate: only a forecast uses it; add --dry-run")
    plan = make_plan(run_file, settings or [], name, runs)
    console = Console()
    if dry_run:
        line(console, f"{plan.folder.name}: nothing is asked or written; this is what `cai run` would do")
        for part in forecast_parts(forecast(plan), gpu_rate):
            console.print(part, soft_wrap=isinstance(part, Text))
        return
    with resumable(console):
        folders = execute(plan, Reporter(console), replace)
    for folder in folders:
        if len(folders) > 1:
            console.print(folder.name, style="bold", highlight=False)
        print_summary(console, folder)


def print_summary(console: Console, folder: RunFolder) -> None:
    """The summary of a finished run as a two-column table."""
    summary = folder.summary()
    assert summary is not None
    console.print(calls_table(account(summary)))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for name, value in _lines(summary):
        table.add_row(name, value)
    console.print(table)
    console.print(f"  rows, metrics and models are in {folder.path}/", markup=False, highlight=False, soft_wrap=True)


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("revisions", str(summary["revisions"]["rows"]))]
    by_source = summary["preferences"]["by_source"]
    lines.append(("preferences", ", ".join(f"{n} by {source}" for source, n in by_source.items()) or "0"))
    for key, estimate in summary_metrics(summary).items():
        lines.append((RUN_METRICS[key].name, RUN_METRICS[key].shown(estimate)))
    skipped = summary["skipped"]
    if skipped["reasons"] or skipped["failed"]:
        reasons = [f"{count} × {reason}" for reason, count in skipped["reasons"].items()]
        lines.append(
            ("skipped", "; ".join([*reasons, *([f"{skipped['failed']} failed"] if skipped["failed"] else [])]))
        )
    for stage, training in summary["training"].items():
        for place, text in enumerate(training_lines(training)):
            lines.append(("" if place else stage, text))
    lines.append(("seconds", ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())))
    return lines


def calls_table(lines: Sequence[Line]) -> Table:
    """Calls by stage and step, and their sum."""
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("stage", "calls for", "all", "cache hits", "new calls", "tokens written"):
        table.add_column(column, justify="left" if column in ("stage", "calls for") else "right", no_wrap=True)
    for calls in lines:
        table.add_row(calls.stage, calls.step, *_counts(calls.cache_misses, calls.cache_hits, calls.tokens))
    total = (sum(line.cache_misses for line in lines), sum(line.cache_hits for line in lines))
    table.add_row("together", "", *_counts(*total, sum(line.tokens for line in lines)), style="bold")
    return table


def _counts(misses: int, hits: int, tokens: float) -> tuple[str, ...]:
    return tuple(f"{count:,.0f}" for count in (misses + hits, hits, misses, tokens))


def forecast_parts(found: Forecast, gpu_rate: float | None) -> Iterator[RenderableType]:
    """A forecast: its calls, the time they may take, and what it does not know."""
    yield calls_table(found.lines)
    misses, written = sum(line.cache_misses for line in found.lines), sum(line.tokens for line in found.lines)
    if not misses:
        yield Text("  every call is a cache hit: no model is loaded")
    elif found.seconds is None:
        yield Text("  how long: unknown, since nothing was measured with this model here; a first run measures it")
    else:
        yield Text(f"  how long: about {span(found.seconds)}, as fast as this model was here so far")
    if misses and gpu_rate is not None:
        hours = (found.tokens_read + written) / gpu_rate / 3600
        yield Text(
            f"  at {gpu_rate:,.0f} tokens/s a GPU: {hours:.2g} GPU-hours for {written:,.0f} tokens written and about "
            f"{found.tokens_read:,.0f} read"
        )
    if found.untrained:
        yield Text(f"  to be trained besides: {', '.join(found.untrained)}; a new policy's answers are all new")
    if found.iterations:
        yield Text(f"  {found.iterations} more iterations follow, each of a policy that is not known yet")
