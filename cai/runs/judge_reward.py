"""The run's judge as the reward of a training stage: it rates the answers that the stage's worker asks about.

It answers in the process of the run, so that engines, cache and accounts are those of every other call; a training that
resumes asks the same again, and the cache answers. All questions share an event loop, as a server's connections must.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import fmean
from typing import Any, TypeVar

from cai.config.errors import RequestRefused
from cai.constitution.principles import Constitution, manifest_of
from cai.data.records import Prompt
from cai.feedback.judge import Rater, Rating, calls_for_rating, mean_non_option_mass, reward_of
from cai.feedback.metrics import MOST
from cai.feedback.yes_no import ask_applying
from cai.inference.cache import Tally, Work
from cai.inference.cached_engine import CachedEngine
from cai.inference.models import Server, model_fingerprint
from cai.inference.scheduler import EngineWork, Scheduler, run_concurrently
from cai.inference.vllm_settings import prompts_at_once
from cai.runs.plan import Plan
from cai.runs.training_estimates import answers_sampled
from cai.training.settings import Online, judged
from cai.training.stage import JudgedAnswer

RATINGS = "ratings"  # the end of the name under which accounts have the calls of a stage
PROBE = "Yes."  # an answer that the judge is asked to rate before training starts
CHARACTERS = 4.0  # per token of English, roughly, as in dry_run.py
SIZED = 100  # prompts whose length stands for that of all in a forecast
Result = TypeVar("Result")


class RunJudge:
    """The judges of a plan at the service of one training stage, by its name; see AnswerJudge."""

    def __init__(self, plan: Plan, scheduler: Scheduler, name: str) -> None:
        self._plan, self._scheduler, self._name = plan, scheduler, name
        self._prompts = {prompt.id: prompt for prompt in plan.training}
        self._applying: dict[str, Constitution] = {}
        self._noted: set[str] = set()
        self._runner: asyncio.Runner | None = None
        self._begun: dict[CachedEngine, int] = {}  # the engines asked, each with its works before
        self._engines = [scheduler.engine(judge) for judge in plan.judge_models]
        judge, seed = plan.config.judge, plan.config.seed
        self._raters = [Rater(plan.templates, engine, judge, seed) for engine in self._engines]

    @property
    def identity(self) -> dict[str, Any]:
        """Judges, principles, templates and seed."""
        plan = self._plan
        return {
            "models": [model_fingerprint(judge) for judge in plan.judge_models],
            "constitution": manifest_of(plan.constitution),
            "principles": plan.config.judge.principles,
            "templates": plan.templates.fingerprint,
            "seed": plan.config.seed,
        }

    def check(self) -> None:
        """Let each judge on a server rate one answer. Raises: CaiError for one that returns no log-probabilities."""
        principle, messages = self._plan.constitution.principles[0], self._plan.training[0].messages

        judges = zip(self._raters, self._engines, self._plan.judge_models, strict=True)
        served = [(rater, engine) for rater, engine, model in judges if isinstance(model, Server)]

        async def ask() -> None:
            for rater, engine in served:
                with self._counted(engine), suppress(RequestRefused):  # of this prompt alone, as one that is too long
                    await rater.rate_by(principle, messages, PROBE)

        if served:
            self._run(ask())

    def reply(self, question: dict[str, Any]) -> dict[str, Any]:
        """See AnswerJudge."""
        if "prompts" in question:
            return {"refused": self._run(self._without_principles(question["prompts"]))}
        answers = [(self._prompts[prompt_id], text) for prompt_id, text in question["answers"]]
        replies = self._run(self._judged(answers))
        self._note(replies)
        return {"judged": [answer._asdict() for answer in replies]}

    def close(self) -> None:
        """Close the judges, and add what they did to the run's accounts."""
        if self._runner is None:
            return
        try:
            for engine in self._begun:
                self._run(engine.close())
        finally:
            self._runner.close()
            self._runner = None
            for engine, before in self._begun.items():
                self._scheduler.work.append(EngineWork(engine.fingerprint, _sum(engine.work[before:])))

    def _run(self, calls: Coroutine[Any, Any, Result]) -> Result:
        """Make calls in the loop that all of them share."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(calls)

    @contextmanager
    def _counted(self, engine: CachedEngine) -> Iterator[None]:
        """The calls of the block to an engine count as of this stage."""
        self._begun.setdefault(engine, len(engine.work))
        with engine.stage(f"{self._name}: {RATINGS}"):
            yield

    async def _without_principles(self, prompt_ids: Sequence[str]) -> dict[str, str]:
        """The prompts that no principle applies to, by the answers that the run's feedback has from its reviser."""
        plan, refused = self._plan, dict[str, str]()
        engine = self._scheduler.engine(plan.reviser)

        async def ask(prompt_id: str) -> Constitution | RequestRefused:
            try:
                return await ask_applying(plan.constitution, self._prompts[prompt_id], plan.templates, engine)
            except RequestRefused as refusal:
                return refusal

        with self._counted(engine):
            async for prompt_id, found in run_concurrently(ask, prompt_ids, self._limit):
                if isinstance(found, RequestRefused):
                    refused[prompt_id] = str(found)
                else:
                    self._applying[prompt_id] = found
        return refused

    async def _judged(self, answers: Sequence[tuple[Prompt, str]]) -> list[JudgedAnswer]:
        """Every answer as all judges rate it; refused where one of them refuses."""
        by_judge: list[list[list[Rating] | RequestRefused]] = []
        for rater, engine in zip(self._raters, self._engines, strict=True):
            with self._counted(engine):
                by_judge.append(
                    [rated async for _, rated in run_concurrently(self._asking(rater), answers, self._limit)]
                )
        return [_combined(ratings) for ratings in zip(*by_judge, strict=True)]

    def _asking(self, rater: Rater) -> Callable[[tuple[Prompt, str]], Awaitable[list[Rating] | RequestRefused]]:
        async def ask(answer: tuple[Prompt, str]) -> list[Rating] | RequestRefused:
            prompt, text = answer
            try:
                return await rater.rate(prompt, text, self._applying[prompt.id])
            except RequestRefused as refusal:
                return refusal

        return ask

    @property
    def _limit(self) -> int:
        return prompts_at_once(self._scheduler.settings)

    def _note(self, replies: Sequence[JudgedAnswer]) -> None:
        """Say once why answers are refused, and that ratings say little."""
        texts = [
            f"the judge refuses an answer, which gets the mean reward: {answer.reason}"
            for answer in replies
            if answer.score is None
        ]
        masses = [answer.non_option_mass for answer in replies if answer.score is not None]
        if masses and fmean(masses) >= MOST:
            texts.append(
                "warning: most of the judge's probability is outside the numbers from 1 to 9, so that its ratings say "
                "little (judge/non_option_mass); another judge, or another rate.jinja"
            )
        for text in dict.fromkeys(texts):
            if text not in self._noted and self._scheduler.reporter is not None:
                self._noted.add(text)
                self._scheduler.reporter.note(f"{self._name}: {text}")


