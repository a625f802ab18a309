"""One OpenAI-compatible server, or several of the same model, as one: who gets a request, when, and how often.

A conversation keeps to one endpoint, where its beginning stays in the prefix cache: the first that is up in the
rendezvous order of its session (Thaler & Ravishankar 1998). How many requests an endpoint gets at a time follows its
answers: additive increase, multiplicative decrease (Chiu & Jain 1989). One that fails several times in a row rests, the
next in order gets its requests, and it is back once it lists its models again.

A server is not trusted to answer: a response is read within a total time and size, and asked for again a bounded number
of times. A key goes to the one host it is meant for, and into no message and no answer: see cai/inference/servers.py.
"""

import asyncio
import json
import math
import random
import re
import statistics
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from cai.config.errors import CaiError, RequestRefused, notice, without_password
from cai.config.hashing import uniform
from cai.inference.engine import UnusableAnswer
from cai.inference.models import Address, Server
from cai.inference.servers import (
    LARGEST_BODY,
    listed_models,
    one_line,
    read_json,
    server_headers,
    server_key,
    server_message,
    ssl_context,
    without_key,
)
from cai.stats.formatting import counted, duration

if TYPE_CHECKING:
    import httpx

Answer = TypeVar("Answer")
BUSY_TRIES = 7  # of a request to a server that is overloaded or cannot be reached
UNUSABLE_TRIES = 3  # of one whose response is no answer
SLOW_TRIES = 2  # of one that takes longer than the time-out
FAILURES_IN_A_ROW = 8  # requests given up with no answer between them, after which the servers count as down
BACK_OFF = 0.5  # seconds before the second try, doubled for each one after it
LONGEST_BACK_OFF = 30.0
CONNECT_SECONDS = 20.0
LIST_SECONDS = 20.0  # for the models of an endpoint that rests
FIRST_WINDOW = 16  # requests at a time to an endpoint that has not answered yet; doubles until it is overloaded
REST_AFTER = 3  # tries in a row that failed at an endpoint
REST_SECONDS = 1.0  # doubled while it stays down
LONGEST_REST = 60.0
LATENCIES = 64  # the latest of a kind of request, whose median is the usual
SLOW = 4.0  # times the usual, in seconds and in seconds per token: an overloaded server
NEVER_SLOW = 0.5  # seconds below which differences are noise
BUSY_STATUS = (408, 409, 425, 429)  # and all from 500 on
REFUSED_STATUS = (400, 413, 422)
NO_SUCH_PATH = (404, 405, 500, 501)  # of a path that only some servers have
CONTEXT = re.compile(r"context[ _-](length|size|window)", re.IGNORECASE)  # how servers refuse what is too long


class Fault(Exception):
    """A response, or the lack of one, that another try may mend; `tries` is how many are worth it."""

    def __init__(self, reason: str, tries: int, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.tries, self.status, self.retry_after = tries, status, retry_after


class Window:
    """How many requests an endpoint gets at a time, from 1 to `most`."""

    def __init__(self, most: int) -> None:
        import anyio

        self.most, self.size = most, float(min(FIRST_WINDOW, most))
        self.limiter: anyio.CapacityLimiter = anyio.CapacityLimiter(int(self.size))
        self._halved: float | None = None  # when, by the monotonic clock
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATENCIES))
        self._seconds_per_token: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATENCIES))

    def answered(self, begun: float, kind: str, tokens: int) -> None:
        """Grow by one request a round trip, or double in one before the first overload; shrink if it took very long.

        Texts differ in length, so one is slow only if both its seconds and its seconds per token are.
        """
        seconds = time.monotonic() - begun
        per_token = seconds / max(1, tokens)
        usual, usual_per_token = self._seconds[kind], self._seconds_per_token[kind]
        slow = (
            len(usual) == LATENCIES
            and seconds > max(NEVER_SLOW, SLOW * statistics.median(usual))
            and per_token > SLOW * statistics.median(usual_per_token)
        )
        usual.append(seconds)
        usual_per_token.append(per_token)
        if slow:
            self.overloaded(begun)
        else:
            self._resize(self.size + (1.0 if self._halved is None else 1.0 / self.size))

    def overloaded(self, begun: float) -> None:
        """Halve, once for all requests that were sent before."""
        if self._halved is None or begun > self._halved:
            self._halved = time.monotonic()
            self._resize(self.size / 2)

    def _resize(self, size: float) -> None:
        self.size = min(max(1.0, size), float(self.most))
        if int(self.size) != self.limiter.total_tokens:
            self.limiter.total_tokens = int(self.size)


