import asyncio

import pytest
from pydantic import ValidationError

from cai.constitution.principles import Constitution, assign
from cai.constitution.templates import Templates
from cai.data.records import Message, Preference, Prompt, Revision, Skipped
from cai.feedback.revise import ReviseConfig, Reviser, calls_of_loop, revision_preference
from cai.inference.engine import Choose, Completion, Generate, ScriptedEngine
from cai.training.sft import fit_revisions
from tests.conftest import ROOT, prompt

DRAFT = Completion("the draft", "length", 3, 2)


def run(
    p: Prompt, harmless: Constitution, templates: Templates, **settings: object
) -> tuple[list[Revision], ScriptedEngine]:
    engine = ScriptedEngine(answer=lambda request: f"answer {len(request.messages)} {request.seed}")
    config = ReviseConfig.model_validate(settings)
    return asyncio.run(Reviser(templates, engine, config, seed=7).rounds(p, DRAFT, harmless)), engine


def test_each_round_criticises_then_revises_and_starts_from_the_last_revision(
    harmless: Constitution, templates: Templates
) -> None:
    rows, engine = run(prompt(), harmless, templates, rounds=3)
    assert [row.round for row in rows] == [1, 2, 3]
    assert [row.before for row in rows] == ["the draft", rows[0].revision, rows[1].revision]
    assert all(row.draft == "the draft" for row in rows)
    assert len(engine.requests) == 6
    critique, revision = engine.requests[2:4]
    assert [m["role"] for m in critique.messages] == ["user", "assistant", "user"]
    assert critique.messages[1]["content"] == rows[0].revision
    assert rows[1].critique is not None
    assert revision.messages[: len(critique.messages)] == critique.messages  # a growing conversation shares its prefix
    assert revision.messages[-2]["content"] == rows[1].critique


def test_each_row_names_the_principle_it_was_asked_by(harmless: Constitution, templates: Templates) -> None:
    rows, engine = run(prompt(), harmless, templates, rounds=2)
    for row, request in zip(rows, engine.requests[::2], strict=True):
        principle = assign(harmless, 7, "p1", f"round {row.round}")[0]
        assert (row.principle_id, row.principle_hash) == (principle.id, principle.fingerprint)
        assert principle.critique in request.messages[-1]["content"]
        assert (row.model, row.templates, row.seed) == ("scripted", templates.fingerprint, 7)


def test_without_critique_a_round_is_one_call(harmless: Constitution, templates: Templates) -> None:
    rows, engine = run(prompt(), harmless, templates, rounds=2, critique=False)
    assert len(engine.requests) == 2
    assert [row.critique for row in rows] == [None, None]


def test_seeds_differ_by_step_round_and_prompt_and_repeat_in_a_second_run(
    harmless: Constitution, templates: Templates
) -> None:
    first, again, other = (run(prompt(i), harmless, templates, rounds=2)[1].requests for i in ("a", "a", "b"))
    seeds = [request.seed for request in [*first, *other] if isinstance(request, Generate)]
    assert len(set(seeds)) == 8
    assert first == again


def test_earlier_turns_stay_in_the_conversation(harmless: Constitution, templates: Templates) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Tell me about eggs.")]
    p = Prompt(id="m", messages=[Message(role=r, content=c) for r, c in turns])  # type: ignore[typeddict-item]
    rows, engine = run(p, harmless, templates, rounds=1)
    assert engine.requests[0].messages[:3] == p.messages
    assert "Tell me about eggs." in engine.requests[1].messages[-1]["content"]
    assert rows[0].messages == p.messages


def test_truncated_texts_are_flagged(harmless: Constitution, templates: Templates) -> None:
    rows, _ = run(prompt(), harmless, templates, rounds=1, max_tokens=2)
    assert rows[0].truncated == ["draft", "critique", "revision"]


def test_the_pair_prefers_the_last_revision_to_the_draft(harmless: Constitution, templates: Templates) -> None:
    rows, _ = run(prompt(), harmless, templates, rounds=2)
    pair = revision_preference(rows)
    assert isinstance(pair, Preference)
    assert (pair.chosen, pair.rejected, pair.p, pair.source) == (rows[1].revision, "the draft", 1.0, "revision")
    assert pair.principle_ids == [row.principle_id for row in rows]


def test_a_filtered_revision_makes_no_pair_and_has_a_reason(harmless: Constitution, templates: Templates) -> None:
    rows, _ = run(prompt(), harmless, templates, rounds=2)
    unchanged = rows[1].model_copy(update={"revision": "The draft."})
    copied = rows[1].model_copy(update={"flags": ["copied_critique"]})
    for row, reason in ((unchanged, "revision unchanged"), (copied, "revision copied critique")):
        skipped = revision_preference([rows[0], row])
        assert skipped == Skipped(prompt_id="p1", stage="revision pairs", reason=reason)


