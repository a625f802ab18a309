"""An engine that answers from a function: for tests, and for measuring everything but the model."""

import asyncio
import math
from collections.abc import Callable, Sequence

from cai.inference.engine import Choose, Completion, Generate


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
