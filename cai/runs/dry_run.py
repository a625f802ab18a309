"""A forecast of a run's calls, tokens and time: the run itself, over an engine that only counts.

The steps run as always, in a temporary folder. Cached calls are answered from the cache; every other call gets a
placeholder that no model wrote, so that the calls which depend on it are cache misses too, and counted.
"""

import asyncio
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from cai.config.hashing import fingerprint
from cai.data.jsonl import write_text
from cai.data.records import Skipped
from cai.evaluation.evaluation_plan import EvaluationPlan, Policy
from cai.evaluation.policy import PolicyEvaluation
from cai.feedback.label import JudgePanel, LabelJob, count_work
from cai.feedback.pipeline import collect_feedback
from cai.inference.cache import AnyCache, Cache, OverlayCache, Tally, Work
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.inference.scheduler import EngineWork, Scheduler, engine_fingerprint
from cai.runs import judge_reward
from cai.runs.evaluate import plan_of_run
from cai.runs.folder import CACHE_FILE, RunFolder, Training
from cai.runs.pipeline import feedback_job, train_policy
from cai.runs.plan import Plan
from cai.runs.training_estimates import TrainingTime, training_memory, training_times
from cai.training.stage import StageSpec, is_trained

CHARACTERS = 4.0  # per token of English, roughly; sizes placeholders and the estimate of tokens read


LEAST_SPREAD = 1.25  # of a forecast: a shared machine is that much slower at times
FEW_SPREAD = 2.0  # with fewer measured stages than there are rates
MOST_SPREAD = 10**0.5  # between the least and the most time is then a factor of 10, and a wider range says nothing
SPREAD_SHARE = 0.9  # of measured stages lie within the spread: one that was disturbed counts as long as there are few
LEAST_SECONDS = 2.0  # of work whose fit counts: below, most is chance


