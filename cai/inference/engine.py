"""What every engine can do, the requests and answers that pass through it, and an engine that answers by a function."""

import asyncio
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from cai.config.errors import RequestRefused, without_password
from cai.config.yaml_files import MOST_TOKENS, Section, Temperature, Tokens, json_value
from cai.data.records import Messages
from cai.inference.chat import THOUGHT, ControlTokens
from cai.inference.chat_template import ChatSettings

_LONE_CLOSING = re.compile(r"^</think>[^\S\n]*$", re.MULTILINE)  # as models write it, and hardly a text about it
LOG_PROB_ROUNDING = 1e-3  # nats above 0 that sums of rounded probabilities may reach


class Sampling(Section):
    """How tokens are drawn, beside the temperature: fields of `revise:`, `judge:` and `evaluate:`, named as vLLM's."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from this many likeliest tokens; 0 from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample from tokens at least this probable, relative to the likeliest."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Above 1 tokens that occurred before, in the request too, become less likely."""
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] = []
    """Texts at which an answer ends, themselves left out."""

    @cached_property
    def sampling(self) -> "Sampling | None":
        """These fields alone, of a section that has others too; None where nothing differs from the default."""
        drawn = Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})
        return None if drawn == Sampling() else drawn


class Generation(Sampling):
    """How a text is generated: fields of `revise:` and `evaluate:`."""

    max_tokens: Tokens = 512
    """Maximum tokens of a text."""
    temperature: Temperature = 1.0
    """Sampling temperature; 0 takes the likeliest token."""

    def request(self, messages: Messages, seed: int, step: "Step") -> "Generate":
        """The request for the next turn of a conversation."""
        return Generate(messages, self.max_tokens, self.temperature, seed, step, self.sampling)


class EndpointConfig(Section):
    """One of `engine.endpoints` that needs a key."""

    url: Annotated[str, Field(min_length=1)]
    """Address, such as https://llm.example.org/v1."""
    key_env: str | None = None
    """Environment variable with the server's key."""


def cluster_address(text: str) -> str:
    """An address of a Ray cluster's head. Raises: PydanticCustomError."""
    if text != "auto" and not re.fullmatch(r"[\w.\-]+:\d{1,5}|\[[\da-fA-F:.]+\]:\d{1,5}", text):
        hint = "; run cai on one of the cluster's nodes, or by `ray job submit`" if text.startswith("ray://") else ""
        shown = without_password(text)
        message = f"expected auto, or HOST:PORT of the cluster's head node, found '{shown}'{hint}"
        raise PydanticCustomError("cluster_address", "{message}", {"message": message})
    return text


