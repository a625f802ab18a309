import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cai.stats.agreement import agreement, cohen_kappa

pytestmark = pytest.mark.numeric

raters = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from("xyz"), min_size=n, max_size=n)] * 2)
)
opinions = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0, 1), min_size=n, max_size=n)] * 2))


def rows(*counts: tuple[str, str, int]) -> tuple[list[str], list[str]]:
    both = [(a, b) for a, b, n in counts for _ in range(n)]
    return [a for a, _ in both], [b for _, b in both]


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        # Fleiss, Levin & Paik, Statistical Methods for Rates and Proportions, 3rd ed., table 18.1: 0.676
        (
            [("p", "p", 75), ("p", "n", 1), ("p", "o", 4), ("n", "p", 5), ("n", "n", 4), ("n", "o", 1), ("o", "o", 10)],
            0.23 / 0.34,
        ),
        # the examples that textbooks share: two readers of 50 proposals, and how marginals move κ at one p_o
        ([("y", "y", 20), ("y", "n", 5), ("n", "y", 10), ("n", "n", 15)], 0.4),
        ([("y", "y", 45), ("y", "n", 15), ("n", "y", 25), ("n", "n", 15)], 0.1304),
        ([("y", "y", 25), ("y", "n", 35), ("n", "y", 5), ("n", "n", 35)], 0.2593),
    ],
)
def test_kappa_is_that_of_published_examples(counts: list[tuple[str, str, int]], kappa: float) -> None:
    assert cohen_kappa(*rows(*counts)) == pytest.approx(kappa, abs=5e-5)


@given(raters)
def test_kappa_knows_neither_the_order_of_raters_nor_the_names_of_categories(both: tuple[list[str], list[str]]) -> None:
    a, b = both
    kappa = cohen_kappa(a, b)
    assert cohen_kappa(b, a) == (None if kappa is None else pytest.approx(kappa))
    renamed = [[{"x": 3, "y": 1, "z": 2}[c] for c in rater] for rater in both]
    assert cohen_kappa(*renamed) == (None if kappa is None else pytest.approx(kappa))
    if kappa is not None:
        assert -1 - 1e-9 <= kappa <= 1 + 1e-9
    assert cohen_kappa(a, a) in (None, pytest.approx(1.0))


def test_raters_who_draw_independently_have_no_kappa_above_chance() -> None:
    independent = list(itertools.product("xxyz", "xyyyz"))
    assert cohen_kappa([a for a, _ in independent], [b for _, b in independent]) == pytest.approx(0.0)


@given(opinions, st.data())
def test_agreement_does_not_depend_on_which_answer_stands_first(
    both: tuple[list[float], list[float]], data: st.DataObject
) -> None:
    turn = data.draw(st.lists(st.booleans(), min_size=len(both[0]), max_size=len(both[0])))
    turned = [[1 - p if t else p for p, t in zip(side, turn, strict=True)] for side in both]
    ours, theirs = agreement(*both), agreement(*turned)
    assert ours is not None
    assert theirs is not None
    assert (ours.n, ours.observed) == (theirs.n, theirs.observed)
    assert ours.kappa == (None if theirs.kappa is None else pytest.approx(theirs.kappa))


def test_without_ties_chance_is_one_half_even_if_the_better_answer_always_stands_first() -> None:
    found = agreement([0.9] * 30 + [0.2] * 10, [1.0] * 40)
    assert found is not None
    assert (found.n, found.observed, found.kappa) == (40, 0.75, pytest.approx(0.5))
    wilson = binomtest(30, 40).proportion_ci(method="wilson")
    assert found.low == pytest.approx(2 * wilson.low - 1, abs=1e-4)
    assert found.high == pytest.approx(2 * wilson.high - 1, abs=1e-4)


def test_two_pairs_that_agree_are_no_certain_agreement() -> None:
    found = agreement([0.9, 0.2], [0.8, 0.4])
    assert found is not None and found.low is not None
    assert (found.kappa, found.high) == (1.0, 1.0)
    assert found.low < 0


def test_a_tie_agrees_with_a_tie_alone() -> None:
    found = agreement([0.5, 0.5, 0.8], [0.5, 0.9, 0.7])
    assert found is not None
    assert found.observed == pytest.approx(2 / 3)
    assert agreement([0.5, 0.5], [0.5, 0.5]) == (2, 1.0, None, None, None)
    assert agreement([], []) is None
