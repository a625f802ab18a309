import asyncio
import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution, Principle, load_constitution
from cai.constitution.templates import Templates
from cai.data.records import Preference, Skipped, Verdict
from cai.feedback.judge import Judge, JudgeConfig, calls_for_answers, principles_met
from cai.feedback.metrics import JUDGE_ABSTAINED
from cai.feedback.pairs import JudgedAnswers, judged_preferences, label, panel_verdicts, rank_judged, soft_label
from cai.inference.engine import Choose, Generate, ScriptedEngine
from cai.stats.logistic import logit, sigmoid
from tests.conftest import ROOT, SIXTEEN, prompt


def shown_first(request: Choose, text: str) -> bool:
    return f"<answer A>\n{text}" in request.messages[0]["content"]


def two(
    answers: tuple[str, str], principles: Sequence[Principle], templates: Templates, engine: ScriptedEngine
) -> list[Verdict]:
    return asyncio.run(Judge(templates, engine).compare(prompt().messages, answers, principles))[0, 1]


def verdicts(weigh: object, harmless: Constitution, templates: Templates, count: int = 3) -> list[Verdict]:
    engine = ScriptedEngine(weigh=weigh)  # type: ignore[arg-type]
    return two(("good", "bad"), harmless.principles[:count], templates, engine)


def test_a_judge_that_sees_quality_is_believed_in_both_orders(harmless: Constitution, templates: Templates) -> None:
    found = verdicts(lambda r: (0.6, 0.2) if shown_first(r, "good") else (0.2, 0.6), harmless, templates)
    assert [v.p for v in found] == pytest.approx([0.75] * 3)
    assert [v.non_option_mass for v in found] == pytest.approx([0.2] * 3)


def test_a_judge_that_sees_only_the_position_has_no_say(harmless: Constitution, templates: Templates) -> None:
    found = verdicts(lambda _: (0.9, 0.1), harmless, templates)
    assert [(v.p_forward, v.p_reverse) for v in found] == [(pytest.approx(0.9), pytest.approx(0.1))] * 3
    assert soft_label(found) == pytest.approx(0.5)


def test_without_a_swap_one_order_is_asked_and_its_leaning_stays(harmless: Constitution, templates: Templates) -> None:
    engine = ScriptedEngine(weigh=lambda _: (0.9, 0.1))
    settings = JudgeConfig(principles=2, swap=False)
    answers = ("one", "two", "three")
    found = asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), answers, harmless))
    assert len(engine.requests) == calls_for_answers(settings, 16, 3) == 6
    for said in found.values():
        assert [(v.p, v.p_forward, v.p_reverse, v.position_bias) for v in said] == [
            (pytest.approx(0.9), pytest.approx(0.9), None, None)
        ] * 2
    for pair in judged_preferences(JudgedAnswers(prompt(), ("one", "two"), found, "m", "j", 0), settings, "stage"):
        assert isinstance(pair, Preference)
        assert (pair.chosen, pair.p) == ("one", pytest.approx(0.9))
    turned = found[0, 1][0].swapped()
    assert turned.p == pytest.approx(0.1)
    assert turned.swapped() == found[0, 1][0]


def test_every_principle_is_asked_in_both_orders_and_keeps_its_name(
    harmless: Constitution, templates: Templates
) -> None:
    engine = ScriptedEngine()
    found = two(("x", "y"), harmless.principles, templates, engine)
    assert len(engine.requests) == 32
    assert [v.principle_id for v in found] == [p.id for p in harmless.principles]


def labelled(
    weigh: object, texts: Sequence[str], harmless: Constitution, templates: Templates, **given: Any
) -> list[Preference | str]:
    engine, settings = ScriptedEngine(weigh=weigh), JudgeConfig.model_validate({"principles": 2, **given})  # type: ignore[arg-type]
    said = asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), texts, harmless))
    judged = JudgedAnswers(prompt(), texts, said, "writer", engine.fingerprint, 0)
    rows = judged_preferences(judged, settings, "stage")
    assert all(row.stage == "stage" and not row.failed for row in rows if isinstance(row, Skipped))
    return [row.reason if isinstance(row, Skipped) else row for row in rows]


