"""The feedback stage: drafts, critiques, revisions, further samples and their judgement, prompt by prompt."""

import asyncio
import math

from cai.engines.base import Completion
from cai.errors import RequestRefused
from cai.feedback.judge import judged_preferences
from cai.feedback.revise import revise, revision_preference
from cai.formats.jsonl import RowWriter
from cai.records import LeftOut, Preference, Prompt, Revision
from cai.runs.session import Session

Labelled = list[Preference | str]  # a pair, or why there is none


async def collect_feedback(session: Session) -> None:
    """Write revisions.jsonl and preferences.jsonl; what could not be used goes to the session's list.

    One prompt is judged while another is still being drafted, unless the judge is another model: then it reads
    the samples once the first model is closed, so that both need not fit in memory.
    """
    plan, folder = session.plan, session.plan.folder
    settings, seed = plan.config.revise, plan.config.seed
    model, judge = session.engine(plan.model), session.engine(plan.judge_model)
    samples_of: dict[str, list[Completion]] = {}

    async def sample(prompt: Prompt, number: int) -> Completion:
        return await session.respond(prompt, model, settings.max_tokens, settings.temperature, number)

    async def label(prompt: Prompt) -> Labelled:
        samples = samples_of.pop(prompt.id)
        args = (plan.constitution, plan.templates, judge, plan.config.judge, seed)
        return await judged_preferences(prompt, samples, model.fingerprint, *args)

    async def sample_and_label(prompt: Prompt, draft: Completion) -> Labelled:
        numbers = range(1, plan.config.judge.samples)  # the draft is number 0
        samples_of[prompt.id] = [draft, *await asyncio.gather(*(sample(prompt, number) for number in numbers))]
        return await label(prompt) if judge is model else []

    async def one_prompt(prompt: Prompt) -> tuple[list[Revision], Labelled, list[LeftOut]]:
        draft = await sample(prompt, 0)
        rows, labelled = await asyncio.gather(
            revise(prompt, draft, plan.constitution, plan.templates, model, settings, seed),
            sample_and_label(prompt, draft),
            return_exceptions=True,  # one may be refused and the other stand
        )
        refused = []
        for part, stage in ((rows, "revisions"), (labelled, "judged pairs")):
            if isinstance(part, RequestRefused):
                refused.append(LeftOut(prompt_id=prompt.id, stage=stage, reason=str(part), failed=True))
            elif isinstance(part, BaseException):
                raise part
        return rows if isinstance(rows, list) else [], labelled if isinstance(labelled, list) else [], refused

    writing = 1 + settings.rounds * (2 if settings.critique else 1) + max(0, plan.config.judge.samples - 1)
    asked_of = min(plan.config.judge.principles, len(plan.constitution.principles))
    judging = 2 * asked_of * math.comb(plan.config.judge.samples, 2)
    with RowWriter(folder.revisions_jsonl) as revisions, RowWriter(folder.preferences_jsonl) as preferences:

        def keep(prompt: Prompt, labelled: Labelled, stage: str) -> None:
            for pair in labelled:
                if isinstance(pair, Preference):
                    preferences.write(pair)
                else:
                    session.left_out.append(LeftOut(prompt_id=prompt.id, stage=stage, reason=pair))

        calls = writing + judging if judge is model else writing
        try:
            async for prompt, result in session.each("feedback", plan.training, one_prompt, model, calls):
                rows, labelled, refused = result
                session.left_out += refused
                for row in rows:
                    revisions.write(row)
                keep(prompt, [revision_preference(rows)] if rows else [], "revision pairs")
                keep(prompt, labelled, "judged pairs")
        finally:
            await model.close()
        for pair in plan.human:
            preferences.write(pair)
        session.left_out += plan.human_left_out
        if judge is not model:
            waiting = [prompt for prompt in plan.training if prompt.id in samples_of]
            try:
                async for prompt, labelled in session.each("judging", waiting, label, judge, judging):
                    keep(prompt, labelled, "judged pairs")
            finally:
                await judge.close()
