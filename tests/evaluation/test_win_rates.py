import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.records import Judgement, Message, Prompt, Verdict
from cai.evaluation.win_rates import (
    ELO,
    Outcome,
    Rated,
    compare_pair,
    compare_policies,
    outcomes,
    rate,
    standings,
    tags_of,
    tags_to_report,
)
from cai.stats.logistic import bradley_terry

pytestmark = pytest.mark.numeric

NAMES = ["reference", "a", "b", "c"]


def tournament(rng: np.random.Generator, strengths: list[float], prompts: int) -> list[Outcome]:
    """Every pair on every prompt, won by a Bradley–Terry model of these strengths."""
    return [
        Outcome(f"q{q}", NAMES[i], NAMES[j], float(rng.random() < 1 / (1 + math.exp(strengths[j] - strengths[i]))))
        for q in range(prompts)
        for i, j in itertools.combinations(range(len(strengths)), 2)
    ]


def rated(outcomes: list[Outcome], names: list[str] = NAMES, resamples: int = 200) -> Rated:
    return rate(outcomes, names, sorted({o.prompt_id for o in outcomes}), "helpful", resamples)


def minorised(outcomes: list[Outcome], names: list[str], rounds: int = 600) -> list[float]:
    """The MM algorithm of Hunter 2004 (Ann. Stat. 32, 384–406, eq. 3), in Elo points against the first."""
    won = dict.fromkeys(names, 0.0)
    met: dict[frozenset[str], int] = {}
    for o in outcomes:
        won[o.policy] += o.win
        won[o.against] += 1 - o.win
        pair = frozenset((o.policy, o.against))
        met[pair] = met.get(pair, 0) + 1
    gamma = dict.fromkeys(names, 1.0)
    for _ in range(rounds):
        new = {}
        for i in names:
            new[i] = won[i] / sum(n / sum(gamma[k] for k in pair) for pair, n in met.items() if i in pair)
        total = sum(new.values())
        gamma = {name: g / total for name, g in new.items()}
    return [400 * math.log10(gamma[name] / gamma[names[0]]) for name in names]


def test_two_policies_have_the_points_of_their_win_rate() -> None:
    outcomes = [Outcome(f"q{i}", "a", "reference", float(i < 10)) for i in range(11)]
    ratings = rated(outcomes, ["reference", "a"]).ratings
    assert ratings[0].elo == ratings[0].low == ratings[0].high == 0
    assert ratings[1].elo == pytest.approx(400, abs=0.01)  # ten wins to one loss, by the definition of the points


