"""The calls of an evaluation: every policy answers, one after the other, and then a judge is asked.

One model is in memory at a time. What is asked about one pair of answers is asked together, so that questions share
their beginning. There is no resume code: evaluating again asks the same, and the cache answers what was paid for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

from cai.config.errors import RequestRefused
from cai.data.records import Answer, Judgement, Messages, Prompt, Reply, Sampled, Skipped, Verdict
from cai.evaluation.policy import Said, ask_about, ask_view
from cai.evaluation.probe_metrics import EXAMPLES
from cai.evaluation.probes import (
    OVER_REFUSAL,
    RED_TEAM,
    SYCOPHANCY,
    Example,
    View,
    over_refusal_probes,
    red_team_probes,
    views,
)
from cai.feedback.judge import judge, soft_label
from cai.feedback.revise import respond
from cai.inference.cache import CachedEngine, Tally
from cai.inference.models import Model
from cai.inference.progress import Reporter
from cai.inference.scheduler import Amount, EngineWork, each_with_progress
from cai.runs.course import STAGE as COURSE
from cai.runs.course import read_samples
from cai.runs.evaluating import OVERALL, EvaluationPlan
from cai.runs.find import Policy

ALL_PAIRS = 6  # policies that are all compared with each other; of more, each with the reference
HELD_OUT = "held_out"
QUESTIONS = {HELD_OUT: ("refuses", "evades"), OVER_REFUSAL: ("refuses", "evades"), RED_TEAM: ("complies",), COURSE: ()}
"""What a judge is asked about the answers to each set of prompts."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Asked(NamedTuple):
    """A prompt to policies: of which set, item and variant, and the request that a judge reads beside an answer."""

    prompts: str
    item: str
    variant: str
    prompt: Prompt
    meant: str


class Pair(NamedTuple):
    """The answers of two policies to one prompt."""

    prompt: Prompt
    policy: str
    against: str
    own: str
    other: str


EngineOf = Callable[[Model], CachedEngine]
"""The engine of a model; the same one for all folders of the same content."""


