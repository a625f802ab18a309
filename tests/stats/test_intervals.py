from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cai.stats.intervals import FEW, Estimate, bootstrap_mean, interval_of, paired_change, percentiles, predicted, share
from cai.stats.win_rate import win

pytestmark = pytest.mark.numeric


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 6)), min_size=2, max_size=20))
@example([-7.695758614205866e-17, -7.695758614205866e-17])
def test_the_interval_holds_the_mean_and_repeats_or_is_none_of_equal_values(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert estimate == bootstrap_mean(values)
    if max(values) - min(values) <= 1e-12 * max(map(abs, values)):
        assert (estimate.low, estimate.high) == (None, None)
    else:
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low <= estimate.mean <= estimate.high and estimate.low < estimate.high


@pytest.mark.parametrize("n", [8, 16, 64])
def test_the_interval_of_skewed_values_covers_the_true_mean_at_about_its_level(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [bootstrap_mean(rng.gamma(2.0, 1.0, size=n)) for _ in range(250)]
    assert 0.91 <= np.mean([(e.low or 0) <= 2.0 <= (e.high or 0) for e in found]) <= 0.98


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert bootstrap_mean([0.5]) == (0.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def test_a_tie_is_half_a_win() -> None:
    assert [win(p) for p in (0.2, 0.5, 0.5000001)] == [0.0, 0.5, 1.0]
    assert win(0.5 + 1e-13) == 0.5  # rounding decides nothing


@pytest.mark.slow
def test_the_interval_of_many_values_is_that_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=FEW + 1)
    few, many = bootstrap_mean(values[:FEW].tolist()), bootstrap_mean(values.tolist())
    assert many.n == FEW + 1
    assert (many.low, many.high) == (pytest.approx(few.low, abs=2e-3), pytest.approx(few.high, abs=2e-3))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998 (Stat. Med. 17, 857–872), table I, method 3."""
    found = share([1.0] * hits + [0.0] * (n - hits))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def held(n: int, draw: Callable[[np.random.Generator], tuple[np.ndarray, float]], trials: int = 1500) -> float:
    """How often the interval of values of a random truth holds it."""
    rng, count = np.random.default_rng(n), 0
    for _ in range(trials):
        values, truth = draw(rng)
        found = share(values.tolist())
        count += (found.low or 0) <= truth <= (1 if found.high is None else found.high)
    return count / trials


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("ties", [0.0, 0.3, 0.7])
def test_intervals_of_win_rates_hold_the_truth_as_often_as_they_say(n: int, ties: float) -> None:
    def wins(rng: np.random.Generator) -> tuple[np.ndarray, float]:
        rate = rng.uniform(0.1, 0.9)
        return np.where(rng.random(n) < ties, 0.5, rng.random(n) < rate), ties / 2 + (1 - ties) * rate

    assert 0.92 <= held(n, wins) <= 0.975


@pytest.mark.parametrize("n", [8, 16, 64])
def test_intervals_of_probabilities_hold_the_truth_as_often_as_they_say(n: int) -> None:
    def probabilities(rng: np.random.Generator) -> tuple[np.ndarray, float]:
        mean, certainty = rng.uniform(0.3, 0.8), rng.choice([1, 3, 10])
        return rng.beta(mean * certainty, (1 - mean) * certainty, n), mean

    assert 0.93 <= held(n, probabilities) <= 0.975


@pytest.mark.parametrize("prompts", [8, 16, 64])
@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
def test_the_pairs_of_a_prompt_are_no_separate_trials(prompts: int, together: float) -> None:
    rng, count = np.random.default_rng(prompts), 0
    for _ in range(800):
        rate = rng.uniform(0.2, 0.9)
        of_prompt = np.repeat(rng.random(prompts) < rate, 8)
        hits = np.where(rng.random(8 * prompts) < together, of_prompt, rng.random(8 * prompts) < rate)
        found = share(hits.astype(float).tolist(), np.repeat(np.arange(prompts), 8).tolist())
        assert found.n == prompts
        count += (found.low or 0) <= rate <= (found.high or 0)
    assert 0.93 <= count / 800 <= (0.985 if together else 1.0)  # wide where eight prompts hold 64 trials


def test_one_pair_a_prompt_is_as_without_prompts() -> None:
    values = [1.0, 0.5, 0.0, 1.0, 0.75]
    assert share(values, list("abcde")) == pytest.approx(share(values))


def test_resamples_that_agree_or_are_infinite_make_no_bound() -> None:
    assert interval_of(0.5, np.full(1000, 0.5), 8) == Estimate(0.5, None, None, 8)
    assert interval_of(0.5, np.array([0.4] * 400 + [0.6] * 400 + [np.inf] * 200), 8) == Estimate(0.5, 0.4, None, 8)
    assert interval_of(0.5, np.linspace(0, 1, 1000), 1) == Estimate(0.5, None, None, 1)


@pytest.mark.parametrize("n", [8, 20, 60])
@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.3, 0.05), (0.4, 0.3)])
def test_paired_changes_intervals_hold_the_truth_as_often_as_they_say(n: int, up: float, down: float) -> None:
    draws = np.random.default_rng(1).random((600, n))
    changes = np.where(draws < up, 1.0, np.where(draws > 1 - down, -1.0, 0.0))
    found = [paired_change(row.tolist()) for row in changes]
    held = sum((e.low or 0) <= up - down <= (e.high or 0) for e in found) / len(found)
    assert held >= 0.92


@pytest.mark.parametrize("n", [8, 60])
@pytest.mark.parametrize("certainty", [0.5, 4.0, 20.0])
def test_changes_over_several_forms_of_a_request_are_no_wider_than_they_need_be(n: int, certainty: float) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(800):
        own, there = rng.uniform(0.2, 0.8, 2)
        forms = [rng.binomial(13, rng.beta(certainty * mean, certainty * (1 - mean), n)) for mean in (own, there)]
        found = paired_change(((forms[0] - forms[1]) / 13).tolist())
        held += (found.low or 0) <= own - there <= (found.high or 0)
    assert 0.93 <= held / 800 <= 0.975


def test_no_change_in_few_pairs_has_a_wide_interval() -> None:
    found = paired_change([0.0] * 8)
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, -0.196, 0.196), abs=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_intervals_of_shares_and_changes_hold_their_mean_and_stay_in_range(values: list[float]) -> None:
    for found, least in ((share(values), 0.0), (paired_change([2 * v - 1 for v in values]), -1.0)):
        assert found.low is not None and found.high is not None
        assert least <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize("estimate", [share, paired_change])
def test_no_values_have_no_share(estimate: Callable[[list[float]], Estimate]) -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [5, 500])
def test_predicted_intervals_hold_0_as_often_as_they_say_however_many_prompts(prompts: int) -> None:
    draws = np.random.default_rng(0)
    held, over_prompts_alone = 0, 0
    for _ in range(1000):
        one, others = draws.normal(0, 0.01), draws.normal(0, 0.01, 8)
        differences = [(one - other + draws.normal(0, 0.01, prompts)).tolist() for other in others]
        found = predicted(differences)
        assert found.low is not None and found.high is not None and found.n == 8 * prompts
        held += found.low <= 0 <= found.high
        over_prompts_alone += abs(found.mean) <= 1.96 * np.std(differences) / np.sqrt(found.n)
    assert 930 <= held <= 985
    assert over_prompts_alone < 400  # which the others' differing deceives


def test_differences_to_one_other_thing_alone_have_no_interval() -> None:
    assert predicted([[0.25, 0.75]]) == Estimate(0.5, None, None, 2)
    assert predicted([[0.25], [0.75]]) == Estimate(0.5, None, None, 2)  # which cannot tell things from rows
    with pytest.raises(ValueError, match="no differences"):
        predicted([])


def test_percentiles_of_few_rows_lie_further_out_and_are_students_for_a_mean() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000)  # the bootstrap of a mean of standard error √((n−1)/n)
    for rows, students in ((5, 2.776), (20, 2.093), (100, 1.984)):
        low, high = percentiles(values, rows)
        factor = (rows / (rows - 1)) ** 0.5
        assert (low, high) == pytest.approx((-students * factor, students * factor), abs=0.05)
        low, high = percentiles(values, rows, of_mean=False)
        assert (low, high) == pytest.approx((-students, students), abs=0.05)


def test_percentiles_may_be_infinite() -> None:
    assert percentiles(np.array([-1.0] * 50 + [np.inf] * 50), 50) == (-1, np.inf)
