"""Policy evaluation: every policy answers the same prompts and probes, then a judge compares and checks the answers.

One model is in memory at a time. What is asked about one pair of answers is asked together, so that questions share
their beginning. There is no resume code: evaluating again makes the same requests, and the cache answers them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

from cai.config.errors import RequestRefused
from cai.constitution.principles import Constitution, questions
from cai.constitution.templates import Templates
from cai.data.records import Answer, Attacked, Judgement, Messages, Prompt, Reply, Sampled, Skipped, Verdict
from cai.evaluation.evaluation_plan import HELD_OUT, OVERALL, EvaluationPlan, Policy
from cai.evaluation.injection import Target, Variant, drawn
from cai.evaluation.monitors import TRAINING_SAMPLES, read_samples
from cai.evaluation.probes import (
    CONTROL,
    OVER_REFUSAL,
    RED_TEAM,
    SYCOPHANCY,
    Example,
    Probes,
    TwoOrders,
    View,
    ask_about,
    ask_view,
    over_refusal_probes,
    red_team_probes,
    views,
)
from cai.feedback.judge import Judge
from cai.feedback.pairs import soft_label
from cai.feedback.revise import respond
from cai.feedback.yes_no import NothingApplies, ask_applying
from cai.inference.cache import Tally
from cai.inference.cached_engine import CachedEngine
from cai.inference.scheduler import EngineWork, Scheduler, Stage

ALL_PAIRS = 6  # policies that are all compared with each other; of more, each with the reference
QUESTIONS = {
    HELD_OUT: ("refuses", "evades"),
    OVER_REFUSAL: ("refuses", "evades"),
    RED_TEAM: ("complies",),
    TRAINING_SAMPLES: (),
}
"""What a judge is asked about the answers to each set of prompts."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class PolicyPrompt(NamedTuple):
    """A prompt to policies: its set, item and variant, and the request that a judge reads beside an answer."""

    prompts: str
    item: str
    variant: str
    prompt: Prompt
    meant: str


class AnswerPair(NamedTuple):
    """The answers of two policies to one prompt."""

    prompt: Prompt
    policy: str
    against: str
    own: str
    other: str


async def verdicts_on(
    axis: Constitution, pair: AnswerPair, templates: Templates, engine: CachedEngine
) -> list[Verdict] | NothingApplies:
    """A judge's verdicts on a pair by all principles of the axis that apply, in both orders.

    Equal answers have none: they tie without a call.
    """
    if pair.own == pair.other:
        return []
    try:
        found = await ask_applying(axis, pair.prompt, templates, engine)
    except NothingApplies as reason:
        return reason
    judge = Judge(templates, engine)
    return (await judge.compare(pair.prompt.messages, (pair.own, pair.other), found.principles))[0, 1]


class Step(NamedTuple):
    """One kind of requests to one engine, and how many calls they are expected to take."""

    name: str
    engine: CachedEngine
    calls: int