def _combined(by_judge: Sequence[list[Rating] | RequestRefused]) -> JudgedAnswer:
    refusal = next((ratings for ratings in by_judge if isinstance(ratings, RequestRefused)), None)
    if refusal is not None:
        return JudgedAnswer(None, {}, 0.0, str(refusal))
    rated = [ratings for ratings in by_judge if not isinstance(ratings, RequestRefused)]
    return JudgedAnswer(
        score=fmean(map(reward_of, rated)),
        ratings={of[0].principle.id: fmean(rating.value for rating in of) for of in zip(*rated, strict=True)},
        non_option_mass=fmean(map(mean_non_option_mass, rated)),
    )


def _sum(works: Sequence[Work]) -> Work:
    """What an engine did for all questions together."""
    steps: dict[str, Tally] = {}
    for work in works:
        for step, tally in work.steps.items():
            steps[step] = steps.get(step, Tally()) + tally
    seconds, loaded = sum(work.seconds for work in works), any(work.loaded for work in works)
    return Work(works[0].stage, steps, seconds, loaded)


def forecast(plan: Plan, name: str, scheduler: Scheduler) -> list[EngineWork]:
    """The calls that rating a stage's answers takes at most, for a dry run: nobody has written these answers yet."""
    settings = plan.train[int(name.partition("-")[0]) - 1]
    if not judged(settings):
        return []
    assert isinstance(settings, Online)
    answers = answers_sampled(settings, len(plan.training))
    principles = calls_for_rating(plan.config.judge, len(plan.constitution.principles))
    principle, longest = plan.constitution.principles[0], "x" * int(CHARACTERS * settings.max_tokens)
    questions = (plan.templates.rate(principle, prompt.messages, longest) for prompt in plan.training[:SIZED])
    sizes = [sum(len(message["content"]) for message in question) for question in questions]
    calls = answers * principles
    tally = Tally(cache_misses=calls, characters=round(calls * fmean(sizes)))
    work = Work(f"{name}: {RATINGS}", {"rating": tally}, 0.0, True)
    return [EngineWork(scheduler.engine(judge).fingerprint, work) for judge in plan.judge_models]