def finding(ps: tuple[float, ...], harmless: Constitution, **settings: object) -> tuple[list[Revision], ScriptedEngine]:
    """Rounds of a run that revises where P(the critique points out a problem) is high enough, as `ps` has it by round."""
    asked = iter(ps)

    def weigh(_: Choose) -> tuple[float, float]:
        p = next(asked)
        return p, 1 - p

    engine = ScriptedEngine("m", lambda r: f"text {len(r.messages)} {r.seed}", weigh)
    config = ReviseConfig.model_validate({"when": "finds", "rounds": len(ps), **settings})
    reviser = Reviser(Templates(ROOT / "prompts/default", config.templates_needed), engine, config, 7)

    async def work() -> list[Revision]:
        return await reviser.rounds(prompt(), await reviser.respond(prompt()), harmless)

    return asyncio.run(work()), engine


def test_an_answer_stays_where_the_critique_finds_no_problem(harmless: Constitution) -> None:
    rows, engine = finding((0.4, 0.5, 0.2), harmless)
    assert [(row.stays, row.problem) for row in rows] == [
        (True, pytest.approx(0.4)), (False, pytest.approx(0.5)), (True, pytest.approx(0.2)),
    ]  # fmt: skip
    first, second, third = rows
    assert first.revision == first.before == first.draft == second.before
    assert second.revision != second.before and third.revision == third.before == second.revision
    steps = [request.step for request in engine.requests]
    assert steps == ["answer", *["critique", "critique_check"] * 2, "revision", "critique", "critique_check"]
    pair = revision_preference(rows)
    assert isinstance(pair, Preference)
    assert (pair.chosen, pair.rejected, pair.principle_ids) == (second.revision, first.draft, [second.principle_id])
    # the same text is learnt once, whether all rounds count or the last
    assert [row.completion for row in fit_revisions(rows, "all")] == [first.draft, second.revision]
    assert [row.completion for row in fit_revisions(rows, "last")] == [second.revision]


def test_answers_without_a_problem_make_no_pair_and_are_counted(harmless: Constitution) -> None:
    rows, engine = finding((0.69, 0.1), harmless, threshold=0.7)
    assert not any(request.step == "revision" for request in engine.requests)
    assert calls_of_loop(ReviseConfig(when="finds", rounds=2)) == 6
    skipped = revision_preference(rows)
    assert isinstance(skipped, Skipped)
    assert (skipped.stage, skipped.reason) == ("revision pairs", "found nothing to revise")


def test_a_flag_of_a_text_goes_with_it_where_it_stays(harmless: Constitution) -> None:
    def weigh(request: Choose) -> tuple[float, float]:
        return (0.9, 0.1) if len(engine.requests) < 4 else (0.1, 0.9)

    engine = ScriptedEngine("m", lambda r: "" if r.step == "revision" else "text", weigh)
    config = ReviseConfig(when="finds", rounds=2)
    reviser = Reviser(Templates(ROOT / "prompts/default", config.templates_needed), engine, config, 7)

    async def work() -> list[Revision]:
        return await reviser.rounds(prompt(), await reviser.respond(prompt()), harmless)

    rows = asyncio.run(work())
    assert [(row.stays, row.flags) for row in rows] == [(False, ["empty"]), (True, ["empty"])]


def test_a_draft_that_loops_and_stays_is_not_learnt(harmless: Constitution) -> None:
    engine = ScriptedEngine(
        "m", lambda r: "on and on and on and on" if r.step == "answer" else "text", lambda _: (0.1, 0.9)
    )
    config = ReviseConfig(when="finds", rounds=1)
    reviser = Reviser(Templates(ROOT / "prompts/default", config.templates_needed), engine, config, 7)

    async def work() -> list[Revision]:
        return await reviser.rounds(prompt(), await reviser.respond(prompt()), harmless)

    rows = asyncio.run(work())
    assert [(row.stays, row.flags) for row in rows] == [(True, ["repeats_itself"])]
    assert fit_revisions(rows, "all") == []


def test_revising_where_a_problem_is_found_needs_critiques() -> None:
    with pytest.raises(ValidationError, match="`finds` needs critiques, and `critique` is false"):
        ReviseConfig(when="finds", critique=False)


@pytest.mark.parametrize(("keep", "flags"), [(False, ["truncated"]), (True, [])])
def test_a_truncated_draft_that_stays_is_not_learnt_unless_the_run_keeps_such(
    harmless: Constitution, keep: bool, flags: list[str]
) -> None:
    rows, _ = finding((0.1,), harmless, max_tokens=2, keep_truncated=keep)
    assert [(row.stays, row.flags) for row in rows] == [(True, flags)]
    assert len(fit_revisions(rows, "all")) == keep
