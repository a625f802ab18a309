import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cai.evaluation.statistics import FEW, bootstrap_mean
from cai.evaluation.win_rate import win


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
@example([-7.695758614205866e-17, -7.695758614205866e-17])  # whose interpolated bounds round past each other
def test_the_interval_lies_within_the_data_and_repeats(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert estimate.low is not None
    assert estimate.high is not None
    slack = 1e-9 * (1 + max(abs(v) for v in values))
    assert min(values) - slack <= estimate.low <= estimate.mean <= estimate.high <= max(values) + slack
    assert estimate == bootstrap_mean(values)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        estimate = bootstrap_mean(rng.normal(1.0, 2.0, size=40), seed=trial)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert bootstrap_mean([0.5]) == (0.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def test_a_tie_is_half_a_win() -> None:
    assert [win(p) for p in (0.2, 0.5, 0.5000001)] == [0.0, 0.5, 1.0]
    assert win(0.5 + 1e-13) == 0.5  # rounding decides nothing


def test_the_interval_of_many_values_is_that_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=FEW + 1)
    few, many = bootstrap_mean(values[:FEW].tolist()), bootstrap_mean(values.tolist())
    assert many.n == FEW + 1
    assert (many.low, many.high) == (pytest.approx(few.low, abs=2e-3), pytest.approx(few.high, abs=2e-3))
