import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from cai.stats.logistic import fit_logistic

pytestmark = pytest.mark.numeric


def loss(beta: np.ndarray, design: np.ndarray, labels: np.ndarray, weights: np.ndarray, ridge: float) -> float:
    x = design @ beta
    return float(np.sum(weights * (np.logaddexp(0, x) - labels * x)) + ridge / 2 * beta @ beta)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(5, 40), st.floats(0.01, 10))
def test_the_minimum_is_that_of_a_general_minimiser(seed: int, k: int, rows: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    design, labels, weights = rng.normal(0, 3, (rows, k)), rng.random(rows), rng.integers(0, 4, rows).astype(float)
    [found] = fit_logistic(design, labels, weights, ridge)
    oracle = minimize(loss, np.zeros(k), args=(design, labels, weights, ridge), method="BFGS", options={"gtol": 1e-9})
    assert found == pytest.approx(oracle.x, abs=1e-4)


def test_many_weightings_at_once_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    design, weights, labels = rng.normal(0, 1, (30, 3)), rng.integers(0, 3, (50, 30)), rng.random((50, 30))
    together = fit_logistic(design, labels, weights, 0.1)
    assert together.shape == (50, 3)
    for i in range(50):
        assert together[i] == pytest.approx(fit_logistic(design, labels[i], weights[i], 0.1)[0], abs=1e-8)


def test_with_an_intercept_alone_the_fit_is_the_log_odds_of_the_mean() -> None:
    [[found]] = fit_logistic(np.ones((4, 1)), np.array([1, 0, 1, 0.5]), np.ones(4))
    assert found == pytest.approx(np.log(0.625 / 0.375))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_labels_that_a_line_separates_end_at_the_finite_point_that_the_ridge_allows(scale: float) -> None:
    design = scale * np.array([[-2.0], [-1.0], [1.0], [3.0]])
    [found] = fit_logistic(design, np.array([0.0, 0, 1, 1]), np.ones(4), 1e-6)
    x = found[0] * design[:, 0]
    gradient = design[:, 0] @ (1 / (1 + np.exp(-x)) - [0, 0, 1, 1]) + 1e-6 * found[0]
    assert np.isfinite(found[0]) and found[0] > 0
    assert abs(gradient) < 1e-7
