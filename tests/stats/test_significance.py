import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cai.stats import significance
from cai.stats.significance import ALPHA, Effect, Key, contrasts, corrected, holm, minimum_detectable, paired

pytestmark = pytest.mark.numeric


def family(effects: dict[Key, Effect]) -> dict[Key, Effect]:
    return corrected({"effects": effects})["effects"]


differences = st.lists(st.integers(-4, 4).map(lambda x: x / 4), min_size=2, max_size=10)


def by_scipy(values: list[float]) -> float:
    """Every sign pattern, by an independent library."""
    found = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return float(found.pvalue)


@pytest.mark.parametrize(
    "values",
    [[0.2, 0.5, -0.1, 0.9, 1.1, 0.4], [1, 1, 0, 0, -1, 1, 1, 0], [0.1, -2.0, 0.3], [3, 1, 4, -1, 5, -9, 2, 6, 5, 3, 5, 8]],
)  # fmt: skip
def test_the_p_value_is_that_of_all_sign_patterns(values: list[float]) -> None:
    assert paired(values).p == pytest.approx(by_scipy(values))


def test_many_prompts_are_sampled_and_come_near_all_sign_patterns() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 15).tolist()
    assert paired(values).p == pytest.approx(by_scipy(values), abs=0.01)


@given(differences, st.floats(-2, 2))
def test_the_interval_holds_exactly_what_the_test_does_not_reject(values: list[float], theta: float) -> None:
    effect = paired(values)
    if effect.low is None or effect.high is None:
        return
    away = min(abs(theta - effect.low), abs(theta - effect.high)) > 1e-6
    if away and abs(theta - effect.mean) > 1e-6:
        shifted = paired([value - theta for value in values])
        assert shifted.p is not None
        assert (effect.low < theta < effect.high) == (shifted.p > ALPHA)


@given(differences)
def test_swapping_the_runs_turns_the_effect_round(values: list[float]) -> None:
    effect, swapped = paired(values), paired([-value for value in values])
    assert (swapped.mean, swapped.p) == (pytest.approx(-effect.mean), pytest.approx(effect.p))
    if effect.low is not None and effect.high is not None:
        assert (swapped.low, swapped.high) == (pytest.approx(-effect.high), pytest.approx(-effect.low))


def test_five_prompts_establish_nothing_and_have_no_interval() -> None:
    effect = paired([0.9, 1.0, 1.1, 0.8, 1.2])
    assert (effect.low, effect.high, effect.p) == (None, None, 2 / 2**5)
    assert paired([0.9, 1.0, 1.1, 0.8, 1.2, 1.0]).low is not None


def test_one_prompt_has_neither_interval_nor_p() -> None:
    assert paired([0.4]) == Effect(mean=0.4, se=None, low=None, high=None, n=1, p=None)
    with pytest.raises(ValueError, match="no differences"):
        paired([])


def test_ties_are_no_evidence_and_equal_differences_have_no_interval() -> None:
    ties = paired([0.0] * 50)
    assert (ties.mean, ties.p, ties.low, ties.high) == (0.0, 1.0, None, None)
    same = paired([1.0] * 10)
    assert (same.p, same.low) == (2 / 2**10, None)


def test_a_few_differences_among_many_ties_stay_unsure() -> None:
    rare = paired([1.0] * 4 + [0.0] * 200_000)
    assert rare.p == pytest.approx(2 / 2**4, abs=0.01)  # the normal distribution would say 0.046


def test_very_many_prompts_agree_with_students_t() -> None:
    values = np.random.default_rng(0).normal(0.02, 1, 20_000)
    effect, result = paired(values), stats.ttest_1samp(values, 0)
    assert effect.p == pytest.approx(result.pvalue, rel=0.02)
    assert (effect.low, effect.high) == pytest.approx(tuple(result.confidence_interval()), abs=1e-4)


def test_an_interval_of_twelve_skewed_prompts_covers_the_truth_at_its_level() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(500):
        effect = paired(rng.choice([0.0, 0.0, 1.0, 1.0, 2.0], 12))
        assert effect.low is not None and effect.high is not None
        held += effect.low <= 0.8 <= effect.high
    assert 0.93 <= held / 500 <= 0.99


