import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.feedback.judge import Pair
from cai.feedback.pairs import JudgedAnswers, rank_answers
from cai.stats.logistic import bradley_terry, sigmoid
from tests.conftest import prompt

# labels within [0.01, 0.99], where the ridge moves nothing to speak of
planted = st.lists(st.floats(-2.2, 2.2), min_size=2, max_size=8)


def labels_of(strengths: list[float]) -> dict[Pair, float]:
    return {(i, j): sigmoid(strengths[i] - strengths[j]) for i, j in itertools.combinations(range(len(strengths)), 2)}


@st.composite
def tournaments(draw: st.DrawFn, low: float = 0.0, high: float = 1.0) -> dict[Pair, float]:
    """Every pair of two to six answers with a label of any kind, consistent or not."""
    count = draw(st.integers(2, 6))
    return {pair: draw(st.floats(low, high)) for pair in itertools.combinations(range(count), 2)}


@given(planted)
def test_planted_strengths_are_recovered(strengths: list[float]) -> None:
    mean = sum(strengths) / len(strengths)
    found = bradley_terry(labels_of(strengths))
    assert [found[i] for i in range(len(strengths))] == pytest.approx([s - mean for s in strengths], abs=2e-3)


@given(tournaments(0.05, 0.95), st.randoms())
def test_numbering_the_answers_otherwise_changes_nothing(labels: dict[Pair, float], random: object) -> None:
    numbers = list(range(10, 30))
    random.shuffle(numbers)  # type: ignore[attr-defined]
    found = bradley_terry(labels)
    renamed = bradley_terry({(numbers[i], numbers[j]): p for (i, j), p in labels.items()})
    turned = bradley_terry({(j, i): 1 - p for (i, j), p in labels.items()})
    assert [renamed[numbers[i]] for i in sorted(found)] == pytest.approx([found[i] for i in sorted(found)], abs=1e-6)
    assert [turned[i] for i in sorted(found)] == pytest.approx([found[i] for i in sorted(found)], abs=1e-6)


@given(tournaments())
def test_where_all_were_compared_with_all_the_order_is_that_of_the_wins(labels: dict[Pair, float]) -> None:
    """A known property of the model: with one comparison a pair, the sum of an answer's labels decides its place."""
    wins: dict[int, float] = {}
    for (i, j), p in labels.items():
        wins[i], wins[j] = wins.get(i, 0) + p, wins.get(j, 0) + 1 - p
    found = bradley_terry(labels)
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)
    for i, j in itertools.combinations(found, 2):
        if abs(wins[i] - wins[j]) > 1e-6:
            assert (found[i] > found[j]) == (wins[i] > wins[j])
        elif wins[i] == wins[j]:
            assert found[i] == pytest.approx(found[j], abs=1e-3)


def minorise(labels: dict[Pair, float], rounds: int = 20_000) -> list[float]:
    """Hunter 2004's MM algorithm (Ann. Statist. 32, eq. 3) on soft wins, in log-strengths of mean 0."""
    count = 1 + max(max(pair) for pair in labels)
    both = labels | {(j, i): 1 - p for (i, j), p in labels.items()}
    gamma = [1.0] * count
    for _ in range(rounds):
        old = gamma[:]
        for i in range(count):
            rivals = [j for j in range(count) if (i, j) in both]
            gamma[i] = sum(both[i, j] for j in rivals) / sum(1 / (gamma[i] + gamma[j]) for j in rivals)
        gamma = [g / sum(gamma) for g in gamma]
        if max(abs(g - o) for g, o in zip(gamma, old, strict=True)) < 1e-12:
            break
    logs = [math.log(g) for g in gamma]
    return [x - sum(logs) / count for x in logs]


@pytest.mark.parametrize(
    "labels",
    [
        {(0, 1): 0.9, (0, 2): 0.2, (1, 2): 0.6},  # a circle
        {(0, 1): 0.7, (1, 2): 0.8, (2, 3): 0.6},  # a chain: each compared with its neighbours alone
        {(0, 1): 0.99, (0, 2): 0.5, (0, 3): 0.35, (1, 2): 0.05, (1, 3): 0.5, (2, 3): 0.9},
    ],
)
def test_the_fit_is_that_of_another_algorithm(labels: dict[Pair, float]) -> None:
    found = bradley_terry(labels)
    assert [found[i] for i in sorted(found)] == pytest.approx(minorise(labels), abs=1e-4)


def test_certain_labels_and_answers_never_compared_have_finite_strengths() -> None:
    sure = bradley_terry({(0, 1): 1.0})
    assert 10 < sure[0] - sure[1] < 14
    apart = bradley_terry({(0, 1): 0.8, (7, 9): 0.6})
    assert apart[0] == pytest.approx(math.log(4) / 2, abs=1e-3)
    assert apart[7] == pytest.approx(math.log(1.5) / 2, abs=1e-3)
    all_sure = bradley_terry(dict.fromkeys(itertools.combinations(range(26), 2), 1.0))
    assert list(all_sure.values()) == sorted(all_sure.values(), reverse=True)
    assert all(math.isfinite(s) for s in all_sure.values())


def test_a_ranking_holds_the_compared_answers_best_first() -> None:
    row = rank_answers(
        JudgedAnswers(prompt(), ["c", "", "a", "b"], {}, "writer", "judge", 3), {(0, 2): 0.2, (0, 3): 0.4, (2, 3): 0.7}
    )
    assert row.responses == ["a", "b", "c"]
    assert (row.model, row.judge, row.seed, row.tags) == ("writer", "judge", 3, ["test"])
    even = rank_answers(
        JudgedAnswers(prompt(), ["x", "y", "z"], {}, "", "", 0), {(0, 1): 0.5, (0, 2): 0.5, (1, 2): 0.5}
    )
    assert even.responses == ["x", "y", "z"]
