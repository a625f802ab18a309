"""The feedback stage: drafts, critiques, revisions, further samples and their judgement, prompt by prompt."""

import asyncio
from contextlib import ExitStack
from functools import partial

from cai.engines.base import Completion
from cai.engines.memo import RememberingEngine
from cai.errors import RequestRefused
from cai.feedback.judge import Verdicts, calls, joined, judge_answers, judged_preferences, label
from cai.feedback.ranking import ranking
from cai.feedback.revise import revise, revision_preference
from cai.formats.jsonl import RowWriter
from cai.records import LeftOut, Preference, Prompt, Revision
from cai.runs.session import Session


async def collect_feedback(session: Session) -> None:
    """Write revisions.jsonl, preferences.jsonl and, of more than two samples, rankings.jsonl.

    What could not be used goes to the session's list.

    One prompt is judged while another is still being drafted. Judges that are other models read the samples once
    the first model is closed, one after the other, so that never two need to fit in memory.
    """
    plan, folder = session.plan, session.plan.folder
    settings, judging, seed = plan.config.revise, plan.config.judge, plan.config.seed
    model, judges = session.engine(plan.model), [session.engine(path) for path in plan.judge_models]
    others = [engine for engine in judges if engine is not model]
    samples_of: dict[str, list[str]] = {}
    said_of: dict[str, list[tuple[str, Verdicts]]] = {}

    async def sample(prompt: Prompt, number: int) -> Completion:
        return await session.respond(prompt, model, settings.max_tokens, settings.temperature, number)

    async def ask(prompt: Prompt, engine: RememberingEngine) -> None:
        args = (samples_of[prompt.id], plan.constitution, plan.templates, engine, judging, seed)
        said_of.setdefault(prompt.id, []).append((engine.fingerprint, await judge_answers(prompt, *args)))

    async def sample_and_judge(prompt: Prompt, draft: Completion) -> None:
        numbers = range(1, judging.samples)  # the draft is number 0
        more = await asyncio.gather(*(sample(prompt, number) for number in numbers))
        samples_of[prompt.id] = [draft.text, *(completion.text for completion in more)]
        if model in judges:
            await ask(prompt, model)

    async def one_prompt(prompt: Prompt) -> tuple[list[Revision], list[LeftOut]]:
        draft = await sample(prompt, 0)
        rows, judged = await asyncio.gather(
            revise(prompt, draft, plan.constitution, plan.templates, model, settings, seed),
            sample_and_judge(prompt, draft),
            return_exceptions=True,  # one may be refused and the other stand
        )
        refused = []
        for part, stage in ((rows, "revisions"), (judged, "judged pairs")):
            if isinstance(part, RequestRefused):
                refused.append(LeftOut(prompt_id=prompt.id, stage=stage, reason=str(part), failed=True))
            elif isinstance(part, BaseException):
                raise part
        return rows if isinstance(rows, list) else [], refused

    writing = 1 + settings.rounds * (2 if settings.critique else 1) + max(0, judging.samples - 1)
    asking = calls(judging, len(plan.constitution.principles), judging.samples)
    with ExitStack() as files:
        revisions, preferences = (
            files.enter_context(RowWriter(path)) for path in (folder.revisions_jsonl, folder.preferences_jsonl)
        )
        rankings = files.enter_context(RowWriter(folder.rankings_jsonl)) if judging.samples > 2 else None

        def keep(prompt: Prompt, pairs: list[Preference | str], stage: str) -> None:
            for pair in pairs:
                if isinstance(pair, Preference):
                    preferences.write(pair)
                else:
                    session.left_out.append(LeftOut(prompt_id=prompt.id, stage=stage, reason=pair))

        def keep_judged(prompt: Prompt) -> None:
            """The pairs of a prompt that every judge has answered."""
            said = said_of.pop(prompt.id, [])
            if len(said) == len(judges):
                samples, verdicts, names = samples_of.pop(prompt.id), joined(said), "+".join(name for name, _ in said)
                args = (samples, verdicts, model.fingerprint, names, judging, seed)
                keep(prompt, judged_preferences(prompt, *args), "judged pairs")
                if rankings is not None and verdicts:
                    labels = {pair: label(found, judging) for pair, found in verdicts.items()}
                    rankings.write(ranking(prompt, samples, labels, model.fingerprint, names, seed))

        expected = writing + asking if model in judges else writing
        try:
            async for prompt, (rows, refused) in session.each("feedback", plan.training, one_prompt, model, expected):
                session.left_out += refused
                for row in rows:
                    revisions.write(row)
                keep(prompt, [revision_preference(rows)] if rows else [], "revision pairs")
                if not others:
                    keep_judged(prompt)
        finally:
            await model.close()
        for pair in plan.human:
            preferences.write(pair)
        session.left_out += plan.human_left_out
        for engine in others:
            waiting = [prompt for prompt in plan.training if prompt.id in samples_of]
            try:
                async for _ in session.each("judging", waiting, partial(ask, engine=engine), engine, asking):
                    pass
            finally:
                await engine.close()
        if others:
            for prompt in plan.training:
                keep_judged(prompt)