@given(st.integers(0, 1000), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_ratings_are_those_of_an_independent_algorithm(seed: int, strengths: list[float]) -> None:
    outcomes = tournament(np.random.default_rng(seed), strengths, 25)
    found = [r.elo for r in rated(outcomes, resamples=2).ratings]
    if None not in found:
        assert found == pytest.approx(minorised(outcomes, NAMES), abs=0.1)


def test_ratings_agree_with_the_ranking_of_answers_where_every_pair_met_alike() -> None:
    outcomes = tournament(np.random.default_rng(1), [0, 0.3, -0.5, 1], 30)
    labels = {
        (i, j): float(np.mean([o.win for o in outcomes if (o.policy, o.against) == (NAMES[i], NAMES[j])]))
        for i, j in itertools.combinations(range(4), 2)
    }
    fit = bradley_terry(labels)
    assert [r.elo for r in rated(outcomes).ratings] == pytest.approx(
        [ELO * (fit[i] - fit[0]) for i in range(4)], abs=0.1
    )


def test_a_policy_met_only_through_another_is_rated_too() -> None:
    met = [("a", "reference", 3), ("b", "a", 3)]  # of four prompts won
    outcomes = [Outcome(f"q{q}", x, y, float(q < wins)) for x, y, wins in met for q in range(4)]
    ratings = rated(outcomes, NAMES[:3]).ratings
    assert [r.elo for r in ratings] == pytest.approx([0, 400 * math.log10(3), 800 * math.log10(3)], abs=0.01)


def test_the_order_of_a_comparisons_policies_changes_nothing() -> None:
    outcomes = tournament(np.random.default_rng(2), [0, 0.3, -0.5, 1], 20)
    turned = [Outcome(o.prompt_id, o.against, o.policy, 1 - o.win) for o in outcomes]
    assert rated(turned).ratings == rated(outcomes).ratings


def test_who_always_wins_or_was_never_met_has_no_rating_but_a_reason() -> None:
    outcomes = [Outcome(f"q{q}", "a", "reference", 1.0) for q in range(8)]
    outcomes += [Outcome(f"q{q}", "reference", "b", float(q > 2)) for q in range(8)]
    _, always, some, never = rated(outcomes).ratings
    assert (always.elo, always.high) == (None, None)
    assert "never lost" in always.missing
    assert some.elo is not None and some.elo < 0
    assert some.low is None  # among its resamples are enough without any win
    assert (never.elo, never.low, never.prompts) == (None, None, 0)
    assert "no comparison" in never.missing


def test_one_prompt_has_a_rating_without_an_interval_and_ties_are_even() -> None:
    [_, one] = rated([Outcome("q", "a", "reference", 0.5)], NAMES[:2]).ratings
    assert (one.elo, one.low, one.high, one.missing) == (0, None, None, "one prompt has no interval")
    assert [r.elo for r in rate([], NAMES[:2], [], "helpful", 10).ratings] == [0, None]


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, strengths, held = np.random.default_rng(4), [0, 0.5, -0.4, 1.2], np.zeros(4)
    for _ in range(300):
        for i, r in enumerate(rated(tournament(rng, strengths, 40), resamples=200).ratings):
            assert r.elo is not None
            held[i] += (r.low is None or r.low <= ELO * strengths[i]) and (
                r.high is None or ELO * strengths[i] <= r.high
            )
    assert np.all(held[1:] / 300 >= 0.90) and np.all(held[1:] / 300 <= 0.99)


def test_a_policy_worse_on_both_axes_is_dominated_and_one_that_trades_them_is_not() -> None:
    def axis(strengths: list[float]) -> Rated:
        return rated(tournament(np.random.default_rng(0), strengths, 60))

    found = standings(NAMES, axis([0, 2, 1, -1]), axis([0, -2, 1, -1]))
    assert {s.policy: [d.by for d in s.dominated] for s in found} == {
        "reference": ["b"], "a": [], "b": [], "c": ["reference", "b"]
    }  # fmt: skip
    assert all(d.share > 0.9 for s in found for d in s.dominated)
    assert found[3].helpful.elo is not None and found[3].helpful.elo < -50


def test_equal_policies_do_not_dominate_each_other() -> None:
    even = rated([Outcome(f"q{q}", "a", "reference", float(q % 2)) for q in range(20)], NAMES[:2])
    assert [s.dominated for s in standings(NAMES[:2], even, even)] == [[], []]


def test_a_few_wins_of_as_many_prompts_are_no_sure_dominance() -> None:
    def always(prompts: int) -> Rated:
        ids = [f"p{n}" for n in range(prompts)]
        return rate([Outcome(i, "b", "a", 1.0) for i in ids], ["a", "b"], ids, "axis", resamples=50)

    [[few], []] = [s.dominated for s in standings(["a", "b"], always(3), always(3))]
    [[many], []] = [s.dominated for s in standings(["a", "b"], always(8), always(8))]
    assert (few.by, few.share, many.share) == ("b", None, 1.0)


def test_the_share_that_dominates_is_that_of_resamples_where_both_axes_agree() -> None:
    def wins(of_twenty: int) -> Rated:
        return rated([Outcome(f"q{q:02}", "a", "reference", float(q < of_twenty)) for q in range(20)], NAMES[:2])

    [[dominated], []] = [s.dominated for s in standings(NAMES[:2], wins(19), wins(11))]
    # P(more than 10 of 20 at 11 in 20), of a binomial: the other axis is sure
    assert (dominated.by, dominated.share) == ("a", pytest.approx(0.59, abs=0.08))


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


def test_only_tags_that_split_the_prompts_and_have_enough_of_them_are_reported() -> None:
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
