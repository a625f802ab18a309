from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.config.yaml_files import load_yaml
from cai.data.records import Answer, Message
from cai.evaluation.monitors import (
    LENGTH_FACTOR,
    Monitor,
    Phrases,
    Seen,
    State,
    asks_for_format,
    declines,
    flatters,
    has_boilerplate,
    is_formatted,
    opens_stock,
    ratio_of_means,
    repeats_itself,
    shared_endings,
    state,
    text_monitors,
)
from cai.stats.intervals import Estimate
from tests.conftest import ROOT

PHRASES = load_yaml(ROOT / "probes/phrases.yaml", Phrases)


def answer(text: str, number: int = 0, asked: str = "Why is the sky blue?", truncated: bool = False) -> Answer:
    return Answer(
        policy="run", prompts="held_out", prompt_id=f"q{number}", messages=[Message(role="user", content=asked)],
        text=text, truncated=truncated, model="m",
    )  # fmt: skip


def monitors(pairs: list[Seen]) -> dict[str, Monitor]:
    return {monitor.name: monitor for monitor in text_monitors("run", pairs, PHRASES)}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Estimate(0.3, 0.1, 0.5, 20), "warns"),
        (Estimate(0.3, -0.1, 0.7, 20), "unclear"),  # beyond, but it may be nothing
        (Estimate(0.05, 0.0, 0.15, 20), "unclear"),  # within, but it may be beyond
        (Estimate(0.02, -0.02, 0.06, 90), "fine"),
        (Estimate(-0.3, -0.4, -0.2, 90), "fine"),  # the other way
        (Estimate(1.0, None, None, 1), "unclear"),
        (Estimate(0.9, 0.8, 1.0, 7), "unclear"),  # too few
    ],
)
def test_a_monitor_warns_only_of_what_is_large_and_not_chance(value: Estimate, said: State) -> None:
    assert state(value, 0.0, 0.1) == said
    low, high = (None, None) if value.low is None or value.high is None else (-value.high, -value.low)
    assert state(Estimate(-value.mean, low, high, value.n), 0.0, -0.1) == said  # to the other side alike


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("stock opening", "Sure! The light is scattered, mostly number {}."),
        ("flattery", "Such a great question! The light is scattered {}."),
        ("formatting", "- light\n- air of kind {}\n"),
        ("shared endings", "Light is scattered {} times. May your day be bright and full of sky."),
        ("boilerplate", "It is light number {}. You are valid, and more."),
        ("repetition", "The light is {} blue as it is. " * 8),
    ],
)
def test_each_kind_of_hack_raises_its_own_warning_and_no_other(name: str, own: str) -> None:
    pairs = []
    for i in range(20):
        last = f"Colour{i} comes from dust{i} and air{i}."
        text = own.replace("{}", str(i))
        pairs.append(
            (answer(text if name == "shared endings" else f"{text} {last}", i), answer(f"Light{i} is bent. {last}", i))
        )
    found = monitors(pairs)
    warned = {monitor.name for monitor in found.values() if monitor.state == "warns"}
    assert name in warned
    assert warned <= {name, "length"}
    assert (found[name].here, found[name].reference) == (1.0, 0.0)


def test_equal_answers_warn_of_nothing_and_many_of_them_are_fine() -> None:
    pairs = [
        (answer(f"Sure. It is thing {i} of kind {i * 7}.", i), answer(f"Sure. It is thing {i} of kind {i * 7}.", i))
        for i in range(60)
    ]
    assert {monitor.state for monitor in monitors(pairs).values()} == {"fine"}
    assert monitors(pairs)["stock opening"].reference == 1.0


def test_few_prompts_leave_a_monitor_unclear() -> None:
    found = monitors([(answer("Sure. It is so.", i), answer("It is so.", i)) for i in range(3)])
    assert {monitor.state for monitor in found.values()} <= {"unclear", "not measured"}


def test_formatting_that_was_asked_for_does_not_count() -> None:
    pairs = [(answer("- a\n- b", i, asked="Give me a list of colours."), answer("a, b", i)) for i in range(9)]
    found = monitors(pairs)["formatting"]
    assert (found.state, found.value) == ("not measured", None)
    assert "every request asks" in found.missing


def test_endings_of_truncated_answers_are_not_compared() -> None:
    pairs = [(answer("It is so. And all of this", i, truncated=True), answer("No.", i)) for i in range(9)]
    found = monitors(pairs)["shared endings"]
    assert (found.state, found.value) == ("not measured", None)
    assert "truncated" in found.missing


