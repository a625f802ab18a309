"""Many examples through one async function: bounded in number, results in order, no barrier between their steps."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

from cai.config.errors import RequestRefused
from cai.config.hashing import fingerprint
from cai.inference.cache import AnyCache, CachedEngine, Work
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Engine, EngineConfig
from cai.inference.models import Model, Server, model_fingerprint
from cai.inference.progress import Reporter, Task
from cai.inference.vllm import VllmEngine, vllm_build

Item = TypeVar("Item")
Result = TypeVar("Result")


async def run_concurrently(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Every item with its result, in the items' order, at most `limit` being worked on at a time.

    The first error cancels what is under way and is raised.
    """
    waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()
    alive: set[asyncio.Task[Result]] = set()
    source = iter(items)
    exhausted = False
    try:
        while True:
            while len(alive) < limit and not exhausted:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                    break
                task = asyncio.ensure_future(function(item))
                waiting.append((item, task))
                alive.add(task)
            while waiting and waiting[0][1].done():
                item, task = waiting.popleft()
                yield item, task.result()
            if not waiting and exhausted:
                return
            if alive:
                done, alive = await asyncio.wait(alive, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
    finally:
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)


OpenEngine = Callable[[Model, str, EngineConfig], Engine]
PROGRESS_SECONDS = 0.5


def open_model(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    """vLLM on a model folder, which loads in the background; or the server."""
    if isinstance(model, Server):
        return ServerEngine(model, fingerprint, settings.concurrency)
    return VllmEngine(model, fingerprint, settings.max_model_len, settings.concurrency)


def cached_engine(model: Model, settings: EngineConfig, cache: AnyCache, open_engine: OpenEngine) -> CachedEngine:
    """The engine of a model, which is itself opened at the first call the cache cannot answer."""
    identity = model_fingerprint(model)
    if not isinstance(model, Server):  # what a server runs with is not ours to know
        identity = fingerprint(identity, settings.max_model_len, vllm_build())
    return CachedEngine(identity, cache, lambda: open_engine(model, identity, settings))


class Amount(NamedTuple):
    """How much work there is: so many items, which are expected to take so many calls of the engine together."""

    items: int
    unit: str
    calls: int


async def each_with_progress(
    name: str,
    items: Iterable[Item],
    amount: Amount,
    function: Callable[[Item], Awaitable[Result]],
    engine: CachedEngine,
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

    def cache_hits() -> int:
        return engine.tally.cache_hits - before.cache_hits

    async def show_progress(task: Task) -> None:
        while True:
            done = engine.tally.cache_misses - before.cache_misses + cache_hits()
            task.update(done, max(done, amount.calls), f"{finished}/{amount.items} {amount.unit}", cache_hits())
            await asyncio.sleep(PROGRESS_SECONDS)

    with engine.stage(name), reporter.task(name, amount.calls, "calls") as task:
        progress = asyncio.ensure_future(show_progress(task))
        try:
            async for found in run_concurrently(guarded, items, limit):
                yield found
        finally:
            progress.cancel()
        task.update(engine.tally.cache_misses - before.cache_misses + cache_hits(), task.total)
        task.close(f"{cache_hits()} of them cache hits")


class EngineWork(NamedTuple):
    """What the engine of this fingerprint did in one stage."""

    engine: str
    work: Work
