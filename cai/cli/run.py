"""`cai run`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from cai.cli.console import (
    Grid,
    command,
    end_with_failures,
    ending,
    heading,
    line,
    listed,
    result_console,
    resumable,
    show,
)
from cai.cli.options import DEFAULT_RUNS, DryRun, Replace, RunsFolder, Settings, check_name, setting
from cai.cli.train import size_text
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError
from cai.feedback.metrics import AFTER_WORDS, BEFORE_WORDS, RUN_METRICS, WIN_RATE
from cai.feedback.pairs import LABEL_MASS, label_mass_text
from cai.inference.reporter import Reporter
from cai.report.judge import JUDGE_JSON, write_judge_page
from cai.runs.dry_run import DryRun as Forecast
from cai.runs.dry_run import Line, account
from cai.runs.dry_run import dry_run as forecast
from cai.runs.find import run_to_compare
from cai.runs.folder import RunFolder
from cai.runs.metrics import other_warnings, policy_rows, summary_metrics, training_lines
from cai.runs.pipeline import execute
from cai.runs.plan import Plan, check_folder, iteration, make_plan, start_warnings
from cai.runs.run_file import RunConfig
from cai.runs.shard import Shard, shard_plan
from cai.runs.training_estimates import TrainingTime
from cai.runs.trust import run_trust
from cai.stats.formatting import NONE, counted, duration, number
from cai.stats.intervals import Estimate


def run(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="YAML file that describes the run.")],
    settings: Settings = None,
    name: Annotated[str | None, setting(RunConfig, "name", "--name", "NAME")] = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="K/N", help="Make feedback for the K-th of N shares of the prompts."),
    ] = None,
    gpu_rate: Annotated[
        float | None, typer.Option("--gpu-rate", metavar="N", min=1, help="With --dry-run: tokens/s of a GPU.")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Run the pipeline of a run file, or resume it.

    Revisions, preferences, training and evaluation, as the file describes. After an interrupt, the same command
    resumes: cached model calls are not repeated. With --shard, machines share the calls (docs/scaling.md). Exit status
    1: a model could not answer some rows, or every row was skipped.
    """
    if gpu_rate is not None and not dry_run:
        raise CaiError("--gpu-rate applies to --dry-run only; add --dry-run")
    if name is not None:
        check_name(name)
    whole = make_plan(run_file, settings or [], name, runs)
    plan = whole if shard is None else shard_plan(whole, Shard.parse(shard))
    console = Terminal()
    if dry_run:
        replaced = check_folder(iteration(plan, 1, plan.model), replace)
        line(console, f"{plan.folder.name}: dry run: no model is called and nothing is written")
        for text in filter(None, [replaced, *start_warnings(plan)]):
            line(console, visible(text))
        for part in forecast_parts(forecast(plan), gpu_rate):
            show(console, part)
        return
    reporter = Reporter(console)
    with resumable(console, reporter):
        folders = execute_with_pages(plan, reporter, replace)
    for folder in folders:
        print_summary(result_console(), folder)
    if plan.shard:
        for part in _after_shard(plan):
            show(result_console(), part)
    places = [place for folder in folders for place in (folder.judge, folder.path)]
    end_with_failures(*places)


def execute_with_pages(plan: Plan, reporter: Reporter, replace: bool) -> list[RunFolder]:
    """`execute`, and the page of the judge gate in every folder that has one, also when the judge fails the gate."""
    try:
        return execute(plan, reporter, replace)
    finally:
        for number in range(1, plan.config.iterations + 1):
            folder = iteration(plan, number, plan.model).folder.judge
            if (folder / JUDGE_JSON).exists():
                write_judge_page(folder)


def print_summary(console: Console, folder: RunFolder) -> None:
    """A finished run: what it did, its metrics, what to look at, and where its files are."""
    summary = folder.summary()
    assert summary is not None
    for part in _summary_parts(folder, summary):
        show(console, part)


def _after_shard(plan: Plan) -> Iterator[RenderableType | Grid]:
    """What to do once every shard is finished."""
    yield heading("Once every shard is finished")
    commands = Grid(["", ""], left=2)
    commands.add(f"cai cache merge {plan.runs} SOURCE...", "adds caches of other --runs")
    commands.add(f"cai run {plan.run_file} --runs {plan.runs}", "the whole run, from the cache")
    yield commands
    yield Text("  This shard made feedback only: the whole run trains and evaluates.")


