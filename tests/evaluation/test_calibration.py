import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.evaluation.calibration import expected_calibration_error, reliability

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
