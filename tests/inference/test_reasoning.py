"""A chain of thought is taken off a text, kept beside it, and read by nothing that judges, filters or trains."""

import asyncio
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.cli import show
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.records import Message, Revision
from cai.feedback.judge import Judge, JudgeConfig
from cai.feedback.revise import ReviseConfig, Reviser, revision_preference
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import (
    Completion,
    Generate,
    ScriptedEngine,
    UnusableAnswer,
    split_reasoning,
    validate_completion,
)
from cai.inference.vllm import VllmEngine
from cai.report.examples import revision_blocks
from cai.report.table import Detail
from tests.conftest import prompt
from tests.inference.models_of_families import FAMILIES

QUESTION = [Message(role="user", content="What closes a thought? <think>")]
MENTIONS = "The tag `<think>` opens it, and </think> closes it.\n</think>\nSo it goes."


@pytest.mark.parametrize(
    ("written", "opened", "expected"),
    [
        ("<think>\nhm\n</think>\n\nFour.", False, ("Four.", "hm")),
        ("  <think>hm</think>Four.", False, ("Four.", "hm")),
        ("<think>\n\n</think>\n\nFour.", False, ("Four.", None)),
        ("<think>\nhm, it may", False, ("", "hm, it may")),
        ("<think>", False, ("", None)),
        ("hm\n</think>\n\nFour.", True, ("Four.", "hm")),
        ("hm, it may", True, ("", "hm, it may")),
        ("hm\n</think>\n\nFour. </think> Five.", True, ("Four. </think> Five.", "hm")),
        ("Four.", False, ("Four.", None)),
        (MENTIONS, False, (MENTIONS, None)),
        (MENTIONS, None, (MENTIONS, None)),
        ("Four </think> five.", None, ("Four </think> five.", None)),
        ("hm\n</think>\n\nFour.", None, ("Four.", "hm")),
        ("hm\n</think>\n\nFour.", False, ("hm\n</think>\n\nFour.", None)),
    ],
)
def test_a_thought_stands_before_the_text(written: str, opened: bool | None, expected: tuple[str, str | None]) -> None:
    assert split_reasoning(written, opened) == expected


@given(st.text(), st.sampled_from([False, None]))
def test_a_text_without_a_closing_or_an_opening_tag_stays(text: str, opened: bool | None) -> None:
    assert split_reasoning(f"a{text}".replace("</think>", ""), opened) == (
        f"a{text}".replace("</think>", "").strip(),
        None,
    )


def answered(tokenizer: Any, written: str, finish: str = "stop", messages: Any = None) -> Completion:
    engine = object.__new__(VllmEngine)
    engine._tokenizer, engine._limit = tokenizer, 10_000
    request = Generate(messages or QUESTION, 8, 1.0, 0)
    sample = SimpleNamespace(text=written, finish_reason=finish, token_ids=[1, 2])
    output = SimpleNamespace(outputs=[sample], prompt_token_ids=engine._tokens(request))
    completion = engine._answer(request, output)
    assert isinstance(completion, Completion)
    return completion


def test_a_thought_that_the_template_opened_is_taken_off() -> None:
    tokenizer = FAMILIES["qwen3"].make()
    assert answered(tokenizer, "hm</think>Four.").reasoning is None
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\\n' }}\n    {%- if enable", "assistant\\n<think>\\n' }}\n    {%- if enable"
    )
    completion = answered(tokenizer, "hm</think>Four.")
    assert (completion.text, completion.reasoning) == ("Four.", "hm")
    completion = answered(tokenizer, "hm, it may", "length")
    assert (completion.text, completion.finish, completion.reasoning) == ("", "length", "hm, it may")
    begun = [*QUESTION, Message(role="assistant", content="It is <think>")]
    assert answered(tokenizer, "and </think>.", messages=begun).text == "and </think>."