class PolicyEvaluation:
    """An evaluation under way, and the rows so far."""

    def __init__(self, evaluating: EvaluationPlan, engine_of: EngineOf, reporter: Reporter) -> None:
        self.evaluating = evaluating
        self.answers: list[Answer] = []
        self.judgements: list[Judgement] = []
        self.replies: list[Reply] = []
        self.samples: list[Sampled] = []
        self.skipped: list[Skipped] = [*evaluating.prompts_skipped]
        self.work: list[EngineWork] = []
        self._engine_of, self._reporter = engine_of, reporter

    async def carry_out(self) -> None:
        """All calls, in this order: each policy's answers, the reference's last; then the judge's."""
        e = self.evaluating
        self.samples, missing = read_samples(e.contenders[1])
        self.skipped += missing
        judging = self._engine_of(e.judge)
        try:
            for contender in [*e.contenders[1:], e.reference]:
                engine = self._engine_of(contender.folder)
                try:
                    await self._answer(contender, engine)
                finally:
                    if engine is not judging:
                        await engine.close()
            await self._check(judging)
            await self._compare(judging)
            await self._question(judging)
            await self._follow(judging)
        finally:
            await judging.close()

    def calls(self) -> Tally:
        """All calls together."""
        return sum((tally for done in self.work for tally in done.work.steps.values()), Tally())

    async def _answer(self, contender: Policy, engine: CachedEngine) -> None:
        """A policy's answers, and its word on questions whose user has taken a side."""
        e = self.evaluating

        async def answer(asked: Asked) -> Answer:
            prompt, limits = asked.prompt, (e.settings.max_tokens, e.settings.temperature)
            found = await respond(prompt, engine, seed=e.seed, max_tokens=limits[0], temperature=limits[1])
            return Answer(
                policy=contender.name,
                prompts=asked.prompts,
                prompt_id=prompt.id,
                messages=prompt.messages,
                tags=prompt.tags,
                text=found.text,
                truncated=found.finish == "length",
                model=engine.fingerprint,
            )

        asked = self._asked(course=contender is e.reference)
        name = f"{contender.name}: answers"
        self.answers += await self._all(name, asked, answer, engine, len(asked), lambda a: a.prompt.id)
        if (probes := e.probes.sycophancy) is not None:

            async def side(view: View) -> Reply:
                said = await ask_view(probes, view, engine)
                return _reply(said, contender.name, SYCOPHANCY, view.question.id, _variant(view), "first", engine)

            taken, name = views(probes, e.limit), f"{contender.name}: sides"
            self.replies += await self._all(name, taken, side, engine, 2 * len(taken), lambda v: v.question.id)

    def _asked(self, course: bool = False) -> list[Asked]:
        """All that every policy answers; with `course` also what PPO's samples answer."""
        e = self.evaluating
        found = [Asked(HELD_OUT, p.id, "", p, p.messages[-1]["content"]) for p in e.prompts]
        if e.probes.over_refusal is not None:
            probes = over_refusal_probes(e.probes.over_refusal, e.limit)
            found += [Asked(OVER_REFUSAL, p.item, p.variant, p.prompt, p.meant) for p in probes]
        if e.probes.red_team is not None:
            probes = red_team_probes(e.probes.red_team, e.limit)
            found += [Asked(RED_TEAM, p.item, p.variant, p.prompt, p.meant) for p in probes]
        if course:
            sampled: dict[str, Messages] = {sample.prompt_id: sample.messages for sample in self.samples}
            found += [Asked(COURSE, i, "", Prompt(id=i, messages=m), "") for i, m in sampled.items()]
        return found

    async def _check(self, engine: CachedEngine) -> None:
        """The judge on answers of which it is known what holds."""
        questions = self.evaluating.probes.questions
        known = [(q.id, str(number), example) for q in questions.questions for number, example in enumerate(q.examples)]

        async def check(item: tuple[str, str, Example]) -> Reply:
            question, number, example = item
            said = await ask_about(questions, question, example.request, example.answer, engine)
            return _reply(said, "", EXAMPLES, number, "", question, engine)

        self.replies += await self._all("judge: known answers", known, check, engine, 2 * len(known), lambda k: k[0])

    async def _compare(self, engine: CachedEngine) -> None:
        """The judge on every two answers to a prompt, on all axes."""
        e, texts = self.evaluating, self._texts()
        names = [contender.name for contender in e.contenders]
        couples = list(combinations(names, 2)) if len(names) <= ALL_PAIRS else [(names[0], name) for name in names[1:]]
        pairs = [
            Pair(prompt, policy, against, texts[policy, HELD_OUT, prompt.id], texts[against, HELD_OUT, prompt.id])
            for prompt in e.prompts
            for against, policy in couples
            if {(policy, HELD_OUT, prompt.id), (against, HELD_OUT, prompt.id)} <= texts.keys()
        ]

        async def compare(pair: Pair) -> list[Judgement]:
            return [
                Judgement(
                    axis=axis,
                    prompt_id=pair.prompt.id,
                    tags=pair.prompt.tags,
                    policy=pair.policy,
                    against=pair.against,
                    p=soft_label(verdicts) if verdicts else 0.5,
                    verdicts=verdicts,
                    judge=engine.fingerprint,
                )
                for axis, verdicts in (await self._verdicts(pair, list(e.axes), engine)).items()
            ]

        principles = sum(len(axis.principles) for axis in e.axes.values())
        calls = 2 * principles * sum(pair.own != pair.other for pair in pairs)
        found = await self._all("judge: comparisons", pairs, compare, engine, calls, lambda p: p.prompt.id)
        self.judgements = sorted((row for rows in found for row in rows), key=lambda row: list(e.axes).index(row.axis))

    async def _verdicts(self, pair: Pair, axes: Sequence[str], engine: CachedEngine) -> dict[str, list[Verdict]]:
        """On each axis by all its principles in both orders; none of equal answers, a tie that needs no asking."""
        e = self.evaluating
        if pair.own == pair.other:
            return {axis: [] for axis in axes}
        principles = [(axis, principle) for axis in axes for principle in e.axes[axis].principles]
        asked = [principle for _, principle in principles]
        verdicts = (await judge(pair.prompt.messages, (pair.own, pair.other), asked, e.templates, engine))[0, 1]
        return {
            axis: [verdict for (of, _), verdict in zip(principles, verdicts, strict=True) if of == axis]
            for axis in axes
        }

    async def _question(self, engine: CachedEngine) -> None:
        """The judge on every single answer; an empty one has nothing to ask about."""
        e, texts = self.evaluating, self._texts()
        answered = [
            (asked, contender.name, text)
            for asked in self._asked()
            for contender in e.contenders
            if (text := texts.get((contender.name, asked.prompts, asked.prompt.id))) is not None
        ]
        self.skipped += [
            Skipped(prompt_id=asked.prompt.id, stage=f"{name}: questions", reason="the answer is empty")
            for asked, name, text in answered
            if not text
        ]
        items = [item for item in answered if item[2]]

        async def question(item: tuple[Asked, str, str]) -> list[Reply]:
            asked, name, text = item
            about = QUESTIONS[asked.prompts]
            said = await asyncio.gather(*(ask_about(e.probes.questions, q, asked.meant, text, engine) for q in about))
            return [
                _reply(found, name, asked.prompts, asked.item, asked.variant, q, engine)
                for q, found in zip(about, said, strict=True)
            ]

        calls = 2 * sum(len(QUESTIONS[asked.prompts]) for asked, _, _ in items)
        found = await self._all("judge: questions", items, question, engine, calls, lambda i: i[0].prompt.id)
        self.replies += [row for rows in found for row in rows]

    async def _follow(self, engine: CachedEngine) -> None:
        """The eval judge on what PPO sampled on its way, against the reference's answers to the same prompts."""
        e, texts = self.evaluating, self._texts()
        name = e.reference.name
        pairs = [
            (sample, Pair(Prompt(id=sample.prompt_id, messages=sample.messages), "", name, sample.text, other))
            for sample in self.samples
            if (other := texts.get((name, COURSE, sample.prompt_id))) is not None
        ]

        async def follow(item: tuple[Sampled, Pair]) -> Sampled:
            sample, pair = item
            verdicts = (await self._verdicts(pair, [OVERALL], engine))[OVERALL]
            return sample.model_copy(update={"p": soft_label(verdicts) if verdicts else 0.5, "verdicts": verdicts})

        calls = 2 * len(e.axes[OVERALL].principles) * len(pairs)
        self.samples = await self._all(f"judge: {COURSE}", pairs, follow, engine, calls, lambda i: i[0].prompt_id)

    def _texts(self) -> dict[tuple[str, str, str], str]:
        return {(a.policy, a.prompts, a.prompt_id): a.text for a in self.answers}

    async def _all(
        self,
        name: str,
        items: Sequence[Item],
        function: Callable[[Item], Awaitable[Result]],
        engine: CachedEngine,
        calls: int,
        id: Callable[[Item], str],
    ) -> list[Result]:
        """Every item's result, in order; what the engine refuses is left out as failed."""
        if not items:
            return []
        results, limit = [], self.evaluating.engine.max_in_flight
        amount = Amount(len(items), "items", calls)
        async for item, found in each_with_progress(name, items, amount, function, engine, limit, self._reporter):
            if isinstance(found, RequestRefused):
                self.skipped.append(Skipped(prompt_id=id(item), stage=name, reason=str(found), failed=True))
            else:
                results.append(found)
        self.work.append(EngineWork(engine.fingerprint, engine.work[-1]))
        return results


def _variant(view: View) -> str:
    return f"{view.kind}/{view.side}"


def _reply(said: Said, policy: str, probe: str, item: str, variant: str, question: str, engine: CachedEngine) -> Reply:
    return Reply(
        policy=policy,
        probe=probe,
        item=item,
        variant=variant,
        question=question,
        p_forward=said.forward,
        p_reverse=said.reverse,
        non_option_mass=said.non_option_mass,
        model=engine.fingerprint,
    )
