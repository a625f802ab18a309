"""The critique–revise loop of Constitutional AI (Bai et al. 2022, §3.1), and sampling answers to prompts.

For each round a principle is sampled, the model criticises its last answer by it, and rewrites the answer. As in the
paper, a later round starts from the last revision alone: earlier critiques are not shown again. Simplified against
the paper: demonstrations are an option (`few_shot.yaml` in a template folder, such as the shipped prompts/few-shot).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cai.config.hashing import derive_seed
from cai.config.yaml_files import OFF_IS_TEXT, Temperature, Tokens
from cai.constitution.principles import Constitution, Principle, assign
from cai.constitution.templates import OF_RUNS, Templates
from cai.data.filters import failed_filters, repeats_itself
from cai.data.records import Message, Messages, Preference, Probability, Prompt, Revision, Skipped
from cai.feedback.yes_no import check_critique
from cai.inference.engine import Completion, Engine, EngineConfig, Generation

NOTHING_TO_REVISE = "found nothing to revise"  # why a prompt has no pair, or a round no revision
REVISION_PAIRS = "revision pairs"  # the stage of a prompt whose revision makes no pair
SIDES: dict[Literal["chosen", "rejected"], str] = {"chosen": "revision", "rejected": "draft"}


class ReviseConfig(Generation):
    """`revise:` in a run file: critique and revision, and how the model is sampled for all feedback."""

    model: str | None = None
    """The model that criticises and revises, named as the run's; null: the run's own model."""
    engine: EngineConfig | None = None
    """Settings of that model's engine that differ from `engine:`."""
    rounds: Annotated[int, Field(ge=0, le=100)] = 2
    """Rounds of critique and revision; 0 makes none."""
    critique: bool = True
    """false revises directly, without a critique."""
    when: Literal["always", "finds"] = "always"
    """`finds` leaves an answer as it is where its critique finds no problem."""
    threshold: Probability = 0.5
    """P(the critique points out a problem) from which `when: finds` revises."""
    label: Annotated[Literal["judge", "certain", "off"], OFF_IS_TEXT] = "judge"
    """P(revision better) of a revision pair: the judge's, or 1 for `certain`; `off` makes no pairs, for SFT alone."""
    max_tokens: Tokens = 512
    """Maximum tokens of a draft, a sample, a critique or a revision."""
    keep_truncated: bool = False
    """Also prefer answers that are truncated at max_tokens, which teaches to stop in the middle of a sentence."""
    temperature: Temperature = 1.0
    """Sampling temperature of the same; 0 takes the likeliest token."""

    @model_validator(mode="after")
    def _finds_by_critiques(self) -> "ReviseConfig":
        if self.when == "finds" and not self.critique:
            raise ValueError("when: `finds` needs critiques, and `critique` is false; remove one of them")
        return self

    @property
    def templates_needed(self) -> tuple[str, ...]:
        """The names of the templates that work with these settings reads."""
        return (*OF_RUNS, "critique_check") if self.when == "finds" else OF_RUNS


async def respond(prompt: Prompt, engine: Engine, settings: Generation, seed: int, sample: int = 0) -> Completion:
    """Sample number `sample` of the model's answer; the same seed, prompt and number give the same sample."""
    own_seed = derive_seed(seed, prompt.id, "respond", sample)
    return await engine.generate(settings.request(prompt.messages, own_seed, "answer"))