def test_the_likelier_answer_is_chosen_and_its_verdicts_speak_of_it(
    harmless: Constitution, templates: Templates
) -> None:
    def weigh(request: Choose) -> Sequence[float]:
        return (0.1, 0.3) if shown_first(request, "bad") else (0.8, 0.1)

    for texts in (("bad", "good"), ("good", "bad")):
        (pair,) = labelled(weigh, texts, harmless, templates)
        assert isinstance(pair, Preference)
        assert (pair.chosen, pair.rejected, pair.source) == ("good", "bad", "judge")
        assert pair.p == pytest.approx(24**0.5 / (1 + 24**0.5))  # odds of 8 and of 3
        assert pair.p == pytest.approx(soft_label(pair.verdicts))
        assert pair.verdicts[0].p_forward == pytest.approx(8 / 9)
        assert (pair.model, pair.judge) == ("writer", "scripted")


def test_identical_and_empty_samples_are_not_asked(harmless: Constitution, templates: Templates) -> None:
    def never(_: Choose) -> Sequence[float]:
        raise AssertionError("asked")

    assert labelled(never, ("same", "same"), harmless, templates) == ["samples identical"]
    assert labelled(never, ("", "x"), harmless, templates) == ["a sample is empty"]


def test_all_pairs_of_more_samples_are_judged(harmless: Constitution, templates: Templates) -> None:
    assert len(labelled(lambda _: (0.5, 0.4), ("a", "b", "c", "d"), harmless, templates)) == 6


@pytest.mark.slow
@given(st.lists(st.tuples(*[st.floats(1e-30, 0.5)] * 4), min_size=1, max_size=5))
def test_a_label_stays_a_probability(masses: list[tuple[float, float, float, float]]) -> None:
    harmless, templates = shipped()
    principles = harmless.principles[: len(masses)]
    answers = iter([pair for a, b, c, d in masses for pair in ((a, b), (c, d))])
    engine = ScriptedEngine(weigh=lambda _: next(answers))
    found = two(("x", "y"), principles, templates, engine)
    assert 0 <= soft_label(found) <= 1
    assert all(0 <= v.non_option_mass <= 1 for v in found)


def leaning(strengths: dict[str, float], bias: Sequence[float]) -> Callable[[Choose], Sequence[float]]:
    """A judge whose log-odds are an answer's strength and a liking for its place."""

    def weigh(request: Choose) -> Sequence[float]:
        shown = re.findall(r"^<answer [A-Z]>\n(.*)$", request.messages[0]["content"], re.MULTILINE)
        weights = [math.exp(strengths[text] + b) for text, b in zip(shown, bias, strict=False)]
        return [0.9 * w / sum(weights) for w in weights]

    return weigh


STRENGTHS = {"one": 0.3, "two": -1.0, "three": 1.2, "four": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["pairs", "choice"])
@given(bias=st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_no_liking_for_a_place_gets_into_the_labels(bias: list[float], ask: str) -> None:
    rows = labelled(leaning(STRENGTHS, bias), list(STRENGTHS), *shipped(), ask=ask, principles=1)
    assert len(rows) == 6
    for row in rows:
        assert isinstance(row, Preference)
        assert row.p == pytest.approx(1 / (1 + math.exp(STRENGTHS[row.rejected] - STRENGTHS[row.chosen])), abs=1e-6)
        assert row.verdicts[0].non_option_mass == pytest.approx(0.1)


@pytest.mark.parametrize("given", [
    {}, {"ask": "choice"}, {"principles": "all"}, {"ties": True, "ask": "choice"}, {"verify": True}, {"verify": True, "ask": "choice", "swap": False}, {"cot_samples": 1}, {"cot_samples": 3, "ask": "choice"},
])  # fmt: skip
def test_the_number_of_calls_is_known_before_they_are_made(given: dict[str, Any]) -> None:
    constitution, settings = shipped()[0], JudgeConfig.model_validate(given)
    engine, templates = ScriptedEngine(), Templates(ROOT / "prompts/default", settings.templates_needed)
    asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), list(STRENGTHS), constitution))
    assert len(engine.requests) == calls_for_answers(settings, len(constitution.principles), 4)


