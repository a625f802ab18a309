"""`cai bench`: how fast this machine answers the requests of a run, and what limits it.

Some prompts of the run go through its feedback stage twice, over a cache that is thrown away: first all texts are
written, then, with the texts from the cache, all verdicts are given. Loading is measured apart. What was measured is
kept where runs keep it, in the cache of the folder of runs, so that `cai run --dry-run` forecasts from it.

An engine in this process says how long it computed and what its prefix cache knew. Servers and replicas do not; of them
is measured what arrives: rates, the time of a call, and the tokens that completions count.
"""

import asyncio
import dataclasses
import statistics
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.feedback.pipeline import FeedbackJob, collect_feedback
from cai.inference.cache import Cache, Tally, Work
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate
from cai.inference.models import Model
from cai.inference.ray_engine import RayEngine
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine, Scheduler, open_model
from cai.inference.vllm import VllmEngine
from cai.inference.vllm_settings import prompts_at_once
from cai.runs.folder import CACHE_FILE, RunFolder
from cai.runs.pipeline import feedback_job
from cai.runs.plan import Plan

BUSY = 0.8  # share of the time from which what is busy limits the rest
P95 = 0.95


class Phase(NamedTuple):
    """What one half of the benchmark measured; None where the engine does not say it."""

    name: str  # writing, judging
    calls: int
    tokens_written: int
    tokens_read: int | None  # of all requests, with those known from the prefix cache; of servers, where all are texts
    prefix_cache_hits: float | None  # share of tokens_read
    verdicts: int
    seconds: float  # without loading
    engine_share: float | None  # of the seconds, within the engine's step
    driver_share: float  # of the seconds, in which cai's own thread computed
    load_seconds: float
    latency_median: float | None = None  # seconds of a call, as cai waits for it
    latency_p95: float | None = None

    @property
    def limit(self) -> str:
        """What to make faster first: engine, cai or concurrency; `servers` where an engine's time is unknown."""
        if self.driver_share >= BUSY:
            return "cai"
        if self.engine_share is None:
            return "servers"
        return "engine" if self.engine_share >= BUSY else "concurrency"


class Bench(NamedTuple):
    """The phases, and the number of prompts and of those that the engine takes at once."""

    prompts: int
    concurrency: int
    phases: list[Phase]
    refused: int  # requests without an answer


class _Metered:
    """An engine that is warm before its first request, whose counters begin there."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.fingerprint = engine, engine.fingerprint
        self.load_seconds = 0.0
        self.latencies: list[float] = []
        self.tokens_read: int | None = 0  # as completions count them; None after a verdict, which counts none
        self._before = (0.0, 0, 0)
        self._warming: asyncio.Task[None] | None = None

    async def generate(self, request: Generate) -> Completion:
        """As the engine's."""
        await self._warm()
        begun = time.monotonic()
        completion = await self.engine.generate(request)
        self.latencies.append(time.monotonic() - begun)
        if self.tokens_read is not None:
            self.tokens_read += completion.prompt_tokens
        return completion

    async def choose(self, request: Choose) -> list[float]:
        """As the engine's."""
        await self._warm()
        begun = time.monotonic()
        log_probs = await self.engine.choose(request)
        self.latencies.append(time.monotonic() - begun)
        self.tokens_read = None
        return log_probs

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()

    def measured(self) -> tuple[float, int, int] | None:
        """Seconds within the engine, tokens read, and those of them known from the prefix cache."""
        now = self._counters()
        return None if now is None else (now[0] - self._before[0], now[1] - self._before[1], now[2] - self._before[2])

    def _counters(self) -> tuple[float, int, int] | None:
        if not isinstance(self.engine, VllmEngine):
            return None
        return self.engine.busy_seconds, self.engine.prompt_tokens, self.engine.cached_tokens

    async def _warm(self) -> None:
        if self._warming is None:
            self._warming = asyncio.ensure_future(self._warm_up())
        await asyncio.shield(self._warming)

    async def _warm_up(self) -> None:
        begun = time.monotonic()
        with suppress(RequestRefused):  # a server's model may have no text after one token
            await self.engine.generate(Generate([Message(role="user", content="Hello")], 1, 0.0, 0))
        if isinstance(self.engine, RayEngine):
            await self.engine.all_loaded()
        self.load_seconds = time.monotonic() - begun
        self._before = self._counters() or self._before