class RayConfig(Section):
    """`engine.ray:`: replicas of the model as Ray actors. Does not affect results."""

    address: Annotated[str, AfterValidator(cluster_address)] | None = None
    """`auto`: this machine's cluster; HOST:PORT of a head node; null: a Ray that starts and ends with the command."""
    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    """Copies of the model, each a process of its own."""
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs of a replica, or a part of one; null: as many as the vLLM arguments need, none on a CPU."""
    cpus_per_replica: Annotated[float, Field(ge=0, le=4096)] | None = None
    """CPU cores of a replica; null: 1, or where models run on the CPUs of this machine, an equal part of them."""


class EngineConfig(ChatSettings):
    """`engine:`: where the model answers, how it is put conversations, and how it is held in memory."""

    concurrency: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Maximum concurrent prompts; null: what the engine has room for, 32 on a CPU. Does not affect results."""
    max_model_len: Annotated[int, Field(ge=64, le=MOST_TOKENS)] | None = None
    """Maximum tokens of a request and its answer together; null: the model's, at most 8192."""
    stall_minutes: Annotated[float, Field(gt=0, le=10_080)] = 10.0
    """Minutes without a token, or until a server's answer, after which the engine counts as stalled."""
    endpoints: list[Annotated[str, Field(min_length=1)] | EndpointConfig] = []
    """OpenAI-compatible servers that hold the model, such as http://localhost:8000/v1, or {url, key_env}; [] loads it
    here. Does not affect results."""
    served_model_name: str | None = None
    """The model's name on the endpoints; null: its name here if they list it, or else their only model."""
    vllm: Annotated[dict[str, Any], AfterValidator(json_value)] = {}
    """Engine arguments of vLLM by name, such as tensor_parallel_size, dtype, quantization, gpu_memory_utilization."""
    ray: RayConfig | None = None
    """Replicas of the model as Ray actors, on this machine or a cluster; null: one engine in this process."""
    control_tokens: ControlTokens = "text"
    """How to ask texts that spell control tokens (text, escape, refuse); `text`: as text, or the row is skipped where
    the tokenizer or chat template cannot, and a server gets <|im_end|> as it is, with a warning; `escape`: as
    < |im_end|> to a server and where it cannot be read as text, rows keep the original; `refuse`: not at all, the row
    is skipped."""

    def over(self, base: "EngineConfig") -> "EngineConfig":
        """`base` with the settings that were given here in place of its own, but those of its model alone."""
        return base.shared.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    @property
    def in_process(self) -> "EngineConfig":
        """These settings without endpoints: they say which model a role has, and nothing of its engine."""
        return self.model_copy(update={"endpoints": [], "served_model_name": None})

    @property
    def shared(self) -> "EngineConfig":
        """What holds for other models too: these settings without endpoints and those of the chat template."""
        return self.in_process.with_chat(None)

    def with_chat(self, chat: ChatSettings | None) -> "EngineConfig":
        """These settings with those of a chat template."""
        fields = {name: getattr(chat or ChatSettings(), name) for name in ChatSettings.model_fields}
        return self.model_copy(update=fields)


Step = Literal[
    "applies", "answer", "critique", "critique_check", "revision", "verify", "chain_of_thought", "verdict", "rating",
    "other",
]  # fmt: skip
"""What a request is for: a label for the account of a run's calls, without effect on the answer."""


@dataclass(frozen=True)
class Generate:
    """A request for the assistant's next turn. `temperature` 0 is greedy; `seed` fixes the sample.

    Without `sampling`, tokens are drawn from the model's distribution as it is. Requests of one `session` go to one
    server of several, as they begin alike; by default those with the same first user turn.
    """

    messages: Messages
    max_tokens: int
    temperature: float
    seed: int
    step: Step = field(default="other", compare=False)
    sampling: Sampling | None = None
    session: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Choose:
    """A request for the probability of each option as the next text of the last message.

    `messages` ends with an assistant turn, the start of the answer; each option is a text such as ` A`, which its
    first token after that start tells apart from the others, or else the whole of it. `session` as in Generate.
    """

    messages: Messages
    options: tuple[str, ...]
    step: Step = field(default="verdict", compare=False)
    session: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Completion:
    """A generated turn; `finish` is `length` when it ran into max_tokens (or the context's end).

    A chain of thought is no part of `text`, which is empty where the limit came before the answer.
    """

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    reasoning: str | None = None
    """The chain of thought that the model wrote before the text."""


def split_reasoning(text: str, opened: bool | None = False) -> tuple[str, str | None]:
    """A generated text without the chain of thought before it, and that, None where there is none or an empty one.

    `opened`: whether the chat template's generation prompt ended with `<think>`, so that the text begins inside the
    thought; None where that is not known, as of a server. Without the closing tag all of it is thought: the limit, or
    the model, ended it there. Tags further on in a text are what it says.
    """
    start, end = THOUGHT
    text = text.strip()
    if text.startswith(start):
        text, opened = text.removeprefix(start), True
    if opened:
        thought, _, answer = text.partition(end)
    elif opened is None and (closing := _LONE_CLOSING.search(text)) and start not in text[: closing.start()]:
        thought, answer = text[: closing.start()], text[closing.end() :]
    else:
        return text, None
    return answer.strip(), thought.strip() or None


class BoundedLogProbs(list[float]):
    """Log-probabilities some of which are upper bounds, since the server returned those of other tokens alone."""


