"""What the stages of one run share while it is under way: engines over one cache, progress, what was left out."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from cai.config.errors import RequestRefused
from cai.data.records import Prompt, Skipped
from cai.feedback.revise import respond
from cai.inference.cache import AnyCache, CachedEngine, Tally
from cai.inference.engine import Completion, Engine
from cai.inference.models import Model
from cai.inference.progress import Reporter
from cai.inference.scheduler import Amount, EngineWork, OpenEngine, Result, cached_engine, each_with_progress
from cai.runs.plan import Plan


class Session:
    """A plan being carried out."""

    def __init__(
        self,
        plan: Plan,
        reporter: Reporter,
        cache: AnyCache,
        open_engine: OpenEngine,
        work: Sequence[EngineWork] = (),
    ) -> None:
        self.plan, self.reporter = plan, reporter
        self.skipped: list[Skipped] = [*plan.prompts_skipped]
        self.seconds: dict[str, float] = {}
        self.work: list[EngineWork] = [*work]  # with what was done before
        self._cache, self._open_engine = cache, open_engine
        self._engines: dict[str, CachedEngine] = {}

    def engine(self, model: Model) -> CachedEngine:
        """As `remembering`; one for all folders of the same content."""
        engine = cached_engine(model, self.plan.config.engine, self._cache, self._open_engine)
        return self._engines.setdefault(engine.fingerprint, engine)

    async def each(
        self,
        name: str,
        prompts: list[Prompt],
        function: Callable[[Prompt], Awaitable[Result]],
        engine: CachedEngine,
        calls: int,
    ) -> AsyncIterator[tuple[Prompt, Result]]:
        """Every prompt with its result, in order; refused prompts are left out as failed. A prompt takes `calls`."""
        amount, limit = Amount(len(prompts), "prompts", calls * len(prompts)), self.plan.config.engine.concurrency
        async for prompt, result in each_with_progress(name, prompts, amount, function, engine, limit, self.reporter):
            if isinstance(result, RequestRefused):
                self.skipped.append(Skipped(prompt_id=prompt.id, stage=name, reason=str(result), failed=True))
            else:
                yield prompt, result
        self.work.append(EngineWork(engine.fingerprint, engine.work[-1]))

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
        return sum((engine.tally for engine in self._engines.values()), Tally())