class Reviser:
    """A model that answers prompts, criticises the answers by a principle and rewrites them.

    `critic`, if there is one, criticises and rewrites what `engine` has answered. One call a text. The seed of each
    text follows from `seed`, the prompt's id, the kind of text and its number, so that the same arguments make the same
    request.
    """

    def __init__(
        self, templates: Templates, engine: Engine, settings: ReviseConfig, seed: int, critic: Engine | None = None
    ) -> None:
        self._templates, self._engine, self._settings, self._seed = templates, engine, settings, seed
        self._critic = critic or engine

    async def respond(self, prompt: Prompt, sample: int = 0) -> Completion:
        """Sample number `sample` of the answer; the draft is number 0."""
        return await respond(prompt, self._engine, self._settings, self._seed, sample)

    async def critique(self, prompt: Prompt, answer: str, principle: Principle, round: int = 1) -> Completion:
        """A critique of the answer by a principle."""
        text = self._templates.critique(principle, round, prompt.messages[-1]["content"])
        conversation = [*self._up_to(prompt, answer), Message(role="user", content=text)]
        return await self._generate(conversation, prompt, "critique", round)

    async def revise(
        self, prompt: Prompt, answer: str, critique: str | None, principle: Principle, round: int = 1
    ) -> Completion:
        """The answer rewritten by a principle, after its critique if there is one."""
        turns = self.revision_turns(prompt, answer, critique, principle, round)
        return await self._generate(turns, prompt, "revision", round)

    def revision_turns(
        self, prompt: Prompt, answer: str, critique: str | None, principle: Principle, round: int = 1
    ) -> Messages:
        """The conversation that asks for the answer rewritten; the last user turns, one or two, are instructions."""
        request, conversation = prompt.messages[-1]["content"], self._up_to(prompt, answer)
        if critique is not None:
            question = self._templates.critique(principle, round, request)
            conversation.append(Message(role="user", content=question))
            conversation.append(Message(role="assistant", content=critique))
        instruction = self._templates.revise(principle, round, request, critique)
        conversation.append(Message(role="user", content=instruction))
        return conversation

    async def rounds(self, prompt: Prompt, draft: Completion, constitution: Constitution) -> list[Revision]:
        """One row a round, in order, each by the principle sampled for it.

        With `when: finds` the answer stays where the critique finds no problem in it: the row's `stays` says so.
        """
        rows: list[Revision] = []
        answer = draft
        flags = ["truncated"] if draft.finish == "length" and not self._settings.keep_truncated else []
        flags += ["repeats_itself"] if repeats_itself(draft.text) else []
        for round in range(1, self._settings.rounds + 1):
            principle = assign(constitution, self._seed, prompt.id, f"round {round}")[0]
            critique = await self.critique(prompt, answer.text, principle, round) if self._settings.critique else None
            critique_text = critique.text if critique else None
            problem = await self.problem(prompt, answer.text, critique_text, principle)
            stays = None if problem is None else problem < self._settings.threshold
            revision = answer
            if not stays:
                turns = self.revision_turns(prompt, answer.text, critique_text, principle, round)
                revision = await self._generate(turns, prompt, "revision", round)
                flags = self._flags(turns, answer.text, critique_text, revision)
            texts: dict[Literal["draft", "critique", "revision"], Completion | None] = {
                "draft": draft,
                "critique": critique,
                "revision": revision,
            }
            rows.append(
                Revision(
                    prompt_id=prompt.id,
                    messages=prompt.messages,
                    tags=prompt.tags,
                    round=round,
                    draft=draft.text,
                    before=answer.text,
                    principle_id=principle.id,
                    principle_hash=principle.fingerprint,
                    critique=critique_text,
                    revision=revision.text,
                    truncated=[name for name, text in texts.items() if text is not None and text.finish == "length"],
                    flags=flags,
                    model=self._engine.fingerprint,
                    reviser=self._critic.fingerprint if self._critic is not self._engine else None,
                    templates=self._templates.fingerprint,
                    seed=self._seed,
                    problem=problem,
                    stays=stays,
                    draft_reasoning=draft.reasoning,
                    critique_reasoning=critique.reasoning if critique else None,
                    revision_reasoning=revision.reasoning,
                )
            )
            answer = revision
        return rows

    def _flags(self, turns: Messages, answer: str, critique: str | None, revision: Completion) -> list[str]:
        flags = revision_flags(turns, answer, critique, revision)
        return [flag for flag in flags if flag != "truncated"] if self._settings.keep_truncated else flags

    async def problem(self, prompt: Prompt, answer: str, critique: str | None, principle: Principle) -> float | None:
        """P(the critique points out a problem), in [0, 1]; None where the settings revise in any case."""
        if self._settings.when == "always" or critique is None:
            return None
        request = prompt.messages[-1]["content"]
        return (await check_critique(principle, request, answer, critique, self._templates, self._critic)).p

    def _up_to(self, prompt: Prompt, answer: str) -> Messages:
        """The conversation up to the answer; demonstrations stand after a system message."""
        start = 1 if prompt.messages[0]["role"] == "system" else 0
        system, turns = prompt.messages[:start], prompt.messages[start:]
        demonstrations = self._templates.few_shot.revision
        return [*system, *demonstrations, *turns, Message(role="assistant", content=answer)]

    async def _generate(
        self, conversation: Messages, prompt: Prompt, step: Literal["critique", "revision"], round: int
    ) -> Completion:
        seed = derive_seed(self._seed, prompt.id, "revise" if step == "revision" else step, round)
        return await self._critic.generate(self._settings.request(conversation, seed, step))


def revision_flags(turns: Messages, answer: str, critique: str | None, revision: Completion) -> list[str]:
    """The filters that a revision of `answer` fails; `turns` as `Reviser.revision_turns` has them."""
    instructions = turns[-1:] if critique is None else turns[-3::2]
    request = turns[-2 * len(instructions) - 1]  # before the answer and what follows it
    instruction = "\n".join(turn["content"] for turn in instructions)
    return failed_filters(answer, critique, revision.text, instruction, request["content"], revision.finish == "length")


def calls_of_loop(settings: ReviseConfig) -> int:
    """How many requests the rounds of one prompt make."""
    return settings.rounds * (1 + settings.critique + (settings.when == "finds"))


def revision_preference(rows: list[Revision]) -> Preference | Skipped:
    """The pair (final revision ≻ draft) of one prompt's rounds, or why there is none: the filter that it fails.

    Rounds in which the answer stayed are not among the pair's principles.
    """
    last = rows[-1]
    if all(row.stays for row in rows):
        return Skipped(prompt_id=last.prompt_id, stage=REVISION_PAIRS, reason=NOTHING_TO_REVISE)
    failed = last.flags
    if last.before != last.draft:  # of a first round, `flags` has said so already
        failed = failed_filters(last.draft, None, last.revision) or failed
    if failed:
        reason = f"revision {failed[0].replace('_', ' ')}"
        return Skipped(prompt_id=last.prompt_id, stage=REVISION_PAIRS, reason=reason)
    return Preference(
        prompt_id=last.prompt_id,
        messages=last.messages,
        tags=last.tags,
        chosen=last.revision,
        rejected=last.draft,
        p=1.0,
        source="revision",
        truncated=[side for side, text in SIDES.items() if text in last.truncated],
        principle_ids=[row.principle_id for row in rows if not row.stays],
        model=last.model,
        seeds=[last.seed],
        chosen_reasoning=last.revision_reasoning,
        rejected_reasoning=last.draft_reasoning,
    )
