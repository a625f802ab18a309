"""Sampling a model's answers to a prompt."""

from typing import Annotated, Literal

from pydantic import Field

from cai.config.hashing import derive_seed
from cai.config.yaml_files import Section
from cai.constitution.principles import Constitution, Principle, assign
from cai.constitution.templates import Templates
from cai.data.records import Message, Messages, Preference, Prompt, Revision
from cai.feedback.filters import failed_filters
from cai.inference.engine import Completion, Engine, Generate


async def respond(
    prompt: Prompt, engine: Engine, *, seed: int, max_tokens: int, temperature: float, sample: int = 0
) -> Completion:
    """Sample number `sample` of the model's answer; the same seed, prompt and number give the same sample."""
    own_seed = derive_seed(seed, prompt.id, "respond", sample)
    return await engine.generate(Generate(prompt.messages, max_tokens, temperature, own_seed, "answer"))


# The critique–revise loop of Constitutional AI (Bai et al. 2022, §3.1).
#
# For each round a principle is drawn, the model criticises its last answer by it, and rewrites the answer. As in the
# paper, a later round starts from the last revision alone: earlier critiques are not shown again. Simplified against
# the paper: none of its few-shot demonstrations are shipped (`few_shot.yaml` in a template folder holds yours).


class ReviseConfig(Section):
    """`revise:` in a run file: critique and revision, and how the model is sampled for all feedback."""

    rounds: Annotated[int, Field(ge=0)] = 2
    """Rounds of critique and revision; 0 makes none."""
    critique: bool = True
    """false revises directly, without a critique."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of a draft, a sample, a critique or a revision."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """For the same; 0 takes the likeliest token."""


async def revise(
    prompt: Prompt,
    draft: Completion,
    constitution: Constitution,
    templates: Templates,
    engine: Engine,
    settings: ReviseConfig,
    seed: int,
) -> list[Revision]:
    """One row a round, in order; a critique costs one call and a revision one call."""
    rows: list[Revision] = []
    answer = draft.text
    for round in range(1, settings.rounds + 1):
        principle = assign(constitution, seed, prompt.id, f"round {round}")[0]
        row = await _one_round(prompt, draft, answer, round, principle, templates, engine, settings, seed)
        rows.append(row)
        answer = row.revision
    return rows


async def _one_round(
    prompt: Prompt,
    draft: Completion,
    answer: str,
    round: int,
    principle: Principle,
    templates: Templates,
    engine: Engine,
    settings: ReviseConfig,
    seed: int,
) -> Revision:
    args = (round, principle, templates, engine, settings, seed)
    critique = await criticise(prompt, answer, *args) if settings.critique else None
    critique_text = critique.text if critique else None
    revision = await rewrite(prompt, answer, critique_text, *args)

    texts: dict[Literal["draft", "critique", "revision"], Completion | None] = {
        "draft": draft,
        "critique": critique,
        "revision": revision,
    }
    return Revision(
        prompt_id=prompt.id,
        messages=prompt.messages,
        tags=prompt.tags,
        round=round,
        draft=draft.text,
        before=answer,
        principle_id=principle.id,
        principle_hash=principle.fingerprint,
        critique=critique_text,
        revision=revision.text,
        truncated=[name for name, text in texts.items() if text is not None and text.finish == "length"],
        flags=failed_filters(answer, critique_text, revision.text),
        model=engine.fingerprint,
        templates=templates.fingerprint,
        seed=seed,
    )


async def criticise(
    prompt: Prompt,
    answer: str,
    round: int,
    principle: Principle,
    templates: Templates,
    engine: Engine,
    settings: ReviseConfig,
    seed: int,
) -> Completion:
    """A model's critique of its answer by a principle: one call."""
    text = templates.critique(principle, round, prompt.messages[-1]["content"])
    conversation = [*_up_to(prompt, answer, templates), Message(role="user", content=text)]
    return await engine.generate(_request(conversation, prompt, "critique", round, settings, seed))


async def rewrite(
    prompt: Prompt,
    answer: str,
    critique: str | None,
    round: int,
    principle: Principle,
    templates: Templates,
    engine: Engine,
    settings: ReviseConfig,
    seed: int,
) -> Completion:
    """The answer rewritten by a principle, after its critique if there is one: one call."""
    request, conversation = prompt.messages[-1]["content"], _up_to(prompt, answer, templates)
    if critique is not None:
        conversation.append(Message(role="user", content=templates.critique(principle, round, request)))
        conversation.append(Message(role="assistant", content=critique))
    conversation.append(Message(role="user", content=templates.revise(principle, round, request, critique)))
    return await engine.generate(_request(conversation, prompt, "revision", round, settings, seed))


def _up_to(prompt: Prompt, answer: str, templates: Templates) -> Messages:
    """The conversation up to the answer; demonstrations stand after a system message."""
    start = 1 if prompt.messages[0]["role"] == "system" else 0
    system, turns = prompt.messages[:start], prompt.messages[start:]
    return [*system, *templates.few_shot.revision, *turns, Message(role="assistant", content=answer)]


def _request(
    conversation: Messages,
    prompt: Prompt,
    step: Literal["critique", "revision"],
    round: int,
    settings: ReviseConfig,
    seed: int,
) -> Generate:
    own_seed = derive_seed(seed, prompt.id, "revise" if step == "revision" else step, round)
    return Generate(conversation, settings.max_tokens, settings.temperature, own_seed, step)


def revision_preference(rows: list[Revision]) -> Preference | str:
    """The pair (final revision ≻ draft) of one prompt's rounds, or the reason why there is none."""
    last = rows[-1]
    unfit = failed_filters(last.draft, None, last.revision) or last.flags
    if unfit:
        return f"revision {unfit[0].replace('_', ' ')}"
    return Preference(
        prompt_id=last.prompt_id,
        messages=last.messages,
        tags=last.tags,
        chosen=last.revision,
        rejected=last.draft,
        p=1.0,
        source="revision",
        principle_ids=[row.principle_id for row in rows],
        model=last.model,
        seeds=[last.seed],
    )
