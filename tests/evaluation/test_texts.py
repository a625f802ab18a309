from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.config.yaml_files import load_yaml
from cai.data.records import Message
from cai.evaluation import monitors
from cai.evaluation.monitors import Phrases
from tests.conftest import ROOT

SHIPPED = load_yaml(ROOT / "probes/phrases.yaml", Phrases)


@pytest.fixture
def phrases() -> Phrases:
    return SHIPPED


@pytest.mark.parametrize(
    ("text", "declined"),
    [
        ("I'm sorry, but I can’t help with that.", True),
        ("That is a hard one. I cannot  provide\ninstructions for this, since people would be hurt.", True),
        ("I would rather not write that. Here is another idea.", True),
        ("I can help with that! First, boil water.", False),
        ("Boil the water. Add salt. I can't help with more than this.", False),  # it has done what was asked
        ("My grandmother said: she won't. I wonder.", False),
        ("", False),
    ],
)
def test_an_answer_declines_in_its_opening(phrases: Phrases, text: str, declined: bool) -> None:
    assert monitors.declines(text, phrases) is declined


@pytest.mark.parametrize(
    ("text", "stock"),
    [
        ("Sure! Here it is.", True),
        ("Surely not.", False),
        ("**Certainly!** Yes.", True),
        ("Bread is made. Sure.", False),
    ],
)
def test_a_stock_opening_is_a_whole_phrase_at_the_very_start(phrases: Phrases, text: str, stock: bool) -> None:
    assert monitors.opens_stock(text, phrases) is stock


def test_flattery_counts_in_the_opening_and_boilerplate_anywhere(phrases: Phrases) -> None:
    assert monitors.flatters("What a great question! It is blue.", phrases)
    assert not monitors.flatters("It is blue. It is wide. That was a great question.", phrases)
    assert monitors.has_boilerplate(
        "It is hard. Rest. Drink tea. Remember that you are valid, valued and cared for.", phrases
    )
    assert not monitors.has_boilerplate("The ticket is valid.", phrases)


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("- one\n- two", True),
        ("1. one\n2) two", True),
        ("- a single dash is no list", False),
        ("# Title\ntext", True),
        ("This is **bold**.", True),
        ("5 ** 2 and 3 ** 2", False),
        ("In 1990. It was\n12 degrees", False),
        ("A plain text.", False),
    ],
)
def test_lists_headings_and_bold_are_formatting(text: str, formatted: bool) -> None:
    assert monitors.is_formatted(text) is formatted


def test_a_request_for_a_list_asks_for_formatting(phrases: Phrases) -> None:
    def asks(text: str) -> bool:
        return monitors.asks_for_format(
            [Message(role="user", content="List it."), Message(role="user", content=text)], phrases
        )

    assert asks("Give me five ways to save water.")
    assert not asks("Why is the sky blue?")
    assert not asks("Did she listen?")  # not "list"


def test_an_ending_that_three_answers_share_is_stock_and_one_that_two_share_is_not() -> None:
    answers = [
        "Boil it. I hope this helps you today!",
        "Fry it. I hope this helps you, today.",
        "Bake it.\n\nI hope this helps you today",
        "Cut it. Ask your butcher about the rest.",
        "Eat it. Ask your butcher about the rest.",
        "Thanks!",
        "Thanks!",
        "Thanks!",
        "",
    ]
    assert monitors.shared_endings(answers) == [True] * 3 + [False] * 6


@given(st.lists(st.text(), max_size=8), st.randoms())
def test_which_endings_are_shared_does_not_depend_on_the_order(answers: list[str], random: object) -> None:
    marks = monitors.shared_endings(answers)
    order = list(range(len(answers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert monitors.shared_endings([answers[i] for i in order]) == [marks[i] for i in order]


def test_an_answer_that_loops_repeats_itself() -> None:
    assert monitors.repeats_itself("I am here to help you with this. " * 6)
    assert not monitors.repeats_itself(
        "The sky is blue since light is scattered, and short waves are scattered most of all."
    )
    assert not monitors.repeats_itself("yes yes yes yes yes")  # too short to tell


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    for holds in (monitors.declines, monitors.opens_stock, monitors.flatters, monitors.has_boilerplate):
        holds(text, SHIPPED)
    monitors.is_formatted(text), monitors.repeats_itself(text)


def test_an_empty_list_of_phrases_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "phrases.yaml"
    path.write_text("refusal: [i won't]\npreamble: []\nflattery: [a]\nboilerplate: [b]\nasks_for_format: ['']\n")
    with pytest.raises(
        CaiError, match=r"phrases\.yaml:2: preamble: .*not empty(.|\n)*phrases\.yaml:5: asks_for_format"
    ):
        load_yaml(path, Phrases)
