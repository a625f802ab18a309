"""Doing something anew whenever files change."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import Principle
from cai.constitution.templates import Templates
from cai.data.records import Prompt
from cai.feedback.filters import failed_filters
from cai.feedback.revise import ReviseConfig, criticise, respond, rewrite
from cai.inference.cache import Cache
from cai.inference.engine import Completion, Engine, EngineConfig
from cai.inference.models import Model, Server
from cai.inference.scheduler import OpenEngine, cached_engine, open_model, run_concurrently

POLL_SECONDS = 0.1
GONE_POLLS = 10  # editors that save by renaming leave a moment without the file


async def changes(paths: Sequence[Path]) -> AsyncIterator[None]:
    """Once at the start, and then whenever the content of files, or of those in folders, has changed and settled."""
    seen = last = _contents(paths)
    yield
    same = 0
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = _contents(paths)
        same, last = (same + 1 if now == last else 0), now
        if now != seen and same >= (GONE_POLLS if None in now.values() else 1):
            seen = now
            yield


def _contents(paths: Sequence[Path]) -> dict[Path, bytes | None]:
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return {file: _content(file) for file in files if not file.is_dir()}


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


async def once() -> AsyncIterator[None]:
    """One occasion, now."""
    yield


async def restarted(occasions: AsyncIterator[None], work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do the work on each occasion, leaving off what is still under way; returns when the last work is done.

    The first error of the work is raised.
    """
    under_way: asyncio.Task[None] | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            async for _ in occasions:
                if under_way is not None and under_way.cancel():
                    await asyncio.wait([under_way])
                under_way = tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


# `cai try`: prompts answered, and the answers criticised and revised by one principle after another, text by text.


SEED = 0
Key = tuple[str, str, int, str]
ALIVE = 3 * EngineConfig().concurrency  # texts, of which most wait for the one they answer


@dataclass(frozen=True)
class Trial:
    """What is tried: each prompt with each principle."""

    prompts: list[Prompt]
    principles: list[Principle]
    templates: Templates
    settings: ReviseConfig


class Step(NamedTuple):
    """The place of one text: a prompt's draft, which has no principle, or a critique or revision of a round from 1."""

    prompt: Prompt
    principle: Principle | None
    round: int
    text: Literal["draft", "critique", "revision"]

    @property
    def key(self) -> Key:
        """What tells it apart, also from one trial to the next."""
        return self.prompt.id, self.principle.id if self.principle else "", self.round, self.text


class Written(NamedTuple):
    """A text, the answer it criticises or revises ("" for a draft), and a revision's hygiene."""

    completion: Completion
    about: str = ""
    flags: tuple[str, ...] = ()


class News(NamedTuple):
    """A text that is new, or not what it was: `before`, None where there was none."""

    step: Step
    written: Written | RequestRefused
    before: str | None


class Begun(NamedTuple):
    """A pass over a trial begins, the first or a later one."""

    again: bool


class Loading(NamedTuple):
    """The first cache miss: the model is being loaded. A server is not loaded."""


class Done(NamedTuple):
    """A pass over a trial is over: how many texts are new, the calls to the model, and the seconds."""

    news: int
    calls: int
    seconds: float


Event = Begun | Loading | News | CaiError | Done
"""What happens while a file is tried; the error is one that its author can mend while it is watched."""


def try_out(
    load: Callable[[], Trial],
    occasions: AsyncIterator[None],
    model: Model,
    cache: Path,
    tell: Callable[[Event], None],
    open_engine: OpenEngine = open_model,
) -> None:
    """On each occasion load the trial and tell what is new in its texts; one that comes early breaks off the last.

    The model stays loaded from one occasion to the next. Raises: CaiError when the model cannot be used.
    """
    known: dict[Key, str] = {}
    again = False

    async def one_pass() -> None:
        nonlocal again
        tell(Begun(again))
        again = True
        begun, misses, count = time.monotonic(), engine.tally.cache_misses, 0
        try:
            trial = load()
        except CaiError as error:
            tell(error)
            return
        async for item in news(trial, engine, known):
            count += 1
            tell(item)
        tell(Done(count, engine.tally.cache_misses - misses, time.monotonic() - begun))

    def opened(model: Model, identity: str, settings: EngineConfig) -> Engine:
        if not isinstance(model, Server):
            tell(Loading())
        return open_engine(model, identity, settings)

    async def all_passes() -> None:
        await restarted(occasions, one_pass)
        await engine.close()  # not after an interrupt, which would wait for a model that is still loading

    with closing(Cache(cache)) as store:
        engine = cached_engine(model, EngineConfig(), store, opened)
        asyncio.run(all_passes())


def steps(trial: Trial) -> list[Step]:
    """The places of all texts, in the order of a transcript: prompt by prompt, and in it principle by principle."""
    found = []
    for prompt in trial.prompts:
        found.append(Step(prompt, None, 0, "draft"))
        for principle, round in itertools.product(trial.principles, range(1, trial.settings.rounds + 1)):
            if trial.settings.critique:
                found.append(Step(prompt, principle, round, "critique"))
            found.append(Step(prompt, principle, round, "revision"))
    return found


async def news(trial: Trial, engine: Engine, known: dict[Key, str]) -> AsyncIterator[News]:
    """Every text that is not as `known` has it, in order, as soon as it and those before it are there.

    `known` is brought up to date. Where a request is refused, what would follow from it is left out.
    """

    async def one(step: Step) -> Written | RequestRefused:
        try:
            return await write(step, trial, engine)
        except RequestRefused as refusal:
            return refusal

    refused: set[tuple[str, str]] = set()
    async for step, written in run_concurrently(one, steps(trial), ALIVE):
        if isinstance(written, RequestRefused):
            place = step.key[:2]
            if not refused & {place, (step.prompt.id, "")}:
                refused.add(place)
                yield News(step, written, None)
            continue
        before, text = known.get(step.key), written.completion.text
        if before != text:
            known[step.key] = text
            yield News(step, written, before)


async def write(step: Step, trial: Trial, engine: Engine) -> Written:
    """One text, with those that it follows from: an engine that remembers is asked for none of them twice."""
    prompt, principle, round, text = step
    settings = trial.settings
    if principle is None:
        most, temperature = settings.max_tokens, settings.temperature
        return Written(await respond(prompt, engine, seed=SEED, max_tokens=most, temperature=temperature))
    last = Step(prompt, principle, round - 1, "revision") if round > 1 else Step(prompt, None, 0, "draft")
    about = (await write(last, trial, engine)).completion.text
    args = (round, principle, trial.templates, engine, settings, SEED)
    critique = await criticise(prompt, about, *args) if settings.critique else None
    if text == "critique" and critique is not None:
        return Written(critique, about)
    critique_text = critique.text if critique else None
    revision = await rewrite(prompt, about, critique_text, *args)
    return Written(revision, about, tuple(failed_filters(about, critique_text, revision.text)))