def test_a_judge_reasons_first_and_its_verdict_is_clamped(harmless: Constitution, templates: Templates) -> None:
    def weigh(request: Choose) -> Sequence[float]:
        assert "Think first" in request.messages[0]["content"]
        assert "Now answer with one letter" in request.messages[2]["content"]
        assert [m["role"] for m in request.messages] == ["user", "assistant", "user", "assistant"]
        assert request.messages[1]["content"].startswith("because")
        return (0.9, 0.1) if shown_first(request, "good") else (0.1, 0.9)

    engine = ScriptedEngine(answer=lambda request: f"because {request.seed}", weigh=weigh)
    settings = JudgeConfig(principles=1, cot_samples=2)
    said = asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), ["good", "bad"], harmless))
    [verdict] = said[0, 1]
    assert len(set(verdict.cot)) == 4  # two in each order, all different
    assert verdict.p == pytest.approx(0.9)
    assert label([verdict], settings) == pytest.approx(0.6)
    assert label([verdict], JudgeConfig(principles=1, cot_samples=2, cot_clamp=(0, 1))) == pytest.approx(0.9)


def test_sure_verdicts_that_contradict_each_other_are_clamped_to_no_preference() -> None:
    torn = Verdict(principle_id="x", principle_hash="y", p_forward=0.999, p_reverse=0.05, non_option_mass=0)
    settings = JudgeConfig(cot_samples=1)
    assert torn.p > 0.8  # unclamped, the surer order wins
    assert label([torn], settings) == pytest.approx(0.5)
    assert label([torn.model_copy(update={"p_reverse": 0.45})], settings) == pytest.approx(0.55, abs=0.03)


@pytest.mark.parametrize(("cot_samples", "temperature"), [(1, 0.0), (2, 1.0), (5, 1.0)])
def test_one_chain_of_thought_is_the_likeliest_and_several_are_sampled(
    cot_samples: int, temperature: float, harmless: Constitution, templates: Templates
) -> None:
    engine, settings = ScriptedEngine(), JudgeConfig(principles=1, cot_samples=cot_samples, cot_max_tokens=9)
    asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), ["good", "bad"], harmless))
    asked = [request for request in engine.requests if isinstance(request, Generate)]
    assert [(r.temperature, r.max_tokens) for r in asked] == [(temperature, 9)] * (2 * cot_samples)


def test_verdicts_after_several_chains_of_thought_are_averaged(harmless: Constitution, templates: Templates) -> None:
    def weigh(request: Choose) -> Sequence[float]:
        sure = int(request.messages[1]["content"].split()[-1]) % 2
        first = (0.9, 0.1) if sure else (0.5, 0.5)
        return first if shown_first(request, "good") else first[::-1]

    numbers = itertools.count()
    engine = ScriptedEngine(answer=lambda _: f"thought {next(numbers)}", weigh=weigh)
    judge = Judge(templates, engine, JudgeConfig(cot_samples=2, cot_max_tokens=8))
    verdicts = asyncio.run(judge.compare(prompt().messages, ("good", "bad"), harmless.principles[:1]))
    assert verdicts[0, 1][0].p == pytest.approx(0.7)


def test_an_ensemble_asks_in_every_wording_and_averages(harmless: Constitution, templates: Templates) -> None:
    def weigh(request: Choose) -> Sequence[float]:
        question = request.messages[0]["content"]
        share = 0.9 if "with one letter" in question else 0.6 if "by its letter alone" in question else 0.3
        return (share, 1 - share) if shown_first(request, "good") else (1 - share, share)

    engine, settings = ScriptedEngine(weigh=weigh), JudgeConfig(principles=2, ensemble=3)
    said = asyncio.run(Judge(templates, engine, settings).judge_answers(prompt(), ["good", "bad"], harmless))
    assert [v.p for v in said[0, 1]] == pytest.approx([0.6, 0.6])
    assert len(engine.requests) == calls_for_answers(settings, len(harmless.principles), 2) == 12
    assert len({request.messages[0]["content"] for request in engine.requests}) == 12


def test_an_ensemble_of_more_wordings_than_the_template_has_is_an_error(templates: Templates) -> None:
    templates.check_wordings(3)
    with pytest.raises(CaiError, match=r"judge\.jinja: .* judge\.ensemble: 4 needs 4 wordings, found 3"):
        templates.check_wordings(4)