def _summary_parts(folder: RunFolder, summary: dict[str, Any]) -> Iterator[RenderableType | Grid]:
    """Details first, so that what came out, whether to trust it and how to go on are the last lines of a terminal."""
    if lines := account(summary):
        yield heading("Model calls")
        yield calls_grid(lines)
    if metrics := summary_metrics(summary):
        yield heading("Metrics, means over prompts" + (" and trainings" if "trainings" in summary else ""))
        yield _metrics(metrics)
        if any(RUN_METRICS[key].interval is None for key in metrics):
            yield Text(f"  {NONE}: describes this run's rows; `cai compare` tests differences between runs", "dim")
    if rows := policy_rows(summary):
        yield heading("Policies, by trainings that differ in their seed alone")
        policies = Grid(rows[0], left=2, last_left=True, optional=[1])
        for row in rows[1:]:
            policies.add(*row)
        yield policies
    if warnings := other_warnings(summary):
        yield heading("Warnings")
        yield listed("!", warnings, "yellow")
    yield heading(f"{folder.name}: finished in {duration(sum(summary['seconds'].values()))}")
    yield run_results(folder, summary)
    yield from ending(run_trust(summary), _next(folder, summary))


def _next(folder: RunFolder, summary: dict[str, Any]) -> list[tuple[str, str]]:
    runs = folder.path.parents[folder.name.count("/")]
    commands = [(command("show", folder.name, runs=runs), "examples, every text")]
    if AFTER_WORDS.key in summary_metrics(summary):
        commands = [(command("eval", folder.name, runs=runs), "probes, signs of reward hacking")]
    if other := run_to_compare(folder, runs):
        differ = (command("compare", other.name, folder.name, runs=runs), "what the other constitution changes")
        commands.append(differ)
    return [*commands, (command("report", folder.name, runs=runs), "writes the run's page")]


def run_results(folder: RunFolder, summary: dict[str, Any]) -> Grid:
    """What the run wrote, how its training went, and whether the policy wins."""
    grid = Grid(["", ""], left=2, last_left=True)
    grid.add("prompts", f"{summary['prompts']:,}, and {summary['held_out']:,} held out")
    if rows := summary["revisions"]["rows"]:
        grid.add("revisions", f"{rows:,}")
    if by_source := summary["preferences"]["by_source"]:
        grid.add("labelled pairs", ", ".join(f"{count:,} by {source}" for source, count in by_source.items()))
        if shares := summary["preferences"]["label_mass"]:
            grid.add(LABEL_MASS, label_mass_text(shares))
    for stage, training in summary["training"].items():
        for place, text in enumerate(training_lines(training)):
            grid.add("" if place else stage, text)
    metrics = summary_metrics(summary)
    if BEFORE_WORDS.key in metrics and AFTER_WORDS.key in metrics:
        before, after = (metric.text(metrics[metric.key].mean) for metric in (BEFORE_WORDS, AFTER_WORDS))
        grid.add("answers", f"{before} → {after} words, before → after training")
    if compared := summary["evaluation"]["compared"]:
        win_rate = metrics.get(WIN_RATE.key)
        equal = f"none: {counted(compared, 'answers')} after training, equal to those before"
        grid.add(WIN_RATE.name, f"{win_rate}, after against before training" if win_rate else equal)
    for place, (stage, seconds) in enumerate(summary["seconds"].items()):
        grid.add("" if place else "time", f"{stage} {duration(seconds)}")
    if (cost := summary.get("in_all", {})).get("sessions", 0) > 1:
        taken = duration(sum(cost["seconds"].values()))
        calls = f"{counted(cost['cache_misses'], 'new calls')}, {counted(cost['tokens'], 'tokens')} written"
        grid.add("in all", f"{taken} in {cost['sessions']} sessions; {calls}")
    grid.add("files", f"{folder.path}/")
    return grid


