"""Models of one stage that do not fit in memory together take turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from cai.inference.engine import EngineConfig
from cai.inference.vllm_settings import CPU_KV_MOST, on_cpu, replicas

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
