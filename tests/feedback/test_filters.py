import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.feedback.filters import failed_filters

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
    ],
)
def test_each_fault_is_recognised(revision: str, expected: list[str]) -> None:
    assert failed_filters(DRAFT, CRITIQUE, revision) == expected


def test_words_that_the_draft_had_already_are_not_copied_from_a_critique_that_quotes_them() -> None:
    assert failed_filters(DRAFT, f'It says "{DRAFT}" and that is wrong.', DRAFT.replace("nine", "ten")) == []


@given(st.text(), st.text() | st.none(), st.text())
def test_any_text_gets_at_most_one_flag(before: str, critique: str | None, revision: str) -> None:
    assert len(failed_filters(before, critique, revision)) <= 1
