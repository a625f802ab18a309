"""Text of models and files on its way to a page: escaped, its invisible characters replaced by their code points."""

import hashlib
import json
from base64 import b64encode
from html import escape
from typing import Any

from markupsafe import Markup

from cai.config.characters import hidden_characters
from cai.constitution.difference import word_changes

MAX_LABEL = 40  # characters


def visible(text: str) -> Markup:
    """Text as HTML, each invisible character as its code point in a marked span; text.js has the same function."""
    return Markup("").join(
        Markup('<span class="hidden">{}</span>').format(piece) if hidden else piece for hidden, piece in _pieces(text)
    )


def plain(text: str) -> str:
    """Text for a title or an attribute, not yet escaped, each invisible character as its code point."""
    return "".join(f"⟨{piece}⟩" if hidden else piece for hidden, piece in _pieces(text))


def plot_label(text: str) -> str:
    """Text as Plotly takes it, which reads tags and entities in every label; at most MAX_LABEL characters."""
    text = plain(text)
    return escape(text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…", quote=False)


def marked(text: str, other: str, tag: str) -> Markup:
    """`text` as HTML, with the words that `other` lacks inside <del> (`text` is the earlier one) or <ins>."""
    assert tag in ("ins", "del")
    pair, own = ((text, other), "removed") if tag == "del" else ((other, text), "added")
    pieces = [(change, visible(piece)) for change, piece in word_changes(*pair) if change in ("same", own)]
    element = Markup("<{0}>{1}</{0}>")
    return Markup("").join(element.format(Markup(tag), piece) if change == own else piece for change, piece in pieces)


def inline_json(value: Any) -> Markup:
    """A value as ASCII JSON for a script element, without characters that could end the element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def source_hash(script: str) -> str:
    """An inline script's name in a Content-Security-Policy (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _pieces(text: str) -> list[tuple[bool, str]]:
    """The text in pieces: (False, visible text) or (True, the code point of an invisible character)."""
    pieces, at = [], 0
    for place, name in hidden_characters(text):
        pieces += [(False, text[at:place]), (True, name.split(" ")[0])]
        at = place + 1
    return [piece for piece in [*pieces, (False, text[at:])] if piece[1]]