def verdict(p: float, weight: float = 1.0) -> Verdict:
    return Verdict(principle_id="x", principle_hash="y", weight=weight, p_forward=p, p_reverse=p, non_option_mass=0)


def test_verdicts_count_by_their_weight_and_temperature_draws_the_label_to_one_half() -> None:
    both = [verdict(0.9, weight=3), verdict(0.5)]
    assert soft_label(both) == pytest.approx(0.8)
    assert soft_label(both, temperature=2) == pytest.approx(2 / 3)  # odds of 4, and of 2
    assert soft_label([verdict(1.0)], temperature=2) <= 1


def test_where_all_principles_judge_their_weights_count_and_where_some_are_drawn_they_count_alike() -> None:
    principles = [
        {"id": f"p{i}", "weight": weight, "critique": "c", "revision": "r", "judge": f"Which is best by {i}?"}
        for i, weight in enumerate((1.0, 5.0, 2.0))
    ]
    constitution = Constitution.model_validate({"name": "weighted", "principles": principles})
    for count, weights in (("all", [1, 5, 2]), (3, [1, 5, 2]), (2, [1, 1])):
        met = principles_met(constitution, 0, "p", JudgeConfig.model_validate({"principles": count}))
        assert [p.weight for p in met] == weights


def test_a_panel_counts_each_judge_alike_and_names_them() -> None:
    verdicts = panel_verdicts([("first", {(0, 1): [verdict(0.9)]}), ("second", {(0, 1): [verdict(0.5)]})])
    assert [v.judge for v in verdicts[0, 1]] == ["first", "second"]
    assert soft_label(verdicts[0, 1]) == pytest.approx(0.7)
    assert panel_verdicts([("alone", {(0, 1): [verdict(0.9)]})])[0, 1][0].judge == ""


def test_a_choice_is_asked_of_different_answers_only(harmless: Constitution, templates: Templates) -> None:
    seen = []

    def weigh(request: Choose) -> Sequence[float]:
        seen.append(len(request.options))
        return [0.3] * len(request.options)

    rows = labelled(weigh, ("x", "", "x", "y"), harmless, templates, ask="choice")
    assert set(seen) == {2}
    assert sum(isinstance(row, Preference) for row in rows) == 1
    assert Counter(row for row in rows if isinstance(row, str)) == {
        "a sample is empty": 3,
        "samples identical": 1,
        "one of two identical samples, of which the other is judged": 1,
    }


def test_more_answers_than_option_letters_are_refused(harmless: Constitution, templates: Templates) -> None:
    answers = [f"answer {i}" for i in range(27)]
    with pytest.raises(CaiError, match="among 2 to 26 answers, not 27"):
        asyncio.run(Judge(templates, ScriptedEngine()).compare(prompt().messages, answers, harmless.principles))


@cache
def shipped() -> tuple[Constitution, Templates]:
    return load_constitution(SIXTEEN), Templates(ROOT / "prompts/default")


def verified(
    at_issue: dict[str, float], weigh: Callable[[Choose], Sequence[float]], answers: Sequence[str] = ("good", "bad")
) -> tuple[list[Verdict], ScriptedEngine]:
    """The verdicts by the principles that `at_issue` gives P(Yes), after the judge was asked whether they are."""
    principles = [
        Principle(id=name, critique="-", revision="-", judge=f"Which is {name}?", weight=weight)
        for name, weight in zip(at_issue, (1.0, 2.0, 3.0), strict=False)
    ]

    def reply(request: Choose) -> Sequence[float]:
        if request.step != "verify":
            return weigh(request)
        [p] = [p for name, p in at_issue.items() if f"Which is {name}?" in request.messages[0]["content"]]
        return (0.8 * p, 0.8 * (1 - p))

    engine, settings = ScriptedEngine(weigh=reply), JudgeConfig(verify=True)
    templates = Templates(ROOT / "prompts/default", settings.templates_needed)
    judge = Judge(templates, engine, settings)
    return asyncio.run(judge.compare(prompt().messages, answers, principles))[0, 1], engine


