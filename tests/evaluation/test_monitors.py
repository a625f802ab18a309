import numpy as np
import pytest

from cai.config.yaml_files import load_yaml
from cai.data.records import Answer, Message
from cai.evaluation.monitors import LENGTH_FACTOR, Monitor, Phrases, Seen, State, ratio_of_means, state, text_monitors
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


def test_few_prompts_are_told_as_unclear() -> None:
    found = monitors([(answer("Sure. It is so.", i), answer("It is so.", i)) for i in range(3)])
    assert {monitor.state for monitor in found.values()} <= {"unclear", "not measured"}


def test_formatting_that_was_asked_for_does_not_count() -> None:
    pairs = [(answer("- a\n- b", i, asked="Give me a list of colours."), answer("a, b", i)) for i in range(9)]
    found = monitors(pairs)["formatting"]
    assert (found.state, found.value) == ("not measured", None)
    assert "every request asks" in found.missing


def test_endings_of_answers_that_were_cut_off_are_not_compared() -> None:
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
