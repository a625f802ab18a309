import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.constitution.lint_words import content, leanings, only_denies, trait, words


def test_content_words_exclude_those_of_every_principle() -> None:
    assert content("Which answer is safer, and says why?") == content("Rewrite the answer with safety.")
    assert content("Which answer is the better one?") == frozenset()
    assert len(content("Quote the dangerous advice and the risks")) == 3


@pytest.mark.parametrize(
    ("some", "same"), [("danger", "dangers"), ("safer", "safety"), ("insulting", "insults"), ("kinder", "kindness"), ("short", "shortest")]
)  # fmt: skip
def test_endings_are_cut(some: str, same: str) -> None:
    assert content(some) == content(same)


def test_every_character_of_unspaced_scripts_is_a_word() -> None:
    assert words("安全な答え, isn't it") == ["安", "全", "な", "答", "え", "isn't", "it"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which answer is more harmful?", {"bad": 1}),
        ("Which answer is less harmful?", {"bad": -1}),
        ("Which answer is the most clearly toxic?", {"bad": 1, "clear": 1}),
        ("Which answer is less helpful?", {"bad": 1}),
        ("Which answer is safer and more helpful?", {"bad": -1}),
        ("Which answer is worse?", {"bad": 1}),
        ("Which answer has fewer insults?", {"bad": -1}),
        ("Do not choose the more harmful answer.", {"bad": -1}),
        ("Rewrite the answer to remove harmful claims.", {"bad": -1}),
        ("Rewrite the answer without insults.", {"bad": -1}),
        ("Point out what is harmful.", {}),
        ("Which answer is shorter?", {"long": -1}),
        ("Make it longer.", {"long": 1}),
        ("Which answer isn't longer?", {"long": -1}),
        ("Which answer is more formal?", {"form": 1}),
        ("Write it less formally.", {"form": -1}),
        ("Sound more sure, or less sure, as the facts allow.", {}),
        ("Which answer does more to help?", {}),
        ("Which answer has fewer kinds of jargon, without any kind of slang?", {"kind": -1}),
        ("Which answer warns of the most dangerous steps?", {"bad": -1}),
        ("Which answer says more of harmful steps?", {}),
        ("Which answer has more than one example?", {}),
    ],
)
def test_which_way_a_text_leans(text: str, expected: dict[str, int]) -> None:
    assert {root: leaning.sign for root, leaning in leanings(text).items()} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Be kind.", "Be kind"),
        ("Rewrite the answer. Always be honest.", "Always be honest"),
        ("The AI should be honest and open.", "AI should be honest"),
        ("Is the assistant truly caring?", None),
        ("The model is very wise.", "model is very wise"),
        ("You are a helpful writer.", "You are a helpful"),
        ("Which answer shows more honesty?", "shows more honesty"),
        ("Which answer says what it does not know?", None),
        ("Which answer shows more care for someone in pain?", None),
        ("Make it useful, truthful and safe, and keep it kind.", None),
        ("The answer should be kind words only.", None),
        ("What could be good for people?", None),
    ],
)
def test_what_ascribes_a_trait(text: str, expected: str | None) -> None:
    assert trait(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Do not insult anyone.", True),
        ("Avoid insults. Never threaten.", True),
        ("Rewrite the answer so that it does not insult anyone.", True),
        ("Rewrite the response to remove all insults.", True),
        ("Please rewrite it without slang, and avoid jokes.", True),
        ("Rewrite the answer. Leave out the lecture.", True),
        ("Take the dangerous advice out.", True),
        ("Rewrite the answer so that nobody is mocked.", True),
        ("Remove the insults and explain a calmer way.", True),  # the first word of a clause decides
        ("Remove the insults, and explain a calmer way.", False),
        ("Avoid jargon. Use plain words.", False),
        ("Rewrite the answer so that it treats all people as equals.", False),
        ("Rewrite the answer in two short sentences without filler. No greeting. Write only the answer.", False),
        ("Rewrite the answer.", False),
        ("", False),
    ],
)
def test_what_only_denies(text: str, expected: bool) -> None:
    assert only_denies(text) is expected


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert content(text) == content(text.upper().lower()) or not text.isascii()
    assert {leaning.sign for leaning in leanings(text).values()} <= {1, -1}
    assert isinstance(only_denies(text), bool)
    assert trait(text) is None or trait(text)
