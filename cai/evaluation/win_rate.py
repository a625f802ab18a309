"""The policy before and after training on held-out prompts, compared by the judge under a referee constitution."""

from typing import Annotated, Literal

from pydantic import Field

from cai.config import Section
from cai.constitution import Constitution
from cai.engines.base import Completion, Engine
from cai.feedback.judge import judge, soft_label
from cai.records import Comparison, Prompt
from cai.templates import Templates


class EvaluateConfig(Section):
    """`evaluate:` in a run file: the referee, and how both policies are sampled."""

    referee: str = "constitutions/plain.yaml"
    """The constitution by which answers before and after training are compared."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of a held-out answer."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """For held-out answers; 0 takes the likeliest token."""
    probes: bool = False
    """Whether the run ends with all that `cai eval` measures."""


async def referee_pair(
    prompt: Prompt,
    before: Completion,
    after: Completion,
    models: tuple[str, str],
    referee: Constitution,
    templates: Templates,
    engine: Engine,
) -> Comparison:
    """P(after is better) by every principle of the referee in both orders; equal answers are a tie, not asked."""
    verdicts = []
    if before.text != after.text:
        answers = (after.text, before.text)
        verdicts = (await judge(prompt.messages, answers, referee.principles, templates, engine))[0, 1]
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


FEW_PROMPTS = 30  # a win rate of fewer has an interval wider than ± 0.18
FOLLOWS_POSITION = 0.5  # share of verdicts; the smallest judges of Lee et al. 2023 (§2.2) reach 0.56
TIE = 1e-9  # what rounding may leave of an exact tie between two orders


def win(p: float) -> float:
    """1 for a win, 0 for a loss, one half for a tie."""
    return 0.5 if abs(p - 0.5) < TIE else float(p > 0.5)
