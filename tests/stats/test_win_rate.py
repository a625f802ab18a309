import numpy as np
import pytest

from cai.stats.win_rate import length_controlled_win_rate

pytestmark = pytest.mark.numeric


def planted(
    rng: np.random.Generator, n: int, quality: float, length: float, shift: float
) -> tuple[list[float], list[float]]:
    """Who won, and by how much the answer is longer, where log-odds are quality + length · tanh(d / sd)."""
    d = rng.normal(shift, 1, n)
    odds = quality + length * np.tanh(d / d.std())
    return (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float).tolist(), (100 * d).tolist()


def test_without_differences_in_length_it_is_the_win_rate() -> None:
    wins = [1.0] * 8 + [0.5] * 2 + [0.0] * 5
    found = length_controlled_win_rate(wins, [0.0] * 15).win_rate
    assert found is not None
    assert found.mean == pytest.approx(9 / 15, abs=1e-6)


def test_where_length_does_not_matter_it_is_near_the_win_rate() -> None:
    # every length as often on won prompts as on lost ones
    wins, longer = [1.0, 1.0, 0.0] * 20, [float(d) for d in (-30, -10, 10, 50) for _ in range(15)]
    found = length_controlled_win_rate(wins, longer).win_rate
    assert found is not None
    assert found.mean == pytest.approx(2 / 3, abs=1e-6)


def test_a_judge_that_goes_by_length_alone_gives_one_half_though_the_win_rate_is_high() -> None:
    wins, longer = planted(np.random.default_rng(3), 400, 0.0, 3.0, 1.0)
    found = length_controlled_win_rate(wins, longer).win_rate
    assert found is not None
    assert np.mean(wins) > 0.75
    assert found.mean == pytest.approx(0.5, abs=0.06)
    assert found.low is not None and found.high is not None and found.low < 0.5 < found.high


def test_planted_quality_is_recovered_beside_planted_length() -> None:
    wins, longer = planted(np.random.default_rng(5), 3000, 1.0, -2.0, 0.5)
    found = length_controlled_win_rate(wins, longer, resamples=200).win_rate
    assert found is not None
    assert np.mean(wins) < 0.6
    assert found.mean == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.03)


def test_the_win_rate_of_the_other_answer_is_one_less_it() -> None:
    wins, longer = planted(np.random.default_rng(6), 60, 0.5, 1.0, 0.2)
    one = length_controlled_win_rate(wins, longer).win_rate
    other = length_controlled_win_rate([1 - w for w in wins], [-d for d in longer]).win_rate
    assert one is not None and other is not None
    assert (one.mean, one.low) == pytest.approx((1 - other.mean, 1 - (other.high or 0)), abs=2e-3)


@pytest.mark.parametrize(
    ("wins", "longer", "said"),
    [
        ([1.0] * 3, [1.0, -1.0, 2.0], "3 prompts are too few"),
        ([1.0] * 20, [5.0] * 20, "shorter on 0 of 20 prompts only"),
        ([1.0] * 20, [-5.0] * 16 + [1.0] * 4, "longer on 4 of 20 prompts only"),
    ],
)
def test_a_rate_that_length_cannot_be_separated_from_is_missing(
    wins: list[float], longer: list[float], said: str
) -> None:
    found = length_controlled_win_rate(wins, longer)
    assert found.win_rate is None
    assert said in found.missing


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, held, result = np.random.default_rng(0), 0, 0
    for quality, length, shift in ((0.0, 0.0, 0.0), (0.7, 1.5, 0.0), (0.0, 2.0, 0.5)):
        for _ in range(120):
            found = length_controlled_win_rate(*planted(rng, 40, quality, length, shift), resamples=200).win_rate
            if found is not None and found.low is not None and found.high is not None:
                result += 1
                held += found.low <= 1 / (1 + np.exp(-quality)) <= found.high
    assert result > 300
    assert 0.90 <= held / result <= 0.99
