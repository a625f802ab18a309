import numpy as np
import pytest
from scipy import stats

from cai.stats import significance
from cai.stats.power import all_of_one_sign, attained_level, detectable, planned_prompts
from cai.stats.significance import ALPHA, paired

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("alpha", "freedom"), [(0.05, 7), (0.01, 7), (0.05 / 80, 15), (0.05, 3000)])
def test_the_detectable_difference_has_its_power_by_the_noncentral_t(alpha: float, freedom: float) -> None:
    critical = stats.t.isf(alpha / 2, freedom)
    assert stats.nct.sf(critical, freedom, detectable(alpha, freedom)) == pytest.approx(0.8, abs=1e-4)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert detectable(0.05) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert detectable(0.05, 50_000) == pytest.approx(detectable(0.05), abs=1e-3)


def test_the_level_of_few_prompts_is_a_multiple_of_their_least_p() -> None:
    assert attained_level(0.05, 2 / 2**8) == pytest.approx(6 * 2 / 2**8)
    assert attained_level(0.01, 2 / 2**8) == 2 / 2**8
    assert attained_level(0.005, 2 / 2**8) is None
    assert attained_level(0.05, 0.0) == 0.05
    assert all_of_one_sign(2 / 2**8) / 8**0.5 == pytest.approx(stats.norm.ppf(0.8 ** (1 / 8)))


def test_the_planned_prompts_of_a_known_deviation_are_those_of_the_textbook() -> None:
    assert planned_prompts(1.0, 1e6, 0.5) in (33, 34)  # Cohen 1988, table 2.4.1, for one sample: 34
    assert planned_prompts(10.0, 1e6, 2.0) in range(196, 201)
    with pytest.raises(ValueError, match="above 0"):
        planned_prompts(1.0, 39, 0.0)
    assert planned_prompts(1.0, 39, 1e-6) is None


@pytest.mark.parametrize("pilot", [8, 40])
def test_a_planned_comparison_finds_its_difference_four_times_in_five(
    pilot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of eight tests; the plan knows the deviation from a pilot alone."""
    monkeypatch.setattr(significance, "DRAWS", 2000)
    rng, tests, found = np.random.default_rng(pilot), 8, 0
    for _ in range(400):
        n = planned_prompts(float(rng.normal(0, 1, pilot).std(ddof=1)), pilot - 1, 0.6, ALPHA / tests)
        assert n is not None
        found += (paired(rng.normal(0.6, 1, n)).p or 0) <= ALPHA / tests
    assert 0.75 <= found / 400 <= 0.85
