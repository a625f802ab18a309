import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.characters import hidden_characters, odd_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u202eb", [(1, "U+202E RIGHT-TO-LEFT OVERRIDE")]),
        ("\u2066x\u2069", [(0, "U+2066 LEFT-TO-RIGHT ISOLATE"), (2, "U+2069 POP DIRECTIONAL ISOLATE")]),
        ("no\u200bharm", [(2, "U+200B ZERO WIDTH SPACE")]),
        ("no\u200dharm", [(2, "U+200D ZERO WIDTH JOINER")]),
        ("so\u00adft", [(2, "U+00AD SOFT HYPHEN")]),
        ("a\x1b[2J", [(1, "U+001B CONTROL CHARACTER")]),
        ("a\u2028b", [(1, "U+2028 LINE SEPARATOR")]),
        ("tag\U000e0041", [(3, "U+E0041 TAG LATIN CAPITAL LETTER A")]),
        ("x\ufe0f", [(1, "U+FE0F VARIATION SELECTOR-16")]),
        ("x\U000e0100", [(1, "U+E0100 VARIATION SELECTOR-17")]),
        ("x\u3164", [(1, "U+3164 HANGUL FILLER")]),
        ("x\ufeff", [(1, "U+FEFF ZERO WIDTH NO-BREAK SPACE")]),
    ],
)
def test_invisible_characters_are_reported(text: str, expected: list[tuple[int, str]]) -> None:
    assert hidden_characters(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffname: a",  # a byte order mark
        "a\tb\nc",
        "می\u200cخواهم",  # Persian needs the joiner's opposite
        "क्\u200dष",
        "👩\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f⃣",
        "naïve café, “quoted” — 5 µm, 2ª, x²",
        "Чисто русский текст",
        "Не сор, а ответ",  # two words of letters that look like Latin ones, in their own script
        "中文和日本語",
        "C'est vrai\u202f!",
    ],
)
def test_what_has_a_purpose_is_left_alone(text: str) -> None:
    assert hidden_characters(text) == []
    assert odd_words(text) == []


@given(st.text(st.characters(categories=["Cf", "Cc", "Zl", "Zp"], exclude_characters="\n\t\u200c\u200d")))
def test_every_format_and_control_character_is_reported(text: str) -> None:
    assert len(hidden_characters("a" + text)) == len(text)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_has_nothing_hidden_or_odd(text: str) -> None:
    assert hidden_characters(text) == []
    assert odd_words(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the аnswer", [("аnswer", "mixes Cyrillic and Latin letters")]),
        ("hοnest", [("hοnest", "mixes Greek and Latin letters")]),
        ("is it а good answer", [("а", "has Cyrillic letters that look like Latin ones")]),
        ("what ехсuse", [("ехсuse", "mixes Cyrillic and Latin letters")]),
        ("𝐛𝐨𝐥𝐝 claims", [("𝐛𝐨𝐥𝐝", "has special forms of ordinary letters")]),
        ("ｗｉｄｅ", [("ｗｉｄｅ", "has special forms of ordinary letters")]),
    ],
)
def test_words_with_lookalike_letters_are_reported(text: str, expected: list[tuple[str, str]]) -> None:
    assert odd_words(text) == expected


def test_the_look_alikes_do_look_alike() -> None:
    from cai.config.characters import LOOK_ALIKES

    assert {unicodedata.name(c).split()[0] for c in LOOK_ALIKES} == {"CYRILLIC", "GREEK"}
    assert all(c == c.lower() for c in LOOK_ALIKES)
