"""The AI judge: which of two answers a principle prefers, as a probability (Bai et al. 2022, §4.1).

The judge reads the conversation and both answers and its next token is the verdict: the log-probabilities of the two
letters, renormalised. Both orders are asked and averaged, since small judges lean to a position (Lee et al. 2023,
§2.2). The label stays soft. Simplified against the paper: no chain of thought.
"""

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cai.config import Section
from cai.constitution import Constitution, Principle, assign
from cai.engines.base import Choose, Completion, Engine
from cai.records import Messages, Preference, Prompt, Verdict
from cai.templates import Templates

LETTERS = ("A", "B")


class JudgeConfig(Section):
    """`judge:` in a run file: samples for each prompt (0: none), principles for each pair, the judge's model."""

    samples: Annotated[int, Field(ge=0)] = 2
    principles: Annotated[int, Field(ge=1)] = 4
    model: str | None = None  # None: the run's own


async def compare(
    conversation: Messages,
    first: str,
    second: str,
    principles: Sequence[Principle],
    templates: Templates,
    engine: Engine,
) -> list[Verdict]:
    """One verdict a principle, P(first is better) in each order: 2 calls a principle, which share their prefixes."""

    async def ask(principle: Principle, a: str, b: str) -> tuple[float, float]:
        messages = templates.judge(principle, conversation, dict(zip(LETTERS, (a, b), strict=True)))
        logprobs = await engine.choose(Choose(messages, tuple(f" {letter}" for letter in LETTERS)))
        p_a, p_b = (math.exp(x) for x in logprobs)
        inside = p_a + p_b
        share = p_a / inside if inside > 0 else 0.5  # both letters impossible: no opinion
        return share, min(1.0, max(0.0, 1.0 - inside))

    async def verdict(principle: Principle) -> Verdict:
        (forward, outside_1), (reverse, outside_2) = await asyncio.gather(
            ask(principle, first, second), ask(principle, second, first)
        )
        return Verdict(
            principle_id=principle.id,
            principle_hash=principle.fingerprint,
            p_forward=forward,
            p_reverse=1.0 - reverse,
            outside=(outside_1 + outside_2) / 2,
        )

    return list(await asyncio.gather(*(verdict(principle) for principle in principles)))


def soft_label(verdicts: Sequence[Verdict]) -> float:
    """P(first is better): the mean over principles and both orders, in [0, 1]."""
    return sum(v.p for v in verdicts) / len(verdicts)


async def judged_preferences(
    prompt: Prompt,
    samples: Sequence[Completion],
    model: str,
    constitution: Constitution,
    templates: Templates,
    judge: Engine,
    settings: JudgeConfig,
    seed: int,
) -> list[Preference | str]:
    """Each pair of samples as a preference, the likelier answer as `chosen`, or the reason why there is none."""
    principles = assign(constitution, seed, prompt.id, "judge", settings.principles)

    async def label(first: str, second: str) -> Preference | str:
        if not first or not second:
            return "a sample is empty"
        if first == second:
            return "samples identical"
        verdicts = await compare(prompt.messages, first, second, principles, templates, judge)
        p = soft_label(verdicts)
        swap = p < 0.5
        return Preference(
            prompt_id=prompt.id,
            messages=prompt.messages,
            tags=prompt.tags,
            chosen=second if swap else first,
            rejected=first if swap else second,
            p=1.0 - p if swap else p,
            source="judge",
            verdicts=[_swapped(v) for v in verdicts] if swap else verdicts,
            model=model,
            judge=judge.fingerprint,
            seeds=[seed],
        )

    pairs = itertools.combinations([sample.text for sample in samples], 2)
    return list(await asyncio.gather(*(label(first, second) for first, second in pairs)))


def _swapped(verdict: Verdict) -> Verdict:
    """The same verdict said of the other answer: P(other) in each order."""
    swapped = {"p_forward": 1.0 - verdict.p_reverse, "p_reverse": 1.0 - verdict.p_forward}
    return verdict.model_copy(update=swapped)
