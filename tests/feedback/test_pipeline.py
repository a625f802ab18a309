"""One prompt's way through the feedback stage, on a scripted engine."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import RequestRefused
from cai.constitution.principles import AppliesTo, Constitution, Principle
from cai.constitution.templates import Templates, names_for
from cai.feedback.judge import JudgeConfig
from cai.feedback.metrics import REVISION_BETTER
from cai.feedback.pipeline import FeedbackJob, Journey, _Feedback
from cai.feedback.revise import ReviseConfig
from cai.inference.engine import Choose, Generate, ScriptedEngine
from cai.stats.logistic import sigmoid
from tests.conftest import ROOT, prompt

CONSTITUTION = Constitution(
    name="c",
    principles=[Principle(id="kind", critique="CRITIQUE-IT", revision="REVISE-IT", judge="Which is kinder?", weight=3)],
)
PROMPT = prompt()


def travel(
    templates: Templates,
    answer: Callable[[Generate], str],
    rounds: int = 1,
    prefers: str = "",
    revise: Any = None,
    **judge: Any,
) -> tuple[Journey, ScriptedEngine]:
    """A journey that is over, its model judging itself; it finds the answer better that begins with `prefers`."""
    engine: Any = Opinionated("m", answer, prefers)
    revising = ReviseConfig(rounds=rounds, **(revise or {}))
    job = FeedbackJob(
        [PROMPT], CONSTITUTION, templates, revising, JudgeConfig(**judge), 0, Path("m"), Path("m"), [Path("m")],
        [], [], Path("r"), Path("p"), Path("k"), Path("a"),
    )  # fmt: skip
    journey = Journey(PROMPT, _Feedback(job, engine, engine, [engine]))
    asyncio.run(journey.generate())
    return journey, engine


class Opinionated(ScriptedEngine):
    """A judge that gives odds of 3 to 1, in both orders, to an answer that begins in one way."""

    def __init__(self, fingerprint: str, answer: Callable[[Generate], str], prefers: str) -> None:
        super().__init__(fingerprint, answer)
        self.prefers = prefers

    async def choose(self, request: Choose) -> list[float]:
        if not self.prefers:
            return await super().choose(request)
        if request.step == "verify":
            return [math.log(0.25 if self.prefers == "No" else 0.75), math.log(0.75 if self.prefers == "No" else 0.25)]
        question = request.messages[0]["content"]
        first, second = (question.index(f"<answer {letter}>\n") for letter in "AB")
        won = question.startswith(self.prefers, first + 11), question.startswith(self.prefers, second + 11)
        if sum(won) != 1:
            return await super().choose(request)
        return [math.log(0.75 if better else 0.25) for better in won]


def step(request: Generate) -> str:
    """What a request asks for."""
    last = request.messages[-1]["content"]
    return "critique" if "CRITIQUE-IT" in last else "revision" if "REVISE-IT" in last else "draft"


def different(request: Generate) -> str:
    return f"{step(request)} {len(request.messages)} {request.seed}"


def test_rounds_continue_from_the_revision_before_and_make_one_pair(templates: Templates) -> None:
    journey, _ = travel(templates, different, rounds=3)
    assert [row.round for row in journey.revisions] == [1, 2, 3]
    assert [row.before for row in journey.revisions[1:]] == [row.revision for row in journey.revisions[:-1]]
    [pair] = [pair for pair in journey.preferences() if pair.source == "revision"]
    assert (pair.rejected, pair.chosen) == (journey.revisions[0].draft, journey.revisions[-1].revision)
    assert journey.skipped == []


def test_another_model_criticises_and_revises_what_the_first_answered(templates: Templates) -> None:
    engines = [ScriptedEngine(name, different) for name in ("student", "teacher")]
    job = FeedbackJob(
        [PROMPT], CONSTITUTION, templates, ReviseConfig(rounds=2), JudgeConfig(), 0, Path("s"), Path("t"), [Path("s")],
        [], [], Path("r"), Path("p"), Path("k"), Path("a"),
    )  # fmt: skip
    student, teacher = engines
    journey = Journey(PROMPT, _Feedback(job, student, teacher, [student]))  # type: ignore[arg-type, list-item]
    asyncio.run(journey.generate())
    asked = {engine.fingerprint: [step(r) for r in engine.requests if isinstance(r, Generate)] for engine in engines}
    assert asked == {"student": ["draft", "draft"], "teacher": ["critique", "revision"] * 2}
    assert {(row.model, row.reviser) for row in journey.revisions} == {("student", "teacher")}


def test_a_prompt_that_no_principle_applies_to_is_skipped_before_its_draft() -> None:
    only = CONSTITUTION.principles[0].model_copy(update={"applies_to": AppliesTo(question="Is it rude?")})
    asking = Templates(ROOT / "prompts/default", names_for([Constitution(name="c", principles=[only])]))
    job = FeedbackJob(
        [PROMPT], Constitution(name="c", principles=[only]), asking, ReviseConfig(), JudgeConfig(), 0, Path("s"),
        Path("t"), [Path("s")], [], [], Path("r"), Path("p"), Path("k"), Path("a"),
    )  # fmt: skip
    student, teacher = (ScriptedEngine(name, different, lambda _: (0.2, 0.8)) for name in ("student", "teacher"))
    journey = Journey(PROMPT, _Feedback(job, student, teacher, [student]))  # type: ignore[arg-type, list-item]
    asyncio.run(journey.generate())
    assert (len(student.requests), len(teacher.requests)) == (0, 1)  # the model that critiques is asked
    assert [(row.stage, row.reason, row.failed) for row in journey.skipped] == [
        ("feedback", "no principle applies to the prompt", False)
    ]
    assert (journey.revisions, journey.preferences(), journey.ranking()) == ([], [], None)
    assert [row.question for row in journey.applicability] == ["Is it rude?"]


def test_a_refused_critique_costs_the_revision_and_not_the_samples(templates: Templates) -> None:
    def answer(request: Generate) -> str:
        if step(request) == "critique":
            raise RequestRefused("too long")
        return different(request)

    journey, _ = travel(templates, answer, samples=2)
    assert journey.revisions == []
    assert [(row.stage, row.reason, row.failed) for row in journey.skipped] == [("revisions", "too long", True)]
    assert [pair.source for pair in journey.preferences()] == ["judge"]


def test_a_refused_draft_ends_the_journey(templates: Templates) -> None:
    def refuse(request: Generate) -> str:
        raise RequestRefused("too long")

    with pytest.raises(RequestRefused, match="too long"):
        travel(templates, refuse)


def test_k_samples_are_judged_in_all_pairs_and_ranked(templates: Templates) -> None:
    journey, _ = travel(templates, different, samples=4)
    pairs = [pair for pair in journey.preferences() if pair.source == "judge"]
    ranking = journey.ranking()
    assert len(pairs) == 6 and ranking is not None
    assert len(set(ranking.responses)) == 4 and ranking.judge == "m"


def test_equal_samples_are_skipped_with_the_reason(templates: Templates) -> None:
    journey, _ = travel(templates, lambda request: step(request), samples=2)
    assert [pair.source for pair in journey.preferences()] == ["revision"]
    assert [(row.stage, row.reason) for row in journey.skipped] == [("judged pairs", "samples identical")]
    assert journey.ranking() is None


def test_a_revision_pair_has_the_soft_label_of_its_judge(templates: Templates) -> None:
    journey, _ = travel(templates, different, prefers="revision", samples=0)
    [pair] = journey.preferences()
    assert pair.chosen.startswith("revision") and not pair.draft_chosen
    assert pair.p == pytest.approx(0.75)
    assert "draft_chosen" not in pair.model_dump()


def test_a_revision_worse_than_its_draft_is_rejected(templates: Templates) -> None:
    journey, _ = travel(templates, different, prefers="draft", samples=0)
    [pair] = journey.preferences()
    assert (pair.source, pair.draft_chosen) == ("revision", True)
    assert pair.chosen == journey.revisions[0].draft and pair.rejected == journey.revisions[-1].revision
    assert pair.p == pytest.approx(0.75)
    assert [verdict.p for verdict in pair.verdicts] == pytest.approx([0.75])  # of what is chosen, as the label
    assert REVISION_BETTER.value(pair) == pytest.approx(0.25)


def test_the_label_of_a_revision_has_temperature_and_clamp_as_those_of_samples(templates: Templates) -> None:
    warm, _ = travel(templates, different, prefers="draft", samples=0, temperature=2.0)
    assert warm.preferences()[0].p == pytest.approx(sigmoid(math.log(3) / 2))
    clamped, _ = travel(templates, different, prefers="draft", samples=0, cot_samples=1)
    assert clamped.preferences()[0].p == pytest.approx(0.6)


def test_the_weight_of_a_principle_decides_how_often_it_is_sampled_and_not_twice(templates: Templates) -> None:
    journey, _ = travel(templates, different, prefers="draft", samples=0)
    assert [verdict.weight for verdict in journey.preferences()[0].verdicts] == [1.0]


def test_certain_labels_are_left_alone_and_keep_the_verdicts(templates: Templates) -> None:
    journey, _ = travel(templates, different, prefers="draft", samples=0, revise={"label": "certain"})
    [pair] = journey.preferences()
    assert (pair.p, pair.draft_chosen) == (1.0, False)
    assert [verdict.p for verdict in pair.verdicts] == pytest.approx([0.25])


@pytest.mark.parametrize(("label", "rows"), [("judge", 0), ("certain", 1)])
def test_a_revision_about_which_no_principle_says_anything_has_no_judged_label(label: str, rows: int) -> None:
    asking = Templates(ROOT / "prompts/default", ("critique", "revise", "judge", "verify"))
    at_issue = {"verify": True, "prefers": "No"}  # with odds of 3 to 1
    journey, _ = travel(asking, different, samples=0, revise={"label": label}, **at_issue)
    pairs = journey.preferences()
    assert len(pairs) == rows
    assert all((pair.p, pair.verdicts, len(pair.abstentions)) == (1.0, [], 1) for pair in pairs)
    assert [row.reason for row in journey.skipped] == ["no principle tells the two answers apart"] * (1 - rows)


def long_in(*steps: str) -> Callable[[Generate], str]:
    """Answers of which those to some steps have more words than a limit of eight."""
    return lambda request: f"{different(request)} {'and so on it goes for very long' if step(request) in steps else ''}"


@pytest.mark.parametrize(("cut", "prefers", "stages"), [
    ("revision", "revision", ["revision pairs"]),
    ("revision", "draft", ["revision pairs"]),  # fails a filter, whoever is better
    ("draft", "draft", ["revision pairs", "judged pairs"]),
    ("draft", "revision", ["judged pairs"]),
    ("critique", "revision", []),
])  # fmt: skip
def test_no_truncated_answer_is_preferred(templates: Templates, cut: str, prefers: str, stages: list[str]) -> None:
    journey, _ = travel(templates, long_in(cut), prefers=prefers, revise={"max_tokens": 8})
    made = {"revision": "revision pairs", "judge": "judged pairs"}
    pairs = journey.preferences()
    assert sorted([*(made[pair.source] for pair in pairs), *(row.stage for row in journey.skipped)]) == sorted(
        made.values()
    )
    assert [row.stage for row in journey.skipped] == stages
    assert all("truncated" in row.reason for row in journey.skipped)


def test_truncated_answers_are_kept_on_request(templates: Templates) -> None:
    journey, _ = travel(templates, long_in("revision", "draft"), revise={"max_tokens": 8, "keep_truncated": True})
    assert journey.skipped == []
    assert [pair.truncated for pair in journey.preferences()] == [["chosen", "rejected"]] * 2


def looping_in(*steps: str) -> Callable[[Generate], str]:
    """Answers of which those to some steps loop."""
    return lambda request: different(request) + (" and so on" * 6 if step(request) in steps else "")


@pytest.mark.parametrize(("looping", "prefers", "skipped", "pairs"), [
    ("draft", "draft", ["revision pairs", "judged pairs"], []),  # both samples loop
    ("draft", "revision", ["judged pairs"], ["revision"]),
    ("revision", "draft", ["revision pairs"], ["judge"]),  # fails a filter, whoever is better
])  # fmt: skip
def test_no_answer_that_loops_is_preferred(
    templates: Templates, looping: str, prefers: str, skipped: list[str], pairs: list[str]
) -> None:
    journey, _ = travel(templates, looping_in(looping), prefers=prefers)
    assert [pair.source for pair in journey.preferences()] == pairs
    assert [row.stage for row in journey.skipped] == skipped
    assert all("repeats itself" in row.reason for row in journey.skipped)


def test_a_revision_that_parrots_its_instruction_makes_no_pair(templates: Templates) -> None:
    def parrot(request: Generate) -> str:
        return request.messages[-1]["content"] if step(request) == "revision" else different(request)

    journey, _ = travel(templates, parrot, samples=0)
    assert "parrots_instruction" in journey.revisions[0].flags
    assert [row.reason for row in journey.skipped] == ["revision parrots instruction"]