class UnusableAnswer(RequestRefused):
    """An engine returned something that is no answer, such as NaN for a log-probability: never cached, may be retried.

    Uncaught, it is the refusal of its request: the row is skipped and counted as failed.
    """


def validate_completion(completion: Completion) -> None:
    """Check what an engine generated, before it is cached.

    An empty text is an answer: a policy that says nothing must not be spared its evaluation.
    Raises: UnusableAnswer when the text is none that a UTF-8 file can hold, `finish` is unknown or a count negative.
    """
    for text in (completion.text, completion.reasoning or ""):
        if not isinstance(text, str):
            raise UnusableAnswer(f"the model returned {type(text).__name__} in place of a text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnusableAnswer(
                f"the model's text holds U+{ord(text[error.start]):04X}, half of a surrogate pair"
            ) from None
    if completion.finish not in ("stop", "length"):
        raise UnusableAnswer(f"the model's text ended with {completion.finish!r}; expected stop or length")
    for count in (completion.prompt_tokens, completion.completion_tokens):
        if not isinstance(count, int) or count < 0:
            raise UnusableAnswer(f"the model counted {count!r} tokens")


def validate_choice(log_probs: Sequence[float], n_options: int) -> None:
    """Check log-probabilities (nats), one for each of `n_options` options, before they are cached.

    Raises: UnusableAnswer when there are more or fewer, or one is not a finite number of at most 0.
    """
    if len(log_probs) != n_options:
        raise UnusableAnswer(f"the model returned {len(log_probs)} log-probabilities for {n_options} options")
    for log_prob in log_probs:
        if not isinstance(log_prob, int | float) or not -sys.float_info.max <= log_prob <= LOG_PROB_ROUNDING:
            raise UnusableAnswer(f"the model returned {log_prob!r:.40} as a log-probability; expected a number up to 0")


class Engine(Protocol):
    """A model that answers. Requests run concurrently; the engine does the batching.

    Raises: RequestRefused when one request cannot be answered.
    """

    @property
    def fingerprint(self) -> str:
        """What model, exactly: equal fingerprints give equal answers to equal requests."""

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn."""

    async def choose(self, request: Choose) -> list[float]:
        """The log-probability (nats, full vocabulary) of each option: of its first token, by one prefill, unless
        several begin with the same one. BoundedLogProbs where it cannot tell them exactly.
        """

    async def close(self) -> None:
        """Free the model; unanswered requests are cancelled."""


def echo(request: Generate) -> str:
    """A short answer that depends on the whole request."""
    return f"Answer {request.seed % 1000} to: {request.messages[-1]['content'][:40]}"


def indifferent(request: Choose) -> Sequence[float]:
    """Equal probabilities."""
    return [1 / len(request.options)] * len(request.options)


class ScriptedEngine:
    """Answers with `answer(request)` and `weigh(request)`, after `delay` seconds; `requests` lists all it got."""

    def __init__(
        self,
        fingerprint: str = "scripted",
        answer: Callable[[Generate], str] = echo,
        weigh: Callable[[Choose], Sequence[float]] = indifferent,
        delay: float = 0.0,
    ) -> None:
        self.fingerprint = fingerprint
        self.requests: list[Generate | Choose] = []
        self._answer, self._weigh, self._delay = answer, weigh, delay

    async def generate(self, request: Generate) -> Completion:
        """The scripted answer, cut after max_tokens words."""
        self.requests.append(request)
        await asyncio.sleep(self._delay)
        words = self._answer(request).split(" ")
        kept = words[: request.max_tokens]
        return Completion(
            text=" ".join(kept),
            finish="length" if len(kept) < len(words) else "stop",
            prompt_tokens=sum(len(m["content"].split(" ")) for m in request.messages),
            completion_tokens=len(kept),
        )

    async def choose(self, request: Choose) -> list[float]:
        """Logarithms of the scripted probabilities, which may sum to less than 1."""
        self.requests.append(request)
        await asyncio.sleep(self._delay)
        return [math.log(p) for p in self._weigh(request)]

    async def close(self) -> None:
        """Nothing to free."""