class Placeholders:
    """An engine without a model: unique texts of maximal length, and undecided verdicts."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    async def generate(self, request: Generate) -> Completion:
        """A text of `max_tokens`, unique to the request."""
        name = fingerprint(self.fingerprint, request.messages, request.max_tokens, request.temperature, request.seed)
        return Completion(name.ljust(int(CHARACTERS * request.max_tokens)), "stop", 0, request.max_tokens)

    async def choose(self, request: Choose) -> list[float]:
        """The same log-probability for every option."""
        return [-1.0] * len(request.options)

    async def close(self) -> None:
        """Nothing to free."""


class Line(NamedTuple):
    """Calls of one kind in one stage of a run; `tokens` are those written, or the forecast of them."""

    stage: str
    step: str
    cache_misses: int
    cache_hits: int
    tokens: float


class DryRun(NamedTuple):
    """The calls of a run, and their tokens and time."""

    lines: list[Line]
    tokens_read: float  # by new calls, at CHARACTERS per token; an upper bound, since engines cache shared prefixes
    seconds: float | None  # of the calls; None if no earlier run measured these models
    untrained: list[str]  # training stages to run
    iterations: int  # further iterations, unknown before the first one's policy is trained
    spread: float = 1.0  # by which factor measured work took more or less than the rates say
    training: Sequence[TrainingTime] = ()  # of the untrained stages
    memory: Mapping[str, int] = {}  # of them by name, in bytes of a process, where it can be computed
    measured: int = 0  # stages of earlier work that the seconds come from; of several models, the fewest

    def time_range(self) -> tuple[float, float] | None:
        """The least and the most seconds of the calls; None where earlier work does not tell, or not closely enough."""
        if self.seconds is None or self.spread > MOST_SPREAD:
            return None
        return self.seconds / self.spread, self.seconds * self.spread


class Rates(NamedTuple):
    """Seconds to load a model, write a token and give a verdict, measured in earlier work, and how well they fit it."""

    load: float
    token: float
    verdict: float
    spread: float = FEW_SPREAD  # the factor between what work took and what the rates say, of nine stages in ten


def dry_run(plan: Plan, counted: Cache | None = None) -> DryRun:
    """Count the calls of a run, or of its first iteration, without a model.

    Calls that an earlier forecast left in `counted` are cache hits, as they will be when the runs of a sweep follow one
    another. Raises: CaiError as the run itself would.
    """
    existing = plan.runs / CACHE_FILE
    with tempfile.TemporaryDirectory(prefix="cai-") as temporary:
        folder = RunFolder(Path(temporary) / "run")
        folder.path.mkdir()
        with (
            closing(Cache(existing if existing.exists() else Path(temporary) / "none.sqlite")) as below,
            closing(Cache(Path(temporary) / "cache.sqlite")) as upper,
        ):
            cache = OverlayCache(below, counted or upper)
            scheduler = Scheduler(plan.config.engine.shared, cache, None, open_placeholders, plan.own_settings)
            if plan.gate is not None:
                scheduler.work += asyncio.run(_gate(plan.gate, Path(temporary), cache))
            aside_plan = replace(plan, folder=folder)
            asyncio.run(collect_feedback(feedback_job(aside_plan), scheduler))
            trainings = [plan.folder.training(number) for number in range(1, plan.config.seeds + 1)]
            untrained = [
                stage for training in trainings for stage in _evaluate(aside_plan, scheduler, training, Path(temporary))
            ]
            scheduler.work += [work for name in untrained for work in judge_reward.forecast(plan, name, scheduler)]
            known = {engine: below.work(engine) for engine in {done.engine for done in scheduler.work}}
            own = scheduler.engine(plan.generator).fingerprint
            times = training_times(plan, untrained, folder) if untrained else []
            memory = training_memory(plan, untrained)
    expected = _expected(scheduler.work, known, known.get(own, []))
    tallies = [tally for done in scheduler.work for tally in done.work.steps.values()]
    read = sum(tally.characters for tally in tallies) / CHARACTERS
    return expected._replace(
        tokens_read=read, untrained=untrained, iterations=plan.config.iterations - 1, training=times, memory=memory
    )


def forecast_work(cache: Path, run: Callable[[AnyCache], Sequence[EngineWork]], like: str = "") -> DryRun:
    """Count the calls of `run`, which makes them through the cache it is given and engines of `open_placeholders`.

    Engines without measurements take those of the engine `like`, a fingerprint.
    """
    with tempfile.TemporaryDirectory(prefix="cai-") as temporary:
        existing = cache if cache.exists() else Path(temporary) / "none.sqlite"
        with closing(Cache(existing)) as below, closing(Cache(Path(temporary) / "cache.sqlite")) as upper:
            work = run(OverlayCache(below, upper))
            known = {engine: below.work(engine) for engine in {done.engine for done in work}}
            own = below.work(like)
    read = sum(tally.characters for done in work for tally in done.work.steps.values()) / CHARACTERS
    return _expected(work, known, own)._replace(tokens_read=read)


def forecast_evaluation(plan: EvaluationPlan, cache: Path) -> DryRun:
    """The calls of a policy evaluation, their tokens and time; calls no model, and leaves out the scores of answers."""

    def count(store: AnyCache) -> list[EngineWork]:
        scheduler = Scheduler(plan.engine, store, None, open_placeholders, plan.own_settings)
        asyncio.run(PolicyEvaluation(plan, scheduler).run())
        return scheduler.work

    return forecast_work(cache, count, engine_fingerprint(plan.reference.folder, plan.reference_engine))


def open_placeholders(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    """Placeholders in place of a model."""
    return Placeholders(fingerprint)


async def _gate(judging: LabelJob, aside: Path, cache: OverlayCache) -> list[EngineWork]:
    """Count the calls of the judge's gate."""
    scheduler = judging.scheduler(cache, None, open_placeholders)
    panel = JudgePanel(judging, count_work(judging), scheduler)
    async for _ in panel.verdicts(aside, lambda _: None):
        pass
    return panel.work("gate")


class _Untrained(Exception):
    """A stage of training, by its name, that is not finished."""


