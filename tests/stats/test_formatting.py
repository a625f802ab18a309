import pytest

from cai.stats.formatting import (
    counted,
    difference,
    duration,
    estimate,
    interval,
    mean_difference,
    number,
    percent,
    signed,
)
from cai.stats.intervals import Estimate
from cai.stats.significance import Effect


def test_what_is_unknown_is_a_dash_in_every_format() -> None:
    assert {percent(None), number(None), signed(None), estimate(None)} == {"–"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (0.31249, "0.312"), (-9.9994, "-9.999"), (10.0, "10.0"), (-1234.56, "-1234.6")]
)
def test_a_number_has_three_decimals_below_ten_and_one_from_ten_on(value: float, text: str) -> None:
    assert number(value) == text
    assert signed(value) == (text if value < 0 else f"+{text}")


def test_a_number_that_rounds_to_zero_has_no_minus_sign() -> None:
    assert (signed(-0.0001), signed(-0.0), number(-0.0004)) == ("+0.000", "+0.000", "0.000")
    assert estimate(Estimate(-0.0001, -0.0004, 0.5, 9)) == "0.000 [0.000, 0.500]"
    assert difference(Effect(mean=-0.0001, se=0.1, low=-0.0002, high=0.5, n=9, p=0.9)) == "+0.000 [+0.000, +0.500], n=9"


def test_an_estimate_and_its_str_are_the_same() -> None:
    with_interval, without = Estimate(0.625, 0.386, 0.815, 16), Estimate(57.25, None, None, 1)
    assert (estimate(with_interval), estimate(without)) == ("0.625 [0.386, 0.815]", "57.2 (n=1)")
    assert estimate(Estimate(0.5, None, None, 8)) == "0.500 (n=8, all equal)"
    assert (str(with_interval), str(without)) == (estimate(with_interval), estimate(without))
    assert estimate(Estimate(7.5, 4.0, 11.0, 4)) == "7.5 [4.0, 11.0]"  # as many decimals for all three
    assert estimate(with_interval, digits=2) == "0.62 [0.39, 0.81]"


def test_a_difference_has_signs_its_interval_and_its_prompts() -> None:
    effect = Effect(mean=0.3125, se=0.1, low=0.125, high=0.5625, n=16, p=0.01)
    assert difference(effect) == "+0.312 [+0.125, +0.562], n=16"
    bare = effect.model_copy(update={"low": None, "high": None})
    assert difference(bare) == "+0.312 (no interval: too few prompts), n=16"
    assert difference(bare.model_copy(update={"se": 0.0})) == "+0.312 (equal on every prompt), n=16"
    one_training = effect.model_copy(update={"note": "prompts only; training variance unknown"})
    assert difference(one_training) == "+0.312 [+0.125, +0.562], n=16 (prompts only; training variance unknown)"


def test_a_difference_has_the_same_decimals_alone_and_beside_its_interval() -> None:
    effect = Effect(mean=-1.3333, se=6.0, low=-14.25, high=11.5, n=16, p=0.8)
    assert difference(effect) == "-1.3 [-14.2, +11.5], n=16"
    assert (mean_difference(effect), interval(effect)) == ("-1.3", "-14.2 to +11.5")
    assert (mean_difference(effect.model_copy(update={"low": -4.0, "high": 1.4}))) == "-1.333"
    assert interval(effect.model_copy(update={"low": None})) == "–"


def test_the_ends_of_a_narrow_interval_are_told_apart() -> None:
    narrow = Estimate(0.00012, 0.00008, 0.00016, 40)
    assert str(narrow) == "0.0001 [0.0001, 0.0002]"
    assert str(Estimate(0.5, 0.5, 0.5 + 1e-12, 40)) == "0.500 [0.500, 0.500]"
    assert str(Estimate(20.01, 20.0, 20.02, 40)) == "20.01 [20.00, 20.02]"


@pytest.mark.parametrize(("count", "text"), [(0, "0 pairs"), (1, "1 pair"), (2048, "2,048 pairs")])
def test_a_count_agrees_with_its_noun(count: int, text: str) -> None:
    assert counted(count, "pairs") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.0, "59.0 s"), (184.9, "3 min 04 s"), (8100.0, "2 h 15 min")]
)
def test_a_duration_names_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
