"""What the stages of one run share while it is under way: engines over one memo, progress, what was left out."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from cai.engines.base import Completion, Engine
from cai.engines.memo import AnyMemo, RememberingEngine, Tally, Work
from cai.engines.server import ServerEngine
from cai.engines.vllm import VllmEngine, vllm_build
from cai.errors import RequestRefused
from cai.feedback.respond import respond
from cai.hashing import fingerprint
from cai.models import Model, Server, model_fingerprint
from cai.records import LeftOut, Prompt
from cai.runs.config import EngineConfig
from cai.runs.flow import in_flight
from cai.runs.plan import Plan
from cai.runs.progress import Reporter, Task

OpenEngine = Callable[[Model, str, EngineConfig], Engine]
Item = TypeVar("Item")
Result = TypeVar("Result")
PROGRESS_SECONDS = 0.5


def open_model(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    """vLLM on a model folder, which loads in the background; or the server."""
    if isinstance(model, Server):
        return ServerEngine(model, fingerprint, settings.max_in_flight)
    return VllmEngine(model, fingerprint, settings.context, settings.max_in_flight)


def remembering(model: Model, settings: EngineConfig, memo: AnyMemo, open_engine: OpenEngine) -> RememberingEngine:
    """The engine of a model, which is itself opened at the first call the memo cannot answer."""
    identity = model_fingerprint(model)
    if not isinstance(model, Server):  # what a server runs with is not ours to know
        identity = fingerprint(identity, settings.context, vllm_build())
    return RememberingEngine(identity, memo, lambda: open_engine(model, identity, settings))


class Amount(NamedTuple):
    """How much work there is: so many items, which are expected to take so many calls of the engine together."""

    items: int
    unit: str
    calls: int


async def each(
    name: str,
    items: Iterable[Item],
    amount: Amount,
    function: Callable[[Item], Awaitable[Result]],
    engine: RememberingEngine,
    limit: int,
    reporter: Reporter,
) -> AsyncIterator[tuple[Item, Result | RequestRefused]]:
    """Every item with its result, in order, or with the refusal of a request it made; at most `limit` are under way.

    Progress is told in calls of `engine`: an item is slow to finish while others are under way with it, so that
    counting items would mislead at first.
    """
    before = engine.tally
    finished = 0

    async def guarded(item: Item) -> Result | RequestRefused:
        nonlocal finished
        try:
            return await function(item)
        except RequestRefused as refusal:
            return refusal
        finally:
            finished += 1

    def remembered() -> int:
        return engine.tally.remembered - before.remembered

    async def show_progress(task: Task) -> None:
        while True:
            done = engine.tally.asked - before.asked + remembered()
            task.update(done, max(done, amount.calls), f"{finished}/{amount.items} {amount.unit}", remembered())
            await asyncio.sleep(PROGRESS_SECONDS)

    with engine.stage(name), reporter.task(name, amount.calls, "calls") as task:
        progress = asyncio.ensure_future(show_progress(task))
        try:
            async for found in in_flight(guarded, items, limit):
                yield found
        finally:
            progress.cancel()
        task.update(engine.tally.asked - before.asked + remembered(), task.total)
        task.close(f"{remembered()} of them remembered")


class EngineWork(NamedTuple):
    """What the engine of this fingerprint did in one stage."""

    engine: str
    work: Work


class Session:
    """A plan being carried out."""

    def __init__(
        self,
        plan: Plan,
        reporter: Reporter,
        memo: AnyMemo,
        open_engine: OpenEngine,
        work: Sequence[EngineWork] = (),
    ) -> None:
        self.plan, self.reporter = plan, reporter
        self.left_out: list[LeftOut] = [*plan.prompts_left_out]
        self.seconds: dict[str, float] = {}
        self.work: list[EngineWork] = [*work]  # with what was done before
        self._memo, self._open_engine = memo, open_engine
        self._engines: dict[str, RememberingEngine] = {}

    def engine(self, model: Model) -> RememberingEngine:
        """As `remembering`; one for all folders of the same content."""
        engine = remembering(model, self.plan.config.engine, self._memo, self._open_engine)
        return self._engines.setdefault(engine.fingerprint, engine)

    async def each(
        self,
        name: str,
        prompts: list[Prompt],
        function: Callable[[Prompt], Awaitable[Result]],
        engine: RememberingEngine,
        calls: int,
    ) -> AsyncIterator[tuple[Prompt, Result]]:
        """Every prompt with its result, in order; refused prompts are left out as failed. A prompt takes `calls`."""
        amount, limit = Amount(len(prompts), "prompts", calls * len(prompts)), self.plan.config.engine.max_in_flight
        async for prompt, result in each(name, prompts, amount, function, engine, limit, self.reporter):
            if isinstance(result, RequestRefused):
                self.left_out.append(LeftOut(prompt_id=prompt.id, stage=name, reason=str(result), failed=True))
            else:
                yield prompt, result
        self.work.append(EngineWork(engine.fingerprint, engine.work[-1]))

    async def respond(
        self, prompt: Prompt, engine: Engine, max_tokens: int, temperature: float, sample: int = 0
    ) -> Completion:
        """A sampled answer under the run's seed."""
        seed = self.plan.config.seed
        return await respond(prompt, engine, seed=seed, max_tokens=max_tokens, temperature=temperature, sample=sample)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the seconds the block takes."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def calls(self) -> Tally:
        """Calls of all engines together."""
        return sum((engine.tally for engine in self._engines.values()), Tally())