class Endpoint:
    """One server at work: its connections, its window, and whether it rests."""

    def __init__(self, address: Address, name: str, most: int, timeout: float) -> None:
        self.address, self.name = address, name
        self.window = Window(most)
        self.failures = 0  # in a row
        self.rest = REST_SECONDS
        self.resting: asyncio.Task[None] | None = None
        self._timeout = timeout
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []  # the one used last, whose connection is alive, at the end

    def __str__(self) -> str:
        return f"{self.address.url}#{self.name}"

    async def chat(self, body: dict[str, Any], session: str) -> Any:
        """The JSON of a chat completion. Raises: Fault, RequestRefused, CaiError."""
        content, url = _content({"model": self.name} | body), f"{self.address.url.rstrip('/')}/chat/completions"
        borrower = object()
        await self.window.limiter.acquire_on_behalf_of(borrower)
        begun = time.monotonic()
        try:
            status, response, wait = await self._post(url, content, session)
            answer = self._checked(status, response, wait)
        except Fault as fault:
            if not fault.status or fault.status in BUSY_STATUS or fault.status >= 500:
                self.window.overloaded(begun)
            raise
        finally:
            self.window.limiter.release_on_behalf_of(borrower)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        kind = "verdict" if body.get("logprobs") else "text"
        self.window.answered(begun, kind, tokens if isinstance(tokens, int) else 1)
        return answer

    async def beside(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON of a path beside the API's own, such as vLLM's /tokenize; None for a server without it.

        Raises: Fault.
        """
        url = f"{self.address.url.rstrip('/').removesuffix('/v1')}/{path}"
        status, response, wait = await self._post(url, _content({"model": self.name} | body), "")
        if (300 <= status < 500 and status not in BUSY_STATUS) or status in NO_SUCH_PATH:
            return None
        return self._checked(status, response, wait)

    async def lists_model(self) -> bool:
        """Whether the server is up and has the model. Raises: UnusableAnswer for a server that is not up."""
        import httpx

        url = f"{self.address.url.rstrip('/')}/models"
        try:
            async with asyncio.timeout(LIST_SECONDS):
                async with self._client() as client:
                    response = await client.get(url)
        except (TimeoutError, httpx.HTTPError, httpx.StreamError) as error:
            raise UnusableAnswer(one_line(error, self._key)) from None
        return self.name in listed_models(response.status_code, response.content, self._key)

    async def close(self) -> None:
        """Close the connections."""
        if self.resting is not None:
            self.resting.cancel()
            with suppress(asyncio.CancelledError):
                await self.resting
            self.resting = None
        for client in self._clients:
            await client.aclose()
        self._clients, self._idle = [], []

    def safe(self, text: str) -> str:
        """A message without the key, which a server may send back."""
        return without_key(text, self._key)

    @property
    def _key(self) -> str | None:
        return server_key(self.address)

    async def _post(self, url: str, content: bytes, session: str) -> tuple[int, bytes, float]:
        """The status of a response, its body, and the seconds that it asks to wait."""
        import httpx

        headers = {"X-Session-ID": session} if session else {}
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client() as client,
                client.stream("POST", url, content=content, headers=headers) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > LARGEST_BODY:
                        reason = f"the server's response has more than {LARGEST_BODY:,} bytes"
                        raise Fault(reason, UNUSABLE_TRIES, response.status_code)
        except TimeoutError:
            raise Fault(f"the server did not answer within {duration(self._timeout)}", SLOW_TRIES) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise CaiError(f"model '{self}': not an address: {error}") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            reason = one_line(error, self._key)
            raise Fault(f"the server cannot be reached or broke off: {reason}", BUSY_TRIES) from None
        if 300 <= response.status_code < 400:
            body = response.headers.get("location", "no address").encode()
        return response.status_code, body, _retry_after(response)

    @asynccontextmanager
    async def _client(self) -> "AsyncIterator[httpx.AsyncClient]":
        """A client with a connection of its own: httpx's pool looks at all its connections for every request."""
        import httpx

        if not self._idle:
            client = httpx.AsyncClient(
                headers=server_headers(self.address),
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the whole request has one of its own
                follow_redirects=False,
                verify=ssl_context(),
            )
            self._clients.append(client)
            self._idle.append(client)
        client = self._idle.pop()
        try:
            yield client
        finally:
            self._idle.append(client)

    def _checked(self, status: int, body: bytes, retry_after: float) -> Any:
        if 300 <= status < 400:
            target = without_password(one_line(body.decode("utf-8", "replace"), self._key))
            raise CaiError(
                f"model '{self}': the server redirects to {target}, which is not followed; name that address"
            )
        message = server_message(body, self._key)
        if status in REFUSED_STATUS:
            raise RequestRefused(f"the server refuses the request: {message}", retryable=not CONTEXT.search(message))
        if status in BUSY_STATUS or status >= 500:
            raise Fault(f"the server answers with status {status}: {message}", BUSY_TRIES, status, retry_after)
        if status >= 400:
            raise CaiError(f"model '{self}': status {status}: {message}")
        return read_json(body, self._key)


class EndpointPool:
    """The endpoints of a model, and the tries of a request among them.

    Args: `most`, how many requests an endpoint gets at a time at most; `timeout`, seconds for one response from its
    first byte sent to its last one read.
    """

    def __init__(self, server: Server, most: int, timeout: float) -> None:
        self._server = server
        self.endpoints = [Endpoint(address, server.name, most, timeout) for address in server.addresses]
        self._failures = 0  # requests in a row that got no answer

    async def ask(self, session: str, attempt: Callable[[Endpoint], Awaitable[Answer]]) -> Answer:
        """What `attempt` makes of an endpoint's answer, after as many tries as its faults are worth.

        Raises: UnusableAnswer for a request that gets no usable answer; CaiError when no request gets one any more;
        what else `attempt` raises.
        """
        tried: list[Endpoint] = []
        while True:
            endpoint = self._next(session, tried)
            tried.append(endpoint)
            try:
                answer = await attempt(endpoint)
            except UnusableAnswer as unusable:
                fault: Fault | UnusableAnswer = unusable
                tries, wait = UNUSABLE_TRIES, 0.0
            except Fault as error:
                fault, tries, wait = error, error.tries, error.retry_after
            else:
                self._failures = endpoint.failures = 0
                endpoint.rest = REST_SECONDS
                self._wake(endpoint)
                return answer
            self._failed(endpoint, fault)
            if len(tried) >= tries:
                raise self._given_up(endpoint, fault, len(tried))
            doubled = BACK_OFF * 2 ** (len(tried) - 1) * random.uniform(0.75, 1.25)  # spread: all were sent at once
            await asyncio.sleep(min(max(wait, doubled), LONGEST_BACK_OFF))

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self.endpoints:
            await endpoint.close()

    def _next(self, session: str, tried: Sequence[Endpoint]) -> Endpoint:
        """The endpoint for the next try: of those up, or of all if none is, the first that was tried least often."""
        up = [endpoint for endpoint in self.endpoints if endpoint.resting is None] or self.endpoints
        if len(up) == 1:
            return up[0]
        return min(up, key=lambda endpoint: (tried.count(endpoint), uniform("endpoint", endpoint.address.url, session)))

    def _failed(self, endpoint: Endpoint, fault: Fault | UnusableAnswer) -> None:
        """Count a failed try; one endpoint of several rests after a few of them. One that says it is busy is up."""
        if isinstance(fault, Fault) and fault.status in BUSY_STATUS:
            return
        endpoint.failures += 1
        if endpoint.failures >= REST_AFTER and endpoint.resting is None and len(self.endpoints) > 1:
            notice(f"{endpoint}: rests, and the other servers get its requests: {endpoint.safe(str(fault))}")
            endpoint.resting = asyncio.ensure_future(self._rest(endpoint))

    async def _rest(self, endpoint: Endpoint) -> None:
        """Return when the endpoint can be asked again."""
        while True:
            await asyncio.sleep(endpoint.rest * random.uniform(0.75, 1.25))
            endpoint.rest = min(2 * endpoint.rest, LONGEST_REST)
            with suppress(UnusableAnswer):
                if await endpoint.lists_model():
                    break
        endpoint.failures = REST_AFTER - 1  # the next failure is enough
        endpoint.resting = None
        notice(f"{endpoint}: is back")

    def _wake(self, endpoint: Endpoint) -> None:
        """End the rest of an endpoint that has answered, as it may where all of them rest."""
        if endpoint.resting is not None:
            endpoint.resting.cancel()
            endpoint.resting = None
            notice(f"{endpoint}: is back")

    def _given_up(self, endpoint: Endpoint, fault: Exception, tries: int) -> Exception:
        """The error of a request without an answer: its own, or the servers' if no request gets one any more."""
        self._failures += 1
        reason = endpoint.safe(f"{fault} (asked {tries} times)" if tries > 1 else str(fault))
        if self._failures >= FAILURES_IN_A_ROW:
            who = "the server" if len(self.endpoints) == 1 else f"all {counted(len(self.endpoints), 'servers')}"
            return CaiError(
                f"model '{self._server}': {who} failed on {self._failures} requests in a row, the last time: {reason}"
            )
        return type(fault)(reason) if isinstance(fault, UnusableAnswer) else UnusableAnswer(reason)


def _content(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (UnicodeEncodeError, ValueError) as error:
        raise RequestRefused(f"the request cannot be sent as JSON: {error}") from None


def _retry_after(response: "httpx.Response") -> float:
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
