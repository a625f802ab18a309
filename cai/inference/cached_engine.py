"""An engine under the cache: what is cached is answered, the rest is asked once, in all processes together.

A process leases the key of a call while it makes it, and other processes wait for its answer. Leases and answers of a
few milliseconds are one transaction, for which those who need them wait: on a slow disk more of them, up to 0.2 s. What
is no answer (`validate_completion`) is never stored.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from cai.config.errors import CaiError
from cai.config.hashing import canonical_json, json_writer
from cai.inference.cache import AnyCache, Changes, Tally, Work
from cai.inference.cache_file import Entry
from cai.inference.chat import ControlTokenRefused, ControlTokens, control_string, escape_control
from cai.inference.engine import (
    BoundedLogProbs,
    Choose,
    Completion,
    Engine,
    Generate,
    UnusableAnswer,
    validate_choice,
    validate_completion,
)
from cai.inference.loaded_models import KeptEngine, Turns

Request = TypeVar("Request", Generate, Choose)
BEAT_SECONDS = 5.0  # between heartbeats, by which the process keeps its leases
NOT_IN_KEYS = ("step", "session", "sampling")  # fields of requests; the last is, where it is set
IN_KEYS = {
    kind: [field.name for field in dataclasses.fields(kind) if field.name not in NOT_IN_KEYS]
    for kind in (Generate, Choose)
}
POLL_SECONDS = 0.1  # between looks for an answer that another process is asking for
LEAST_DELAY, MOST_DELAY = 0.005, 0.2  # seconds between two transactions
DELAY_RATIO = 4.0  # between two transactions, as many times as long as the first one took

_answer_json = json_writer()


class _Commits:
    """Commits changes together, in intervals, and keeps this process's leases while there are any.

    A transaction runs in the event loop, at most a fifth of the time: its statements are so short that a thread of its
    own would mostly wait for the interpreter, which the loop keeps for 5 ms each time.
    """

    def __init__(self, cache: AnyCache) -> None:
        self._cache = cache
        self._entries: list[tuple[Entry, asyncio.Future[bool]]] = []
        self._leases: list[tuple[bytes, asyncio.Future[bool]]] = []
        self._released: list[bytes] = []
        self._held: set[bytes] = set()
        self._scheduled: asyncio.AbstractEventLoop | None = None
        self._next = 0.0  # not before then is the next transaction, by the clock of event loops
        self._beating: asyncio.AbstractEventLoop | None = None

    def lease(self, key: bytes) -> asyncio.Future[bool]:
        """Whether this process is the one to ask, once it is on disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._leases.append((key, future))
        self._schedule(loop)
        return future

    def store(self, entry: Entry) -> asyncio.Future[bool]:
        """Store an answer, which ends its lease; whether it is the first, once it is on disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._entries.append((entry, future))
        self._schedule(loop)
        return future

    def release(self, key: bytes) -> None:
        """End a lease without an answer, before the loop can end: whoever asks next need not wait until it expires."""
        self._released.append(key)
        asyncio.get_running_loop().call_soon(self._commit)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._scheduled is not loop:
            self._scheduled = loop
            loop.call_at(self._next, self._commit)

    def flush(self) -> None:
        """Commit now what is waiting."""
        if self._entries or self._released:
            self._commit()

    def _commit(self) -> None:
        self._scheduled = None
        if not (self._entries or self._leases or self._released):  # flushed
            return
        begun = time.monotonic()
        try:
            self._commit_waiting()
        finally:
            ended = time.monotonic()
            self._next = ended + min(MOST_DELAY, max(LEAST_DELAY, DELAY_RATIO * (ended - begun)))

    def _commit_waiting(self) -> None:
        entries, leases, released = self._entries, self._leases, self._released
        self._entries, self._leases, self._released = [], [], []
        try:
            committed = self._cache.commit(Changes([e for e, _ in entries], [key for key, _ in leases], released))
        except Exception as error:
            for _, future in (*entries, *leases):
                if not future.done():
                    future.set_exception(error)
            return
        self._held -= {entry.key for entry, _ in entries} | set(released)
        self._held |= committed.leased
        for entry, future in entries:
            if not future.done():
                future.set_result(entry.key not in committed.second)
        for key, future in leases:
            if not future.done():
                future.set_result(key in committed.leased)
            elif key in committed.leased:  # whoever wanted it was cancelled
                self.release(key)
        if self._held and self._beating is not (loop := asyncio.get_running_loop()):
            self._beating = loop
            loop.call_later(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        self._beating = None
        if self._held:
            with contextlib.suppress(CaiError):  # the next answer to be stored meets the same error
                self._cache.heartbeat()
            self._beating = asyncio.get_running_loop()
            self._beating.call_later(BEAT_SECONDS, self._beat)


class CachedEngine:
    """An engine that looks into the cache first, and opens the model behind it only on the first miss.

    Args: `control_tokens` as in EngineConfig; `served`, whether a server tokenizes the requests.
    """

    def __init__(
        self,
        fingerprint: str,
        cache: AnyCache,
        open_engine: Callable[[], Engine],
        control_tokens: ControlTokens = "text",
        served: bool = False,
    ) -> None:
        self.fingerprint = fingerprint
        self.steps: defaultdict[str, Tally] = defaultdict(Tally)
        self.work: list[Work] = []
        self._cache = cache
        self._open_engine = open_engine
        self._control_tokens, self._served = control_tokens, served
        self._engine: Engine | None = None
        self._opened = 0
        self._commits = _Commits(cache)
        self._in_flight: dict[bytes, asyncio.Future[Any]] = {}
        self._hitting = True  # whether the last call was a cache hit, as the next one then may be
        self.turns: Turns | None = None  # which it takes with the other models of a stage

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
            reused = isinstance(self._engine, KeptEngine) and self._engine.reused
            work = Work(name, done, time.monotonic() - begun, self._opened > opened and not reused)
            self.work.append(work)
            self._commits.flush()  # an interrupt may end the event loop before its turn
            if any(tally.cache_misses for tally in done.values()):
                self._cache.add_work(self.fingerprint, work)

    async def generate(self, request: Generate) -> Completion:
        """As Engine.generate; equal concurrent requests share one call."""

        async def ask(asked: Generate) -> dict[str, Any]:
            async with self._turn():
                completion = await self._model().generate(asked)
            tally = self.steps[asked.step]
            tally.allowed += asked.max_tokens
            tally.tokens += completion.completion_tokens
            answer = {
                "text": completion.text,
                "finish": completion.finish,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            }  # of a model that does not think as it was before there were any that do
            return answer if completion.reasoning is None else answer | {"reasoning": completion.reasoning}

        return Completion(**await self._screened(request, ask, _completion))

    async def choose(self, request: Choose) -> list[float]:
        """As Engine.choose, cached."""

        async def ask(asked: Choose) -> list[float] | dict[str, Any]:
            async with self._turn():
                log_probs = await self._model().choose(asked)
            return {"at_most": list(log_probs)} if isinstance(log_probs, BoundedLogProbs) else list(log_probs)

        def check(answer: Any) -> None:
            log_probs = answer.get("at_most") if isinstance(answer, dict) else answer
            validate_choice(log_probs if isinstance(log_probs, list) else [], len(request.options))

        answer = await self._screened(request, ask, check)
        if isinstance(answer, dict):
            self.steps[request.step].bounded += 1
            return BoundedLogProbs(answer["at_most"])
        return list(answer)

    async def close(self) -> None:
        """Close the model if it is open; the cache stays open."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return self.turns.turn(self) if self.turns is not None else nullcontext()

    def _model(self) -> Engine:
        if self._engine is None:
            self._engine = self._open_engine()
            self._opened += 1
        return self._engine

    def _key(self, request: Generate | Choose) -> bytes:
        content_of = {name: getattr(request, name) for name in IN_KEYS[type(request)]}
        if isinstance(request, Generate) and request.sampling is not None:
            content_of["sampling"] = request.sampling.model_dump(exclude_defaults=True)
        content = canonical_json([self.fingerprint, type(request).__name__, content_of])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    async def _screened(
        self, request: Request, ask: Callable[[Request], Awaitable[Any]], check: Callable[[Any], object]
    ) -> Any:
        """As `_cached`, of the request that `control_tokens` makes of one that spells a control token.

        It has the cache key of what it says. Raises: ControlTokenRefused.
        """
        as_text = self._control_tokens == "text"
        spelled = None if as_text and not self._served else control_string(request.messages)
        if spelled is None or as_text:
            self.steps[request.step].control_tokens += spelled is not None
            return await self._cached(request, ask, check)
        if self._control_tokens == "refuse":
            raise ControlTokenRefused(
                f"a text holds the control token {spelled!r}, which engine.control_tokens: refuse skips"
            )
        escaped = dataclasses.replace(request, messages=escape_control(request.messages))
        if not self._served:
            refused_before = self._stored(self._key(escaped), check) is not None  # so that no model is loaded to say so
            if not refused_before or self._stored(self._key(request), check) is not None:
                try:
                    return await self._cached(request, ask, check)
                except ControlTokenRefused:
                    pass  # the model cannot read it as text
        return await self._cached(escaped, ask, check)

    async def _cached(
        self, request: Request, ask: Callable[[Request], Awaitable[Any]], check: Callable[[Any], object]
    ) -> Any:
        """The answer, as JSON. `check` raises UnusableAnswer for one that must not be stored, or was once."""
        key, tally = self._key(request), self.steps[request.step]
        if (pending := self._in_flight.get(key)) is not None:
            answer = await asyncio.shield(pending)
            tally.cache_hits += 1
            return answer
        # Among misses, looking up a key before leasing it found nothing for 6 % of a call's time: an answer refuses the
        # lease, and is then looked up.
        if self._hitting and (answer := self._stored(key, check)) is not None:
            tally.cache_hits += 1
            return answer
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._leased(key, request, ask, check)
            future.set_result(answer)
            return answer
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                future.set_exception(error)
                future.exception()  # read, so that asyncio reports none if nobody waits
            else:
                future.cancel()
            raise
        finally:
            del self._in_flight[key]

    async def _leased(
        self, key: bytes, request: Request, ask: Callable[[Request], Awaitable[Any]], check: Callable[[Any], object]
    ) -> Any:
        """The answer of this process's call, or of another's that makes the same one now or was the first."""
        tally = self.steps[request.step]
        while not await self._commits.lease(key):
            if (answer := self._stored(key, check)) is not None:
                self._hitting = True
                tally.cache_hits += 1
                return answer
            await asyncio.sleep(POLL_SECONDS)
        self._hitting = False
        try:
            answer = await ask(request)
            check(answer)
        except BaseException:
            self._commits.release(key)
            raise
        entry = Entry(key, self.fingerprint, type(request).__name__, _answer_json(answer), int(time.time()))
        while not await self._commits.store(entry):
            if (first := self._stored(key, check)) is not None:
                answer = first
                break
        tally.cache_misses += 1
        tally.characters += sum(len(message["content"]) for message in request.messages)
        return answer

    def _stored(self, key: bytes, check: Callable[[Any], object]) -> Any | None:
        """The cached answer; None where there is none, or one that an earlier version should not have stored."""
        answer = self._cache.get(key)
        try:
            if answer is not None:
                check(answer)
        except UnusableAnswer:
            self._cache.remove(key)
            return None
        return answer


def _completion(answer: Any) -> Completion:
    try:
        completion = Completion(**answer)
    except TypeError:
        raise UnusableAnswer("the cached answer is no completion") from None
    validate_completion(completion)
    return completion