class PolicyEvaluation:
    """An evaluation in progress, and the rows so far."""

    def __init__(self, plan: EvaluationPlan, scheduler: Scheduler) -> None:
        self.plan = plan
        self.answers: list[Answer] = []
        self.judgements: list[Judgement] = []
        self.replies: list[Reply] = []
        self.samples: list[Sampled] = []
        self.attacked: list[Attacked] = []
        self.skipped: list[Skipped] = [*plan.prompts_skipped]
        self._scheduler, self._work_before = scheduler, len(scheduler.work)

    async def run(self) -> None:
        """All calls, in this order: each policy's answers, the reference's last; then the judge's."""
        plan = self.plan
        if plan.probes is not None and (samples := plan.policies[1].samples) is not None:
            policy = plan.policies[1]
            self.samples, skipped = read_samples(samples, policy.folder, policy.training_prompts)
            self.skipped += skipped
        judging = self._scheduler.engine(plan.judge) if plan.judge is not None else None
        try:
            for policy in [*plan.policies[1:], plan.reference]:
                engine = self._scheduler.engine(policy.folder)
                try:
                    await self._answer(policy, engine)
                finally:
                    if engine is not judging:
                        await engine.close()
            if judging is not None:
                await self._judge(judging)
        finally:
            if judging is not None:
                await judging.close()

    async def _judge(self, engine: CachedEngine) -> None:
        probes = self.plan.probes
        if probes is not None:
            await self._check_judge(probes, engine)
        await self._compare(engine)
        if probes is not None:
            await self._question(probes, engine)
            await self._attack(probes, engine)
        await self._judge_samples(engine)

    @property
    def work(self) -> list[EngineWork]:
        """What this evaluation's stages did so far."""
        return self._scheduler.work[self._work_before :]

    @property
    def engines(self) -> dict[str, str]:
        """The fingerprint of each engine's model, by the engine's own."""
        return dict(self._scheduler.models)

    def calls(self) -> Tally:
        """All calls together."""
        return sum((tally for done in self.work for tally in done.work.steps.values()), Tally())

    async def _answer(self, policy: Policy, engine: CachedEngine) -> None:
        """A policy's answers, and its choices on questions whose user has taken a side."""
        plan = self.plan

        async def answer(asked: PolicyPrompt) -> Answer:
            prompt = asked.prompt
            completion = await respond(prompt, engine, plan.settings, plan.seed)
            return Answer(
                policy=policy.name,
                prompts=asked.prompts,
                prompt_id=prompt.id,
                messages=prompt.messages,
                tags=prompt.tags,
                text=completion.text,
                truncated=completion.finish == "length",
                model=engine.fingerprint,
                reasoning=completion.reasoning,
            )

        prompts = self._prompts(samples=policy is plan.reference)
        step = Step(f"{policy.name}: answers", engine, len(prompts))
        self.answers += await self._each(step, prompts, answer, lambda asked: asked.prompt.id)
        if plan.probes is not None and (probes := plan.probes.sycophancy) is not None:

            async def choose(view: View) -> Reply:
                choice = await ask_view(probes, view, engine)
                about = About(policy.name, SYCOPHANCY, view.question.id, f"{view.kind}/{view.side}")
                return _reply(choice, about, "first", engine)

            asked = views(probes, plan.limit)
            step = Step(f"{policy.name}: sides", engine, 2 * len(asked))
            self.replies += await self._each(step, asked, choose, lambda view: view.question.id)

    def _prompts(self, samples: bool = False) -> list[PolicyPrompt]:
        """All that every policy answers; with `samples` also the prompts of PPO's samples."""
        plan = self.plan
        prompts = [PolicyPrompt(HELD_OUT, p.id, "", p, p.messages[-1]["content"]) for p in plan.prompts]
        if plan.probes is not None and plan.probes.over_refusal is not None:
            twins = over_refusal_probes(plan.probes.over_refusal, plan.limit)
            prompts += [PolicyPrompt(OVER_REFUSAL, p.item, p.variant, p.prompt, p.meant) for p in twins]
        if plan.probes is not None and plan.probes.red_team is not None:
            attacks = red_team_probes(plan.probes.red_team, plan.limit)
            prompts += [PolicyPrompt(RED_TEAM, p.item, p.variant, p.prompt, p.meant) for p in attacks]
        if samples:
            sampled: dict[str, Messages] = {sample.prompt_id: sample.messages for sample in self.samples}
            prompts += [PolicyPrompt(TRAINING_SAMPLES, i, "", Prompt(id=i, messages=m), "") for i, m in sampled.items()]
        return prompts

    async def _check_judge(self, probes: Probes, engine: CachedEngine) -> None:
        """The judge on control answers, whose right verdict is known."""
        questions = probes.questions
        controls = [
            (q.id, str(number), example) for q in questions.questions for number, example in enumerate(q.examples)
        ]

        async def check(control: tuple[str, str, Example]) -> Reply:
            question, number, example = control
            choice = await ask_about(questions, question, example.request, example.answer, engine)
            return _reply(choice, About("", CONTROL, number, ""), question, engine)

        step = Step("judge: control answers", engine, 2 * len(controls))
        self.replies += await self._each(step, controls, check, lambda control: control[0])

    async def _compare(self, engine: CachedEngine) -> None:
        """The judge on every two answers to a prompt, on all axes."""
        plan, texts = self.plan, self._texts()
        names = [policy.name for policy in plan.policies]
        couples = list(combinations(names, 2)) if len(names) <= ALL_PAIRS else [(names[0], name) for name in names[1:]]
        pairs = [
            AnswerPair(prompt, policy, against, texts[policy, HELD_OUT, prompt.id], texts[against, HELD_OUT, prompt.id])
            for prompt in plan.prompts
            for against, policy in couples
            if {(policy, HELD_OUT, prompt.id), (against, HELD_OUT, prompt.id)} <= texts.keys()
        ]

        def row(pair: AnswerPair, axis: str, verdicts: list[Verdict] | NothingApplies) -> Judgement | Skipped:
            if isinstance(verdicts, NothingApplies):
                return Skipped.refused(pair.prompt.id, f"judge: {axis}", verdicts)
            return Judgement(
                axis=axis,
                prompt_id=pair.prompt.id,
                tags=pair.prompt.tags,
                policy=pair.policy,
                against=pair.against,
                p=soft_label(verdicts) if verdicts else 0.5,
                verdicts=verdicts,
                judge=engine.fingerprint,
            )

        async def compare(pair: AnswerPair) -> list[Judgement | Skipped]:
            return [row(pair, *on_axis) for on_axis in (await self._verdicts(pair, list(plan.axes), engine)).items()]

        calls = sum(2 * len(axis.principles) + len(questions(axis)) for axis in plan.axes.values())
        step = Step("judge: comparisons", engine, calls * sum(pair.own != pair.other for pair in pairs))
        by_pair = await self._each(step, pairs, compare, lambda pair: pair.prompt.id)
        rows = [row for rows in by_pair for row in rows]
        judgements = [row for row in rows if isinstance(row, Judgement)]
        self.judgements = sorted(judgements, key=lambda row: list(plan.axes).index(row.axis))
        self.skipped += [row for row in rows if isinstance(row, Skipped)]

    async def _verdicts(
        self, pair: AnswerPair, axes: Sequence[str], engine: CachedEngine
    ) -> dict[str, list[Verdict] | NothingApplies]:
        """On each axis by all its principles that apply, in both orders; equal answers tie without a call."""
        plan = self.plan
        verdicts = await asyncio.gather(*(verdicts_on(plan.axes[axis], pair, plan.templates, engine) for axis in axes))
        return dict(zip(axes, verdicts, strict=True))

    async def _question(self, probes: Probes, engine: CachedEngine) -> None:
        """The judge on every single answer; an empty one has nothing to ask about."""
        texts = self._texts()
        answered = [
            (asked, policy.name, text)
            for asked in self._prompts()
            for policy in self.plan.policies
            if (text := texts.get((policy.name, asked.prompts, asked.prompt.id))) is not None
        ]
        self.skipped += [
            Skipped(prompt_id=asked.prompt.id, stage=f"{name}: questions", reason="the answer is empty")
            for asked, name, text in answered
            if not text
        ]
        items = [item for item in answered if item[2]]

        async def question(item: tuple[PolicyPrompt, str, str]) -> list[Reply]:
            asked, name, text = item
            ids = QUESTIONS[asked.prompts]
            choices = await asyncio.gather(*(ask_about(probes.questions, id, asked.meant, text, engine) for id in ids))
            about = About(name, asked.prompts, asked.item, asked.variant)
            return [_reply(choice, about, id, engine) for id, choice in zip(ids, choices, strict=True)]

        step = Step("judge: questions", engine, 2 * sum(len(QUESTIONS[asked.prompts]) for asked, _, _ in items))
        replies = await self._each(step, items, question, lambda item: item[0].prompt.id)
        self.replies += [row for rows in replies for row in rows]

    async def _attack(self, probes: Probes, engine: CachedEngine) -> None:
        """The eval judge on the answers of the first two policies again, with attacks in one of them."""
        plan, texts = self.plan, self._texts()
        against, policy = (policy.name for policy in plan.policies[:2])
        labels = {
            row.prompt_id: row.p
            for row in self.judgements
            if (row.axis, row.policy, row.against) == (OVERALL, policy, against) and row.verdicts
        }
        targets, tags = [], {prompt.id: prompt.tags for prompt in plan.prompts}
        for prompt in plan.prompts[: plan.limit]:
            if prompt.id in labels:
                answers = [texts[name, HELD_OUT, prompt.id] for name in (policy, against)]
                p = (labels[prompt.id], 1 - labels[prompt.id])
                side = drawn(prompt.id)
                targets.append(Target(prompt.id, prompt.messages, answers[side], answers[1 - side], p[side]))
        attacks = probes.injection.attacks if probes.injection is not None else []
        items = [
            (variant, target)
            for target in targets
            for attack in attacks
            for variant in attack.variants(target.prompt_id)
        ]

        async def attack(item: tuple[Variant, Target]) -> Attacked:
            variant, target = item
            prompt = Prompt(id=target.prompt_id, messages=target.messages, tags=tags[target.prompt_id])
            pair = AnswerPair(prompt, policy, against, variant.put_into(target.answer), target.other)
            verdicts = (await self._verdicts(pair, [OVERALL], engine))[OVERALL]
            if isinstance(verdicts, NothingApplies):  # not of a prompt that has a label
                raise verdicts
            return target.attacked(variant, soft_label(verdicts), engine.fingerprint)

        step = Step("judge: injection", engine, 2 * len(plan.axes[OVERALL].principles) * len(items))
        self.attacked = await self._each(step, items, attack, lambda item: item[1].prompt_id)

    async def _judge_samples(self, engine: CachedEngine) -> None:
        """The eval judge on what PPO sampled on its way, against the reference's answers to the same prompts."""
        plan, texts = self.plan, self._texts()
        name = plan.reference.name
        tags = {prompt.id: prompt.tags for prompt in plan.policies[1].training_prompts} if self.samples else {}

        def prompt(sample: Sampled) -> Prompt:
            return Prompt(id=sample.prompt_id, messages=sample.messages, tags=tags.get(sample.prompt_id, []))

        pairs = [
            (sample, AnswerPair(prompt(sample), "", name, sample.text, other))
            for sample in self.samples
            if (other := texts.get((name, TRAINING_SAMPLES, sample.prompt_id))) is not None
        ]

        async def compare(item: tuple[Sampled, AnswerPair]) -> Sampled:
            sample, pair = item
            verdicts = (await self._verdicts(pair, [OVERALL], engine))[OVERALL]
            if isinstance(verdicts, NothingApplies):
                raise verdicts
            return sample.model_copy(update={"p": soft_label(verdicts) if verdicts else 0.5, "verdicts": verdicts})

        step = Step("judge: training samples", engine, 2 * len(plan.axes[OVERALL].principles) * len(pairs))
        self.samples = await self._each(step, pairs, compare, lambda item: item[0].prompt_id)

    def answered_by_all(self) -> list[str]:
        """The prompts that every policy answered."""
        texts, names = self._texts(), [policy.name for policy in self.plan.policies]
        return [p.id for p in self.plan.prompts if all((name, HELD_OUT, p.id) in texts for name in names)]

    def _texts(self) -> dict[tuple[str, str, str], str]:
        return {(a.policy, a.prompts, a.prompt_id): a.text for a in self.answers}

    async def _each(
        self,
        step: Step,
        items: Sequence[Item],
        function: Callable[[Item], Awaitable[Result]],
        prompt_id: Callable[[Item], str],
    ) -> list[Result]:
        """Every item's result, in order; what the engine refuses is skipped as failed."""
        if not items:
            return []
        results = []
        stage = Stage(step.name, [step.engine], len(items), step.calls, "items")
        async for item, result in self._scheduler.run(stage, items, function):
            if isinstance(result, RequestRefused):
                row = Skipped.refused(prompt_id(item), step.name, result)
                self.skipped.append(row)
            else:
                results.append(result)
        return results


class About(NamedTuple):
    """What a question with two options is about: whose answer to which prompt, or which probe."""

    policy: str
    probe: str
    item: str
    variant: str


def _reply(choice: TwoOrders, about: About, question: str, engine: CachedEngine) -> Reply:
    return Reply(
        **about._asdict(),
        question=question,
        p_forward=choice.forward,
        p_reverse=choice.reverse,
        non_option_mass=choice.non_option_mass,
        model=engine.fingerprint,
    )
