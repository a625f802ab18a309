import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cai.stats.agreement import (
    COOLEST,
    HOTTEST,
    agreement,
    calibration_error,
    cohen_kappa,
    fit_temperature,
    mean_log_loss,
    reliability,
    tempered,
)
from cai.stats.logistic import sigmoid

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


def test_kappas_interval_is_over_prompts_whose_pairs_agree_together() -> None:
    rng, held, over_pairs = np.random.default_rng(0), 0, 0
    for _ in range(300):
        agrees = np.repeat(rng.random(10) < 0.75, 8)  # eight pairs of each of ten prompts, all or none
        a, b = [0.9] * 80, np.where(agrees, 0.8, 0.2).tolist()
        found, alone = agreement(a, b, np.repeat(np.arange(10), 8).tolist()), agreement(a, b)
        assert found is not None and alone is not None and found.kappa == pytest.approx(alone.kappa)
        held += (found.low or 0) <= 0.5 <= (found.high or 0)
        over_pairs += (alone.low or 0) <= 0.5 <= (alone.high or 0)
    assert held / 300 >= 0.92
    assert over_pairs / 300 < 0.7


def test_a_tie_agrees_with_a_tie_alone() -> None:
    found = agreement([0.5, 0.5, 0.8], [0.5, 0.9, 0.7])
    assert found is not None
    assert found.observed == pytest.approx(2 / 3)
    assert agreement([0.5, 0.5], [0.5, 0.5]) == (2, 1.0, None, None, None)
    assert agreement([], []) is None


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def test_a_pair_is_read_from_the_side_of_its_predicted_winner() -> None:
    # two pairs near 0.9 of which one is won, and one at 0.6 that is won
    bins = reliability([0.9, 0.08, 0.6], [1.0, 1.0, 1.0])
    assert [(b.n, round(b.confidence, 3), b.observed) for b in bins] == [(1, 0.6, 1.0), (2, 0.91, 0.5)]


@given(pairs)
def test_every_pair_is_in_one_bin(rows: list[tuple[float, float]]) -> None:
    predicted, labels = zip(*rows, strict=True)
    bins = reliability(predicted, labels)
    assert sum(b.n for b in bins) == len(rows)
    assert all(b.low - 1e-12 <= b.confidence <= b.high + 1e-12 for b in bins)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=30))
@settings(max_examples=30)
def test_a_calibration_error_and_its_interval_are_shares(rows: list[tuple[float, float, int]]) -> None:
    predicted, labels, prompts = zip(*rows, strict=True)
    error = calibration_error(predicted, labels, prompts)
    assert 0 <= error.mean <= 1
    if error.low is not None and error.high is not None:
        assert 0 <= error.low <= error.mean <= error.high <= 1
    turned = calibration_error([1 - p for p in predicted], [1 - p for p in labels], prompts)
    assert turned.mean == pytest.approx(error.mean, abs=1e-9)  # whichever answer stands first


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_model_that_equals_the_labels_has_no_calibration_error(labels: list[float]) -> None:
    error = calibration_error(labels, labels, range(len(labels)))
    assert (error.mean, error.low or 0.0) == pytest.approx((0, 0), abs=1e-9)


def test_a_judge_without_an_opinion_is_calibrated_whichever_answer_stands_first() -> None:
    assert calibration_error([0.5] * 4, [1.0, 1.0, 1.0, 0.0], range(4)).mean == 0


def drawn_judge(rng: np.random.Generator, prompts: int, overconfidence: float) -> tuple[list[float], list[float]]:
    """Two pairs a prompt, the judge's probability and a label that agrees with its winner less often by so much."""
    confidence = rng.uniform(0.5, 1, 2 * prompts)
    right = rng.random(2 * prompts) < confidence - overconfidence
    return confidence.tolist(), right.astype(float).tolist()


