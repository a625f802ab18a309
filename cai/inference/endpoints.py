"""A model behind an OpenAI-compatible server, as a judge: vLLM, llama.cpp, OpenAI.

Verdicts are read from `top_logprobs` of the first token (https://platform.openai.com/docs/api-reference/chat). vLLM
continues the judge's unfinished turn (`continue_final_message`); a server that refuses that gets no such turn.
"""

import asyncio
import difflib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Messages
from cai.inference.engine import Choose, Completion, Generate
from cai.inference.models import SERVER_SCHEMES, Model, Server, model_fingerprint, resolve_model

if TYPE_CHECKING:
    from openai import AsyncOpenAI


TOP_LOGPROBS = 20  # the most that OpenAI and, by default, vLLM return for a token
RETRIES = 6  # with exponential back-off, for a server under load
TIMEOUT = 600.0  # seconds for one answer


class ServerEngine:
    """A server's model; see cai.inference.engine.Engine. The key is $OPENAI_API_KEY, if one is needed.

    Raises: CaiError when the server cannot be reached, does not know the model, or gives no log-probabilities.
    """

    def __init__(self, server: Server, fingerprint: str, concurrency: int = 64) -> None:
        self.fingerprint = fingerprint
        self._server = server
        self._slots = asyncio.Semaphore(concurrency)
        self._client: AsyncOpenAI | None = None
        self._continues = True  # until the server says that it cannot

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn; the seed holds as far as the server keeps to it."""
        response = await self._post(
            request.messages, max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed
        )
        choice = response.choices[0]
        return Completion(
            text=(choice.message.content or "").strip(),
            finish="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=response.usage.prompt_tokens if response.usage else 0,
            completion_tokens=response.usage.completion_tokens if response.usage else 0,
        )

    async def choose(self, request: Choose) -> list[float]:
        """Log-probabilities of the options, each summed over its tokens with and without a leading space.

        An option that is not among the likeliest TOP_LOGPROBS tokens gets the probability of the last of those.
        """
        wanted = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        response = await self._continued(request.messages, wanted)
        logprobs = response.choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise self._no_logprobs()
        top = [(entry.token.strip(), entry.logprob) for entry in logprobs.content[0].top_logprobs]
        least = min(logprob for _, logprob in top)

        def of(option: str) -> float:
            mass = sum(math.exp(logprob) for token, logprob in top if token == option.strip())
            return math.log(mass) if mass > 0 else least

        return [of(option) for option in request.options]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _continued(self, messages: Messages, wanted: dict[str, Any]) -> Any:
        """The answer to a conversation that ends inside the assistant's turn."""
        if self._continues:
            try:
                more = {"continue_final_message": True, "add_generation_prompt": False}
                return await self._post(messages, extra_body=more, **wanted)
            except RequestRefused:  # because of the request, or of vLLM's own parameters: the second try shows which
                answer = await self._post(messages[:-1], **wanted)
                self._continues = False
                return answer
        return await self._post(messages[:-1], **wanted)

    async def _post(self, messages: Messages, **settings: Any) -> Any:
        import openai

        if self._client is None:
            self._client = _connect(self._server.url)
        try:
            async with self._slots:
                untyped: Any = messages
                return await self._client.chat.completions.create(
                    model=self._server.name, messages=untyped, timeout=TIMEOUT, **settings
                )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if "logprob" in str(error).lower() and "logprobs" in settings:
                raise self._no_logprobs() from error
            raise RequestRefused(f"the server refuses the request: {_message(error)}") from error
        except openai.OpenAIError as error:
            raise CaiError(f"model '{self._server}': {_message(error)}") from error

    def _no_logprobs(self) -> CaiError:
        return CaiError(
            f"model '{self._server}': the server returns no log-probabilities, from which a judge's verdict "
            "is read; vLLM, llama.cpp and OpenAI's chat models return them"
        )


def _connect(url: str) -> "AsyncOpenAI":
    """A client for the server at `url`, such as http://localhost:8000/v1."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=url, api_key=_key(), max_retries=RETRIES)


def resolve_server(address: str) -> Server:
    """A server's model from `URL#NAME`, or from the address alone where the server has one model.

    Raises: CaiError when the server does not list its models, or has no such model.
    """
    import openai

    url, _, name = address.partition("#")
    try:
        with openai.OpenAI(base_url=url, api_key=_key(), max_retries=1, timeout=20.0) as server:
            known = [model.id for model in server.models.list()]
    except openai.OpenAIError as error:
        raise CaiError(f"model '{address}': the server does not list its models: {_message(error)}") from error
    if name in known or (not name and len(known) == 1):
        return Server(url, name or known[0])
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
    wanted = f"the server has no model '{name}'" if name else f"the server has {len(known)} models; name one behind a #"
    raise CaiError(f"model '{address}': {wanted}: {', '.join(near) or 'none at all'}")


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"


def _message(error: Exception) -> str:
    """A server's error message, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def resolve_judges(names: Sequence[str]) -> list[Model]:
    """A judge's folder or server, or a panel's; raises CaiError also when two of a panel are the same model."""
    judges: list[Model] = [
        resolve_server(name) if name.startswith(SERVER_SCHEMES) else resolve_model(name) for name in names
    ]
    seen: dict[str, str] = {}
    for name, judge in zip(names, judges, strict=True):
        identity = model_fingerprint(judge)
        if identity in seen:
            raise CaiError(f"judge.model: '{seen[identity]}' and '{name}' are the same model; a panel has each once")
        seen[identity] = name
    return judges
