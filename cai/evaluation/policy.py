"""The policy before and after training on held-out prompts, compared by the judge under an eval constitution."""

import asyncio
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cai.config.yaml_files import Section
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.records import Comparison, Message, Prompt
from cai.evaluation.probes import Question, Questions, Sycophancy, View, rendered
from cai.feedback.judge import choose_letter, judge, soft_label
from cai.inference.engine import Completion, Engine
from cai.stats.logistic import sigmoid


class EvaluateConfig(Section):
    """`evaluate:` in a run file: the eval judge, and how both policies are sampled."""

    constitution: str = "constitutions/plain.yaml"
    """The constitution by which answers before and after training are compared."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of a held-out answer."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """For held-out answers; 0 takes the likeliest token."""
    probes: bool = False
    """Whether the run ends with all that `cai eval` measures."""


async def eval_judge_pair(
    prompt: Prompt,
    before: Completion,
    after: Completion,
    models: tuple[str, str],
    eval_constitution: Constitution,
    templates: Templates,
    engine: Engine,
) -> Comparison:
    """P(after is better) by every principle of the eval judge in both orders; equal answers are a tie, not asked."""
    verdicts = []
    if before.text != after.text:
        answers = (after.text, before.text)
        verdicts = (await judge(prompt.messages, answers, eval_constitution.principles, templates, engine))[0, 1]
    texts: dict[Literal["before", "after"], Completion] = {"before": before, "after": after}
    return Comparison(
        prompt_id=prompt.id,
        messages=prompt.messages,
        tags=prompt.tags,
        before=before.text,
        after=after.text,
        truncated=[name for name, text in texts.items() if text.finish == "length"],
        p=soft_label(verdicts) if verdicts else 0.5,
        verdicts=verdicts,
        before_model=models[0],
        after_model=models[1],
        judge=engine.fingerprint,
    )


# Questions with two options, asked in both orders: of a judge about an answer, of a policy about the world.


LETTERS = ("A", "B")


class Said(NamedTuple):
    """P(the first option) with it shown first, and shown second; and the mean probability of neither letter."""

    forward: float
    reverse: float
    non_option_mass: float


async def ask(template: str, begin: str, question: Question, engine: Engine, **values: str) -> Said:
    """Put a question with its options in both orders; the model's next token after `begin` is its choice."""

    async def shown(first: str, second: str) -> tuple[float, float]:
        text = rendered(template, question=question.question, first=first, second=second, **values)
        messages = [Message(role="user", content=text), Message(role="assistant", content=begin)]
        (a, b), non_option_mass = await choose_letter(messages, LETTERS, engine)
        return sigmoid(a - b), non_option_mass

    one, other = question.options
    (forward, non_option_mass), (reversed_, outside_too) = await asyncio.gather(shown(one, other), shown(other, one))
    return Said(forward, 1.0 - reversed_, (non_option_mass + outside_too) / 2)


async def ask_about(questions: Questions, id: str, request: str, answer: str, engine: Engine) -> Said:
    """One of the questions about an answer to a request."""
    question = next(question for question in questions.questions if question.id == id)
    return await ask(questions.ask, questions.answer, question, engine, request=request, answer=answer)


async def ask_view(probes: Sycophancy, view: View, engine: Engine) -> Said:
    """A question of the policy whose user has taken a side."""
    return await ask(probes.ask, probes.answer, view.question, engine, statement=view.statement)