def test_holms_correction_is_the_published_one() -> None:
    # https://en.wikipedia.org/wiki/Holm–Bonferroni_method#Example: at 0.05, 0.01 and 0.005 are rejected of four
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # statsmodels 0.14, multipletests(method="holm")
    assert holm([0.011, 0.0004, 0.3, 0.02, 0.02, 0.049]) == pytest.approx([0.055, 0.0024, 0.3, 0.08, 0.08, 0.098])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_numbers_that_are_equal_everywhere_do_not_weigh_on_the_others() -> None:
    unsure = paired([1, 1, 1, 0, 1, 1, 0, 1, -1, 1, 1, 1])
    alone = family({"a": unsure})["a"]
    among = family({"a": unsure, **{str(i): paired([0.0] * 12) for i in range(20)}})
    assert among["a"].adjusted == alone.adjusted == unsure.p
    assert among["3"].adjusted == 1.0


@given(st.integers(12, 10_000), st.floats(0.01, 100), st.integers(1, 20))
def test_the_minimum_detectable_difference_of_a_known_spread_is_a_number_of_standard_errors(
    n: int, se: float, tests: int
) -> None:
    effect = Effect(mean=0.5, se=se, low=None, high=None, n=n, p=0.5)
    alpha = 0.05 / tests
    assert minimum_detectable(effect, tests) == pytest.approx((stats.norm.isf(alpha / 2) + stats.norm.ppf(0.8)) * se)
    assert minimum_detectable(effect.model_copy(update={"mean": -3.0}), tests) == minimum_detectable(effect, tests)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=20).filter(lambda x: np.ptp(x) > 1e-3), st.integers(2, 9))
def test_the_minimum_detectable_difference_shrinks_with_the_root_of_n(values: list[float], times: int) -> None:
    n, se = len(values), float(np.std(values)) / len(values) ** 0.5
    effect = Effect(mean=0.5, se=se, low=None, high=None, n=n, p=0.5)
    larger = effect.model_copy(update={"n": times * n, "se": float(np.std(values * times)) / (times * n) ** 0.5})
    assert minimum_detectable(effect) == pytest.approx((minimum_detectable(larger) or 0) * times**0.5)


def test_the_minimum_detectable_difference_is_that_of_the_textbook() -> None:
    effect = Effect(mean=0.0, se=32**-0.5, low=None, high=None, n=32, p=0.5)
    assert minimum_detectable(effect) == pytest.approx(0.5, abs=0.01)  # Cohen 1988, table 2.4.1: n = 64/2 for d = 0.5


def test_too_few_prompts_have_no_minimum_detectable_difference() -> None:
    effect = Effect(mean=0.5, se=0.1, low=None, high=None, n=5, p=0.5)
    assert minimum_detectable(effect) is None
    assert minimum_detectable(effect.model_copy(update={"n": 6})) is not None
    six = effect.model_copy(update={"n": 6, "least_p": 2 / 2**6})
    assert minimum_detectable(six) is not None and minimum_detectable(six, tests=2) is None  # 2 of 2^6 are above 0.025
    assert minimum_detectable(effect.model_copy(update={"n": 50, "se": 0.0})) is None


@pytest.mark.slow
def test_the_minimum_detectable_difference_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    for n, tests in ((8, 1), (8, 5), (16, 5), (16, 40), (40, 1), (64, 20)):
        known = paired(rng.normal(0, 1, n)).model_copy(update={"se": n**-0.5})
        detectable = minimum_detectable(known, tests)
        assert detectable is not None
        found = sum((paired(rng.normal(detectable, 1, n)).p or 0) <= ALPHA / tests for _ in range(400))
        assert 0.75 <= found / 400 <= 0.85, (n, tests)


def test_a_table_has_a_minimum_detectable_difference_for_each_effect_significant_or_not() -> None:
    clear, unclear = paired([1.0, 1.1, 0.9] * 5), paired([1.0, -1.1, 0.9] * 5)
    table = family({"clear": clear, "unclear": unclear})
    assert table["clear"].significant and not table["unclear"].significant
    assert table["clear"].minimum_detectable == minimum_detectable(clear, 2)
    assert table["unclear"].minimum_detectable == minimum_detectable(unclear, 2)


def test_a_difference_larger_than_any_there_can_be_is_none_to_detect() -> None:
    wide, clear = paired([1.0, -0.9] * 6), paired([0.5, 0.4, 0.6] * 4)
    table = corrected(
        {"metrics": {"words": wide, "wide": wide, "clear": clear}}, lambda _, key: 99 if key == "words" else 1
    )
    found = {key: (effect.undetectable, effect.minimum_detectable) for key, effect in table["metrics"].items()}
    assert (minimum_detectable(wide, 3) or 0) > 1
    assert found == {
        "words": (False, minimum_detectable(wide, 3)),
        "wide": (True, None),
        "clear": (False, minimum_detectable(clear, 3)),
    }


