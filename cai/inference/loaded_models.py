"""Which models are loaded: one stays between the calls of a process, and those that do not fit together take turns.

Between calls, as those of a notebook, at most one engine waits for the next. Whoever takes it owns it until it is given
back: calls that run at the same time do not share it, and one that is interrupted leaves it to the next. Servers have
nothing to load, and are not kept.
"""

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from cai.config.errors import RequestRefused
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate
from cai.inference.models import Model, Server
from cai.inference.vllm_settings import CPU_KV_MOST, on_cpu, replicas

if TYPE_CHECKING:
    from cai.inference.scheduler import OpenEngine


EXIT_SECONDS = 5.0  # that the end of the process waits for the engine's
Answer = TypeVar("Answer")


class Use(NamedTuple):
    """What an engine was opened for; equal uses can take each other's engine."""

    fingerprint: str
    settings: EngineConfig
    open_engine: "OpenEngine"


class KeepAlive:
    """The engine that the last call left open, if any; it is closed for another use, by `close` and at exit."""

    def __init__(self) -> None:
        self._idle: tuple[Use, Engine] | None = None
        self._lock = threading.Lock()
        self._closes_at_exit = False

    def opening(self, open_engine: "OpenEngine") -> "OpenEngine":
        """As `open_engine`, with engines that are kept when they are closed."""

        def open_kept(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
            if isinstance(model, Server):  # its connections belong to one event loop
                return open_engine(model, fingerprint, settings)
            use = Use(fingerprint, settings, open_engine)
            return KeptEngine(self, use, lambda: open_engine(model, fingerprint, settings))

        return open_kept

    async def take(self, use: Use) -> Engine | None:
        """The idle engine if it is of the same use; one of another use is closed first."""
        idle = self._exchange(None)
        if idle is not None and idle[0] == use:
            return idle[1]
        if idle is not None:
            await idle[1].close()
        return None

    async def keep(self, use: Use, engine: Engine) -> None:
        """Leave an engine to the next call, in place of one that waits for it."""
        if not self._closes_at_exit:  # registered now, since vLLM's own end, registered as it loads, comes after it
            self._closes_at_exit = True
            atexit.register(self._close_at_exit)
        before = self._exchange((use, engine))
        if before is not None:
            await before[1].close()

    async def close(self) -> None:
        """Close the idle engine, which frees the model's memory."""
        idle = self._exchange(None)
        if idle is not None:
            await idle[1].close()

    def _exchange(self, idle: tuple[Use, Engine] | None) -> tuple[Use, Engine] | None:
        with self._lock:
            before, self._idle = self._idle, idle
            return before

    def _close_at_exit(self) -> None:
        async def close() -> None:
            async with asyncio.timeout(EXIT_SECONDS):
                await self.close()

        with suppress(Exception):  # the process ends all the same
            asyncio.run(close())


class KeptEngine:
    """An engine for one call: the one kept for its use, or else opened by the first request; `close` gives it back.

    One that fails is closed in place of being kept. If it was kept and fails before its first answer, it died idle, as
    when an interrupt reaches a process of vLLM's: another one is opened and asked.
    """

    def __init__(self, keeper: KeepAlive, use: Use, open_engine: Callable[[], Engine]) -> None:
        self.fingerprint = use.fingerprint
        self._keeper, self._use, self._open_engine = keeper, use, open_engine
        self.reused = False  # whether the engine was kept, so that no model was loaded
        self._engine: Engine | None = None
        self._proven = True  # whether the engine is new, or has answered
        self._failed = False
        self._changing = asyncio.Lock()

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn."""
        return await self._ask(lambda engine: engine.generate(request))

    async def choose(self, request: Choose) -> list[float]:
        """The log-probability (nats) of each option."""
        return await self._ask(lambda engine: engine.choose(request))

    async def close(self) -> None:
        """Leave the engine to the next call."""
        engine, self._engine = self._engine, None
        if engine is not None and self._failed:
            await engine.close()
        elif engine is not None:
            await self._keeper.keep(self._use, engine)

    async def _ask(self, request: Callable[[Engine], Awaitable[Answer]]) -> Answer:
        while True:
            engine = await self._opened()
            try:
                answer = await request(engine)
            except (RequestRefused, asyncio.CancelledError):
                raise
            except Exception:  # whatever an engine dies of: raised, unless it died before this call
                if self._proven and engine is self._engine:
                    self._failed = True
                    raise
                await self._discard(engine)
            else:
                self._proven |= engine is self._engine
                return answer

    async def _opened(self) -> Engine:
        async with self._changing:
            if self._engine is None:
                kept = await self._keeper.take(self._use)
                self.reused, self._proven = kept is not None, kept is None
                self._engine = kept or self._open_engine()
            return self._engine

    async def _discard(self, dead: Engine) -> None:
        """Close an engine that died idle, unless another request has found it dead before."""
        async with self._changing:
            if self._engine is dead:
                await dead.close()
                self._engine = None


IDLE_SECONDS = 0.2  # without a request, after which the loaded model has nothing left to do: loading takes far longer
GPU_SHARE = 0.92  # of its memory, which vLLM takes where gpu_memory_utilization does not say it
FULL = 0.95  # of memory that engines may take together


class Closable(Protocol):
    """What takes turns."""

    async def close(self) -> None:
        """Free the model's memory; the next request loads it again."""


class Turns:
    """At most one engine answers at a time, until all that wait want another; then it is closed.

    Of the engines that are waited for, the one with the most requests is next.
    """

    def __init__(self) -> None:
        self._holder: Closable | None = None
        self._users = 0  # requests that the holder works on
        self._waiting: dict[Closable, list[asyncio.Future[None]]] = {}
        self._change: asyncio.Task[None] | None = None
        self._closing = False

    @asynccontextmanager
    async def turn(self, engine: Closable) -> AsyncIterator[None]:
        """Wait until it is the engine's turn; it stays so within the block. Raises: what closing another one raises."""
        if self._holder is None and not self._closing:
            self._holder = engine
        if self._holder is engine and not self._closing:
            self._users += 1
        else:
            await self._granted(engine)
        try:
            yield
        finally:
            self._users -= 1
            self._look()

    async def _granted(self, engine: Closable) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(engine, []).append(future)
        self._look()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:  # granted all the same
                self._users -= 1
                self._look()
            raise

    def _look(self) -> None:
        """Begin a change of turns if nobody uses the holder and somebody waits."""
        if not self._users and self._waiting and (self._change is None or self._change.done()):
            self._change = asyncio.get_running_loop().create_task(self._next())

    async def _next(self) -> None:
        await asyncio.sleep(IDLE_SECONDS)
        waiting = {e: left for e, all in self._waiting.items() if (left := [f for f in all if not f.done()])}
        self._waiting = waiting
        if self._users or not waiting:
            return
        chosen = max(waiting, key=lambda engine: len(waiting[engine]))
        self._closing = True
        try:
            if self._holder is not None and self._holder is not chosen:
                await self._holder.close()
        except BaseException as error:
            for future in (future for futures in self._waiting.values() for future in futures):
                if not future.done():
                    future.set_exception(error)
            self._waiting = {}
            raise
        finally:
            self._closing = False
        self._holder = chosen
        for future in self._waiting.pop(chosen, []):
            if not future.done():
                future.set_result(None)
                self._users += 1
        self._change = None
        self._look()


def fit_together(models: Sequence[tuple[Path, EngineConfig]]) -> bool:
    """Whether models may be loaded at the same time.

    On a CPU their weights in float32 and their caches must fit in the memory that is free; on GPUs the shares that
    their engines take (`engine.vllm.gpu_memory_utilization`) must. Replicas on a cluster or GPUs of their own are Ray's
    to place.
    """
    models = [(folder, settings) for folder, settings in models if not _placed_by_ray(settings)]
    if not on_cpu():
        shares: list[float] = [settings.vllm.get("gpu_memory_utilization", GPU_SHARE) for _, settings in models]
        return sum(shares) <= FULL
    import psutil

    free: int = psutil.virtual_memory().available
    needed = (_float32_bytes(folder) * replicas(settings) + CPU_KV_MOST for folder, settings in models)
    return sum(needed) <= FULL * free


def _placed_by_ray(settings: EngineConfig) -> bool:
    return settings.ray is not None and (settings.ray.address is not None or not on_cpu())


def _float32_bytes(folder: Path) -> int:
    """Of a model's weights in memory; files hold them in 16 bits more often than not, so this is an upper bound."""
    return 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