def by_principle(request: Choose) -> Sequence[float]:
    """Odds of 3 to 1 in both orders: for `good` by what is kind, for `bad` by all else."""
    kind = "Which is kind?" in request.messages[0]["content"]
    return (0.75, 0.25) if kind == shown_first(request, "good") else (0.25, 0.75)


def test_a_principle_that_does_not_tell_the_answers_apart_has_no_vote_and_is_not_asked() -> None:
    found, engine = verified({"kind": 0.9, "true": 0.2}, by_principle)
    assert [v.votes for v in found] == [True, False]
    assert soft_label(found) == pytest.approx(0.75)
    assert [v.at_issue for v in found] == pytest.approx([0.9, 0.2])
    assert [v.non_option_mass for v in found] == pytest.approx([0.0, 0.2])
    assert Counter(request.step for request in engine.requests) == {"verify": 2, "verdict": 2}  # type: ignore[union-attr]


def test_votes_count_by_the_probability_that_the_principle_is_at_issue() -> None:
    found, _ = verified({"kind": 0.5, "true": 0.8}, by_principle)
    assert [v.weight for v in found] == pytest.approx([0.5, 1.6])
    assert soft_label(found) == pytest.approx((0.5 * 0.75 + 1.6 * 0.25) / 2.1)
    turned, _ = verified({"kind": 0.5, "true": 0.8}, by_principle, ("bad", "good"))
    assert soft_label(turned) == pytest.approx(1 - soft_label(found))


def test_whether_a_principle_is_at_issue_is_asked_the_same_way_whichever_answer_comes_first() -> None:
    asked = [
        [request.messages for request in verified({"kind": 0.9}, by_principle, answers)[1].requests[:1]]
        for answers in (("good", "bad"), ("bad", "good"))
    ]
    assert asked[0] == asked[1]
    start = asked[0][0][0]["content"].partition("A question about them")[0]
    judging = Templates(ROOT / "prompts/default").judge(
        Principle(id="kind", critique="-", revision="-", judge="?"), prompt().messages, {"A": "bad", "B": "good"}
    )
    assert judging[0]["content"].startswith(start)  # the verdict's request shares the prefix


def test_a_pair_on_which_no_principle_votes_is_skipped_and_never_taken_for_a_tie() -> None:
    found, _ = verified({"kind": 0.1, "true": 0.4}, by_principle)
    judged = JudgedAnswers(prompt(), ("good", "bad"), {(0, 1): found}, "m", "j", 0)
    [row] = judged_preferences(judged, JudgeConfig(verify=True), "stage")
    assert isinstance(row, Skipped)
    assert row.reason == "no principle tells the two answers apart"
    assert rank_judged(judged, JudgeConfig(verify=True)) is None


def test_rows_keep_the_principles_without_a_vote_apart() -> None:
    found, _ = verified({"kind": 0.9, "true": 0.2}, by_principle)
    judged = JudgedAnswers(prompt(), ("bad", "good"), {(0, 1): [v.swapped() for v in found]}, "m", "j", 0)
    [row] = judged_preferences(judged, JudgeConfig(verify=True), "stage")
    assert isinstance(row, Preference)
    assert (row.chosen, [v.principle_id for v in row.verdicts]) == ("good", ["kind"])
    assert [(v.principle_id, v.votes, v.at_issue) for v in row.abstentions] == [("true", False, pytest.approx(0.2))]
    assert JUDGE_ABSTAINED.value(row) == 0.5
    plain = row.model_copy(
        update={"abstentions": [], "verdicts": [row.verdicts[0].model_copy(update={"at_issue": None})]}
    )
    assert "abstentions" not in plain.model_dump() and "at_issue" not in plain.model_dump()["verdicts"][0]
    assert JUDGE_ABSTAINED.value(plain) is None


def with_ties(
    weigh: Callable[[Choose], Sequence[float]], answers: Sequence[str] = ("good", "bad"), **settings: Any
) -> dict[tuple[int, int], Verdict]:
    """One principle's verdicts on all pairs of answers by a judge that may say that they are equally good."""
    chosen = JudgeConfig(ties=True, **settings)
    judge = Judge(Templates(ROOT / "prompts/default"), ScriptedEngine(weigh=weigh), chosen)
    principle = Principle(id="kind", critique="-", revision="-", judge="Which is kinder?")
    found = asyncio.run(judge.compare(prompt().messages, answers, [principle]))
    return {pair: verdict for pair, (verdict,) in found.items()}


