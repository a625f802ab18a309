import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.feedback.filters import FILTERS, failed_filters, repetition

DRAFT = "You can boil an egg for nine minutes in a small pot of water."
CRITIQUE = "The answer does not say that the water must boil before the egg goes in."


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("Put the egg into boiling water and wait nine minutes.", []),
        ("", ["empty"]),
        (" …!", ["empty"]),
        (DRAFT, ["unchanged"]),
        ("you can boil an egg for nine minutes in a small pot of water", ["unchanged"]),
        (CRITIQUE, ["copied_critique"]),
        ("Sure: the answer does not say that the water must boil before the egg goes in!", ["copied_critique"]),
        (DRAFT + " The answer does not say when.", []),
        ("Boil it. " + "You can boil it well. " * 4, ["repeats_itself"]),
        ("Boil it. You can boil it well, or poach it, or fry it, or bake it with cheese.", []),
    ],
)
def test_each_fault_is_recognised(revision: str, expected: list[str]) -> None:
    assert failed_filters(DRAFT, CRITIQUE, revision) == expected


def test_words_that_the_draft_had_already_are_not_copied_from_a_critique_that_quotes_them() -> None:
    assert failed_filters(DRAFT, f'It says "{DRAFT}" and that is wrong.', DRAFT.replace("nine", "ten")) == []


@given(st.text(), st.text() | st.none(), st.text())
def test_any_text_gets_flags_that_have_a_meaning(before: str, critique: str | None, revision: str) -> None:
    assert set(failed_filters(before, critique, revision)) <= FILTERS.keys()


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_repetition_is_the_share_of_sequences_that_were_there_before(words: list[str]) -> None:
    sequences = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    again = sum(sequence in sequences[:i] for i, sequence in enumerate(sequences))
    assert repetition(" ".join(words)) == pytest.approx(again / len(sequences) if sequences else 0.0)