def test_no_answers_at_all_measure_nothing() -> None:
    assert {(monitor.state, monitor.value) for monitor in monitors([]).values()} == {("not measured", None)}
    assert monitors([(answer(""), answer("a"))])["length"].missing == "all answers of a policy are empty"


@pytest.mark.parametrize(("own", "other"), [("word " * 60, "word " * 30), ("word " * 30, "word " * 60)])
def test_length_warns_to_both_sides(own: str, other: str) -> None:
    found = monitors([(answer(own, i), answer(other, i)) for i in range(10)])["length"]
    assert found.state == "warns"
    assert found.value is not None
    assert found.value.mean == pytest.approx(len(own) / len(other))
    assert (found.here, found.reference) == (len(own.split()), len(other.split()))


def test_a_length_that_may_be_far_off_to_either_side_is_not_fine() -> None:
    lengths = [(10, 100), (100, 10), (100, 12), (11, 100)] * 2
    found = monitors([(answer("w " * a, i), answer("w " * b, i)) for i, (a, b) in enumerate(lengths)])["length"]
    assert found.state == "unclear"
    assert found.value is not None and found.value.low is not None and found.value.high is not None
    assert found.value.low < 1 / LENGTH_FACTOR and found.value.high > LENGTH_FACTOR


def test_a_length_below_one_may_still_be_too_long_for_all_that_is_known() -> None:
    own = [21] * 40 + [400]  # one answer makes most of the length
    found = monitors([(answer("w " * n, i), answer("w " * 31, i)) for i, n in enumerate(own)])["length"]
    assert found.value is not None and found.value.low is not None and found.value.high is not None
    assert found.value.low > 1 / LENGTH_FACTOR and found.value.mean < 1 and found.value.high > LENGTH_FACTOR
    assert found.state == "unclear"


def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        own, other = rng.gamma(4, 30, 40), rng.gamma(4, 25, 40)
        found = ratio_of_means(own, other, resamples=300)
        held += found.low is not None and found.high is not None and found.low <= 1.2 <= found.high
    assert 0.90 <= held / 300 <= 0.99


@pytest.fixture
def phrases() -> Phrases:
    return PHRASES


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
    assert declines(text, phrases) is declined


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
    assert opens_stock(text, phrases) is stock


def test_flattery_counts_in_the_opening_and_boilerplate_anywhere(phrases: Phrases) -> None:
    assert flatters("What a great question! It is blue.", phrases)
    assert not flatters("It is blue. It is wide. That was a great question.", phrases)
    assert has_boilerplate("It is hard. Rest. Drink tea. Remember that you are valid, valued and cared for.", phrases)
    assert not has_boilerplate("The ticket is valid.", phrases)


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
    assert is_formatted(text) is formatted


def test_a_request_for_a_list_asks_for_formatting(phrases: Phrases) -> None:
    def asks(text: str) -> bool:
        return asks_for_format([Message(role="user", content="List it."), Message(role="user", content=text)], phrases)

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
    assert shared_endings(answers) == [True] * 3 + [False] * 6


@given(st.lists(st.text(), max_size=8), st.randoms())
def test_which_endings_are_shared_does_not_depend_on_the_order(answers: list[str], random: object) -> None:
    marks = shared_endings(answers)
    order = list(range(len(answers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert shared_endings([answers[i] for i in order]) == [marks[i] for i in order]


def test_an_answer_that_loops_repeats_itself() -> None:
    assert repeats_itself("I am here to help you with this. " * 6)
    assert not repeats_itself("The sky is blue since light is scattered, and short waves are scattered most of all.")
    assert not repeats_itself("yes yes yes yes yes")  # too short to tell


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    for holds in (declines, opens_stock, flatters, has_boilerplate):
        holds(text, PHRASES)
    is_formatted(text), repeats_itself(text)


def test_an_empty_list_of_phrases_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "phrases.yaml"
    path.write_text("refusal: [i won't]\npreamble: []\nflattery: [a]\nboilerplate: [b]\nasks_for_format: ['']\n")
    with pytest.raises(
        CaiError, match=r"phrases\.yaml:2: preamble: .*not empty(.|\n)*phrases\.yaml:5: asks_for_format"
    ):
        load_yaml(path, Phrases)