class Thinking(ScriptedEngine):
    """Thinks before each text."""

    async def generate(self, request: Generate) -> Completion:
        completion = await super().generate(request)
        return Completion(completion.text, "stop", 1, 1, f"thought of {request.step}")


def test_the_cache_keeps_a_thought_and_entries_without_one_are_as_before(tmp_path: Path) -> None:
    async def ask(engine: CachedEngine) -> Completion:
        return await engine.generate(Generate(QUESTION, 8, 1.0, 0, "answer"))

    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        thinking = CachedEngine("thinking", cache, Thinking)
        assert [asyncio.run(ask(thinking)).reasoning for _ in range(2)] == ["thought of answer"] * 2
        assert thinking.tally.cache_hits == 1
        plain = CachedEngine("plain", cache, ScriptedEngine)
        assert asyncio.run(ask(plain)).reasoning is None
        key = plain._key(Generate(QUESTION, 8, 1.0, 0))
        assert set(cache.get(key)) == {"text", "finish", "prompt_tokens", "completion_tokens"}


@pytest.mark.parametrize("reasoning", [3, "\ud800"])
def test_a_thought_that_is_no_text_is_no_answer(reasoning: Any) -> None:
    with pytest.raises(UnusableAnswer):
        validate_completion(Completion("a", "stop", 1, 1, reasoning))


def test_rows_keep_thoughts_beside_the_texts_and_no_request_has_them(
    harmless: Constitution, templates: Templates
) -> None:
    engine = Thinking("thinking", lambda request: f"{request.step} {request.seed}")
    reviser = Reviser(templates, engine, ReviseConfig(rounds=1), 0)

    async def rows() -> list[Any]:
        return list(await reviser.rounds(prompt(), await reviser.respond(prompt()), harmless))

    [row] = asyncio.run(rows())
    assert row.draft_reasoning == "thought of answer" and row.critique_reasoning == "thought of critique"
    assert row.revision_reasoning == "thought of revision"
    pair = revision_preference([row])
    assert (pair.chosen_reasoning, pair.rejected_reasoning) == ("thought of revision", "thought of answer")
    asked = json.dumps([request.messages for request in engine.requests])
    assert "thought of" not in asked
    plain = row.model_copy(update=dict.fromkeys(("draft_reasoning", "critique_reasoning", "revision_reasoning")))
    assert "reasoning" not in plain.model_dump_json()


def test_a_judge_chooses_after_its_chain_of_thought_without_what_it_thought_before(
    harmless: Constitution, templates: Templates
) -> None:
    engine = Thinking("thinking", lambda request: "The first is kinder.")
    judge = Judge(templates, engine, JudgeConfig(cot_samples=1, principles=1))
    [verdict] = asyncio.run(judge.judge_answers(prompt(), ["a", "b"], harmless))[0, 1]
    assert verdict.cot == ["The first is kinder."] * 2
    assert verdict.cot_reasoning == ["thought of chain_of_thought"] * 2
    assert "thought of" not in json.dumps([request.messages for request in engine.requests])


def test_thoughts_are_folded_on_pages_and_begin_in_the_terminal() -> None:
    row = Revision(
        prompt_id="p", messages=prompt().messages, tags=[], round=1, draft="a", before="a", principle_id="kind",
        principle_hash="h", critique=None, revision="b", truncated=[], flags=[], model="m", templates="t", seed=0,
        draft_reasoning="x" * 300,
    )  # fmt: skip
    detail = Detail(row.messages)
    revision_blocks(detail, row, "Round 1")
    content = detail.to_json()
    [folded] = [block for block in content["blocks"] if "folded" in block]
    assert folded["title"] == "Round 1: reasoning before the draft"
    assert content["texts"][folded["folded"]] == "x" * 300
    assert show._reasoning("draft", row.draft_reasoning) == [
        ("reasoning before draft  (300 characters)", "x" * 200 + "…")
    ]
    assert show._reasoning("critique", None) == []
