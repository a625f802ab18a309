import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cai.stats import significance
from cai.stats.significance import ALPHA, Effect, contrasts, corrected

pytestmark = pytest.mark.numeric


def of(group: list[float], rest: list[float]) -> Effect:
    return contrasts(["k"] * len(group) + ["other"] * len(rest), {"x": [*group, *rest]})["k", "x"]


@pytest.mark.parametrize("table", [(5, 8, 2, 16), (0, 9, 7, 40), (3, 3, 0, 21), (56, 70, 48, 80), (2, 500, 48, 49_500)])
def test_a_flag_is_tested_by_fishers_exact_test(table: tuple[int, int, int, int]) -> None:
    """The last is one of which the normal distribution would say 0.04."""
    has, size, others, rest = table
    effect = of([1.0] * has + [0.0] * (size - has), [1.0] * others + [0.0] * (rest - others))
    assert effect.mean == pytest.approx(has / size - others / rest)
    n, all_of_them = size + rest, has + others
    apart = [  # by definition: every table with these margins whose shares lie as far apart
        stats.hypergeom.pmf(k, n, all_of_them, size)
        for k in range(size + 1)
        if 0 <= all_of_them - k <= rest and abs(k / size - (all_of_them - k) / rest) >= abs(effect.mean) - 1e-9
    ]
    assert effect.p == pytest.approx(sum(apart))


def test_the_interval_of_a_flag_is_the_published_one() -> None:
    effect = of([1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32)  # Newcombe 1998, table II (a), method 10
    assert (effect.low, effect.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_interval_of_a_flag_reaches_to_zero_where_the_test_does_not_reject_it() -> None:
    for has, others in itertools.product(range(11), range(21)):
        effect = of([1.0] * has + [0.0] * (10 - has), [1.0] * others + [0.0] * (20 - others))
        if effect.p is not None and effect.p > ALPHA and effect.low is not None and effect.high is not None:
            assert effect.low <= 0 <= effect.high


def test_the_p_value_is_that_of_permuting_welchs_t() -> None:
    rng = np.random.default_rng(0)
    group, rest = rng.normal(0.8, 2, 5).tolist(), rng.normal(0, 1, 12).tolist()

    def welch(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.abs(stats.ttest_ind(x, y, axis=axis, equal_var=False).statistic)

    told = stats.permutation_test((group, rest), welch, vectorized=True, alternative="greater", n_resamples=np.inf)
    assert of(group, rest).p == pytest.approx(told.pvalue, abs=0.015)


def test_many_rows_agree_with_welchs_test() -> None:
    rng = np.random.default_rng(0)
    group, rest = rng.normal(0.1, 2, 900).tolist(), rng.normal(0, 1, 4000).tolist()
    effect, told = of(group, rest), stats.ttest_ind(group, rest, equal_var=False)
    assert effect.p == pytest.approx(told.pvalue, rel=0.05)
    assert (effect.low, effect.high) == pytest.approx(tuple(told.confidence_interval()), abs=2e-3)


def test_zero_is_outside_the_interval_where_the_test_rejects_it() -> None:
    rng = np.random.default_rng(4)
    for shift in np.linspace(0, 2, 9):
        effect = of((rng.normal(shift, 1, 8)).tolist(), rng.normal(0, 1, 30).tolist())
        assert effect.p is not None and effect.low is not None and effect.high is not None
        assert (effect.low <= 0 <= effect.high) == (effect.p > ALPHA)


def test_groups_too_small_to_compare_are_skipped() -> None:
    assert contrasts(["a", "b", "b"], {"x": [1.0, 2.0, 3.0]}) == {}
    assert contrasts(["a"] * 5, {"x": [1.0] * 5}) == {}


def test_values_without_spread_show_nothing() -> None:
    effect = of([1.0] * 5, [1.0] * 20)
    assert (effect.mean, effect.p, effect.low) == (0.0, 1.0, None)


def test_over_500_comparisons_no_effect_is_invented_more_often_than_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four principles, three outcomes; the rounds of one principle vary three times as widely as the others'."""
    monkeypatch.setattr(significance, "DRAWS", 1000)
    rng = np.random.default_rng(6)
    invented = found = 0
    for comparison in range(500):
        groups = rng.choice(["a", "b", "c", "d"], 60, p=[0.15, 0.25, 0.3, 0.3])
        wide = np.where(groups == "a", 3.0, 1.0)
        values = {
            "edit": rng.normal(0, 1, 60) * wide,
            "words": rng.exponential(1, 60),
            "flagged": (rng.random(60) < 0.15).astype(float),
        }
        planted = comparison % 2 == 1
        if planted:
            values["words"] = np.where(groups == "d", values["words"] + 2.0, values["words"])
        effects = corrected(contrasts(groups.tolist(), values))
        significant = {key for key, effect in effects.items() if effect.significant}
        found += planted and ("d", "words") in significant
        invented += not planted and bool(significant)
    assert invented / 250 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 250)
    assert found / 250 > 0.9