def _evaluate(plan: Plan, scheduler: Scheduler, existing: Training, aside: Path) -> list[str]:
    """Count the calls of an evaluation: of the policy of an existing training, or of one without cached calls.

    Returns: the training stages that are not finished.
    """

    def look(name: str, spec: StageSpec[Any], reporter: Reporter) -> tuple[Path, list[Skipped]]:
        trained = existing.train / spec.folder.name
        if not is_trained(replace(spec, folder=trained)):
            raise _Untrained(name)
        return trained / "model", []

    untrained: list[str] = []
    try:
        policy = train_policy(plan, scheduler, Reporter(Console(quiet=True)), look, existing.number)
    except _Untrained as first:
        stages = enumerate(plan.train, start=1)
        names = [existing.label(f"{position}-{settings.stage}") for position, settings in stages]
        untrained = names[names.index(str(first)) :]
        policy = aside / existing.label("policy")
        policy.mkdir()
        write_text(policy / "config.json", str(policy))  # a folder of a fingerprint of its own
    if isinstance(policy, Path) and policy != plan.model and plan.held_out:
        name = existing.label(RunFolder(existing.run).name)
        evaluation_plan = plan_of_run(plan, Policy(name, policy))
        asyncio.run(PolicyEvaluation(evaluation_plan, scheduler).run())
    return untrained


def _expected(work: Sequence[EngineWork], known: dict[str, list[Work]], own: Sequence[Work]) -> DryRun:
    """The forecast's lines, the seconds of its calls, and of the rates that these come from the spread and number.

    An engine without measurements takes those of the run's own model, `own`: a policy has the same size.
    """
    lines: list[Line] = []
    seconds: float | None = 0.0
    spread, fewest = 1.0, list[int]()
    for done in work:
        measured = known[done.engine] or list(own)
        rates = fit_rates(measured)
        written = verdicts = 0.0
        for step, tally in done.work.steps.items():
            tokens = min(tally.allowed, tally.cache_misses * (_mean_tokens(measured, step, tally) or tally.allowed))
            lines.append(Line(done.work.stage, step, tally.cache_misses, tally.cache_hits, tokens))
            written += tokens
            verdicts += 0 if tally.allowed else tally.cache_misses
        if written or verdicts:
            spread = max(spread, rates.spread if rates else FEW_SPREAD)
            fewest.append(len(measured))
            seconds = (
                None
                if seconds is None or rates is None
                else (seconds + rates.load + rates.token * written + rates.verdict * verdicts)
            )
    return DryRun(lines, 0.0, seconds, [], 0, spread, measured=min(fewest, default=0))


def _mean_tokens(measured: Sequence[Work], step: str, forecast: Tally) -> float | None:
    """The mean of earlier calls that might write as many tokens; texts truncated at a lower limit are shorter."""
    tallies = [
        work.steps[step]
        for work in measured
        if step in work.steps
        and work.steps[step].allowed * forecast.cache_misses >= forecast.allowed * work.steps[step].cache_misses
    ]
    calls = sum(tally.cache_misses for tally in tallies)
    return sum(tally.tokens for tally in tallies) / calls if calls else None


def fit_rates(measured: Sequence[Work]) -> Rates | None:
    """Rates fitted to measured work by non-negative least squares over loads, tokens and verdicts; None without any."""
    if not measured:
        return None
    from scipy.optimize import nnls

    def row(work: Work) -> list[float]:
        verdicts = sum(tally.cache_misses for tally in work.steps.values() if not tally.allowed)
        return [float(work.loaded), sum(tally.tokens for tally in work.steps.values()), verdicts]

    rows, taken = [row(work) for work in measured], [work.seconds for work in measured]
    rates, _ = nnls(rows, taken)
    fitted = [sum(rate * count for rate, count in zip(rates, counts, strict=True)) for counts in rows]
    work = [(actual, fit) for actual, fit in zip(taken, fitted, strict=True) if min(actual, fit) >= LEAST_SECONDS]
    factors = sorted(max(actual / fit, fit / actual) for actual, fit in work)
    least = LEAST_SPREAD if len(factors) > len(rates) else FEW_SPREAD
    most = factors[math.ceil(SPREAD_SHARE * (len(factors) - 1))] if factors else least
    load, token, verdict = map(float, rates)
    return Rates(load, token, verdict, max(least, most))


def account(summary: dict[str, Any]) -> list[Line]:
    """The calls of a finished run, from its summary.json."""
    return [
        Line(done["stage"], step, tally["cache_misses"], tally["cache_hits"], tally["tokens"])
        for done in summary.get("work", [])
        for step, tally in done["steps"].items()
    ]
