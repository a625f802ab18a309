"""Text of models and files on its way to a page: escaped, and with what cannot be seen made visible."""

import hashlib
import json
from base64 import b64encode
from html import escape
from typing import Any

from markupsafe import Markup

from cai.config.characters import hidden_characters
from cai.constitution.principles import word_changes

LONGEST = 40  # characters of a label


def shown(text: str) -> Markup:
    """Text as HTML; characters that cannot be seen are named, as `visible` in report.js does."""
    return Markup("").join(
        Markup('<span class="hidden">{}</span>').format(piece) if hidden else piece for hidden, piece in _pieces(text)
    )


def plain(text: str) -> str:
    """Text for a title or an attribute, not yet escaped; characters that cannot be seen are named."""
    return "".join(f"⟨{piece}⟩" if hidden else piece for hidden, piece in _pieces(text))


def label(text: str) -> str:
    """Text as Plotly takes it, which reads tags and entities in every label; cut where it would fill the plot."""
    text = plain(text)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…", quote=False)


def changed(text: str, other: str, tag: str) -> Markup:
    """`text` as HTML, with the words that `other` lacks inside <del> (`text` is the one before) or <ins>."""
    assert tag in ("ins", "del")
    pair, ours = ((text, other), "removed") if tag == "del" else ((other, text), "added")
    kept = [(what, shown(piece)) for what, piece in word_changes(*pair) if what in ("same", ours)]
    mark = Markup("<{0}>{1}</{0}>")
    return Markup("").join(mark.format(Markup(tag), piece) if what == ours else piece for what, piece in kept)


def inline_json(value: Any) -> Markup:
    """A value as JSON that can stand inside a script element: nothing in it ends the element, all of it is ASCII."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def source_hash(script: str) -> str:
    """What a Content-Security-Policy calls an inline script by (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _pieces(text: str) -> list[tuple[bool, str]]:
    """The text in pieces: as it stands, or the code point of a hidden character."""
    pieces, at = [], 0
    for place, name in hidden_characters(text):
        pieces += [(False, text[at:place]), (True, name.split(" ")[0])]
        at = place + 1
    return [piece for piece in [*pieces, (False, text[at:])] if piece[1]]
