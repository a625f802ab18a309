"""A model behind OpenAI-compatible servers: vLLM, SGLang, llama.cpp, hosted ones; see cai/inference/endpoint_pool.py.

Verdicts are exact on vLLM, which returns the log-probabilities of the tokens that it is asked for
(`logprob_token_ids`); elsewhere they are read from `top_logprobs` of the first token
(https://platform.openai.com/docs/api-reference/chat). vLLM continues the judge's unfinished turn
(`continue_final_message`); a server that refuses that gets no such turn.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint as digest
from cai.data.records import Messages
from cai.inference.chat import control_warnings
from cai.inference.chat_template import ChatSettings
from cai.inference.endpoint_pool import Endpoint, EndpointPool
from cai.inference.engine import (
    BoundedLogProbs,
    Choose,
    Completion,
    Generate,
    UnusableAnswer,
    split_reasoning,
    validate_choice,
    validate_completion,
)
from cai.inference.models import Server
from cai.inference.servers import server_message
from cai.stats.formatting import counted

TOP_LOGPROBS = 20  # the most that OpenAI and, by default, vLLM return for a token
LONGEST_TOKEN = 256  # characters; tokens of blanks or dashes have up to 128
REASONING_FIELDS = ("reasoning", "reasoning_content")  # of a message, where a server parses chains of thought itself
NO_ANSWER = ("content_filter", "error", "abort", "tool_calls", "function_call")  # values of finish_reason
OF_PAIRS = ("verdict", "chain_of_thought")  # steps that ask about a pair
TOKEN_ID = "token_id:"  # how vLLM names a token by its number


@dataclass
class _Abilities:
    """What an endpoint was seen to do; a switch is None until the endpoint has answered."""

    continues: bool | None = None  # the assistant's unfinished turn
    judges: bool = False  # has it ever returned log-probabilities
    exact: bool | None = None  # takes logprob_token_ids
    first_tokens: dict[str, int] | None = field(default_factory=dict)  # of options; None: the server does not say


class ServerEngine:
    """A model on its servers; see cai.inference.engine.Engine.

    Args: `concurrency`, how many requests each server gets at a time at most; `timeout`, seconds for one response from
    its first byte sent to its last one read; `chat`, the system prompt and the template's arguments of every request.
    Raises: RequestRefused for a request that gets no usable answer; CaiError when a server does not take the key or a
    sampling setting, redirects, does not know the model or gives no log-probabilities, or all fail on every request.
    """

    def __init__(
        self,
        server: Server,
        fingerprint: str,
        concurrency: int = 64,
        timeout: float = 600.0,
        chat: ChatSettings | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._chat = chat or ChatSettings()
        self._server, self._concurrency, self._timeout = server, concurrency, timeout
        self._pool: EndpointPool | None = None
        self._abilities = {address: _Abilities() for address in server.addresses}

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn; the seed holds as far as the server keeps to it."""
        drawn = request.sampling.model_dump(exclude_defaults=True) if request.sampling else {}
        body = {
            **self._chat.served(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            **drawn,
        }

        async def attempt(endpoint: Endpoint) -> Completion:
            try:
                completion = _completion(await endpoint.chat(body, session))
            except UnusableAnswer:
                raise
            except RequestRefused as refusal:
                if (name := _named_setting(str(refusal), drawn)) is not None:
                    raise CaiError(f"model '{endpoint}': the server does not take {name}: {refusal}") from None
                raise
            if len(completion.text + (completion.reasoning or "")) > LONGEST_TOKEN * request.max_tokens:
                raise UnusableAnswer(
                    f"the server's text has {len(completion.text):,} characters for {request.max_tokens} tokens"
                )
            return completion

        session = session_of(request)
        return await self._open().ask(session, attempt)

    async def choose(self, request: Choose) -> list[float]:
        """Log-probabilities of the options: of their first tokens where a server returns those.

        Elsewhere each is summed over its tokens with and without a leading space, and one that is not among the
        likeliest TOP_LOGPROBS tokens has the probability of the last of those at most: BoundedLogProbs.
        """
        session = session_of(request)

        async def attempt(endpoint: Endpoint) -> list[float]:
            return await self._verdict(endpoint, request, session)

        try:
            return await self._open().ask(session, attempt)
        except _NoLogProbs as error:
            if any(abilities.judges for abilities in self._abilities.values()):
                raise
            raise _no_logprobs(str(self._server)) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    def _open(self) -> EndpointPool:
        if self._pool is None:
            self._pool = EndpointPool(self._server, self._concurrency, self._timeout)
        return self._pool

    async def _verdict(self, endpoint: Endpoint, request: Choose, session: str) -> list[float]:
        """One try of a verdict at one endpoint: exact, or from its `top_logprobs`."""
        abilities = self._abilities[endpoint.address]
        tokens = None if abilities.exact is False else await self._first_tokens(endpoint, request.options)
        if tokens is not None:
            try:
                log_probs = await self._exact(endpoint, request.messages, tokens, session)
                abilities.exact = abilities.continues = abilities.judges = True
                return log_probs
            except RequestRefused as refusal:  # by the request, or vLLM's own parameters: the second try shows which
                if abilities.exact or (isinstance(refusal, UnusableAnswer) and not isinstance(refusal, _NoLogProbs)):
                    raise
        top = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        try:
            log_probs = await self._continued(
                endpoint, request.messages, top, lambda body: _option_log_probs(body, request.options), session
            )
        except UnusableAnswer:
            raise
        except RequestRefused as refusal:
            if "logprob" in str(refusal).lower():
                raise _no_logprobs(str(endpoint)) from None
            raise
        abilities.judges = True
        if tokens is not None or abilities.first_tokens is None:
            abilities.exact = False
        return log_probs

    async def _first_tokens(self, endpoint: Endpoint, options: Sequence[str]) -> list[int] | None:
        """The number of each option's first token; None where the server does not say, or options begin alike."""
        known = self._abilities[endpoint.address].first_tokens
        for option in options:
            if known is not None and option not in known:
                reply = await endpoint.beside("tokenize", {"prompt": option, "add_special_tokens": False})
                numbers = reply.get("tokens") if isinstance(reply, dict) else None
                if not isinstance(numbers, list) or not numbers or not isinstance(numbers[0], int):
                    known = self._abilities[endpoint.address].first_tokens = None
                else:
                    known[option] = numbers[0]
        tokens = [] if known is None else [known[option] for option in options]
        return tokens if tokens and len(set(tokens)) == len(tokens) else None

    async def _exact(self, endpoint: Endpoint, messages: Messages, tokens: list[int], session: str) -> list[float]:
        """The log-probabilities of tokens by their numbers, which vLLM returns from 0.32 on."""
        body = {
            **self._chat.served(messages),
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
            "logprob_token_ids": tokens,
            "return_tokens_as_token_ids": True,
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
        listed = dict(_top_logprobs(await endpoint.chat(body, session)))
        log_probs = [listed.get(f"{TOKEN_ID}{token}") for token in tokens]
        if None in log_probs:
            raise _NoLogProbs("the server's response lacks log-probabilities that it was asked for")
        return [min(0.0, log_prob) for log_prob in log_probs if log_prob is not None]

    async def _continued(
        self,
        endpoint: Endpoint,
        messages: Messages,
        wanted: dict[str, Any],
        read: Callable[[Any], list[float]],
        session: str,
    ) -> list[float]:
        """The answer to a conversation that ends inside the assistant's turn."""
        abilities = self._abilities[endpoint.address]
        if abilities.continues is not False:
            try:
                unfinished = {"continue_final_message": True, "add_generation_prompt": False}
                body = {**self._chat.served(messages), **wanted, **unfinished}
                answer = read(await endpoint.chat(body, session))
                abilities.continues = True
                return answer
            except UnusableAnswer:
                raise
            except RequestRefused:  # because of the request, or of vLLM's own parameters: the second try shows which
                if abilities.continues:
                    raise
        answer = read(await endpoint.chat({**self._chat.served(messages[:-1]), **wanted}, session))
        abilities.continues = False
        return answer


def session_of(request: Generate | Choose) -> str:
    """What keeps a conversation on one endpoint: the hash of its session, or else of its first user turn."""
    first = next((message["content"] for message in request.messages if message["role"] == "user"), "")
    return digest("session", first if request.session is None else request.session)


def _named_setting(message: str, settings: dict[str, Any]) -> str | None:
    """The first of the sampling settings that a refusal names; `stop` is a word, so only in quotes."""
    quote = "['\"`]"
    for name in settings:
        if re.search(rf"{quote}{name}{quote}" if name == "stop" else rf"(?<!\w){name}(?!\w)", message):
            return name
    return None


def _no_logprobs(model: str) -> CaiError:
    return CaiError(
        f"model '{model}': the server returns no log-probabilities, from which a judge's verdict is read; vLLM, "
        "SGLang, llama.cpp and OpenAI's chat models return them"
    )


class _NoLogProbs(UnusableAnswer):
    """A response without log-probabilities: of a server that never returns any, the end of the run."""


def _choice(body: Any) -> dict[str, Any]:
    """The first choice of a chat completion. Raises: UnusableAnswer."""
    if isinstance(body, dict) and body.get("error"):
        raise UnusableAnswer(f"the server answers with an error: {server_message(json.dumps(body).encode(), None)}")
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnusableAnswer("the server's response has no choices")
    reason = choices[0].get("finish_reason")
    if reason in NO_ANSWER:
        raise UnusableAnswer(f"the server ended the answer with {reason}")
    return choices[0]


def _completion(body: Any) -> Completion:
    choice = _choice(body)
    found = choice.get("message")
    message = found if isinstance(found, dict) else {}
    thought = next((message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str)), "").strip()
    text = message.get("content") or ("" if thought else message.get("content"))
    if not isinstance(text, str):
        raise UnusableAnswer(f"the server's response has no text (finish_reason: {choice.get('finish_reason')})")
    usage = body.get("usage")
    text, reasoning = split_reasoning(text, opened=None)
    completion = Completion(
        text=text,
        finish="length" if choice.get("finish_reason") == "length" else "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        reasoning=thought or reasoning,
    )
    validate_completion(completion)
    return completion


def _count(usage: Any, field: str) -> int:
    """A number of tokens, for the account only; 0 where the server does not say."""
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def bounded_warnings(verdicts: int) -> list[str]:
    """The warning of verdicts with options of which a server did not return the log-probability; none for 0."""
    if not verdicts:
        return []
    return [
        f"{counted(verdicts, 'verdicts')} bounded: an option was not among the {TOP_LOGPROBS} likeliest tokens that "
        "the server returns, and counts with the probability of the last of them; vLLM from 0.32 on returns all options"
    ]


def work_warnings(work: Iterable[Mapping[str, Any]]) -> list[str]:
    """The warnings about what a summary's work asked of servers; control tokens in pairs are counted apart."""
    steps = [item for stage in work for item in stage["steps"].items()]
    written = sum(step.get("control_tokens", 0) for name, step in steps if name not in OF_PAIRS)
    warnings = control_warnings({"control_tokens": written}, "requests")
    return warnings + bounded_warnings(sum(step.get("bounded", 0) for _, step in steps))


def _option_log_probs(body: Any, options: Sequence[str]) -> list[float]:
    """The log-probability of each option, or the upper bound of one that is not listed."""
    top = [(token.strip(), log_prob) for token, log_prob in _top_logprobs(body)]
    least = min(log_prob for _, log_prob in top)
    masses = [sum(math.exp(log_prob) for token, log_prob in top if token == option.strip()) for option in options]
    log_probs = [math.log(mass) if mass > 0 else least for mass in masses]
    validate_choice(log_probs, len(options))
    return log_probs if all(masses) else BoundedLogProbs(log_probs)


def _top_logprobs(body: Any) -> list[tuple[str, float]]:
    """The tokens listed for the first place of an answer, with their log-probabilities. Raises: UnusableAnswer."""
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
        top.append((token, entry["logprob"]))
    return top
