import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cai.stats.significance import ALPHA, Floats, paired
from cai.stats.trainings import (
    PROMPTS_ONLY,
    between_paired_policies,
    between_policies,
    paired_trainings,
    two_level,
    wins_between_policies,
)

pytestmark = pytest.mark.numeric

A = [
    [36.2, 36.8, 35.4, 31.7, 34.6, 33.6, 38.0, 37.2, 36.5, 34.9],
    [37.8, 41.4, 37.7, 38.6, 40.0, 36.0, 40.8, 42.8, 40.5, 37.7],
    [37.1, 39.7, 34.5, 37.9, 36.8, 33.8, 41.9, 41.7, 36.6, 37.6],
]
B = [
    [45.5, 47.1, 46.9, 41.4, 44.5, 43.2, 44.1, 45.6, 41.4, 42.3],
    [45.5, 46.3, 41.2, 39.7, 43.7, 39.3, 41.7, 45.7, 42.6, 42.1],
    [45.4, 45.8, 44.5, 44.9, 43.8, 43.6, 44.7, 47.4, 42.2, 41.2],
]


def test_the_standard_error_is_that_of_a_mixed_model() -> None:
    """statsmodels 0.15, REML: y ~ side with random trainings, prompts, and prompts within a side."""
    effect = two_level(np.array(A), np.array(B))
    assert (effect.mean, effect.se) == (pytest.approx(6.25), pytest.approx(1.29003, abs=2e-5))
    variance = {"training": 2.05071, "cell": 0.85764, "all": 1.29003**2}  # its components, of one training and cell
    assert effect.between_trainings == pytest.approx(2 * variance["training"] / 3 / variance["all"], abs=1e-3)
    assert effect.trainings == (3, 3) and effect.note == "3 + 3 trainings, 82 % of the variance between them"


def test_where_prompts_add_no_variance_it_is_welchs_test_on_the_means_of_trainings() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4, 1)) + rng.normal(0, 1, (4, 50)), rng.normal(1, 2, (3, 1)) + rng.normal(0, 1, (3, 50))
    b -= (b.mean(axis=0) - a.mean(axis=0)) - (b.mean() - a.mean())  # the same difference on every prompt
    effect, welch = two_level(a, b), stats.ttest_ind(b.mean(axis=1), a.mean(axis=1), equal_var=False)
    assert (effect.p, effect.freedom) == (pytest.approx(welch.pvalue), pytest.approx(welch.df))
    assert (effect.low, effect.high) == pytest.approx(tuple(welch.confidence_interval()))


def policies(rng: np.random.Generator, trainings: int, noise: float, difference: float) -> tuple[Floats, Floats]:
    """Sixteen prompts that differ, differ in what the change does to them, and are answered with noise."""
    prompts, change = rng.normal(0, 20, 16), rng.normal(difference, 10, 16)
    a, b = (rng.normal(0, noise, (trainings, 1)) + rng.normal(0, 15, (trainings, 16)) for _ in "ab")
    return a + prompts, b + prompts + change


@pytest.mark.parametrize("trainings", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.0, 3.0, 11.0])  # words; 11 is the measured one
def test_two_policies_of_one_recipe_differ_significantly_no_more_often_than_alpha(trainings: int, noise: float) -> None:
    rng = np.random.default_rng(trainings)
    p_values = [two_level(*policies(rng, trainings, noise, 0.0)).p or 0 for _ in range(600)]
    assert np.mean(np.array(p_values) <= ALPHA) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 600)


def test_prompts_alone_would_invent_differences_between_trainings() -> None:
    rng = np.random.default_rng(1)
    drawn = [policies(rng, 3, 11.0, 0.0) for _ in range(300)]
    assert np.mean([(paired(b.mean(axis=0) - a.mean(axis=0)).p or 0) <= ALPHA for a, b in drawn]) > 0.3


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    found = [two_level(*policies(rng, 3, 11.0, 7.0)) for _ in range(800)]
    held = np.mean([(e.low or 0) <= 7.0 <= (e.high or 0) for e in found])
    assert 0.93 <= held <= 0.98


