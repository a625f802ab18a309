import numpy as np
import pytest
from scipy import stats

from cai.stats import significance
from cai.stats.power import (
    all_of_one_sign,
    attained_level,
    detectable,
    detectable_flags,
    differing_share,
    flag_power,
    planned_flags,
    planned_prompts,
)
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


@pytest.mark.slow
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


def flags(rng: np.random.Generator, n: int, up: float, down: float) -> np.ndarray:
    drawn = rng.random(n)
    return np.where(drawn < up, 1.0, np.where(drawn > 1 - down, -1.0, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "up", "down"), [(12, 0.6, 0.0), (60, 0.25, 0.05), (300, 0.05, 0.01)])
def test_the_power_of_flags_is_how_often_the_test_finds_them(n: int, up: float, down: float) -> None:
    rng = np.random.default_rng(n)
    found = np.mean([(paired(flags(rng, n, up, down)).p or 0) <= 0.01 for _ in range(400)])
    assert found == pytest.approx(flag_power(n, up, down, 0.01), abs=0.06)


def test_flags_that_differ_on_few_prompts_have_a_detectable_difference() -> None:
    effect = significance.corrected({"flags": {"cut": paired([1.0] * 2 + [0.0] * 26)}})["flags"]["cut"]
    assert effect.minimum_detectable is not None and 0.2 < effect.minimum_detectable < 0.4  # six of 28 at least
    assert detectable_flags(28, differing_share(2, 28), ALPHA) == effect.minimum_detectable
    assert detectable_flags(8, 0.1, 0.001) is None  # 2⁻⁷ is the smallest p of eight prompts


@pytest.mark.parametrize("differing", [0.02, 0.3])  # of the pilot's prompts
@pytest.mark.parametrize("difference", [0.1, 0.3])
def test_planned_flags_find_their_difference_four_times_in_five_or_more(differing: float, difference: float) -> None:
    """The plan knows how many prompts differ from a pilot of forty, and as few as none may.

    More where it may take just as many: pilots in which more differ ask for more, and none can ask for less.
    """
    alpha, share, power = ALPHA / 8, max(differing, difference), 0.0
    for count in range(31):
        n = planned_flags(differing_share(count, 40), difference, alpha)
        assert n is not None
        found = flag_power(n, (share + difference) / 2, (share - difference) / 2, alpha)
        power += float(stats.binom.pmf(count, 40, differing)) * found
    assert 0.75 <= power <= (0.85 if differing != difference else 0.95)


def test_a_plan_for_more_than_every_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        planned_flags(0.1, 1.5, ALPHA)
