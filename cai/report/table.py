"""The table of examples: lines to filter and sort, what opens behind each, and how a page embeds them.

An embedded table is gzipped JSON in base64, its texts spelled with the characters of a vocabulary: gzip alone looks
back 32 kB, which is less than ten examples. The first line of JSON holds the vocabulary and the lines of the table; a
line for each example follows, which the browser parses when the example is opened or searched.

Why not gzip alone: the 10,000 examples of benchmarks/report.py take 15.1 MB with the vocabulary and 21.7 MB without,
and with Plotly the page would exceed 25 MB (November 2026).
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

MAX_EXAMPLES = 10_000  # on one page; of more a sample
MAX_BYTES = 19_500_000  # of the embedded examples, so that the page with Plotly (5 MB) stays under 25 MB
MAX_FACET_VALUES = 200  # to choose from, the most frequent first
MAX_VOCABULARY = 500_000  # words; rarer ones are spelled with the characters in it
FIRST_CODE, SURROGATES, SURROGATE_COUNT = 0x80, 0xD800, 0x800
"""Word n of the vocabulary is the n-th character from FIRST_CODE on; surrogates are skipped, for UTF-8 has none."""
Cell = float | str | None


class Column(NamedTuple):
    """A column: its title, how its values are formatted, and what they mean."""

    title: str
    kind: Literal["text", "number", "share", "probability"]
    meaning: str


class Line(NamedTuple):
    """One example in the table: a cell per column, and a list of values per facet."""

    id: str
    cells: list[Cell]
    facets: list[list[str]]


class Detail:
    """What opens behind a line: the conversation, then blocks in order. Each distinct text is stored once."""

    def __init__(self, messages: Messages) -> None:
        self._text_numbers: dict[str, int] = {}
        self.turns = [[message["role"], self._number(message["content"])] for message in messages]
        self.blocks: list[dict[str, Any]] = []

    def to_json(self) -> dict[str, Any]:
        """All of it as the page's script reads it."""
        return {"texts": list(self._text_numbers), "turns": self.turns, "blocks": self.blocks}

    def contains(self, text: str) -> bool:
        """Whether one of the texts contains a lower-case text."""
        return any(text in t.lower() for t in self._text_numbers)

    def note(self, title: str, note: str) -> None:
        """A sentence under a title."""
        self.blocks.append({"title": title, "note": note})

    def text(self, title: str, text: str, note: str = "") -> None:
        """A text under its title, with a remark about it."""
        self.blocks.append({"title": title, "note": note, "text": self._number(text)})

    def folded(self, title: str, text: str) -> None:
        """A text that shows once its title is opened."""
        self.blocks.append({"title": title, "folded": self._number(text)})

    def diff(
        self, title: str, names: tuple[str, str], texts: tuple[str, str], note: str = "", principle: str | None = None
    ) -> None:
        """Two texts side by side, their differences marked; `principle`, its id, is what a revision was made by."""
        sides = [self._number(text) for text in texts]
        by = {} if principle is None else {"principle": principle}
        self.blocks.append({"title": title, "note": note, "names": names, "sides": sides, **by})

    def table(self, title: str, rows: Sequence[Sequence[Cell]], head: Sequence[str] = ()) -> None:
        """A table of values; without rows there is none."""
        if rows:
            self.blocks.append({"title": title, "head": head, "rows": [list(map(_rounded, row)) for row in rows]})

    def _number(self, text: str) -> int:
        return self._text_numbers.setdefault(text, len(self._text_numbers))


class Table(NamedTuple):
    """The lines of a run or a comparison, how to open one, and whether what opens contains a text."""

    columns: list[Column]
    facets: list[str]  # titles
    lines: list[Line]
    detail: Callable[[str], Detail]  # by id
    contains: Callable[[str, str], bool]  # (id, lower-case text)


