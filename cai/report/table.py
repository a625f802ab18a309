"""Examples as a page carries them: lines of JSON, texts as words of one vocabulary, gzipped, in base64.

Gzip alone looks back 32 kB, which is less than ten examples. With a vocabulary of all of them texts take two thirds of
the room. The first line is what the table needs; a line for each example follows, which a browser reads when the
example is opened or searched.
"""

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from cai.config.hashing import uniform
from cai.data.records import Messages

WORDS = 500_000  # that the vocabulary may hold; others are spelled by their characters
FIRST, SURROGATES, GAP = 0x80, 0xD800, 0x800
"""Word n of the vocabulary is written as the n-th character from FIRST on, without the surrogates, which are none."""


def pack(lines: Sequence[dict[str, Any]], details: Sequence[dict[str, Any]]) -> str:
    """Lines of the table and what opens behind each, in base64; `examplesOfPage` in sources.js reads them."""
    texts = [[_words(text) for text in detail["texts"]] for detail in details]
    counts = Counter(chain.from_iterable(chain.from_iterable(texts)))
    words = [word for word, _ in counts.most_common(WORDS)]
    spelled = set("".join(counts.keys() - set(words)))
    vocabulary = [*words, *sorted(spelled - set(words))]
    signs = {word: sign(number) for number, word in enumerate(vocabulary)}

    def written(words: Iterable[str]) -> str:
        return "".join(signs.get(word) or "".join(map(signs.__getitem__, word)) for word in words)

    coded = (detail | {"texts": list(map(written, own))} for detail, own in zip(details, texts, strict=True))
    text = "\n".join(map(_json, ({"vocabulary": vocabulary, "lines": lines}, *coded)))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def sign(number: int) -> str:
    """The character that stands for a word of the vocabulary."""
    code = FIRST + number
    return chr(code if code < SURROGATES else code + GAP)


def _words(text: str) -> list[str]:
    """Words with the space behind them; together they are the text."""
    return re.findall(r"\S+\s?|\s+", text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# A table of examples as the page's script shows it: lines to filter and sort, and what opens behind each.


MOST = 10_000  # examples on one page; more are sampled
ROOM = 19_500_000  # bytes that they may take on it, so that the page with Plotly (5 MB) stays under 25 MB
CHOICES = 200  # values of a facet to choose from, the most frequent first
Cell = float | str | None


class Column(NamedTuple):
    """A column: how it is headed, what it shows, and what that means."""

    title: str
    kind: Literal["text", "number", "share", "probability"]
    about: str


class Line(NamedTuple):
    """One example in the table: a cell a column, and a list of values a facet."""

    id: str
    cells: list[Cell]
    facets: list[list[str]]


class Detail:
    """What opens behind a line: the conversation and blocks in order. Every text is held once."""

    def __init__(self, messages: Messages) -> None:
        self._numbers: dict[str, int] = {}
        self.turns = [[message["role"], self._number(message["content"])] for message in messages]
        self.blocks: list[dict[str, Any]] = []

    def written(self) -> dict[str, Any]:
        """All of it as the page's script reads it."""
        return {"texts": list(self._numbers), "turns": self.turns, "blocks": self.blocks}

    def holds(self, text: str) -> bool:
        """Whether a lower-case text stands somewhere in its texts."""
        return any(text in t.lower() for t in self._numbers)

    def note(self, title: str, note: str) -> None:
        """A sentence of ours under a title."""
        self.blocks.append({"title": title, "note": note})

    def text(self, title: str, text: str, note: str = "") -> None:
        """A text under its title; the note says what is the matter with it."""
        self.blocks.append({"title": title, "note": note, "text": self._number(text)})

    def diff(self, title: str, names: tuple[str, str], before: str, after: str, note: str = "") -> None:
        """Two texts side by side, their differences marked."""
        sides = [self._number(before), self._number(after)]
        self.blocks.append({"title": title, "note": note, "names": names, "sides": sides})

    def table(self, title: str, rows: Sequence[Sequence[Cell]], head: Sequence[str] = ()) -> None:
        """Figures; none are shown when there are no rows."""
        if rows:
            self.blocks.append({"title": title, "head": head, "rows": [list(map(_short, row)) for row in rows]})

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))


class Table(NamedTuple):
    """All lines of a run or a comparison, how to open one, and whether a text stands in what opens."""

    columns: list[Column]
    facets: list[str]  # their titles
    lines: list[Line]
    detail: Callable[[str], Detail]
    holds: Callable[[str, str], bool]  # (id, lower-case text)


def about(table: Table) -> dict[str, Any]:
    """What the page's script needs to know beside the examples; what no line has is left out by its number."""
    counts = [Counter(value for line in table.lines for value in set(line.facets[f])) for f in range(len(table.facets))]
    return {
        "total": len(table.lines),
        "columns": [
            {**column._asdict(), "at": at}
            for at, column in enumerate(table.columns)
            if any(line.cells[at] not in (None, "") for line in table.lines)
        ],
        "facets": [
            {"title": title, "at": at, "values": sorted(counts[at].items(), key=lambda v: (-v[1], v[0]))[:CHOICES]}
            for at, title in enumerate(table.facets)
            if counts[at]
        ],
    }


def written(line: Line) -> dict[str, Any]:
    """A line as the page's script reads it."""
    return {**line._asdict(), "cells": list(map(_short, line.cells))}


def _short(value: Cell) -> Cell:
    """A figure to as many digits as are shown."""
    return round(value, 4) if isinstance(value, float) else value


class Packed(NamedTuple):
    """Examples as a page carries them (packing.py), and their lines."""

    data: str
    lines: list[Line]


def packed(table: Table, most: int = MOST, room: int = ROOM) -> Packed:
    """As many examples as a page may carry; if not all, those of lowest hash, which favours no part of the run."""
    by_hash = sorted((line.id for line in table.lines), key=lambda i: uniform("report", i))[:most]
    lines = _only(table.lines, by_hash)
    details = {line.id: table.detail(line.id).written() for line in lines}
    while True:
        data = pack([written(line) for line in lines], [details[line.id] for line in lines])
        if len(data) <= room or len(lines) == 1:
            return Packed(data, lines)
        by_hash = by_hash[: max(1, int(0.95 * len(by_hash) * room / len(data)))]
        lines = _only(lines, by_hash)


def _only(lines: Iterable[Line], ids: Sequence[str]) -> list[Line]:
    kept = set(ids)
    return [line for line in lines if line.id in kept]


class Query(NamedTuple):
    """What is looked for: a text anywhere, a value by the number of its facet, an order, and a part of the result."""

    text: str = ""
    facets: dict[Annotated[int, Field(ge=0)], str] = {}
    sort: Annotated[int, Field(ge=0)] | None = None  # a column
    descending: bool = False
    start: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=1, le=500)] = 50


def select(table: Table, query: Query) -> list[Line]:
    """All lines that a query asks for, in its order. As `find` in sources.js."""
    text = query.text.lower()
    found = [line for line in table.lines if all(value in line.facets[at] for at, value in query.facets.items())]
    if text:
        found = [line for line in found if text in line.id.lower() or table.holds(line.id, text)]
    if query.sort is not None:
        at = query.sort
        known = [line for line in found if line.cells[at] is not None]
        known.sort(key=lambda line: line.cells[at], reverse=query.descending)  # type: ignore[arg-type, return-value]
        found = [*known, *(line for line in found if line.cells[at] is None)]
    return found
