"""Questions of Yes or No to a scripted model."""

import asyncio

import pytest

from cai.constitution.principles import Constitution, Principle
from cai.constitution.templates import Templates
from cai.feedback.yes_no import NothingApplies, applying_to, ask_applicability, ask_applying
from cai.inference.engine import Choose, ScriptedEngine
from tests.conftest import ROOT, prompt

MONEY, PILLS = "Does the message ask about money?", "Does the message ask about pills?"
TEXTS = {"critique": "c", "revision": "r", "judge": "j"}


def principle(id: str, **where: object) -> Principle:
    return Principle.model_validate({"id": id, **TEXTS, **({"applies_to": where} if where else {})})


@pytest.fixture
def asking() -> Templates:
    return Templates(ROOT / "prompts/default", ("applies",))


def says(request: Choose) -> tuple[float, float]:
    """Yes at three to one to the question about money, No at three to one to others; a tenth goes elsewhere."""
    yes, no = 0.675, 0.225
    return (yes, no) if MONEY in request.messages[-2]["content"] else (no, yes)


def test_each_distinct_question_is_asked_once_about_the_prompt(asking: Templates) -> None:
    principles = [
        principle("a", question=MONEY),
        principle("b", question=MONEY),
        principle("c", question=PILLS),
        principle("d", tags=["rare"], question="Is it rare?"),
        principle("e"),
    ]
    constitution, engine = Constitution(name="c", principles=principles), ScriptedEngine("m", weigh=says)
    rows = asyncio.run(ask_applicability(constitution, prompt(text="How do I save?"), asking, engine))
    assert [(row.question, round(row.p, 3), row.prompt_id, row.model) for row in rows] == [
        (MONEY, 0.75, "p1", "m"), (PILLS, 0.25, "p1", "m"),
    ]  # fmt: skip
    assert rows[0].non_option_mass == pytest.approx(0.1)
    first = engine.requests[0]
    assert isinstance(first, Choose) and first.step == "applies" and first.options == (" Yes", " No")
    assert "How do I save?" in first.messages[0]["content"] and first.messages[1]["content"] == "Answer:"
    assert [p.id for p in applying_to(constitution, prompt(), rows).principles] == ["a", "b", "e"]


def test_a_prompt_that_no_principle_applies_to_is_refused_for_good(asking: Templates) -> None:
    constitution = Constitution(name="c", principles=[principle("a", question=PILLS), principle("b", tags=["rare"])])
    with pytest.raises(NothingApplies, match="no principle applies to the prompt") as caught:
        asyncio.run(ask_applying(constitution, prompt(), asking, ScriptedEngine("m", weigh=says)))
    assert not caught.value.retryable


def test_a_constitution_without_conditions_asks_nothing(templates: Templates) -> None:
    constitution, engine = Constitution(name="c", principles=[principle("a")]), ScriptedEngine("m")
    assert asyncio.run(ask_applying(constitution, prompt(), templates, engine)) is constitution
    assert engine.requests == []
