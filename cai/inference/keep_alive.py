"""A model that stays loaded between the calls of one process, as those of a notebook.

At most one engine waits for the next call. Whoever takes it owns it until it is given back: calls that run at the same
time do not share it, and one that is interrupted leaves it to the next. Servers have nothing to load, and are not kept.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cai.config.errors import RequestRefused
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate
from cai.inference.models import Model, Server

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
