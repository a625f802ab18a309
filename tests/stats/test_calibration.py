import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cai.stats.calibration import (
    COOLEST,
    HOTTEST,
    expected_calibration_error,
    fit_temperature,
    mean_log_loss,
    reliability,
    tempered,
)
from cai.stats.logistic import sigmoid

pytestmark = pytest.mark.numeric

pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def test_a_pair_is_read_from_the_side_of_its_predicted_winner() -> None:
    # two pairs near 0.9 of which one is won, and one at 0.6 that is won
    bins = reliability([0.9, 0.08, 0.6], [1.0, 1.0, 1.0])
    assert [(b.n, round(b.confidence, 3), b.observed) for b in bins] == [(1, 0.6, 1.0), (2, 0.91, 0.5)]
    assert expected_calibration_error(bins) == pytest.approx((0.4 + 2 * 0.41) / 3)


@given(pairs)
def test_every_pair_is_in_one_bin(rows: list[tuple[float, float]]) -> None:
    predicted, labels = zip(*rows, strict=True)
    bins = reliability(predicted, labels)
    assert sum(b.n for b in bins) == len(rows)
    assert all(b.low - 1e-12 <= b.confidence <= b.high + 1e-12 for b in bins)
    assert 0 <= expected_calibration_error(bins) <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_model_that_says_what_the_labels_say_has_no_error(labels: list[float]) -> None:
    assert expected_calibration_error(reliability(labels, labels)) == pytest.approx(0, abs=1e-9)


def test_a_judge_without_an_opinion_is_calibrated_whichever_answer_stands_first() -> None:
    assert expected_calibration_error(reliability([0.5] * 4, [1.0, 1.0, 1.0, 0.0])) == 0


@given(st.lists(st.floats(-6, 6), min_size=3, max_size=40), st.floats(0.05, 20))
def test_a_planted_temperature_is_found(odds: list[float], temperature: float) -> None:
    assume(max(abs(x) for x in odds) > 0.1)
    predicted = [sigmoid(x) for x in odds]
    labels = [sigmoid(x / temperature) for x in odds]
    assume(any(0.001 < p < 0.999 and abs(p - 0.5) > 0.001 for p in labels))  # else all temperatures say the same
    assert fit_temperature(predicted, labels) == pytest.approx(temperature, rel=0.01)


def test_a_planted_temperature_is_found_in_hard_labels_and_mends_the_calibration() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, size=20_000)
    labels = [float(x) for x in rng.random(len(odds)) < 1 / (1 + np.exp(-odds))]
    overconfident = [sigmoid(float(2.5 * x)) for x in odds]
    t = fit_temperature(overconfident, labels)
    assert t == pytest.approx(2.5, rel=0.05)
    before, after = (
        expected_calibration_error(reliability(p, labels))
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
