"""Everything that asks a model goes through here: engines over one cache, bounded concurrency, progress, accounts.

Examples run through one async function each, a bounded number at a time and with no barrier between their steps;
results come in the order of the items. Engines do the batching (see cai/inference/engine.py).
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cai.config.errors import RequestRefused, notices_to
from cai.config.hashing import fingerprint
from cai.data.records import Skipped
from cai.inference.cache import AnyCache, Tally, Work
from cai.inference.cached_engine import CachedEngine
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Engine, EngineConfig
from cai.inference.loaded_models import Turns, fit_together
from cai.inference.models import Model, Server, model_fingerprint, served
from cai.inference.ray_engine import RayEngine
from cai.inference.reporter import Reporter, Task
from cai.inference.servers import check_listed
from cai.inference.vllm import VllmEngine
from cai.inference.vllm_settings import deciding_arguments, prompts_at_once, vllm_build

DECIDES_NOTHING = {"concurrency", "stall_minutes", "endpoints", "served_model_name", "ray", "vllm"}
"""Engine settings that no manifest has as they are; `vllm` has a rule of its own."""
Item = TypeVar("Item")
Result = TypeVar("Result")
OpenEngine = Callable[[Model, str, EngineConfig], Engine]
PROGRESS_SECONDS = 0.5
AHEAD = 16  # times as many items as may run are begun before an earlier one is done, for which their results wait
PROMPTS_A_TURN = 4096  # that are under way where models take turns: loading one costs as much as many answers
YOUNG_OBJECTS = 50_000  # new objects until Python looks for garbage among them; 700 without us


async def gather(calls: Sequence[Awaitable[Result]]) -> list[Result]:
    """The results of all, concurrently, as `asyncio.gather`; a single one is awaited without a task of its own.

    Measured on the scripted engine: with it 8 tasks for the 8 calls of a prompt instead of 11, and 4 % of the time.
    """
    return [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)


async def run_concurrently(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Every item with its result, in the items' order; at most `limit` run at a time.

    A slow item does not hold up the others, until AHEAD times the limit of them wait to come after it: no more items
    and results than that are in memory.
    The first error cancels the others and is raised.
    """
    waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()
    running: set[asyncio.Task[Result]] = set()
    failed: list[asyncio.Task[Result]] = []
    ended = asyncio.Event()
    source = iter(items)
    exhausted = False

    def end(task: asyncio.Task[Result]) -> None:
        running.discard(task)
        if task.cancelled() or task.exception() is not None:
            failed.append(task)
        ended.set()

    try:
        while True:
            while len(running) < limit and len(waiting) < AHEAD * limit and not exhausted:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                    break
                task = asyncio.ensure_future(function(item))
                waiting.append((item, task))
                running.add(task)
                task.add_done_callback(end)  # asyncio.wait would go through all that run, each time that one ends
            while waiting and waiting[0][1].done():
                item, task = waiting.popleft()
                yield item, task.result()
            if not waiting and exhausted:
                return
            if running:
                await ended.wait()
            ended.clear()
            for task in failed:
                task.result()
    finally:
        for task in list(running):
            task.cancel()
        await asyncio.gather(
            *(task for _, task in waiting), return_exceptions=True
        )  # all errors are read: one is raised


