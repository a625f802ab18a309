"""Error messages for data that users wrote: what was expected, and what was found."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from cai.config.validation import closest_names, format_location, problems
from cai.config.yaml_files import Section


class Turn(TypedDict):
    who: Literal["a", "b", "c"]
    text: str


class Egg(Section):
    kind: Literal["egg"]
    soft_minutes: Annotated[int, Field(ge=1)] = 4


class Ham(Section):
    kind: Literal["ham"]
    slices: list[float] = []


class Meal(Section):
    name: str = "x"
    count: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    cook: str | Annotated[list[str], Field(min_length=1)] | None = None
    band: tuple[Annotated[float, Field(ge=0, le=0.5)], Annotated[float, Field(ge=0.5, lt=1)]] = (0.4, 0.6)
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    dishes: list[Annotated[Egg | Ham, Field(discriminator="kind")]] = []
    side: Egg | None = None
    turns: list[Turn] = []
    cold: bool = False
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"count": "many"}, "count: expected 'all' or a whole number of at least 1, found 'many'"),
        ({"count": "al"}, "count: expected 'all' or a whole number of at least 1, found 'al'; did you mean 'all'?"),
        ({"count": 0}, "count: expected 'all' or a whole number of at least 1, found 0"),
        ({"count": True}, "count: expected 'all' or a whole number of at least 1, found true"),
        ({"share": False}, "share: expected a number of at least 0 and below 1, found false"),
        ({"share": [1]}, "share: expected a number of at least 0 and below 1, found a list of 1"),
        ({"cook": 3}, "cook: expected a text, or a list of texts that is not empty, or null, found 3; put it in quotes"),
        ({"cook": []}, "cook: expected a text, or a list of texts that is not empty, or null, found an empty list"),
        ({"cook": ["me", {}]}, "cook[1]: expected a text, found a mapping"),
        ({"band": 0.4}, "band: expected a list of 2 numbers, found 0.4"),
        ({"band": [0.4]}, "band[1]: missing; expected a number of at least 0.5 and below 1"),
        ({"band": [0.4, 0.6, 0.7]}, "band: expected a list of 2 numbers, found a list of 3"),
        ({"band": [0.7, 0.6]}, "band[0]: expected a number from 0 to 0.5, found 0.7"),
        ({"side": "egg.yaml"}, "side: expected a mapping with soft_minutes or null, found 'egg.yaml'"),
        ({"side": {"kind": "eg"}}, "side.kind: expected 'egg', found 'eg'; did you mean 'egg'?"),
        ({"dishes": {}}, "dishes: expected a list of mappings, found a mapping"),
        ({"dishes": ["egg"]}, "dishes[0]: expected a mapping with kind, found 'egg'"),
        ({"dishes": [{}]}, "dishes[0].kind: missing; expected 'egg' or 'ham'"),
        ({"dishes": [{"kind": "hamm"}]}, "dishes[0].kind: expected 'egg' or 'ham', found 'hamm'; did you mean 'ham'?"),
        ({"dishes": [{"kind": "ham", "slices": ["thin"]}]}, "dishes[0].slices[0]: expected a number, found 'thin'"),
        ({"dishes": [{"kind": "egg", "sm": 3}]}, "dishes[0].sm: unknown key 'sm' for kind 'egg'; did you mean 'soft_minutes'?"),
        ({"dishes": [{"kind": "egg", "oil": 3}]}, "dishes[0].oil: unknown key 'oil' for kind 'egg'; known keys: soft_minutes"),
        ({"dishes": [{"kind": "egg", "slices": []}]}, "dishes[0].slices: unknown key 'slices' for kind 'egg'; known keys: soft_minutes"),
        ({"dishes": [{"kind": "egg", "egg": 1}]}, "dishes[0].egg: unknown key 'egg' for kind 'egg'; known keys: soft_minutes"),
        ({"dishes": [{"kynd": "egg"}]}, "dishes[0].kind: missing; expected 'egg' or 'ham'"),
        ({"side": {"kynd": "egg"}}, "side.kynd: unknown key 'kynd'; did you mean 'kind'?"),
        ({"grid": {"seed": 3}}, "grid.seed: expected a list of values that is not empty, found 3"),
        ({"siide": {}}, "siide: unknown key 'siide'; did you mean 'side'?"),
        ({"side": {"kind": "egg", 2.5: 2}}, "side.2.5: unknown key '2.5' for kind 'egg'; known keys: soft_minutes"),
        ({1: 2}, "1: unknown key '1'; known keys: name, count, cook"),
        ({"turns": [{"who": "a"}]}, "turns[0].text: missing; expected a text"),
        ({"turns": [{"who": "z", "text": "t"}]}, "turns[0].who: expected one of 'a', 'b', 'c', found 'z'"),
        ({"turns": ["z"]}, "turns[0]: expected a mapping with who, text, found 'z'"),
        ({"cold": "maybe"}, "cold: expected true or false, found 'maybe'"),
        ({"name": None}, "name: expected a text, found nothing"),
        ({"name": 2024}, "name: expected a text, found 2024; put it in quotes to mean the text"),
        ({"side": {"kind": "egg", "soft_minutes": "b" * 80}}, f"side.soft_minutes: expected a whole number of at least 1, found '{'b' * 58}…"),
        ([], ": expected a mapping with name, count, cook, band, share, dishes, side, turns, …, found an empty list"),
    ],
)  # fmt: skip
def test_an_error_names_the_expected_and_the_actual_value(data: object, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Meal.model_validate(data)
    messages = [
        f"{format_location(data, problem.at)}: {problem.text()}" for problem in problems(Meal, data, caught.value)
    ]
    assert len(messages) == 1, messages
    assert expected in messages[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("judg", ("judge",)),  # judge_gate begins so too, and is far less like it
        ("smples", ("samples",)),
        ("cot_", ("cot_clamp", "cot_samples")),
        ("cot_sample", ("cot_samples",)),
        ("jg", ("judge_gate",)),
        ("warmth", ()),
    ],
)
def test_at_most_two_names_are_suggested_the_closest_first(name: str, expected: tuple[str, ...]) -> None:
    assert (
        closest_names(name, ["cot_max_tokens", "cot_samples", "cot_clamp", "samples", "judge_gate", "judge"])
        == expected
    )


def test_truth_values_pass_where_they_are_meant() -> None:
    assert Meal.model_validate({"cold": True}).cold


def test_a_type_without_words_of_cai_keeps_pydantics_message() -> None:
    class Odd(BaseModel):
        when: complex

    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({"when": []})
    [problem] = problems(Odd, {"when": []}, caught.value)
    assert problem.at == ("when",)
    assert "complex" in problem.message
    assert problem.message.endswith(", found an empty list")
