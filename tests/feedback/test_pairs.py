import random

import pytest

from cai.data.records import Message, Preference, Verdict
from cai.feedback.pairs import SHARED, PrinciplePair, PrincipleVerdicts, contradicting, principle_notes

pytestmark = pytest.mark.numeric


def between(verdicts: dict[str, list[float]], prompts: list[str] | None = None) -> list[PrinciplePair]:
    """Principles by their P(first better), pair by pair."""
    passing = PrincipleVerdicts()
    for number, of_pair in enumerate(zip(*verdicts.values(), strict=True)):
        prompt = prompts[number] if prompts else str(number)
        passing.add(prompt, zip(verdicts, of_pair, strict=True))
    return passing.pairs()


def drawn(rng: random.Random, count: int) -> list[float]:
    return [rng.choice([0.2, 0.8]) for _ in range(count)]


def test_principles_that_exclude_each_other_are_named_with_interval_and_number_of_pairs() -> None:
    rng = random.Random(0)
    longer = drawn(rng, 40)
    shorter = [1 - p if i % 10 else p for i, p in enumerate(longer)]
    [found] = contradicting(between({"longer": longer, "shorter": shorter}))
    assert found.agreement.kappa == pytest.approx(-0.8)
    [note] = principle_notes("contradict each other", [found])
    assert note.startswith("principles that contradict each other: longer and shorter (κ -0.80 [-0.9")
    assert note.endswith("], 40 pairs)")


def test_principles_that_judge_independently_do_not_contradict_each_other() -> None:
    """Of 100 constitutions of 8 principles, 28 pairs of them each, at most 5 % name one by chance."""
    rng = random.Random(1)
    named = sum(bool(contradicting(between({str(i): drawn(rng, 40) for i in range(8)}))) for _ in range(100))
    assert named <= 5


def test_pairs_of_one_prompt_are_not_independent_evidence() -> None:
    verdicts = {"a": [0.8] * 40, "b": [0.2] * 40}
    assert contradicting(between(verdicts))
    assert not contradicting(between(verdicts, ["the same"] * 40))


def test_few_shared_pairs_are_not_compared() -> None:
    assert between({"a": [0.8] * (SHARED - 1), "b": [0.2] * (SHARED - 1)}) == []


def test_judges_of_a_panel_that_disagree_are_no_contradiction_of_principles() -> None:
    def verdict(principle: str, judge: str, p: float) -> Verdict:
        return Verdict(
            principle_id=principle, principle_hash="-", judge=judge, p_forward=p, p_reverse=p, non_option_mass=0.0
        )

    passing = PrincipleVerdicts()
    for number in range(SHARED):
        verdicts = [verdict(name, judge, p) for judge, p in (("j", 0.9), ("k", 0.1)) for name in "ab"]
        passing.add_row(
            Preference(
                prompt_id=str(number),
                messages=[Message(role="user", content="q")],
                chosen="x",
                rejected="y",
                p=0.5,
                source="judge",
                verdicts=verdicts,
            )
        )
    [pair] = passing.pairs()
    assert (pair.a, pair.b, pair.agreement.kappa, pair.agreement.n) == ("a", "b", 1.0, 2 * SHARED)
