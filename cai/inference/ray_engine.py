"""Replicas of the in-process engine as Ray actors, on this machine or a cluster (https://docs.ray.io).

The driver runs the prompts' chains and owns the cache. Requests of one turn of its event loop travel to a replica as
one actor call, and outcomes come back through one call that waits for any: a short answer waits for no long one.

A conversation keeps to one replica, where its beginning stays in the prefix cache: the first in its rendezvous order
(Thaler & Ravishankar 1998) that is up and has room, of which none has much more than its part (Mirrokni et al. 2016).

Ray restarts a replica that dies, elsewhere if its node is gone; what it had in flight is asked of the others meanwhile.
Seeds are the requests' own, so that the answer is the same, and what would be a second one is dropped.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from cai.config.errors import CaiError, RequestRefused, notice
from cai.config.hashing import uniform
from cai.inference.endpoints import session_of
from cai.inference.engine import Choose, Completion, EngineConfig, Generate, RayConfig
from cai.inference.ray_cluster import Cluster, check_room, needed, pending_text, threads
from cai.inference.ray_replica import Node, OpenReplica, Outcome, Replica, Request, check_node, end_process, this_node
from cai.inference.vllm import VllmEngine
from cai.stats.formatting import counted, duration

RESTARTS = 3  # of a replica, by Ray
HEARTBEAT_SECONDS = 5.0  # after which a replica without outcomes says that it lives
PENDING_SECONDS = 30.0  # that a replica waits for its resources before the user is told
RESTART_POLL_SECONDS = 0.2
CLOSE_SECONDS = 5.0  # for replicas to free their memory before they are killed
MORE_THAN_ITS_PART = 1.25  # times an equal part of the requests, that a replica gets before the next in order does
ROOM_AT_LEAST = 8  # requests at a time that slow no replica down
CONVERSATIONS = 65_536  # whose order of replicas is kept


@dataclass
class _Ask:
    """A request, the future that its caller awaits, and what keeps its conversation on one replica."""

    number: int
    request: Request
    future: "asyncio.Future[Any]"
    session: str


@dataclass
class _Place:
    """One replica as the driver sees it."""

    index: int
    actor: Any = None
    node: Node | None = None  # None until it has its resources
    killed: int | None = None  # the process that was killed here and that Ray replaces
    up: bool = False  # its model is loaded
    lost: bool = False  # it died more often than Ray restarts it
    answered: bool = False  # ever
    fault: BaseException | None = None  # of a batch that did not arrive
    in_flight: dict[int, _Ask] = field(default_factory=dict)
    batch: list[tuple[int, Request]] = field(default_factory=list)  # not sent yet
    cancelled: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"replica {self.index} on node {self.node.host}" if self.node else f"replica {self.index}"


class RayEngine:
    """Replicas of a model folder's engine; see cai.inference.engine.Engine.

    Args: `open_engine` opens the engine inside a replica, VllmEngine by default.

    Every request ends: answered, refused (RequestRefused), or with a CaiError for all: there is no Ray at the address,
    a node has other versions or another model, no replica gets its resources, the model does not load, or all replicas
    died for good.
    """

    def __init__(
        self, folder: Path, fingerprint: str, settings: EngineConfig, open_engine: OpenReplica = VllmEngine
    ) -> None:
        self.fingerprint = fingerprint
        self._folder, self._settings, self._open_engine = folder, settings, open_engine
        self._ray = settings.ray or RayConfig()
        self._stall_seconds = 60 * settings.stall_minutes
        self._places = [_Place(index) for index in range(self._ray.replicas)]
        self._waiting: OrderedDict[int, _Ask] = OrderedDict()  # for a replica that is up and has room
        self._numbers = count()
        self._scheduled = False
        self._work: asyncio.Task[None] | None = None
        self._cluster: Cluster | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        self._reported: set[str] = set()
        self._error: CaiError | None = None  # why no request can be answered any more

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn, sampled with the request's own seed."""
        result: Completion = await self._submit(request)
        return result

    async def choose(self, request: Choose) -> list[float]:
        """Log-probabilities of the options."""
        result: list[float] = await self._submit(request)
        return result

    async def all_loaded(self) -> None:
        """Wait, after the first answer, until every replica has its model or is lost, for `stall_minutes` at most."""
        end = time.monotonic() + self._stall_seconds
        while self._error is None and time.monotonic() < end:
            if all(place.up or place.lost for place in self._places):
                return
            await asyncio.sleep(RESTART_POLL_SECONDS)

    async def close(self) -> None:
        """Free the replicas, and end a Ray that was started here."""
        self._error = self._error or CaiError(f"{self._folder}: the engine is closed")
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None
        for ask in self._unanswered():
            ask.future.cancel()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await self._end_replicas()
            await cluster.leave()

    async def _submit(self, request: Request) -> Any:
        if self._error is not None:
            raise self._error
        if self._work is None:
            self._work = asyncio.ensure_future(self._serve())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ask = _Ask(next(self._numbers), request, future, session_of(request))
        self._waiting[ask.number] = ask
        self._schedule()
        try:
            return await future
        finally:
            if future.cancelled():
                self._forget(ask.number)

    # Placing requests.

    def _schedule(self) -> None:
        """Place and send, once in this turn of the event loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        self._place_waiting()
        for place in self._places:
            if place.batch or place.cancelled:
                batch, cancelled, place.batch, place.cancelled = place.batch, place.cancelled, [], []
                call = asyncio.ensure_future(_awaited(place.actor.ask.remote(batch, cancelled)))
                self._calls.add(call)
                call.add_done_callback(partial(self._sent, place=place))

    def _sent(self, call: "asyncio.Future[Any]", place: _Place) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (fault := call.exception()) is not None:
            place.fault = fault  # noticed by `_answered`

    def _place_waiting(self) -> None:
        up = [place for place in self._places if place.up]
        if not up:
            return
        expected = sum(not place.lost for place in self._places)
        total = len(self._waiting) + sum(len(place.in_flight) for place in self._places)
        room = max(ROOM_AT_LEAST, math.ceil(MORE_THAN_ITS_PART * total / expected))
        free = {place.index for place in up if len(place.in_flight) < room}
        while self._waiting and free:
            number, ask = self._waiting.popitem(last=False)
            place = self._places[next(index for index in _order(ask.session, len(self._places)) if index in free)]
            place.in_flight[number] = ask
            place.batch.append((number, ask.request))
            if len(place.in_flight) >= room:
                free.discard(place.index)

    def _forget(self, number: int) -> None:
        """Nobody waits for this request any more."""
        self._waiting.pop(number, None)
        for place in self._places:
            if place.in_flight.pop(number, None) is not None:
                place.cancelled.append(number)
                self._schedule()

    def _take_back(self, place: _Place) -> int:
        """Put what a replica has in flight before all that waits; returns how many requests."""
        lost, place.in_flight = place.in_flight, {}
        place.batch, place.cancelled, place.fault = [], [], None
        for number in sorted(lost, reverse=True):
            self._waiting[number] = lost[number]
            self._waiting.move_to_end(number, last=False)
        self._schedule()
        return len(lost)

    def _settle(self, place: _Place, outcomes: list[tuple[int, Outcome]]) -> None:
        """Answer the callers. Raises: CaiError, that of the replica's engine, after which it answers nothing more."""
        died: CaiError | None = None
        for number, outcome in outcomes:
            if isinstance(outcome, CaiError):
                died = outcome
                continue
            ask = place.in_flight.pop(number, None)
            if ask is None or ask.future.done():
                continue
            place.answered = True
            if isinstance(outcome, RequestRefused):
                ask.future.set_exception(outcome)
            else:
                ask.future.set_result(outcome)
        if self._waiting:
            self._schedule()
        if died is not None:
            raise died

    def _unanswered(self) -> Iterator[_Ask]:
        yield from self._waiting.values()
        for place in self._places:
            yield from place.in_flight.values()

    def _fail(self, error: CaiError) -> None:
        self._error = self._error or error
        for ask in list(self._unanswered()):
            if not ask.future.done():
                ask.future.set_exception(self._error)

    # The replicas' lives.

    async def _serve(self) -> None:
        """Hold the replicas until close(), or until an error that is everyone's."""
        try:
            self._cluster = Cluster.join(self._ray.address)
            await self._cluster.connect()
            await self._cluster.run(self._create_actors)
            driver = await asyncio.to_thread(this_node, self._folder)
            async with asyncio.TaskGroup() as group:
                for place in self._places:
                    group.create_task(self._keep(place, driver))
        except CaiError as error:
            self._fail(error)
        except ExceptionGroup as errors:
            first = next((error for error in errors.exceptions if isinstance(error, CaiError)), None)
            self._fail(first or CaiError(f"engine.ray: {_reason(errors.exceptions[0])}"))
        except Exception as error:  # of Ray
            self._fail(CaiError(f"engine.ray: {_reason(error)}"))

    def _create_actors(self) -> None:
        import ray

        check_room(self._settings)
        share = needed(self._settings)
        remote = ray.remote(Replica).options(num_cpus=share["CPU"], num_gpus=share["GPU"], max_restarts=RESTARTS)
        arguments = self._folder.resolve(), self.fingerprint, self._settings, self._open_engine
        for place in self._places:
            place.actor = remote.remote(*arguments, threads(self._settings))

    async def _keep(self, place: _Place, driver: Node) -> None:
        """Start a replica and settle its outcomes; again after each death, until it is lost.

        Raises: CaiError that is everyone's.
        """
        from ray.exceptions import RayError, RayTaskError

        while True:
            try:
                await self._start(place, driver)
            except RayTaskError:
                raise
            except (RayError, CaiError) as error:  # it died as often as Ray restarts it, or can work no more
                self._lose(place, error)
                return
            alive = True
            try:
                await self._answered(place)
            except RayTaskError:
                raise
            except RayError as error:
                reason, alive = _reason(error), False
            except TimeoutError:
                reason = f"it did not move for {duration(self._stall_seconds)}"
            except CaiError as error:  # of its engine, which answers nothing any more
                reason = str(error)
            place.up = False
            notice(f"{place} died; {counted(self._take_back(place), 'requests')} asked again: {reason}")
            if alive:
                await self._kill(place)
            place.node = None

    async def _start(self, place: _Place, driver: Node) -> None:
        """Wait for a replica's resources and its model. Raises: CaiError, RayError."""
        retried = {"max_task_retries": -1}  # as often as the replica is restarted
        while True:
            place.node = await self._resourced(place, place.actor.describe.options(**retried).remote())
            if place.node.pid != place.killed:
                break
            await asyncio.sleep(RESTART_POLL_SECONDS)
        for warning in check_node(place.node, driver, self._folder.resolve()):
            self._report_once(warning)
        error = await _awaited(place.actor.load.options(**retried).remote())
        if error is not None:
            raise CaiError(f"{place}: {error}")
        place.up = True
        self._schedule()

    async def _resourced(self, place: _Place, described: Any) -> Node:
        """Where a replica is, once Ray has found it a place. Raises: CaiError when there is none for any."""
        call = asyncio.ensure_future(_awaited(described))
        try:
            begun = time.monotonic()
            while True:
                done, _ = await asyncio.wait([call], timeout=min(PENDING_SECONDS, self._stall_seconds))
                if done:
                    node: Node = call.result()
                    return node
                pending = sum(other.node is None for other in self._places)
                text = await asyncio.to_thread(pending_text, self._settings, pending)
                if any(other.up for other in self._places):
                    begun = time.monotonic()
                if time.monotonic() - begun >= self._stall_seconds:
                    raise CaiError(f"engine.ray: no replica started within {duration(self._stall_seconds)}: {text}")
                self._report_once(text)
        finally:
            call.cancel()

    async def _answered(self, place: _Place) -> NoReturn:
        """Settle a replica's outcomes until it dies. Raises: RayError, TimeoutError, CaiError."""
        while True:
            # asyncio.wait_for would swallow a cancel, close()'s, that comes in the turn of the outcomes.
            async with asyncio.timeout(HEARTBEAT_SECONDS + self._stall_seconds):
                outcomes = await _awaited(place.actor.answers.remote(HEARTBEAT_SECONDS))
            self._settle(place, outcomes)
            if place.fault is not None:
                raise place.fault

    async def _kill(self, place: _Place) -> None:
        """End a replica's process, which Ray then replaces; `ray.kill` does not reach one that hangs."""
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if place.node is None:
            return
        place.killed = place.node.pid
        there = NodeAffinitySchedulingStrategy(place.node.ray_id, soft=False)
        task = ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there)
        with suppress(RayError):  # its node is gone too
            await _awaited(task.remote(place.killed))

    def _lose(self, place: _Place, error: Exception) -> None:
        """Go on without a replica. Raises: CaiError where it never answered, or was the last."""
        import ray

        place.up, place.lost = False, True
        self._take_back(place)
        text = str(error) if isinstance(error, CaiError) else f"{place} died: {_reason(error)}"
        if not place.answered or all(other.lost for other in self._places):
            raise CaiError(text)
        with suppress(Exception):
            ray.kill(place.actor)
        notice(f"{text}; the run goes on without this replica")

    def _report_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            notice(f"engine.ray: {text}")

    async def _end_replicas(self) -> None:
        """Let the replicas free their memory, and end them."""
        actors = [place.actor for place in self._places if place.actor is not None and not place.lost]
        if not actors:
            return
        import ray

        with suppress(Exception):
            calls = (_awaited(actor.close.remote()) for actor in actors)
            await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), CLOSE_SECONDS)
        for actor in actors:
            with suppress(Exception):
                ray.kill(actor)


@lru_cache(maxsize=CONVERSATIONS)
def _order(session: str, replicas: int) -> tuple[int, ...]:
    """The replicas in the rendezvous order of a conversation."""
    return tuple(sorted(range(replicas), key=lambda index: uniform("replica", index, session)))


async def _awaited(call: Any) -> Any:
    return await call


def _reason(error: BaseException) -> str:
    """An error of Ray in one line of at most 300 characters: what happened, without its advice and traceback."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
    return " ".join(text.split())[:300]