def test_one_training_a_side_is_not_tested() -> None:
    effect = two_level(np.array(A[:1]), np.array(B))
    over_prompts = paired(np.mean(B, axis=0) - np.array(A[0]))
    assert (effect.mean, effect.low, effect.high) == (over_prompts.mean, over_prompts.low, over_prompts.high)
    assert (effect.p, effect.note, effect.trainings) == (None, PROMPTS_ONLY, (1, 3))


def test_only_prompts_that_every_policy_answered_count() -> None:
    a = [{"x": 1.0, "y": 2.0, "z": 9.0}, {"x": 2.0, "y": 2.5}]
    b = [{"x": 3.0, "y": 4.0}, {"x": 3.5, "y": 5.0, "w": 0.0}]
    assert (between_policies(a, b).n, between_policies(a, b).mean) == (2, pytest.approx(2.0))
    with pytest.raises(ValueError, match="no policies with shared prompts"):
        between_policies(a, [{"w": 1.0}])
    with pytest.raises(ValueError, match="no policies with shared prompts"):
        between_paired_policies([])


def test_wins_of_paired_trainings_are_tested_by_the_trainings() -> None:
    wins = np.array([[0.5, 0.5, -0.5, 0.5, 0.5, 0.5, 0.0, 0.5]] * 3)
    wins[1, :3], wins[2, 4:] = -0.5, 0.0
    effect = paired_trainings(wins)
    assert effect.mean == pytest.approx(wins.mean()) and effect.trainings == (3, 3)
    assert effect.freedom is not None and effect.freedom < 6
    assert effect.low is not None and effect.high is not None and effect.low < effect.mean < effect.high


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [2, 3])
@pytest.mark.parametrize("noise", [0.0, 1.0])  # log-odds that a training moves, where prompts differ by 1
def test_intervals_of_paired_trainings_hold_the_truth_as_often_as_they_say(trainings: int, noise: float) -> None:
    rng, held = np.random.default_rng(trainings), 0
    for _ in range(400):
        odds = rng.normal(0, noise, (trainings, 1)) + rng.normal(0, 1, 40)
        effect = paired_trainings((rng.random((trainings, 40)) < 1 / (1 + np.exp(-odds))) - 0.5)
        held += effect.low is None or effect.high is None or effect.low <= 0 <= effect.high
    assert held / 400 >= 0.93  # Satterthwaite's t: 0.88 of two trainings that differ by 1


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1))
def test_paired_trainings_that_are_one_variance_are_students_test(values: list[int]) -> None:
    students = stats.ttest_1samp(values, 0.0)
    bounds = students.confidence_interval()
    by_training, by_prompt = (np.tile(np.array(values, dtype=float)[:, None], 5), np.tile(np.array(values), (2, 1)) / 1)
    for effect in (paired_trainings(by_training), paired_trainings(by_prompt)):
        assert effect.p == pytest.approx(students.pvalue, rel=0.02)
        assert (effect.low, effect.high) == pytest.approx(tuple(bounds), rel=0.02, abs=0.02 * (bounds[1] - bounds[0]))
        assert effect.freedom == pytest.approx(len(values) - 1, rel=0.1)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=2, max_size=4))
def test_paired_trainings_differ_significantly_where_the_interval_excludes_0(rows: list[list[int]]) -> None:
    effect = paired_trainings(np.array(rows, dtype=float))
    if effect.low is not None and effect.high is not None and effect.p is not None:
        assert (effect.p <= ALPHA) == (not effect.low <= 0 <= effect.high) or effect.p == pytest.approx(ALPHA)


def test_policies_without_any_difference_have_no_interval() -> None:
    effect = two_level(np.ones((3, 8)), np.ones((3, 8)))
    assert (effect.mean, effect.low, effect.p, effect.note) == (0.0, None, None, "3 + 3 trainings")


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6), min_size=1, max_size=3))
def test_the_interval_of_a_share_of_wins_lies_within_what_a_share_can_be(wins: list[list[float]]) -> None:
    by_prompt = [{f"p{i}": won for i, won in enumerate(of_pair)} for of_pair in wins]
    effect, uncut = (
        wins_between_policies(by_prompt),
        between_paired_policies([{i: v - 0.5 for i, v in w.items()} for w in by_prompt]),
    )
    assert (effect.mean, effect.p) == (uncut.mean, uncut.p)
    if effect.low is not None and effect.high is not None:
        assert -0.5 <= effect.low <= effect.mean <= effect.high <= 0.5
