"""What the stages of one run share while it is under way: engines over one memo, progress, what was left out."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cai.engines.base import Completion, Engine
from cai.engines.memo import Memo, RememberingEngine, Tally
from cai.engines.vllm import VllmEngine, vllm_build
from cai.errors import RequestRefused
from cai.feedback.respond import respond
from cai.hashing import fingerprint
from cai.models import folder_fingerprint
from cai.records import LeftOut, Prompt
from cai.runs.config import EngineConfig
from cai.runs.flow import in_flight
from cai.runs.plan import Plan
from cai.runs.progress import Reporter, Task

OpenEngine = Callable[[Path, str, EngineConfig], Engine]
Result = TypeVar("Result")
PROGRESS_SECONDS = 0.5


def open_vllm(folder: Path, model_fingerprint: str, settings: EngineConfig) -> Engine:
    """vLLM on a model folder; it loads in the background."""
    return VllmEngine(folder, model_fingerprint, settings.context, settings.max_in_flight)


class Session:
    """A plan being carried out."""

    def __init__(self, plan: Plan, reporter: Reporter, memo: Memo, open_engine: OpenEngine) -> None:
        self.plan, self.reporter = plan, reporter
        self.left_out: list[LeftOut] = []
        self.seconds: dict[str, float] = {}
        self._memo, self._open_engine = memo, open_engine
        self._engines: dict[str, RememberingEngine] = {}

    def engine(self, folder: Path) -> RememberingEngine:
        """The engine of a model folder; the model itself is loaded at the first call the memo cannot answer."""
        settings = self.plan.config.engine
        identity = fingerprint(folder_fingerprint(folder), settings.context, vllm_build())
        if identity not in self._engines:
            self._engines[identity] = RememberingEngine(
                identity, self._memo, lambda: self._open_engine(folder, identity, settings)
            )
        return self._engines[identity]

    async def each(
        self,
        name: str,
        prompts: list[Prompt],
        function: Callable[[Prompt], Awaitable[Result]],
        engine: RememberingEngine,
        calls: int,
    ) -> AsyncIterator[tuple[Prompt, Result]]:
        """Every prompt with its result, in order; refused prompts are left out as failed.

        Progress is told in calls of `engine`, of which a prompt is expected to take `calls`: a prompt is slow to
        finish while others are under way with it, so that counting prompts would mislead at first.
        """
        before = dataclasses.replace(engine.tally)
        finished = 0

        async def guarded(prompt: Prompt) -> Result | RequestRefused:
            nonlocal finished
            try:
                return await function(prompt)
            except RequestRefused as refusal:
                return refusal
            finally:
                finished += 1

        def remembered() -> int:
            return engine.tally.remembered - before.remembered

        async def show_progress(task: Task) -> None:
            while True:
                done = engine.tally.asked - before.asked + remembered()
                task.update(done, max(done, calls * len(prompts)), f"{finished}/{len(prompts)} prompts")
                await asyncio.sleep(PROGRESS_SECONDS)

        with self.reporter.task(name, calls * len(prompts), "calls") as task:
            progress = asyncio.ensure_future(show_progress(task))
            try:
                async for prompt, result in in_flight(guarded, prompts, self.plan.config.engine.max_in_flight):
                    if isinstance(result, RequestRefused):
                        self.left_out.append(LeftOut(prompt_id=prompt.id, stage=name, reason=str(result), failed=True))
                    else:
                        yield prompt, result
            finally:
                progress.cancel()
            task.update(engine.tally.asked - before.asked + remembered(), task.total)
            task.close(f"{remembered()} of them remembered")

    async def respond(
        self, prompt: Prompt, engine: Engine, max_tokens: int, temperature: float, sample: int = 0
    ) -> Completion:
        """A sampled answer under the run's seed."""
        seed = self.plan.config.seed
        return await respond(prompt, engine, seed=seed, max_tokens=max_tokens, temperature=temperature, sample=sample)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the seconds the block takes."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def calls(self) -> Tally:
        """Calls of all engines together."""
        tallies = [engine.tally for engine in self._engines.values()]
        return Tally(*(sum(getattr(t, field) for t in tallies) for field in ("asked", "remembered", "tokens")))