def open_model(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    """vLLM on a model folder, or replicas of it, which load in the background; or a client of the server."""
    if isinstance(model, Server):
        check_listed(model)
        return ServerEngine(model, fingerprint, prompts_at_once(settings), 60 * settings.stall_minutes, settings.chat)
    if settings.ray is not None:
        return RayEngine(model, fingerprint, settings)
    return VllmEngine(model, fingerprint, settings)


def engine_fingerprint(model: Model, settings: EngineConfig) -> str:
    """What decides a model's answers: content, vLLM's build and settings; of a server its name and the chat's alone."""
    identity = model_fingerprint(model)
    chat = [] if settings.chat is None else [settings.chat.identity()]
    if isinstance(model, Server):
        return fingerprint(identity, *chat) if chat else identity
    deciding = deciding_arguments(settings)
    return fingerprint(identity, settings.max_model_len, vllm_build(), *([deciding] if deciding else []), *chat)


def deciding_settings(settings: EngineConfig) -> dict[str, Any]:
    """What a manifest has of an engine's settings: those that are not the default and decide answers."""
    chosen = settings.model_dump(mode="json", exclude=DECIDES_NOTHING, exclude_defaults=True)
    arguments = deciding_arguments(settings)
    return chosen | ({"vllm": arguments} if arguments else {})


class Stage(NamedTuple):
    """One batch of items for one engine, or several, as progress and accounts name it."""

    name: str
    engines: Sequence[CachedEngine]
    items: int
    calls: int  # expected of the engines, for all items together
    unit: str = "prompts"  # what an item is
    concurrency: int | None = None  # items at a time; None: as the engine's settings have it


class EngineWork(NamedTuple):
    """What the engine of this fingerprint did in one stage."""

    engine: str
    work: Work


class Cost(NamedTuple):
    """Calls to models (cache misses), calls answered from the cache, tokens generated, and seconds."""

    cache_misses: int
    cache_hits: int
    tokens: int
    seconds: float


class Scheduler:
    """The models of one command, opened when the cache first misses, and what was done with them.

    `settings` are of every model's engine but those in `own_settings`.

    `work` is what each finished stage did, `skipped` the rows that were not used and why, `seconds` the duration of
    the blocks under `timed`. Without a reporter nothing is shown.
    """

    def __init__(
        self,
        settings: EngineConfig,
        cache: AnyCache,
        reporter: Reporter | None = None,
        open_engine: OpenEngine = open_model,
        own_settings: Mapping[Model, EngineConfig] | None = None,
    ) -> None:
        self.settings, self.reporter, self._own_settings = settings, reporter, own_settings or {}
        self.models: dict[str, str] = {}  # the fingerprint of each engine's model, by the engine's
        self.work: list[EngineWork] = []
        self.skipped: list[Skipped] = []
        self.seconds: dict[str, float] = {}
        self._cache, self._open_engine = cache, open_engine
        self._engines: dict[str, CachedEngine] = {}
        self._loaded: dict[str, tuple[Path, EngineConfig]] = {}  # of those whose model this process loads

    def engine(self, model: Model) -> CachedEngine:
        """The engine of a model; one for all folders of the same content."""
        settings = self._own_settings.get(model, self.settings)
        identity = engine_fingerprint(model, settings)
        if identity not in self._engines:
            if isinstance(model, Server) and not model.listed and not self._cache.answers_of(identity):
                check_listed(model)  # now, since its first call is sure to need it
            self.models[identity] = model_fingerprint(model)
            if isinstance(model, Path) and settings.ray is None:
                self._loaded[identity] = (model, settings)
            self._engines[identity] = CachedEngine(
                identity,
                self._cache,
                lambda: self._open(model, identity, settings),
                settings.control_tokens,
                served([model]),
            )
        return self._engines[identity]

    def _open(self, model: Model, identity: str, settings: EngineConfig) -> Engine:
        if self.reporter is not None and not isinstance(model, Server):
            self.reporter.note("loading the model")
        return self._open_engine(model, identity, settings)

    async def run(
        self, stage: Stage, items: Iterable[Item], function: Callable[[Item], Awaitable[Result]]
    ) -> AsyncIterator[tuple[Item, Result | RequestRefused]]:
        """Every item with its result, in order, or with the refusal of one of its requests.

        Progress counts calls: an item takes long to finish while others run beside it, so that a count of finished
        items would mislead at first.
        """
        finished = 0

        async def guarded(item: Item) -> Result | RequestRefused:
            nonlocal finished
            try:
                return await function(item)
            except RequestRefused as refusal:
                return refusal
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                return RequestRefused("the engine cancelled the request")  # and nobody else did
            finally:
                finished += 1

        before = _tally(stage.engines)

        def show(task: Task) -> None:
            calls = _tally(stage.engines) - before
            done = calls.cache_misses + calls.cache_hits
            note = f"{finished}/{stage.items} {stage.unit}"
            task.update(done, max(done, stage.calls), note, calls.cache_hits)

        limit = stage.concurrency or prompts_at_once(self.settings)
        if self._take_turns(stage):
            limit = max(limit, PROMPTS_A_TURN)
        with ExitStack() as stack:
            for engine in stage.engines:
                stack.enter_context(engine.stage(stage.name))
            if self.reporter is not None:
                stack.enter_context(notices_to(self.reporter.note))
            task = stack.enter_context(self._task(stage))
            stack.enter_context(_rare_collections())
            progress = asyncio.ensure_future(_repeat(show, task)) if task else None
            try:
                async for item, result in run_concurrently(guarded, items, limit):
                    yield item, result
            finally:
                if progress is not None:
                    progress.cancel()
            if task is not None:
                show(task)
                task.close()
        self.work += [EngineWork(engine.fingerprint, engine.work[-1]) for engine in stage.engines]

    async def each(
        self,
        stage: Stage,
        items: Iterable[Item],
        function: Callable[[Item], Awaitable[Result]],
        prompt_id: Callable[[Item], str],
    ) -> AsyncIterator[tuple[Item, Result]]:
        """As `run`, without the refused items: they are added to `skipped` as failed."""
        async for item, result in self.run(stage, items, function):
            if isinstance(result, RequestRefused):
                self.skipped.append(Skipped.refused(prompt_id(item), stage.name, result))
            else:
                yield item, result

    def _take_turns(self, stage: Stage) -> bool:
        """Whether the models of a stage do not fit in memory together, and so take turns from now on."""
        models = {e.fingerprint: self._loaded[e.fingerprint] for e in stage.engines if e.fingerprint in self._loaded}
        if len(models) < 2:
            return False
        together = fit_together(list(models.values()))
        if self.reporter is not None:
            names = " and ".join(str(folder) for folder, _ in models.values())
            fit = "fit in memory together" if together else "do not fit in memory together and are loaded in turns"
            self.reporter.say(f"  {names} {fit}")
        turns = None if together else Turns()
        for engine in stage.engines:
            engine.turns = turns if engine.fingerprint in models else None
        return not together

    def tally(self) -> Tally:
        """The calls of all engines together."""
        return _tally(self._engines.values())

    def cost(self, seconds: float) -> Cost:
        """The calls of all engines together, and the seconds they took."""
        tally = self.tally()
        return Cost(tally.cache_misses, tally.cache_hits, tally.tokens, seconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the seconds the block takes, also where it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 1)

    @contextmanager
    def _task(self, stage: Stage) -> Iterator[Task | None]:
        with self.reporter.task(stage.name, stage.calls, "calls") if self.reporter else nullcontext() as task:
            yield task


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage rarely inside the block: thousands of waiting calls are looked through each time, and are none.

    Measured on the scripted engine: 15 % of the time of a call.
    """
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _tally(engines: Iterable[CachedEngine]) -> Tally:
    return sum((engine.tally for engine in engines), Tally())


async def _repeat(show: Callable[[Task], None], task: Task) -> None:
    while True:
        show(task)
        await asyncio.sleep(PROGRESS_SECONDS)
