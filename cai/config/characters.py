"""Invisible characters, and words of look-alike letters (Unicode Technical Standard #39)."""

import json
import re
import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

LOOK_ALIKES = frozenset("асеіјорѕухԁһԛԝѵ" + "ονικρχυ")  # small letters of Cyrillic and Greek
CONFUSABLE_SCRIPTS = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})
NO_SCRIPT = frozenset({"MICRO", "MODIFIER", "FEMININE", "MASCULINE", "SUPERSCRIPT"})  # µ, ª, ⁿ belong to no script
BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # letters, marks and symbols that are blank


def hidden_characters(text: str) -> list[tuple[int, str]]:
    """(position, name) of every invisible character: control, bidirectional, zero-width and blank characters.

    Excluded are tabs, line breaks, a byte order mark at the start, and joiners and variation selectors where a script
    or an emoji needs them.
    """
    return [
        (at, f"U+{ord(c):04X} {unicodedata.name(c, 'CONTROL CHARACTER')}")
        for at, c in enumerate(text)
        if _is_hidden(c) and not _has_purpose(c, text[at - 1 : at], text[at + 1 : at + 2]) and (c, at) != ("\ufeff", 0)
    ]


def _is_hidden(c: str) -> bool:
    category = unicodedata.category(c)
    variation = "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
    return variation or c in BLANKS or (category in ("Cc", "Cf", "Zl", "Zp", "Co") and c not in "\n\t")


def _has_purpose(c: str, before: str, after: str) -> bool:
    if c in "\u200c\u200d":  # joiners
        return bool(before and after) and not any(b.isascii() or _script(b) == "LATIN" for b in before + after)
    if c in "\ufe0e\ufe0f":  # the plain and the coloured form of an emoji
        return bool(before) and (unicodedata.category(before) == "So" or before in "0123456789#*‼⁉↔")
    return False


def odd_words(text: str) -> list[tuple[str, str]]:
    """(word, reason) for each word that mixes scripts or consists of letters that look like Latin ones."""
    latin = sum(_script(c) == "LATIN" for c in text)
    odd = []
    for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text)):
        scripts = sorted({_script(c) for c in word} & CONFUSABLE_SCRIPTS)
        if len(scripts) > 1:
            odd.append((word, f"mixes {' and '.join(script.capitalize() for script in scripts)} letters"))
        elif any(c.isalpha() and c not in "ªº" and _is_special_form(c) for c in word):
            odd.append((word, "has special forms of ordinary letters"))
        elif scripts and scripts != ["LATIN"] and set(word.lower()) <= LOOK_ALIKES and latin > len(text) / 2:
            odd.append((word, f"has {scripts[0].capitalize()} letters that look like Latin ones"))
    return odd


def _is_special_form(c: str) -> bool:
    return not c.isascii() and unicodedata.normalize("NFKC", c).isascii()


def _script(c: str) -> str:
    """The script of a letter: the first word of its Unicode name; empty for other characters."""
    script = unicodedata.name(c, "").split(" ")[0] if c.isalpha() else ""
    return "" if script in NO_SCRIPT else script


def visible(text: str) -> str:
    """A text with control and invisible characters escaped, so that it cannot control a terminal or hide in a page."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    return f"\\x{ord(c):02x}" if c <= "\xff" else f"\\u{ord(c):04x}" if c <= "\uffff" else f"\\U{ord(c):08x}"


def visible_json(text: str) -> str:
    """A JSON text of the same value, in which control and invisible characters are written as escapes."""
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


class Terminal(Console):
    """A console on which no text moves the cursor, changes colours or hides: names and paths are escaped too."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, `visible`; escapes of rich's own are no part of a segment's text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
