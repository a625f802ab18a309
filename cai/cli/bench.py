"""`cai bench`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from cai.cli.console import Grid, echo_json, heading, result_console, resumable, show
from cai.cli.options import DEFAULT_RUNS, AsJson, RunsFolder, Settings
from cai.config.characters import Terminal
from cai.inference.engine import EngineConfig
from cai.inference.reporter import Reporter
from cai.inference.vllm_settings import multiplies_bfloat16, on_cpu
from cai.runs.bench import Bench, Phase
from cai.runs.bench import bench as measure
from cai.runs.plan import make_plan
from cai.stats.formatting import counted, duration

DEFAULT_PROMPTS = 48
LIMITS = {
    "engine": "more GPUs or machines (--shard), a smaller model or fewer tokens",
    "cai": "one core computes all the time; share the prompts over processes with --shard",
    "concurrency": "the engine waits for requests; raise engine.concurrency, or --prompts here",
    "servers": "raise engine.concurrency until the rate no longer grows; then add more",
}

BFLOAT16 = """  This processor has AMX: --set engine.vllm.dtype=bfloat16 is faster on it (a
  135M model wrote 1.7 times as fast). Its answers differ from float32's."""


def bench(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="YAML file that describes the run.")],
    settings: Settings = None,
    prompts: Annotated[
        int, typer.Option("--prompts", metavar="N", min=1, help="Use the first N training prompts.")
    ] = DEFAULT_PROMPTS,
    as_json: AsJson = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Measure how fast this machine makes the feedback of a run.

    Its first prompts are drafted, criticised, revised and judged with the run's settings, over a cache that is thrown
    away. Shows rates and what limits them, and keeps the rates in the cache of the folder of runs, from which
    `cai run --dry-run` forecasts.
    """
    plan = make_plan(run_file, settings or [], None, runs)
    console = Console(stderr=True) if as_json else Terminal()
    reporter = Reporter(console)
    with resumable(console, reporter):
        result = measure(plan, prompts, reporter)
    if as_json:
        echo_json(json.dumps(_json(result), indent=1))
        return
    for part in _parts(result, run_file, plan.config.engine):
        show(result_console(), part)


def faster_in_bfloat16(settings: EngineConfig, result: Bench) -> bool:
    """Whether the engine's time limits, and this processor computes faster in another type than the engine's."""
    here = settings.ray is None and not settings.endpoints and "dtype" not in settings.vllm and on_cpu()
    return here and multiplies_bfloat16() and any(phase.limit == "engine" for phase in result.phases)


def _json(result: Bench) -> dict[str, object]:
    phases = [{**phase._asdict(), "limit": phase.limit} for phase in result.phases]
    return {**result._asdict(), "phases": phases}


def _parts(result: Bench, run_file: Path, settings: EngineConfig) -> Iterator[RenderableType | Grid]:
    yield heading(f"{run_file}: {counted(result.prompts, 'prompts')}, up to {result.concurrency:,} at a time")
    grid = Grid(["", *(phase.name for phase in result.phases)])
    for name, cells in _rows(result.phases):
        grid.add(name, *cells)
    yield grid
    if any(phase.engine_share is None for phase in result.phases):
        yield Text("  –: not known; servers and replicas do not say how long they computed, nor")
        yield Text("  what their prefix caches hold, and count no tokens of verdicts")
    yield heading("What limits")
    limits = Grid(["", ""], left=2)
    for phase in result.phases:
        limits.add(phase.name, phase.limit)
    yield limits
    for limit in dict.fromkeys(phase.limit for phase in result.phases):
        yield Text(f"  {limit}: {LIMITS[limit]}")
    if faster_in_bfloat16(settings, result):
        yield Text(BFLOAT16)
    if result.prompts < 2 * result.concurrency:
        few = f"{counted(result.prompts, 'prompts')}, up to {result.concurrency:,} at a time: too few"
        yield Text(f"  {few} for a long run's rate,")
        yield Text(f"  which --prompts {2 * result.concurrency} measures")
    if result.refused:
        yield Text(f"  {counted(result.refused, 'requests')} had no answer and are not in the rates")
    yield Text("  cai run --dry-run forecasts from these rates.")


def _rows(phases: list[Phase]) -> Iterator[tuple[str, list[str]]]:
    """The table's rows: a name, and a cell for each phase."""

    def rate(count: int | None, phase: Phase) -> str:
        if not count:
            return "–"
        value = count / phase.seconds
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.0f} %"

    def seconds(value: float | None) -> str:
        if value is None:
            return "–"
        return duration(value) if value >= 1 else f"{1000 * value:.0f} ms"

    yield "calls", [f"{phase.calls:,}" for phase in phases]
    yield "time", [duration(phase.seconds) for phase in phases]
    yield "loading, apart", [duration(phase.load_seconds) for phase in phases]
    yield "calls/s", [rate(phase.calls, phase) for phase in phases]
    yield "median time of a call", [seconds(phase.latency_median) for phase in phases]
    yield "95 % take at most", [seconds(phase.latency_p95) for phase in phases]
    yield "tokens/s written", [rate(phase.tokens_written, phase) for phase in phases]
    yield "tokens/s read", [rate(phase.tokens_read, phase) for phase in phases]
    yield "prefix-cache hits", [share(phase.prefix_cache_hits) for phase in phases]
    yield "verdicts/s", [rate(phase.verdicts, phase) for phase in phases]
    yield "time in the engine", [share(phase.engine_share) for phase in phases]
    yield "time in cai", [share(phase.driver_share) for phase in phases]
