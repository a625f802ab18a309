import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.constitution import Constitution
from cai.engines.base import Choose, Completion
from cai.engines.scripted import ScriptedEngine
from cai.feedback.judge import JudgeConfig, compare, judged_preferences, soft_label
from cai.records import Preference, Verdict
from cai.templates import Templates
from tests.conftest import prompt


def shown_first(request: Choose, text: str) -> bool:
    return f"Answer A: {text}" in request.messages[0]["content"]


def verdicts(weigh: object, harmless: Constitution, templates: Templates, count: int = 3) -> list[Verdict]:
    engine = ScriptedEngine(weigh=weigh)  # type: ignore[arg-type]
    return asyncio.run(compare(prompt().messages, "good", "bad", harmless.principles[:count], templates, engine))


def test_a_judge_that_sees_quality_is_believed_in_both_orders(harmless: Constitution, templates: Templates) -> None:
    found = verdicts(lambda r: (0.6, 0.2) if shown_first(r, "good") else (0.2, 0.6), harmless, templates)
    assert [v.p for v in found] == pytest.approx([0.75] * 3)
    assert [v.outside for v in found] == pytest.approx([0.2] * 3)


def test_a_judge_that_sees_only_the_position_has_no_say(harmless: Constitution, templates: Templates) -> None:
    found = verdicts(lambda _: (0.9, 0.1), harmless, templates)
    assert [(v.p_forward, v.p_reverse) for v in found] == [(pytest.approx(0.9), pytest.approx(0.1))] * 3
    assert soft_label(found) == pytest.approx(0.5)


def test_every_principle_is_asked_in_both_orders_and_keeps_its_name(
    harmless: Constitution, templates: Templates
) -> None:
    engine = ScriptedEngine()
    found = asyncio.run(compare(prompt().messages, "x", "y", harmless.principles, templates, engine))
    assert len(engine.requests) == 32
    assert [v.principle_id for v in found] == [p.id for p in harmless.principles]


def label(weigh: object, texts: Sequence[str], harmless: Constitution, templates: Templates) -> list[Preference | str]:
    engine = ScriptedEngine(weigh=weigh)  # type: ignore[arg-type]
    samples = [Completion(text, "stop", 1, 1) for text in texts]
    args = (harmless, templates, engine, JudgeConfig(principles=2), 0)
    return asyncio.run(judged_preferences(prompt(), samples, "writer", *args))


def test_the_likelier_answer_is_chosen_and_its_verdicts_speak_of_it(
    harmless: Constitution, templates: Templates
) -> None:
    def weigh(request: Choose) -> Sequence[float]:
        return (0.1, 0.3) if shown_first(request, "bad") else (0.8, 0.1)

    for texts in (("bad", "good"), ("good", "bad")):
        (pair,) = label(weigh, texts, harmless, templates)
        assert isinstance(pair, Preference)
        assert (pair.chosen, pair.rejected, pair.source) == ("good", "bad", "judge")
        assert pair.p == pytest.approx((8 / 9 + 3 / 4) / 2)
        assert pair.p == pytest.approx(soft_label(pair.verdicts))
        assert pair.verdicts[0].p_forward == pytest.approx(8 / 9)
        assert (pair.model, pair.judge) == ("writer", "scripted")


def test_identical_and_empty_samples_are_not_asked(harmless: Constitution, templates: Templates) -> None:
    def never(_: Choose) -> Sequence[float]:
        raise AssertionError("asked")

    assert label(never, ("same", "same"), harmless, templates) == ["samples identical"]
    assert label(never, ("", "x"), harmless, templates) == ["a sample is empty"]


def test_all_pairs_of_more_samples_are_judged(harmless: Constitution, templates: Templates) -> None:
    assert len(label(lambda _: (0.5, 0.4), ("a", "b", "c", "d"), harmless, templates)) == 6


@given(st.lists(st.tuples(*[st.floats(1e-30, 0.5)] * 4), min_size=1, max_size=5))
def test_a_label_stays_a_probability(masses: list[tuple[float, float, float, float]]) -> None:
    from tests.conftest import ROOT

    templates, principles = Templates(ROOT / "prompts/default"), []
    from cai import constitution

    principles = constitution.load(ROOT / "constitutions/harmless.yaml").principles[: len(masses)]
    answers = iter([pair for a, b, c, d in masses for pair in ((a, b), (c, d))])
    engine = ScriptedEngine(weigh=lambda _: next(answers))
    found = asyncio.run(compare(prompt().messages, "x", "y", principles, templates, engine))
    assert 0 <= soft_label(found) <= 1
    assert all(0 <= v.outside <= 1 for v in found)
