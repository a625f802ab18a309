"""A model behind an OpenAI-compatible server, as a judge: vLLM, llama.cpp, OpenAI.

Verdicts are read from `top_logprobs` of the first token (https://platform.openai.com/docs/api-reference/chat). vLLM
continues the judge's unfinished turn (`continue_final_message`); a server that refuses that gets no such turn.

A server is not trusted to answer: every response is checked, read within a total time and size, and asked for again a
bounded number of times. A key goes to the one host it is meant for, and into no message.
"""

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Messages
from cai.inference.engine import Choose, Completion, Generate, UnusableAnswer, validate_choice, validate_completion
from cai.inference.models import Server, without_password
from cai.inference.servers import LARGEST_BODY, one_line, read_json, server_headers, server_key, server_message
from cai.stats.formatting import duration

if TYPE_CHECKING:
    import httpx

Answer = TypeVar("Answer")
TOP_LOGPROBS = 20  # the most that OpenAI and, by default, vLLM return for a token
BUSY_TRIES = 7  # of a request to a server that is overloaded or cannot be reached
UNUSABLE_TRIES = 3  # of one whose response is no answer
SLOW_TRIES = 2  # of one that takes longer than the time-out
FAILURES_IN_A_ROW = 8  # requests given up with no answer between them, after which the server counts as down
BACK_OFF = 0.5  # seconds before the second try, doubled for each one after it
LONGEST_BACK_OFF = 30.0
CONNECT_SECONDS = 20.0
LONGEST_TOKEN = 256  # characters; tokens of blanks or dashes have up to 128
BUSY_STATUS = (408, 409, 425, 429)  # and all from 500 on
REFUSED_STATUS = (400, 413, 422)
NO_ANSWER = ("content_filter", "error", "abort", "tool_calls", "function_call")  # values of finish_reason