def test_half_of_the_probability_of_a_tie_goes_to_each_answer() -> None:
    def weigh(request: Choose) -> Sequence[float]:
        assert request.options == (" A", " B", " C")
        assert "A or B, or C if they are equally good: Which is kinder?" in request.messages[-2]["content"]
        return (0.4, 0.1, 0.3) if shown_first(request, "good") else (0.1, 0.4, 0.3)

    verdict = with_ties(weigh)[0, 1]
    assert verdict.p == pytest.approx(0.4 / 0.8 + 0.3 / 0.8 / 2)
    assert verdict.tie_mass == pytest.approx(0.3 / 0.8)
    assert verdict.non_option_mass == pytest.approx(0.2)
    sure = with_ties(lambda _: (0.005, 0.005, 0.99))[0, 1]
    assert (sure.p, sure.tie_mass) == (pytest.approx(0.5), pytest.approx(0.99))


def test_a_liking_for_a_place_cancels_with_ties_too_and_each_order_keeps_its_own_tie() -> None:
    verdict = with_ties(lambda r: (0.6, 0.2, 0.2) if shown_first(r, "good") else (0.4, 0.2, 0.4))[0, 1]
    assert (verdict.p_forward, verdict.p_reverse) == (pytest.approx(0.7), pytest.approx(0.4))
    assert soft_label([verdict]) == pytest.approx(sigmoid((logit(0.7) + logit(0.4)) / 2))
    assert with_ties(lambda _: (0.7, 0.1, 0.2))[0, 1].p == pytest.approx(0.5)


def test_a_choice_among_several_has_one_tie_for_all_of_them() -> None:
    def weigh(request: Choose) -> Sequence[float]:
        assert request.options == (" A", " B", " C", " D")
        shown = re.findall(r"^<answer [A-Z]>\n(.*)$", request.messages[0]["content"], re.MULTILINE)
        return [0.8 * {"one": 0.5, "two": 0.3, "three": 0.2}[text] for text in shown] + [0.2]

    found = with_ties(weigh, ("one", "two", "three"), ask="choice")
    assert found[0, 1].p == pytest.approx(0.8 * 0.5 / 0.8 + 0.1)
    assert found[1, 2].p == pytest.approx(0.8 * 0.3 / 0.5 + 0.1)
    assert [verdict.tie_mass for verdict in found.values()] == pytest.approx([0.2] * 3)


def test_ties_after_several_chains_of_thought_are_averaged() -> None:
    replies = iter([(0.6, 0.2, 0.2), (0.2, 0.2, 0.6)])
    verdict = with_ties(lambda _: next(replies), cot_samples=2, swap=False)[0, 1]
    assert verdict.tie_mass == pytest.approx(0.4)
    assert verdict.p == pytest.approx(0.4 + 0.2)


def test_without_ties_rows_say_nothing_of_them(harmless: Constitution, templates: Templates) -> None:
    [verdict] = two(("good", "bad"), harmless.principles[:1], templates, ScriptedEngine())
    assert verdict.tie_mass is None and "tie_mass" not in verdict.model_dump()


def test_a_question_that_offers_no_tie_is_an_error_where_one_is_wanted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "prompts/default", tmp_path / "mine"))
    JudgeConfig(ties=True).check_templates(Templates(folder))
    text = (folder / "judge.jinja").read_text(encoding="utf-8")
    (folder / "judge.jinja").write_text(text.replace("{% if tie %}{%", "{% if false %}{%"), encoding="utf-8")
    JudgeConfig().check_templates(Templates(folder))
    with pytest.raises(CaiError, match=r"judge\.jinja: the question does not offer a tie, which judge\.ties needs"):
        JudgeConfig(ties=True).check_templates(Templates(folder))


def test_the_letter_of_a_tie_leaves_room_for_one_answer_less() -> None:
    with pytest.raises(CaiError, match="among 2 to 25 answers, not 26"):
        with_ties(lambda _: [], [str(i) for i in range(26)], ask="choice")
