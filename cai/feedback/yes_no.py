"""Questions of Yes or No, by log-probabilities: whether a principle applies, tells answers apart, a critique finds."""

import asyncio
import math
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from cai.config.errors import RequestRefused
from cai.constitution.principles import Constitution, Principle, applying, questions
from cai.constitution.templates import Templates
from cai.data.records import Applicability, Messages, Prompt
from cai.inference.engine import Choose, Engine
from cai.stats.logistic import sigmoid

OPTIONS = (" Yes", " No")
MIN_LOG_PROB = -30.0  # nats: log-probabilities below it carry no more information


class NothingApplies(RequestRefused):
    """No principle applies to a prompt: it is skipped, and counted with this reason."""

    def __init__(self) -> None:
        super().__init__("no principle applies to the prompt", retryable=False)


class YesNo(NamedTuple):
    """An answer: `p` is P(Yes) against No, in [0, 1]."""

    p: float
    non_option_mass: float


async def check_critique(
    principle: Principle, prompt: str, response: str, critique: str, templates: Templates, engine: Engine
) -> YesNo:
    """Ask whether the critique of `response` by a principle points out a problem in it: one call."""
    messages = templates.critique_check(principle, prompt, response, critique)
    return await _ask(Choose(messages, OPTIONS, "critique_check"), engine)


async def ask_at_issue(
    principle: Principle, conversation: Messages, answers: Sequence[str], templates: Templates, engine: Engine
) -> YesNo:
    """Ask whether a principle tells the answers apart: one call.

    It shows the answers sorted by their texts, so that the reply does not depend on the order they come in.
    """
    shown = dict(zip(ascii_uppercase, sorted(answers), strict=False))
    messages, session = templates.verify(principle, conversation, shown), conversation[0]["content"]
    return await _ask(Choose(messages, OPTIONS, "verify", session), engine)


async def ask_applicability(
    constitution: Constitution, prompt: Prompt, templates: Templates, engine: Engine
) -> list[Applicability]:
    """The answers to the distinct questions under `applies_to` that matter for the prompt: one call each."""
    asked, session = questions(constitution, prompt.tags), prompt.messages[0]["content"]
    answers = await asyncio.gather(
        *(_ask(Choose(templates.applies(one, prompt.messages), OPTIONS, "applies", session), engine) for one in asked)
    )
    return [
        Applicability(
            prompt_id=prompt.id, question=question, p=p, non_option_mass=non_option_mass, model=engine.fingerprint
        )
        for question, (p, non_option_mass) in zip(asked, answers, strict=True)
    ]


def applying_to(constitution: Constitution, prompt: Prompt, answers: list[Applicability]) -> Constitution:
    """The principles that apply to the prompt. Raises: NothingApplies where none of them does."""
    found = applying(constitution, prompt.tags, {answer.question: answer.p for answer in answers})
    if not found.principles:
        raise NothingApplies
    return found


async def ask_applying(
    constitution: Constitution, prompt: Prompt, templates: Templates, engine: Engine
) -> Constitution:
    """`applying_to` after `ask_applicability`."""
    return applying_to(constitution, prompt, await ask_applicability(constitution, prompt, templates, engine))


async def _ask(request: Choose, engine: Engine) -> YesNo:
    yes, no = (max(logp, MIN_LOG_PROB) for logp in await engine.choose(request))
    return YesNo(sigmoid(yes - no), min(1.0, max(0.0, 1.0 - math.exp(yes) - math.exp(no))))
