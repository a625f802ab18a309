"""What every engine can do, and the requests and answers that pass through it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import Field

from cai.config.yaml_files import Section
from cai.data.records import Messages


class EngineConfig(Section):
    """`engine:`: how the model is held in memory."""

    concurrency: Annotated[int, Field(ge=1)] = 32
    """Maximum concurrent prompts; does not affect the run's identity."""
    max_model_len: Annotated[int, Field(ge=64)] | None = None
    """Maximum tokens of a request and its answer together; null: the model's, at most 8192."""


Step = Literal["answer", "critique", "revision", "chain_of_thought", "verdict", "other"]
"""What a request is for: a label for the account of a run's calls, without effect on the answer."""


@dataclass(frozen=True)
class Generate:
    """A request for the assistant's next turn. `temperature` 0 is greedy; `seed` fixes the sample."""

    messages: Messages
    max_tokens: int
    temperature: float
    seed: int
    step: Step = field(default="other", compare=False)


@dataclass(frozen=True)
class Choose:
    """A request for the probability of each option as the next text of the last message.

    `messages` ends with an assistant turn, the start of the answer; each option is a text such as ` A`, which its
    first token after that start tells apart from the others, or else the whole of it.
    """

    messages: Messages
    options: tuple[str, ...]
    step: Step = field(default="verdict", compare=False)


@dataclass(frozen=True)
class Completion:
    """A generated turn; `finish` is `length` when it ran into max_tokens (or the context's end)."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


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
        several begin with the same one.
        """

    async def close(self) -> None:
        """Free the model; unanswered requests are cancelled."""