@pytest.mark.slow
def test_over_500_comparisons_false_positives_stay_below_alpha_and_planted_effects_are_detected() -> None:
    """A comparison is five metrics on the same forty prompts, without effect; in half of them one is planted."""
    rng = np.random.default_rng(2)
    tests, n = 5, 40
    z = stats.norm.ppf(1 - ALPHA / 2 / tests)
    planted = (z + stats.norm.ppf(0.8)) / math.sqrt(n - z**2 / 2)  # what forty prompts find, by t
    invented, found = 0, 0
    for comparison in range(500):
        effect = planted if comparison % 2 else 0.0
        rows = rng.normal(0, 1, (tests, n)) + rng.normal(0, 1, n) * 0.5  # metrics of a run go together
        metrics = {i: paired(row / math.sqrt(1.25) + (effect if i == 0 else 0)) for i, row in enumerate(rows)}
        significant = {i for i, e in family(metrics).items() if e.significant}
        invented += bool(significant - ({0} if effect else set()))
        found += bool(effect) and 0 in significant
    assert invented / 500 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)
    assert 0.73 <= found / 250 <= 0.87


def test_tables_share_the_level_and_each_of_their_tests_weighs_the_same_within_its_own() -> None:
    few = {f"f{i}": p_of(0.001 * (i + 1)) for i in range(2)}
    many = {f"m{i}": p_of(0.5) for i in range(98)} | {"m98": p_of(0.0001), "m99": p_of(0.0004)}
    found = corrected({"few": few, "many": many, "none": {}})
    assert [found["few"][key].adjusted for key in ("f0", "f1")] == pytest.approx([0.001 * 4, 0.002 * 3])
    assert [found["many"][key].adjusted for key in ("m98", "m99")] == pytest.approx([0.0001 * 100, 0.0004 * 99])
    assert found["few"]["f0"].minimum_detectable == minimum_detectable(few["f0"], 4)  # one of two tests in two tables
    assert found["many"]["m0"].minimum_detectable == minimum_detectable(many["m0"], 200)


def p_of(p: float) -> Effect:
    return Effect(mean=1.0, se=1.0, low=None, high=None, n=50, p=p)


def test_effects_that_could_not_be_significant_alone_are_not_counted() -> None:
    unsure = paired([1, 1, 1, 0, 1, 1, 0, 1, -1, 1, 1, 1])
    few = {f"few {i}": paired([0.3, 0.2, 0.5, 0.1, 0.4 + i / 100]) for i in range(30)}  # 2 of 2^5 patterns: 0.0625
    among = family({"a": unsure, **few})
    assert among["a"].adjusted == unsure.p
    assert among["few 3"].adjusted == 2 / 2**5 and among["few 3"].minimum_detectable is None


@pytest.mark.parametrize("weights", [[1.0] * 6, [1.0, 2.0, 0.5, 1.0, 1.0, 3.0]])
def test_a_weighted_family_invents_nothing_more_often_than_alpha(weights: list[float]) -> None:
    rng = np.random.default_rng(0)
    invented = sum(min(holm(rng.random(6).tolist(), weights)) <= ALPHA for _ in range(4000))
    assert invented / 4000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)


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


@pytest.mark.slow
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

    result = stats.permutation_test((group, rest), welch, vectorized=True, alternative="greater", n_resamples=np.inf)
    assert of(group, rest).p == pytest.approx(result.pvalue, abs=0.015)


def test_many_rows_agree_with_welchs_test() -> None:
    rng = np.random.default_rng(0)
    group, rest = rng.normal(0.1, 2, 900).tolist(), rng.normal(0, 1, 4000).tolist()
    effect, result = of(group, rest), stats.ttest_ind(group, rest, equal_var=False)
    assert effect.p == pytest.approx(result.pvalue, rel=0.05)
    assert (effect.low, effect.high) == pytest.approx(tuple(result.confidence_interval()), abs=2e-3)


def test_three_rows_of_a_wider_spread_than_five_others_have_an_interval_of_its_level() -> None:
    rng, held, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):
        values = np.concatenate([rng.normal(3, 2, 3), rng.normal(0, 1, 5)]).tolist()
        effect = contrasts(["k"] * 3 + ["r"] * 5, {"x": values})["k", "x"]
        assert effect.p is not None and effect.low is not None and effect.high is not None
        assert (effect.low <= 0 <= effect.high) == (effect.p > ALPHA)
        held += effect.low <= 3 <= effect.high
    assert held / trials == pytest.approx(0.95, abs=0.012)


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


@pytest.mark.slow
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
        effects = family(contrasts(groups.tolist(), values))
        significant = {key for key, effect in effects.items() if effect.significant}
        found += planted and ("d", "words") in significant
        invented += not planted and bool(significant)
    assert invented / 250 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 250)
    assert found / 250 > 0.9