class _Fault(Exception):
    """A response, or the lack of one, that another try may mend; `tries` is how many are worth it."""

    def __init__(self, reason: str, tries: int, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.tries, self.retry_after = tries, retry_after


class ServerEngine:
    """A server's model; see cai.inference.engine.Engine.

    Args: `concurrency`, how many requests run at once; `timeout`, seconds for one response from its first byte sent to
    its last one read.
    Raises: RequestRefused for a request that gets no usable answer; CaiError when the server does not take the key,
    redirects, does not know the model, gives no log-probabilities or fails on every request.
    """

    def __init__(self, server: Server, fingerprint: str, concurrency: int = 64, timeout: float = 600.0) -> None:
        self.fingerprint = fingerprint
        self._server, self._timeout, self._concurrency = server, timeout, concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._client: httpx.AsyncClient | None = None
        self._continues: bool | None = None  # whether the server can; None until it has answered
        self._judges = False  # whether it has ever returned log-probabilities
        self._failures = 0  # in a row

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn; the seed holds as far as the server keeps to it."""
        wanted = {"max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed}

        def read(body: Any) -> Completion:
            completion = _completion(body)
            if len(completion.text) > LONGEST_TOKEN * request.max_tokens:
                raise UnusableAnswer(
                    f"the server's text has {len(completion.text):,} characters for {request.max_tokens} tokens"
                )
            return completion

        return await self._ask(request.messages, wanted, read)

    async def choose(self, request: Choose) -> list[float]:
        """Log-probabilities of the options, each summed over its tokens with and without a leading space.

        An option that is not among the likeliest TOP_LOGPROBS tokens gets the probability of the last of those.
        """
        wanted = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}

        def read(body: Any) -> list[float]:
            log_probs = _option_log_probs(body, request.options)
            self._judges = True
            return log_probs

        try:
            return await self._continued(request.messages, wanted, read)
        except _NoLogProbs as error:
            if self._judges:
                raise
            raise self._no_logprobs() from error

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _continued(self, messages: Messages, wanted: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """The answer to a conversation that ends inside the assistant's turn."""
        if self._continues is not False:
            try:
                answer = await self._ask(
                    messages, wanted | {"continue_final_message": True, "add_generation_prompt": False}, read
                )
                self._continues = True
                return answer
            except UnusableAnswer:
                raise
            except RequestRefused:  # because of the request, or of vLLM's own parameters: the second try shows which
                if self._continues:
                    raise
                answer = await self._ask(messages[:-1], wanted, read)
                self._continues = False
                return answer
        return await self._ask(messages[:-1], wanted, read)

    async def _ask(self, messages: Messages, settings: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """What `read` makes of the response, after as many tries as its faults are worth."""
        body = {"model": self._server.name, "messages": messages, **settings}
        try:
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except (UnicodeEncodeError, ValueError) as error:
            raise RequestRefused(f"the request cannot be sent as JSON: {error}") from None
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = read(await self._post(content))
                self._failures = 0
                return answer
            except UnusableAnswer as unusable:
                fault: _Fault | UnusableAnswer = unusable
                tries, wait = UNUSABLE_TRIES, 0.0
            except _Fault as error:
                fault, tries, wait = error, error.tries, error.retry_after
            if attempt >= tries:
                raise self._given_up(fault, attempt)
            doubled = BACK_OFF * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # spread, as all were sent at once
            await asyncio.sleep(min(max(wait, doubled), LONGEST_BACK_OFF))

    def _given_up(self, fault: Exception, attempts: int) -> Exception:
        """The error of a request without an answer: its own, or the server's if no request gets one any more."""
        self._failures += 1
        reason = self._safe(f"{fault} (asked {attempts} times)" if attempts > 1 else str(fault))
        if self._failures >= FAILURES_IN_A_ROW:
            return CaiError(
                f"model '{self._server}': the server failed on {self._failures} requests in a row, the last time: "
                + reason
            )
        return _NoLogProbs(reason) if isinstance(fault, _NoLogProbs) else UnusableAnswer(reason)

    async def _post(self, content: bytes) -> Any:
        """The JSON of one response. Raises: _Fault, RequestRefused, CaiError."""
        import httpx

        if self._client is None:
            self._client = self._connect()
        url = f"{self._server.url.rstrip('/')}/chat/completions"
        try:
            async with (
                self._slots,
                asyncio.timeout(self._timeout),
                self._client.stream("POST", url, content=content) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > LARGEST_BODY:
                        raise _Fault(f"the server's response has more than {LARGEST_BODY:,} bytes", UNUSABLE_TRIES)
        except TimeoutError:
            raise _Fault(f"the server did not answer within {duration(self._timeout)}", SLOW_TRIES) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise CaiError(f"model '{self._server}': not an address: {error}") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _Fault(f"the server cannot be reached or broke off: {one_line(error)}", BUSY_TRIES) from None
        return self._checked(response, body)

    def _connect(self) -> "httpx.AsyncClient":
        import httpx

        return httpx.AsyncClient(
            headers=server_headers(self._server),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the whole request has one of its own
            limits=httpx.Limits(max_connections=self._concurrency),
            follow_redirects=False,
        )

    def _checked(self, response: "httpx.Response", body: bytes) -> Any:
        status, message = response.status_code, self._safe(server_message(body))
        if status in REFUSED_STATUS:
            if "logprob" in message.lower():
                raise self._no_logprobs()
            raise RequestRefused(f"the server refuses the request: {message}")
        if status in BUSY_STATUS or status >= 500:
            raise _Fault(f"the server answers with status {status}: {message}", BUSY_TRIES, _retry_after(response))
        if 300 <= status < 400:
            target = without_password(response.headers.get("location", "no address"))
            raise CaiError(
                f"model '{self._server}': the server redirects to {target}, which is not followed; name that address"
            )
        if status >= 400:
            raise CaiError(f"model '{self._server}': status {status}: {message}")
        return read_json(body)

    def _safe(self, text: str) -> str:
        """A message without the key, which a server may send back."""
        key = server_key(self._server)
        return text.replace(key, "[key]") if key else text

    def _no_logprobs(self) -> CaiError:
        return CaiError(
            f"model '{self._server}': the server returns no log-probabilities, from which a judge's verdict "
            "is read; vLLM, llama.cpp and OpenAI's chat models return them"
        )


class _NoLogProbs(UnusableAnswer):
    """A response without log-probabilities: of a server that never returns any, the end of the run."""


def _choice(body: Any) -> dict[str, Any]:
    """The first choice of a chat completion. Raises: UnusableAnswer."""
    if isinstance(body, dict) and body.get("error"):
        raise UnusableAnswer(f"the server answers with an error: {server_message(json.dumps(body).encode())}")
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnusableAnswer("the server's response has no choices")
    reason = choices[0].get("finish_reason")
    if reason in NO_ANSWER:
        raise UnusableAnswer(f"the server ended the answer with {reason}")
    return choices[0]


def _completion(body: Any) -> Completion:
    choice = _choice(body)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise UnusableAnswer(f"the server's response has no text (finish_reason: {choice.get('finish_reason')})")
    usage = body.get("usage")
    completion = Completion(
        text=text.strip(),
        finish="length" if choice.get("finish_reason") == "length" else "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )
    validate_completion(completion)
    return completion


def _count(usage: Any, field: str) -> int:
    """A number of tokens, for the account only; 0 where the server does not say."""
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def _option_log_probs(body: Any, options: Sequence[str]) -> list[float]:
    choice = _choice(body)
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    entries = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _NoLogProbs("the server's response has no log-probabilities")
    top: list[tuple[str, float]] = []
    for entry in entries:
        token = entry.get("token") if isinstance(entry, dict) else None
        if not isinstance(token, str):
            raise UnusableAnswer("the server's log-probabilities are not of tokens")
        validate_choice([entry.get("logprob")], 1)
        top.append((token.strip(), entry["logprob"]))
    least = min(logprob for _, logprob in top)

    def of(option: str) -> float:
        mass = sum(math.exp(logprob) for token, logprob in top if token == option.strip())
        return math.log(mass) if mass > 0 else least

    found = [of(option) for option in options]
    validate_choice(found, len(options))
    return found


def _retry_after(response: "httpx.Response") -> float:
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
