import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.filters import FILTERS, SharedClosers, failed_filters, language, repetition

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


@pytest.mark.parametrize(
    ("critique", "revision"),
    [("Too short.", '  "too short"\n'), (DRAFT + " Nothing else.", DRAFT + " Nothing else!")],
)
def test_the_critique_in_place_of_a_revision_is_a_copy_however_short_or_close_to_the_draft(
    critique: str, revision: str
) -> None:
    assert failed_filters(DRAFT, critique, revision) == ["copied_critique"]


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


ASKED = (
    "Is the answer long? Point it out.\nRewrite the answer in at most two short sentences. Keep only the main point."
)
REQUEST = "How do I boil an egg?"


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("Rewrite the answer in at most two sentences. An egg takes nine minutes.", ["parrots_instruction"]),
        ("Two short sentences: boil it. Wait for nine minutes.", []),  # a few words of it are no parroting
        ("This criticism is correct, and I boil eggs for nine minutes now.", ["leaked_critique"]),
        ("Sure, here is a revised version of it: boil the egg in a pot.", ["announces_itself"]),
        ("Here\u2019s the rewritten answer: boil it in a pot.", ["announces_itself"]),
        ("Revision: boil it in a pot.", ["announces_itself"]),
        ("Boil the egg in a pot until it is done.\n\nThis is a new answer.", ["announces_itself"]),
        ("Boil it, and here is the point: the answer depends on the egg.", []),
    ],
)
def test_a_revision_that_speaks_of_its_own_making_is_recognised(revision: str, expected: list[str]) -> None:
    assert failed_filters(DRAFT, CRITIQUE, revision, ASKED, REQUEST) == expected


def test_what_the_request_is_about_is_no_fault() -> None:
    request = "What is a critique? Rewrite the answer in at most two short sentences. Here is my answer: yes."
    revision = "A critique names faults. Rewrite the answer in at most two short sentences. Here is my answer: no."
    assert failed_filters(DRAFT, None, revision, ASKED, request) == []


def test_a_truncated_revision_is_flagged_with_what_else_it_fails() -> None:
    assert failed_filters(DRAFT, None, "This criticism is right and", truncated=True) == [
        "truncated",
        "leaked_critique",
    ]


TEXTS = {
    "English": "You can boil the egg in a pot of water, and it is done when the white of it is hard to the touch.",
    "German": "Man kann das Ei in einem Topf mit Wasser kochen, und es ist fertig, wenn das Weiße nicht mehr weich ist.",
    "French": "Vous pouvez faire cuire un \u0153uf dans une casserole avec de l'eau, et il est pr\u00eat quand le blanc est dur.",
    "Spanish": "Puede cocer el huevo en una olla con agua, y no se debe sacar del agua por unos minutos para que quede duro.",
    "Cyrillic": "\u0421\u0432\u0430\u0440\u0438\u0442\u0435 \u044f\u0439\u0446\u043e \u0432 \u0432\u043e\u0434\u0435.",
    "Chinese or Japanese": "\u628a\u9e21\u86cb\u653e\u5728\u6c34\u91cc\u716e\u4e5d\u5206\u949f\u3002",
}


@pytest.mark.parametrize(("name", "text"), TEXTS.items())
def test_a_switch_of_language_is_recognised(name: str, text: str) -> None:
    assert language(text) == name
    other = TEXTS["German" if name == "English" else "English"]
    assert failed_filters(other, None, text) == ["other_language"]
    assert failed_filters(other, None, text, request=text) == []  # back to the language of the request
    assert failed_filters(text + " OK?", None, text) == []


@pytest.mark.parametrize("text", ["Boil it.", "1 2 3 4 5 6 7 8 9 10 11 12", "naïve café " * 6, ""])
def test_a_text_whose_language_is_unsure_is_no_switch(text: str) -> None:
    assert language(text) is None


def test_a_closing_sentence_that_many_revisions_share_is_named() -> None:
    closers = SharedClosers()
    for i in range(20):
        closers.add(
            f"Answer {i}. I hope that this helps you!" if i % 5 == 0 else f"Answer {i}. It takes {i} whole minutes."
        )
    assert closers.shares() == {"I hope that this helps you!": 0.2}


@pytest.mark.parametrize("text", ["I hope that this helps you!", "It takes nine minutes.\nThank you!", ""])
def test_whole_answers_and_short_endings_are_no_closers(text: str) -> None:
    closers = SharedClosers()
    for _ in range(20):
        closers.add(text)
    assert closers.shares() == {}


def test_two_revisions_of_few_are_no_habit() -> None:
    closers = SharedClosers()
    for text in (
        "One. I hope that this helps you!",
        "Two. I hope that this helps you!",
        "Three is all there is to it.",
    ):
        closers.add(text)
    assert closers.shares() == {}