def bench(plan: Plan, prompts: int, reporter: Reporter, open_engine: OpenEngine = open_model) -> Bench:
    """Measure a run's feedback on its first `prompts` training prompts, and keep the rates for forecasts.

    Raises: CaiError as the run itself would, or when the run makes no calls.
    """
    some = dataclasses.replace(plan, training=plan.training[:prompts])
    with tempfile.TemporaryDirectory(prefix="cai-") as temporary:
        folder = RunFolder(Path(temporary) / "run")
        folder.path.mkdir()
        job = dataclasses.replace(
            feedback_job(dataclasses.replace(some, folder=folder)), input_preferences=[], input_skipped=[]
        )
        with closing(Cache(Path(temporary) / CACHE_FILE)) as cache, closing(Cache(plan.runs / CACHE_FILE)) as kept:
            measure = _Measurement(some, cache, kept, reporter, open_engine)
            phases = [
                asyncio.run(measure.phase("writing", dataclasses.replace(job, judges=[]))),
                asyncio.run(measure.phase("judging", job)),
            ]
    done = [phase for phase in phases if phase.calls]
    if not done:
        raise CaiError(f"{plan.run_file}: no model answered any request of the first {len(some.training)} prompts")
    return Bench(len(some.training), prompts_at_once(plan.config.engine), done, measure.refused)


class _Measurement:
    """The engines and caches of a benchmark."""

    def __init__(self, plan: Plan, cache: Cache, kept: Cache, reporter: Reporter, open_engine: OpenEngine) -> None:
        self.refused = 0
        self._plan, self._cache, self._kept = plan, cache, kept
        self._reporter, self._open_engine = reporter, open_engine

    async def phase(self, name: str, job: FeedbackJob) -> Phase:
        """Run the feedback stage, and measure the calls that are no cache hits."""
        opened: list[_Metered] = []

        def open_metered(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
            opened.append(_Metered(self._open_engine(model, fingerprint, settings)))
            return opened[-1]

        plan = self._plan
        scheduler = Scheduler(plan.config.engine, self._cache, self._reporter, open_metered, plan.own_settings)
        computed = time.thread_time()
        await collect_feedback(job, scheduler)
        computed = time.thread_time() - computed
        self.refused += sum(row.failed for row in scheduler.skipped)
        loads = {engine.fingerprint: engine.load_seconds for engine in opened}
        seconds, tally, verdicts = 0.0, Tally(), 0
        stages: dict[tuple[str, str], float] = {}
        for engine, work in scheduler.work:
            if engine not in loads:  # cache hits alone
                continue
            own = work.seconds - loads[engine]
            at = (work.stage, "" if work.stage == "feedback" else engine)  # the engines of feedback work side by side
            stages[at] = min(own, stages.get(at, own))
            tally += sum(work.steps.values(), Tally())
            verdicts += sum(step.cache_misses for step in work.steps.values() if not step.allowed)
            self._keep(name, engine, dataclasses.replace(work, seconds=own, loaded=False), loads[engine])
        seconds = max(sum(stages.values()), 1e-9)
        counters = [engine.measured() for engine in opened]
        known = [counter for counter in counters if counter is not None]
        complete = bool(known) and len(known) == len(counters)
        busy, read, cached = (sum(column) for column in zip(*known, strict=True)) if complete else (0.0, 0, 0)
        if not complete:
            counts = [engine.tokens_read for engine in opened if engine.tokens_read is not None]
            read = sum(counts) if len(counts) == len(opened) else 0
        latencies = sorted(second for engine in opened for second in engine.latencies)
        return Phase(
            name=name,
            calls=tally.cache_misses,
            tokens_written=tally.tokens,
            tokens_read=int(read) or None,
            prefix_cache_hits=cached / read if complete and read else None,
            verdicts=verdicts,
            seconds=seconds,
            engine_share=min(1.0, busy / seconds) if complete else None,
            driver_share=min(1.0, computed / seconds),
            load_seconds=max(loads.values(), default=0.0),
            latency_median=statistics.median(latencies) if latencies else None,
            latency_p95=latencies[int(P95 * (len(latencies) - 1))] if latencies else None,
        )

    def _keep(self, name: str, engine: str, work: Work, load_seconds: float) -> None:
        if any(step.cache_misses for step in work.steps.values()):
            self._kept.add_work(engine, dataclasses.replace(work, stage=f"bench {name}"))
            self._kept.add_work(engine, Work("bench load", {}, load_seconds, loaded=True))