def _metrics(metrics: Mapping[str, Estimate]) -> Grid:
    grid = Grid(["", "value", "95 % interval", "prompts", ""], optional=[4], left=1, last_left=True)
    for key, estimate in metrics.items():
        metric = RUN_METRICS[key]
        if estimate.low is not None and estimate.high is not None:
            interval = f"{number(estimate.low)} to {number(estimate.high)}"
        else:
            interval = NONE if metric.interval is None else "one prompt" if estimate.n == 1 else "all equal"
        meaning = Text(metric.meaning, style="dim")
        grid.add(metric.name, metric.text(estimate.mean), interval, f"{estimate.n:,}", meaning)
    return grid


def calls_grid(lines: Sequence[Line]) -> Grid:
    """Model calls by stage and step, and their sum."""
    grid = Grid(["stage", "calls for", "total", "cache hits", "new calls", "tokens written"], left=2, broken=0)
    for calls in lines:
        grid.add(calls.stage, calls.step, *_counts(calls.cache_misses, calls.cache_hits, calls.tokens))
    misses, hits = sum(calls.cache_misses for calls in lines), sum(calls.cache_hits for calls in lines)
    total = ("total", "", *_counts(misses, hits, sum(calls.tokens for calls in lines)))
    grid.add(*(Text(cell, style="bold") for cell in total))
    return grid


def _counts(misses: int, hits: int, tokens: float) -> tuple[str, ...]:
    return tuple(f"{count:,.0f}" for count in (misses + hits, hits, misses, tokens))


NOT_MEASURED = "not measured yet"


def time_text(seconds: tuple[float, float] | None, unknown: str) -> str:
    """The least and the most time, `12.3 s to 1 min 04 s`, once where they are equal; `unknown` for None."""
    if seconds is None:
        return unknown
    return " to ".join(dict.fromkeys(map(duration, seconds)))


def training_grid(times: Sequence[TrainingTime], memory: Mapping[str, int]) -> Grid:
    """Stages to train: updates, the memory of a process, seconds an update, and the time of all."""
    sizes = ["memory, at most"] if memory else []
    grid = Grid(["stage", "updates, at most", *sizes, "an update", "time"], last_left=True)
    for stage in times:
        text = time_text(stage.time_range(), NOT_MEASURED) + (", by one training" if stage.measured == 1 else "")
        each = duration(stage.update_seconds) if stage.update_seconds is not None else "–"
        size = [size_text(memory[stage.stage]) if stage.stage in memory else "–"] if memory else []
        grid.add(stage.stage, f"{stage.updates:,}", *size, each, text)
    return grid


def forecast_parts(forecast: Forecast, gpu_rate: float | None) -> Iterator[RenderableType | Grid]:
    """A forecast: its calls, the time they may take, and what it does not know."""
    yield calls_grid(forecast.lines)
    misses, written = sum(line.cache_misses for line in forecast.lines), sum(line.tokens for line in forecast.lines)
    if not misses:
        yield Text("  all calls are cache hits: no model is loaded")
    elif forecast.seconds is None:
        yield Text(f"  time: {NOT_MEASURED}; `cai bench RUN.yaml` measures this machine")
    elif (times := forecast.time_range()) is None:
        apart = f"by the times of earlier calls, the most would be {forecast.spread**2:.0f} times the least"
        again = "`cai bench RUN.yaml` measures again, on a machine without other work"
        yield Padding(Text(f"time: not known yet: {apart}; {again}"), (0, 0, 0, 2), expand=False)
    else:
        by = "by one measurement of this model here" if forecast.measured == 1 else "by this model's speed here so far"
        yield Text(f"  time: {time_text(times, NOT_MEASURED)}, {by}")
    if misses and gpu_rate is not None:
        hours = (forecast.tokens_read + written) / gpu_rate / 3600
        tokens = f"{written:,.0f} tokens written, about {forecast.tokens_read:,.0f} read"
        yield Text(f"  {hours:.2g} GPU-hours at {gpu_rate:,.0f} tokens/s per GPU: {tokens}")
    if forecast.untrained:
        yield heading("Training, not included above")
        yield training_grid(forecast.training, forecast.memory)
    if forecast.iterations:
        yield Text(f"  not included: {counted(forecast.iterations, 'more iterations')}, each of a new policy")
