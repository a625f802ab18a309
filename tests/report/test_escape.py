import json

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from cai.report.escape import inline_json, marked, plain, plot_label, source_hash, visible


def test_text_is_escaped_and_what_cannot_be_seen_is_named() -> None:
    assert visible("<b> & \u202ex\x00") == Markup(
        '&lt;b&gt; &amp; <span class="hidden">U+202E</span>x<span class="hidden">U+0000</span>'
    )
    assert plain("a\u200bb") == "a⟨U+200B⟩b"
    assert visible("two\n\tlines") == "two\n\tlines"


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    assert not set("<>\"'") & set(visible(text).replace('<span class="hidden">', "").replace("</span>", ""))
    assert not set("<>") & set(plot_label(text))


@given(
    st.recursive(
        st.text() | st.none() | st.floats(allow_nan=False), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_json_in_a_script_element_ends_nothing_and_means_the_same(value: object) -> None:
    text = str(inline_json(value))
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


def test_changed_words_are_marked_on_their_side() -> None:
    assert str(marked("boil an egg", "boil two eggs", "del")) == "boil <del>an egg</del>"
    assert str(marked("boil two eggs", "boil an egg", "ins")) == "boil <ins>two eggs</ins>"
    assert str(marked("a <b>", "a", "ins")) == "a<ins> &lt;b&gt;</ins>"


def test_a_scripts_hash_is_that_of_the_specification() -> None:
    # the example of https://www.w3.org/TR/CSP3/#external-hash is of another script; this one is RFC 6234's of "abc"
    assert source_hash("abc") == "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='"