def describe(table: Table) -> dict[str, Any]:
    """What the page's script needs besides the examples: columns and facets that any line has a value in."""
    counts = [Counter(value for line in table.lines for value in set(line.facets[f])) for f in range(len(table.facets))]
    return {
        "total": len(table.lines),
        "columns": [
            {**column._asdict(), "at": at}
            for at, column in enumerate(table.columns)
            if any(line.cells[at] not in (None, "") for line in table.lines)
        ],
        "facets": [
            {
                "title": title,
                "at": at,
                "values": sorted(counts[at].items(), key=lambda v: (-v[1], v[0]))[:MAX_FACET_VALUES],
            }
            for at, title in enumerate(table.facets)
            if counts[at]
        ],
    }


def line_json(line: Line) -> dict[str, Any]:
    """A line as the page's script reads it."""
    return {**line._asdict(), "cells": list(map(_rounded, line.cells))}


def _rounded(value: Cell) -> Cell:
    """A value to the digits that are displayed."""
    return round(value, 4) if isinstance(value, float) else value


class Query(NamedTuple):
    """What to search for: a text anywhere, values by facet number, an order, and a part of the result."""

    text: str = ""
    facets: dict[Annotated[int, Field(ge=0)], str] = {}
    sort: Annotated[int, Field(ge=0)] | None = None  # a column
    descending: bool = False
    start: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=1, le=500)] = 50


def select(table: Table, query: Query) -> list[Line]:
    """All lines that match a query, in its order; `find` in sources.js does the same."""
    text = query.text.lower()
    lines = [line for line in table.lines if all(value in line.facets[at] for at, value in query.facets.items())]
    if text:
        lines = [line for line in lines if text in line.id.lower() or table.contains(line.id, text)]
    if query.sort is not None:
        at = query.sort
        known = [line for line in lines if line.cells[at] is not None]
        known.sort(key=lambda line: line.cells[at], reverse=query.descending)  # type: ignore[arg-type, return-value]
        lines = [*known, *(line for line in lines if line.cells[at] is None)]
    return lines


class Embedded(NamedTuple):
    """Examples encoded for a page, and their lines."""

    data: str
    lines: list[Line]


def embed(table: Table, max_examples: int = MAX_EXAMPLES, max_bytes: int = MAX_BYTES) -> Embedded:
    """As many examples as a page may hold; if not all, those of lowest hash, which is a uniform sample."""
    by_hash = sorted((line.id for line in table.lines), key=lambda i: uniform("report", i))[:max_examples]
    lines = _only(table.lines, by_hash)
    details = {line.id: table.detail(line.id).to_json() for line in lines}
    while True:
        data = encode([line_json(line) for line in lines], [details[line.id] for line in lines])
        if len(data) <= max_bytes or len(lines) == 1:
            return Embedded(data, lines)
        by_hash = by_hash[: max(1, int(0.95 * len(by_hash) * max_bytes / len(data)))]
        lines = _only(lines, by_hash)


def _only(lines: Iterable[Line], ids: Sequence[str]) -> list[Line]:
    wanted = set(ids)
    return [line for line in lines if line.id in wanted]


def encode(lines: Sequence[dict[str, Any]], details: Sequence[dict[str, Any]]) -> str:
    """Lines of the table and what opens behind each, in base64; `examplesOfPage` in sources.js decodes it."""
    texts = [[_words(text) for text in detail["texts"]] for detail in details]
    counts = Counter(chain.from_iterable(chain.from_iterable(texts)))
    words = [word for word, _ in counts.most_common(MAX_VOCABULARY)]
    letters = set("".join(counts.keys() - set(words)))
    vocabulary = [*words, *sorted(letters - set(words))]
    codes = {word: character(number) for number, word in enumerate(vocabulary)}

    def encoded(words: Iterable[str]) -> str:
        return "".join(codes.get(word) or "".join(map(codes.__getitem__, word)) for word in words)

    coded = (detail | {"texts": list(map(encoded, own))} for detail, own in zip(details, texts, strict=True))
    text = "\n".join(map(_json, ({"vocabulary": vocabulary, "lines": lines}, *coded)))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def character(number: int) -> str:
    """The character that stands for a word of the vocabulary."""
    code = FIRST_CODE + number
    return chr(code if code < SURROGATES else code + SURROGATE_COUNT)


def _words(text: str) -> list[str]:
    """Words with the space after them; joined they are the text."""
    return re.findall(r"\S+\s?|\s+", text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
