import dataclasses
import math
from typing import Any

import pytest

from cai.config.errors import RequestRefused
from cai.inference.engine import Completion, UnusableAnswer, validate_choice, validate_completion

GOOD = Completion("It is blue.", "stop", 7, 3)


def test_an_answer_that_can_be_stored_passes_also_an_empty_one() -> None:
    validate_completion(GOOD)
    validate_completion(dataclasses.replace(GOOD, text="", completion_tokens=0))
    validate_choice([-0.5, -40.0], 2)
    validate_choice([1e-9, -20], 2)  # a sum of probabilities, rounded


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("text", None, "NoneType in place of a text"),
        ("text", "half \ud83d", r"U\+D83D, half of a surrogate pair"),
        ("finish", "error", "ended with 'error'"),
        ("prompt_tokens", -1, "counted -1 tokens"),
        ("completion_tokens", None, "counted None tokens"),
    ],
)
def test_a_completion_that_is_none_is_named(field: str, value: Any, reason: str) -> None:
    with pytest.raises(UnusableAnswer, match=reason):
        validate_completion(dataclasses.replace(GOOD, **{field: value}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.5, None, "-1", -(10**400)])
def test_a_log_probability_is_a_finite_number_of_at_most_zero(bad: Any) -> None:
    with pytest.raises(UnusableAnswer, match="as a log-probability"):
        validate_choice([-1.0, bad], 2)


def test_there_is_one_log_probability_for_each_option() -> None:
    with pytest.raises(UnusableAnswer, match="1 log-probabilities for 3 options"):
        validate_choice([-1.0], 3)


def test_an_unusable_answer_is_the_refusal_of_one_request() -> None:
    assert issubclass(UnusableAnswer, RequestRefused)