@pytest.mark.slow
def test_the_calibration_error_on_few_pairs_is_near_the_one_on_many() -> None:
    rng = np.random.default_rng(0)
    for overconfidence, off in ((0.0, 0.08), (0.2, 0.03)):
        many = calibration_error(*drawn_judge(rng, 20_000, overconfidence), [i // 2 for i in range(40_000)])
        assert many.mean == pytest.approx(overconfidence, abs=0.01)
        few = [
            calibration_error(*drawn_judge(rng, 50, overconfidence), [i // 2 for i in range(100)]) for _ in range(40)
        ]
        assert np.mean([error.mean for error in few]) == pytest.approx(overconfidence, abs=off)
        held = [error.low <= overconfidence <= error.high for error in few if error.low is not None and error.high]
        assert np.mean(held) >= 0.85  # 0.95 less as many standard errors of 40 draws as chance allows


@pytest.mark.slow
def test_a_calibrated_judge_on_forty_pairs_passes_a_gate_of_a_tenth() -> None:
    rng = np.random.default_rng(1)
    errors = [calibration_error(*drawn_judge(rng, 20, 0.0), range(40)) for _ in range(50)]
    assert np.mean([error.low is not None and error.low <= 0.1 for error in errors]) >= 0.9
    wrong = [calibration_error(*drawn_judge(rng, 20, 0.4), range(40)) for _ in range(50)]
    assert np.mean([error.low is not None and error.low <= 0.1 for error in wrong]) <= 0.1


def test_a_judge_that_is_always_right_has_an_interval() -> None:
    error = calibration_error([0.9] * 8, [1.0] * 8, range(8))
    assert error.mean == error.low == 0  # eight of eight come of 0.9 in 43 % of draws: the distance is a usual one
    # seven and eight of eight, whose distances from 0.9 are no larger, come of 0.474 in 2.5 % of draws
    assert error.high == pytest.approx(0.9 - 0.474, abs=0.01)


def test_eight_of_eight_may_come_of_a_judge_that_is_right_much_less_often_than_it_says() -> None:
    error = calibration_error([0.97] * 8, [1.0] * 8, range(8))
    assert (error.mean, error.low) == (0, 0)
    assert error.high == pytest.approx(0.97 - 0.05 ** (1 / 8), abs=0.04)  # half of 0.69⁸ is 0.025, of 2,000 draws


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [8, 40])
@pytest.mark.parametrize("lowest", [0.8, 0.95])
def test_calibration_intervals_of_sure_judges_hold_the_truth(pairs: int, lowest: float) -> None:
    """Most such judges are right on all pairs, as a calibrated one would be and others are by chance."""
    rng, held = np.random.default_rng(pairs), 0
    for number in range(40):
        confidence, error = rng.uniform(lowest, 0.999, pairs), (0.0, 0.03, 0.08)[number % 3]
        right = (rng.random(pairs) < confidence - error).astype(float)
        found = calibration_error(confidence.tolist(), right.tolist(), range(pairs))
        assert found.low is not None and found.high is not None and found.low < found.high
        held += (found.low or 0) - 1e-9 <= error <= (1 if found.high is None else found.high) + 1e-9
    assert held >= 35


@given(st.lists(st.floats(-6, 6), min_size=3, max_size=40), st.floats(0.05, 20))
def test_a_planted_temperature_is_recovered(odds: list[float], temperature: float) -> None:
    assume(max(abs(x) for x in odds) > 0.1)
    predicted = [sigmoid(x) for x in odds]
    labels = [sigmoid(x / temperature) for x in odds]
    assume(any(0.001 < p < 0.999 and abs(p - 0.5) > 0.001 for p in labels))  # else all temperatures say the same
    assert fit_temperature(predicted, labels) == pytest.approx(temperature, rel=0.01)


def test_a_planted_temperature_is_recovered_from_hard_labels_and_mends_the_calibration() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, size=20_000)
    labels = [float(x) for x in rng.random(len(odds)) < 1 / (1 + np.exp(-odds))]
    overconfident = [sigmoid(float(2.5 * x)) for x in odds]
    t = fit_temperature(overconfident, labels)
    assert t == pytest.approx(2.5, rel=0.05)
    before, after = (
        calibration_error(p, labels, range(len(p))).mean
        for p in (overconfident, [tempered(p, t) for p in overconfident])
    )
    assert before > 0.08
    assert after < 0.015
    assert mean_log_loss(overconfident, labels, t) < mean_log_loss(overconfident, labels)


@given(pairs)
def test_no_other_temperature_has_less_log_loss(rows: list[tuple[float, float]]) -> None:
    predicted, labels = (list(column) for column in zip(*rows, strict=True))
    t = fit_temperature(predicted, labels)
    assert COOLEST <= t <= HOTTEST
    best = mean_log_loss(predicted, labels, t)
    for other in (COOLEST, 0.1, 0.5, t * 0.9, t * 1.1, 1.0, 2.0, 10.0, HOTTEST):
        assert best <= mean_log_loss(predicted, labels, min(max(other, COOLEST), HOTTEST)) + 1e-4


def test_a_judge_that_is_never_or_always_wrong_has_no_temperature_within_the_bounds() -> None:
    assert fit_temperature([0.8, 0.3], [1.0, 0.0]) == COOLEST
    assert fit_temperature([0.8, 0.3], [0.0, 1.0]) == HOTTEST


def test_log_loss_is_the_cross_entropy_in_nats() -> None:
    assert mean_log_loss([0.8, 0.5], [1.0, 0.25]) == pytest.approx((-math.log(0.8) + math.log(2)) / 2)
    assert mean_log_loss([0.8], [1.0], temperature=2) == pytest.approx(-math.log(2 / 3))
