"""The feedback stage: drafts, critiques, revisions, further samples and their judgement, prompt by prompt."""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from cai.config.errors import RequestRefused
from cai.data.jsonl import RowWriter
from cai.data.records import Preference, Prompt, Revision, Skipped
from cai.feedback.judge import (
    Verdicts,
    calls,
    calls_of_revisions,
    joined,
    judge_answers,
    judge_revision,
    judged_preferences,
    label,
    ranking,
)
from cai.feedback.revise import revise, revision_preference
from cai.inference.cache import CachedEngine
from cai.inference.engine import Completion
from cai.runs.session import Session


@dataclass
class Collected:
    """What is known of one prompt so far; what is said comes from each judge by its fingerprint."""

    samples: list[str] = field(default_factory=list)
    said: list[tuple[str, Verdicts]] = field(default_factory=list)
    revised: Preference | None = None
    said_of_revision: list[tuple[str, Verdicts]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


async def collect_feedback(session: Session) -> None:
    """Write revisions.jsonl, preferences.jsonl and, of more than two samples, rankings.jsonl.

    What could not be used goes to the session's list.

    One prompt is judged while another is still being drafted. Judges that are other models read answers and revisions
    once the first model is closed, one after the other, so that never two need to fit in memory.
    """
    plan, folder = session.plan, session.plan.folder
    settings, judging, seed = plan.config.revise, plan.config.judge, plan.config.seed
    model, judges = session.engine(plan.model), [session.engine(path) for path in plan.judge_models]
    others = [engine for engine in judges if engine is not model]
    collected: dict[str, Collected] = {}

    async def sample(prompt: Prompt, number: int) -> Completion:
        return await session.respond(prompt, model, settings.max_tokens, settings.temperature, number)

    async def judge_samples(prompt: Prompt, engine: CachedEngine) -> None:
        one = collected[prompt.id]
        if one.samples:
            args = (one.samples, plan.constitution, plan.templates, engine, judging, seed)
            one.said.append((engine.fingerprint, await judge_answers(prompt, *args)))

    async def judge_revised(prompt: Prompt, engine: CachedEngine) -> None:
        one = collected[prompt.id]
        if one.revised is None or not judging.revisions:
            return
        try:
            said = await judge_revision(one.revised, plan.constitution, plan.templates, engine, judging, seed)
            one.said_of_revision.append((engine.fingerprint, said))
        except RequestRefused as refusal:  # the pair stands without its verdicts
            skip(prompt, "verdicts on revisions", str(refusal), failed=True)

    async def judge_both(prompt: Prompt, engine: CachedEngine) -> None:
        await asyncio.gather(judge_samples(prompt, engine), judge_revised(prompt, engine))

    async def sample_and_judge(prompt: Prompt, draft: Completion) -> None:
        numbers = range(1, judging.samples)  # the draft is number 0
        more = await asyncio.gather(*(sample(prompt, number) for number in numbers))
        collected[prompt.id].samples = [draft.text, *(completion.text for completion in more)]
        if model in judges:
            await judge_samples(prompt, model)

    async def revise_and_judge(prompt: Prompt, draft: Completion) -> list[Revision]:
        rows = await revise(prompt, draft, plan.constitution, plan.templates, model, settings, seed)
        pair = revision_preference(rows) if rows else None
        if isinstance(pair, str):
            skip(prompt, "revision pairs", pair)
        elif pair is not None:
            collected[prompt.id].revised = pair
            if model in judges:
                await judge_revised(prompt, model)
        return rows

    async def one_prompt(prompt: Prompt) -> list[Revision]:
        draft = await sample(prompt, 0)
        collected[prompt.id] = Collected()
        rows, judged = await asyncio.gather(
            revise_and_judge(prompt, draft),
            sample_and_judge(prompt, draft),
            return_exceptions=True,  # one may be refused and the other stand
        )
        for part, stage in ((rows, "revisions"), (judged, "judged pairs")):
            if isinstance(part, RequestRefused):
                skip(prompt, stage, str(part), failed=True)
            elif isinstance(part, BaseException):
                raise part
        return rows if isinstance(rows, list) else []

    def skip(prompt: Prompt, stage: str, reason: str, failed: bool = False) -> None:
        row = Skipped(prompt_id=prompt.id, stage=stage, reason=reason, failed=failed)
        collected[prompt.id].skipped.append(row)

    asked_of_revisions = calls_of_revisions(judging, settings.rounds)
    writing = 1 + settings.rounds * (2 if settings.critique else 1) + max(0, judging.samples - 1)
    asking = calls(judging, len(plan.constitution.principles), judging.samples) + asked_of_revisions
    with ExitStack() as files:
        revisions, preferences = (
            files.enter_context(RowWriter(path)) for path in (folder.revisions_jsonl, folder.preferences_jsonl)
        )
        rankings = files.enter_context(RowWriter(folder.rankings_jsonl)) if judging.samples > 2 else None

        def keep(prompt: Prompt) -> None:
            """The pairs of a prompt that every judge has answered, and its revision in any case."""
            one = collected[prompt.id]
            names = "+".join(engine.fingerprint for engine in judges)
            if one.revised is not None:
                complete = len(one.said_of_revision) == len(judges)
                said = {"verdicts": joined(one.said_of_revision)[0, 1], "judge": names} if complete else {}
                preferences.write(one.revised.model_copy(update=said))
            if one.samples and len(one.said) == len(judges):
                verdicts = joined(one.said)
                args = (one.samples, verdicts, model.fingerprint, names, judging, seed)
                for pair in judged_preferences(prompt, *args):
                    if isinstance(pair, Preference):
                        preferences.write(pair)
                    else:
                        skip(prompt, "judged pairs", pair)
                if rankings is not None and verdicts:
                    labels = {pair: label(found, judging) for pair, found in verdicts.items()}
                    rankings.write(ranking(prompt, one.samples, labels, model.fingerprint, names, seed))
            session.skipped += one.skipped  # prompt by prompt, whichever was finished first
            del collected[prompt.id]

        expected = writing + asking if model in judges else writing
        try:
            async for prompt, rows in session.each("feedback", plan.training, one_prompt, model, expected):
                for row in rows:
                    revisions.write(row)
                if not others:
                    keep(prompt)
        finally:
            await model.close()
        for pair in plan.preferences:
            preferences.write(pair)
        session.skipped += plan.preferences_skipped
        waiting = [prompt for prompt in plan.training if prompt.id in collected]
        for engine in others:
            try:
                ask = partial(judge_both, engine=engine)
                async for _ in session.each("judging", waiting, ask, engine, asking):
                    pass
            finally:
                await engine.close()
        for prompt in waiting if others else []:
            keep(prompt)
