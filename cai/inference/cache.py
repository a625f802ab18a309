"""A content-addressed cache under every engine: no call is made twice.

One SQLite file in WAL mode serves all runs and processes of a workspace. Every answer is committed as it arrives,
so a killed process loses only the calls in flight, and resuming a run is running it again.
"""

import asyncio
import dataclasses
import hashlib
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import canonical_json
from cai.inference.engine import Choose, Completion, Engine, Generate

EARLIER_NAMES = {"asked": "cache_misses", "remembered": "cache_hits", "thought": "chain_of_thought"}


@dataclasses.dataclass
class Tally:
    """Calls of an engine. Of the cache misses alone: the tokens they may write at most (`allowed`), the tokens they
    wrote, and the characters they read.
    """

    cache_misses: int = 0
    cache_hits: int = 0
    allowed: int = 0
    tokens: int = 0
    characters: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one engine did in one stage of a run: calls by step, the seconds that took, and whether it was loaded."""

    stage: str
    steps: dict[str, Tally]
    seconds: float
    loaded: bool


class Cache:
    """The store: answers by key, as JSON text; and what stages of work took, from which dry runs forecast."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing, a power cut the last calls
            self._db.execute("CREATE TABLE IF NOT EXISTS calls (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")
            self._db.execute("CREATE TABLE IF NOT EXISTS work (engine TEXT, work TEXT)")
        except sqlite3.DatabaseError as error:
            raise CaiError(f"{path}: not a usable cache ({error}); move the file away to start a new one") from error

    def get(self, key: bytes) -> Any | None:
        """The cached answer, or None."""
        row = self._db.execute("SELECT answer FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: bytes, answer: Any) -> None:
        """Store an answer; it is on disk when this returns."""
        self._db.execute("INSERT OR REPLACE INTO calls VALUES (?, ?)", (key, json.dumps(answer)))

    def add_work(self, engine: str, work: Work) -> None:
        """Store what a stage took."""
        self._db.execute("INSERT INTO work VALUES (?, ?)", (engine, json.dumps(dataclasses.asdict(work))))

    def work(self, engine: str) -> list[Work]:
        """What the stages of an engine took so far, in order."""
        rows = self._db.execute("SELECT work FROM work WHERE engine = ?", (engine,)).fetchall()
        return [_work(json.loads(row[0])) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _work(stored: dict[str, Any]) -> Work:
    """A stored account; a cache of an earlier version has other names in it."""
    steps = {
        EARLIER_NAMES.get(step, step): Tally(**{EARLIER_NAMES.get(name, name): n for name, n in tally.items()})
        for step, tally in stored["steps"].items()
    }
    return Work(**{**stored, "steps": steps})


class OverlayCache:
    """A cache laid over another one, which is only read: what is put goes to the upper one."""

    def __init__(self, below: Cache, upper: Cache) -> None:
        self._below, self._upper = below, upper
        self.put, self.work = upper.put, below.work

    def get(self, key: bytes) -> Any | None:
        """The cached answer of either, or None."""
        answer = self._below.get(key)
        return self._upper.get(key) if answer is None else answer

    def add_work(self, engine: str, work: Work) -> None:
        """Stores nothing: a forecast is no measurement."""


AnyCache = Cache | OverlayCache


class CachedEngine:
    """An engine that looks into the cache first, and opens the model behind it only on the first miss."""

    def __init__(self, fingerprint: str, cache: AnyCache, open_engine: Callable[[], Engine]) -> None:
        self.fingerprint = fingerprint
        self.steps: defaultdict[str, Tally] = defaultdict(Tally)
        self.work: list[Work] = []
        self._cache = cache
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._opened = 0
        self._in_flight: dict[bytes, asyncio.Future[Any]] = {}

    @property
    def tally(self) -> Tally:
        """All calls so far."""
        return sum(self.steps.values(), Tally())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the calls of the block to `work`; of blocks with cache misses the cache keeps a copy for forecasts."""
        before = {step: dataclasses.replace(tally) for step, tally in self.steps.items()}
        opened, begun = self._opened, time.monotonic()
        try:
            yield
        finally:
            steps = {step: tally - before.get(step, Tally()) for step, tally in self.steps.items()}
            done = {step: tally for step, tally in steps.items() if tally != Tally()}
            work = Work(name, done, time.monotonic() - begun, self._opened > opened)
            self.work.append(work)
            if any(tally.cache_misses for tally in done.values()):
                self._cache.add_work(self.fingerprint, work)

    async def generate(self, request: Generate) -> Completion:
        """As Engine.generate; equal concurrent requests share one call."""

        async def ask() -> dict[str, Any]:
            completion = await self._model().generate(request)
            tally = self.steps[request.step]
            tally.allowed += request.max_tokens
            tally.tokens += completion.completion_tokens
            return dataclasses.asdict(completion)

        return Completion(**await self._cached(request, ask))

    async def choose(self, request: Choose) -> list[float]:
        """As Engine.choose, cached."""

        async def ask() -> list[float]:
            return await self._model().choose(request)

        return list(await self._cached(request, ask))

    async def close(self) -> None:
        """Close the model if it is open; the cache stays open."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    def _model(self) -> Engine:
        if self._engine is None:
            self._engine = self._open_engine()
            self._opened += 1
        return self._engine

    def _key(self, request: Generate | Choose) -> bytes:
        content_of = {name: value for name, value in vars(request).items() if name != "step"}
        content = canonical_json([self.fingerprint, type(request).__name__, content_of])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    async def _cached(self, request: Generate | Choose, ask: Callable[[], Awaitable[Any]]) -> Any:
        key = self._key(request)
        if (pending := self._in_flight.get(key)) is not None:
            answer = await asyncio.shield(pending)
            self.steps[request.step].cache_hits += 1
            return answer
        if (answer := self._cache.get(key)) is not None:
            self.steps[request.step].cache_hits += 1
            return answer
        self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await ask()
            self._cache.put(key, answer)
            tally = self.steps[request.step]
            tally.cache_misses += 1
            tally.characters += sum(len(message["content"]) for message in request.messages)
            self._in_flight[key].set_result(answer)
            return answer
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self._in_flight[key].set_exception(error)
                self._in_flight[key].exception()  # read, so that asyncio reports none if nobody waits
            else:
                self._in_flight[key].cancel()
            raise
        finally:
            del self._in_flight[key]
