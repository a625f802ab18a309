"""The evaluation stage: held-out prompts answered before and after training, and compared by the eval judge."""

from pathlib import Path
from typing import Literal

from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.jsonl import write_rows
from cai.data.records import Comparison, Prompt
from cai.feedback.judge import judge, soft_label
from cai.inference.engine import Completion, Engine
from cai.runs.session import Session


async def assess_policy(session: Session, policy: Path) -> None:
    """Write evaluation.jsonl, a row a held-out prompt. One model is in memory at a time."""
    plan, settings = session.plan, session.plan.config.evaluate
    after, before, judging = (session.engine(folder) for folder in (policy, plan.before, plan.judge_models[0]))

    async def answers(which: str, folder: Path, prompts: list[Prompt]) -> dict[str, Completion]:
        engine = session.engine(folder)

        async def answer(prompt: Prompt) -> Completion:
            return await session.respond(prompt, engine, settings.max_tokens, settings.temperature)

        return {p.id: c async for p, c in session.each(f"answers {which}", prompts, answer, engine, 1)}

    async def compare(prompt: Prompt) -> Comparison:
        pair = (answers_before[prompt.id], answers_after[prompt.id])
        models = (before.fingerprint, after.fingerprint)
        return await eval_judge_pair(prompt, *pair, models, plan.eval_constitution, plan.templates, judging)

    try:
        answers_after = await answers("after", policy, plan.held_out)
        await after.close()
        answered = [prompt for prompt in plan.held_out if prompt.id in answers_after]
        answers_before = await answers("before", plan.before, answered)
        if judging is not before:
            await before.close()
        both = [prompt for prompt in answered if prompt.id in answers_before]
        rows = [
            row
            async for _, row in session.each(
                "eval judge", both, compare, judging, 2 * len(plan.eval_constitution.principles)
            )
        ]
    finally:
        for engine in (after, before, judging):
            await engine.close()
    write_rows(plan.folder.evaluation_jsonl, rows)


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
