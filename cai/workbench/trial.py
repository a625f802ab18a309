"""`cai try`: prompts answered, and the answers criticised and revised by one principle after another.

With `--watch` a pass over them runs again whenever a file changes; the texts that changed are the events of a pass.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import Constitution, Principle, applying
from cai.constitution.templates import Templates
from cai.data.records import Prompt
from cai.feedback.revise import ReviseConfig, Reviser, revision_flags
from cai.feedback.yes_no import ask_applicability
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Completion, Engine, EngineConfig
from cai.inference.models import Model, Server
from cai.inference.scheduler import OpenEngine, Scheduler, Stage, open_model
from cai.inference.vllm_settings import prompts_at_once

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
    """Start the work on each occasion and cancel what is still running; returns when the last work is done.

    The first error of the work is raised.
    """
    running: asyncio.Task[None] | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            async for _ in occasions:
                if running is not None and running.cancel():
                    await asyncio.wait([running])
                running = tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


SEED = 0
Key = tuple[str, str, int, str]
TEXTS_AT_ONCE = 3  # a prompt that the engine has room for, as most texts wait for the one they answer


@dataclass(frozen=True)
class Trial:
    """Each prompt with each principle."""

    prompts: list[Prompt]
    principles: list[Principle]
    templates: Templates
    settings: ReviseConfig


class Step(NamedTuple):
    """The place of one text: a prompt's draft, which has no principle, or a critique or revision of a round from 1.

    Of a principle that does not apply to every prompt, whether it applies to this one comes first, in round 0.
    """

    prompt: Prompt
    principle: Principle | None
    round: int
    text: Literal["draft", "applies", "critique", "revision"]

    @property
    def key(self) -> Key:
        """What tells it apart, also from one trial to the next."""
        return self.prompt.id, self.principle.id if self.principle else "", self.round, self.text


class Written(NamedTuple):
    """A text, the answer it criticises or revises ("" for a draft), and the filters that a revision fails."""

    completion: Completion
    about: str = ""
    flags: tuple[str, ...] = ()


class News(NamedTuple):
    """A text that is new or changed; `before` is the earlier one, None where there was none."""

    step: Step
    written: Written | RequestRefused
    before: str | None


class Begun(NamedTuple):
    """A pass over a trial begins, the first or a later one."""

    again: bool


class Loading(NamedTuple):
    """The first cache miss: the model is being loaded. A server is not loaded."""


class Done(NamedTuple):
    """A pass over a trial is over: how many texts are new, the calls to the model, and the seconds.

    `control_tokens` are requests that spell a control token and went to a server as they are.
    """

    news: int
    calls: int
    seconds: float
    control_tokens: int


Event = Begun | Loading | News | CaiError | Done
"""What happens in a pass; the error is one that the file's author can fix while it is watched."""


def try_out(
    load: Callable[[], Trial],
    occasions: AsyncIterator[None],
    model: Model,
    cache: Path,
    show: Callable[[Event], None],
    open_engine: OpenEngine = open_model,
) -> None:
    """On each occasion load the trial and show its new and changed texts; an early occasion cancels the last pass.

    The model stays loaded from one occasion to the next. Raises: CaiError when it cannot be used, or the first trial
    cannot be loaded.
    """
    known: dict[Key, str] = {}
    again = False

    async def one_pass() -> None:
        nonlocal again
        show(Begun(again))
        again = True
        begun, before, count = time.monotonic(), engine.tally, 0
        try:
            trial = load()
        except CaiError as error:
            show(error)
            return
        async for item in news(trial, scheduler, engine, known):
            count += 1
            show(item)
        calls = engine.tally - before
        show(Done(count, calls.cache_misses, time.monotonic() - begun, calls.control_tokens))

    def opened(model: Model, identity: str, settings: EngineConfig) -> Engine:
        if not isinstance(model, Server):
            show(Loading())
        return open_engine(model, identity, settings)

    async def all_passes() -> None:
        await restarted(occasions, one_pass)
        await engine.close()  # not after an interrupt, which would wait for a model that is still loading

    with closing(Cache(cache)) as store:
        scheduler = Scheduler(load().settings.engine or EngineConfig(), store, open_engine=opened)
        engine = scheduler.engine(model)
        asyncio.run(all_passes())


def steps(trial: Trial) -> list[Step]:
    """The places of all texts, in the order of a transcript: prompt by prompt, and in it principle by principle."""
    listed = []
    for prompt in trial.prompts:
        listed.append(Step(prompt, None, 0, "draft"))
        for principle in trial.principles:
            if principle.applies_to is not None:
                listed.append(Step(prompt, principle, 0, "applies"))
            for round in range(1, trial.settings.rounds + 1):
                if trial.settings.critique:
                    listed.append(Step(prompt, principle, round, "critique"))
                listed.append(Step(prompt, principle, round, "revision"))
    return listed


async def news(trial: Trial, scheduler: Scheduler, engine: CachedEngine, known: dict[Key, str]) -> AsyncIterator[News]:
    """Every text that is not as in `known`, in order, as soon as it and those before it are there.

    `known` is brought up to date. Where a request is refused, what would follow from it is skipped.
    """
    reviser, all_steps = Reviser(trial.templates, engine, trial.settings, SEED), steps(trial)

    async def write_one(step: Step) -> Written:
        if step.text == "applies" and step.principle is not None:
            return await _whether_applies(step.prompt, step.principle, trial.templates, engine)
        return await write(step, trial.settings, reviser)

    refused: set[tuple[str, str]] = set()
    at_once = TEXTS_AT_ONCE * prompts_at_once(scheduler.settings)
    stage = Stage("trying", [engine], len(all_steps), len(all_steps), "texts", at_once)
    async for step, written in scheduler.run(stage, all_steps, write_one):
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


async def _whether_applies(prompt: Prompt, principle: Principle, templates: Templates, engine: CachedEngine) -> Written:
    """Whether a run would sample the principle for the prompt, and why; its texts are written in either case."""
    alone = Constitution(name="", principles=[principle])
    answers = await ask_applicability(alone, prompt, templates, engine)
    found = applying(alone, prompt.tags, {answer.question: answer.p for answer in answers}).principles
    why = [f"P(Yes) = {answer.p:.3f} to “{answer.question}”" for answer in answers]
    if not answers:
        why = [f"the prompt's tags: {', '.join(prompt.tags) or 'none'}; {principle.applies_to}"]
    return Written(Completion(f"{'yes' if found else 'no'}; {why[0]}", "stop", 0, 0))


async def write(step: Step, settings: ReviseConfig, reviser: Reviser) -> Written:
    """One text, with those that it follows from; the cache answers the requests that several texts share."""
    prompt, principle, round, text = step
    if principle is None:
        return Written(await reviser.respond(prompt))
    last = Step(prompt, principle, round - 1, "revision") if round > 1 else Step(prompt, None, 0, "draft")
    about = (await write(last, settings, reviser)).completion.text
    critique = await reviser.critique(prompt, about, principle, round) if settings.critique else None
    if text == "critique" and critique is not None:
        return Written(critique, about)
    critique_text = critique.text if critique else None
    problem = await reviser.problem(prompt, about, critique_text, principle)
    if problem is not None and problem < settings.threshold:
        return Written(Completion(about, "stop", 0, 0), about, (f"stays: P(problem) = {problem:.3f}",))
    revision = await reviser.revise(prompt, about, critique_text, principle, round)
    turns = reviser.revision_turns(prompt, about, critique_text, principle, round)
    return Written(revision, about, tuple(revision_flags(turns, about, critique_text, revision)))
