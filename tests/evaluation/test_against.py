import pytest

from cai.data.records import Judgement, Message, Prompt, Verdict
from cai.evaluation.win_rates import compare_pair, compare_policies, outcomes, tags_of, tags_to_report

pytestmark = pytest.mark.numeric


def verdict(p_forward: float, p_reverse: float) -> Verdict:
    return Verdict(principle_id="a", principle_hash="0", p_forward=p_forward, p_reverse=p_reverse, non_option_mass=0.2)


def judgement(
    number: int,
    p: float,
    axis: str = "overall",
    policy: str = "run",
    tags: tuple[str, ...] = (),
    equal: bool = False,
) -> Judgement:
    return Judgement(
        axis=axis, prompt_id=f"q{number}", tags=list(tags), policy=policy, against="before", p=p,
        verdicts=[] if equal else [verdict(p, 0.6)], judge="j",
    )  # fmt: skip


def texts(*numbers: int) -> dict[tuple[str, str], str]:
    return {(policy, f"q{n}"): "word " * n + policy for n in numbers for policy in ("run", "before")}


def test_rates_are_of_the_policy_and_ties_count_one_half() -> None:
    rows = [judgement(0, 0.9), judgement(1, 0.2), judgement(2, 0.5), judgement(3, 0.5, equal=True)]
    found = compare_pair(rows, texts(0, 1, 2, 3), None)
    assert found.win_rate is not None and found.mean_p is not None
    assert (found.win_rate.mean, found.win_rate.n, found.prompts, found.identical) == (0.5, 4, 4, 1)
    assert found.mean_p.mean == pytest.approx(2.1 / 4)
    assert found.words == (2.5, 2.5)
    assert found.position_bias == pytest.approx(2 / 3)  # of the verdicts
    assert found.non_option_mass == pytest.approx(0.2)
    assert (found.length_controlled_win_rate, found.length_controlled_missing) == (
        None,
        "4 prompts are too few, at least 10 are needed",
    )


def test_where_all_answers_are_equal_nothing_was_compared() -> None:
    found = compare_pair([judgement(n, 0.5, equal=True) for n in range(20)], texts(*range(20)), None)
    assert (found.win_rate, found.mean_p, found.length_controlled_win_rate, found.position_bias) == (
        None,
        None,
        None,
        None,
    )
    assert "nothing to compare" in found.length_controlled_missing


def test_every_axis_couple_and_tag_has_its_own_row() -> None:
    rows = [
        judgement(n, 0.9 if "hard" in tags else 0.1, axis, policy, tags)
        for axis in ("overall", "safe")
        for policy in ("run", "other")
        for n, tags in enumerate([("hard",)] * 3 + [("easy",)] * 2)
    ]
    known = {(policy, f"q{n}"): "a" for policy in ("run", "other", "before") for n in range(5)}
    found = compare_policies(rows, known, ["hard"])
    assert [(f.axis, f.policy, f.tag, f.prompts) for f in found] == [
        (axis, policy, tag, n)
        for axis in ("overall", "safe")
        for policy in ("run", "other")
        for tag, n in ((None, 5), ("hard", 3))
    ]
    assert [f.win_rate.mean for f in found if f.win_rate is not None][:2] == [0.6, 1.0]


def test_only_tags_that_split_the_prompts_and_have_enough_of_them_are_told_apart() -> None:
    prompts = [
        Prompt(
            id=f"q{n}",
            messages=[Message(role="user", content="?")],
            tags=["all", "all", *(["half"] if n % 2 else []), *(["one"] if n == 0 else [])],
        )
        for n in range(20)
    ]
    tags = tags_of(prompts)
    assert tags == {"all": 20, "half": 10, "one": 1}
    assert tags_to_report(tags, 20) == ["half"]


def test_outcomes_are_wins_on_their_axis() -> None:
    rows = [judgement(0, 0.9), judgement(1, 0.5), judgement(2, 0.2, axis="safe")]
    assert [(o.prompt_id, o.win) for o in outcomes(rows, "overall")] == [("q0", 1.0), ("q1", 0.5)]
