"""What may be wrong with a constitution although it loads; docs/constitutions.md gives each rule's reason."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cai import config
from cai.constitution import TEXTS, Constitution, Principle
from cai.errors import CaiError
from cai.faults import Location
from cai.linting.characters import hidden_characters, odd_words
from cai.linting.findings import Comment, Finding, Place, ignore_comments, silenced
from cai.linting.rules import At, Similarity, about_all, about_one

MEND = "mend it: no run can load this file"


def lint(path: Path, similarity: Similarity | None = None) -> list[Finding]:
    """All findings about a constitution's file, by line; with a `similarity` also principles alike in meaning.

    Of one that does not load each fault is a finding, `invalid`; its principles that are whole are looked at all the
    same. Raises: CaiError for a file that cannot be read as text, or is a run file or a sweep.
    """
    text = config.read_text(path)
    try:
        source = config.read_yaml(path)
    except CaiError as error:
        found = [_no_yaml(path, str(error)), *_characters(path, text, {}), *_yaml(path, text, {})]
        return sorted(found, key=lambda finding: finding.line)
    config.expect_kind(source, "constitution")

    def line(*location: str | int) -> int:
        at: Location = ("principles", *location)
        while at not in source.places:  # a default, or from a merged mapping
            at = at[:-1]
        return int(source.places[at].rpartition(":")[2])

    entries = _entries(source.data)
    ids: dict[int | str, str] = {n: entry["id"] for n, entry in enumerate(entries) if isinstance(entry.get("id"), str)}
    starts = {line(n): id for n, id in ids.items()}
    numbers, principles = _whole(entries)

    def at(principle: Principle, field: str) -> Place:
        return Place(str(path), line(numbers[principle.id], field), principle.id)

    found = [*_invalid(path, source, ids), *_characters(path, text, starts), *_yaml(path, text, starts)]
    for principle in principles:
        found += [*_escapes(principle, text, at), *about_one(principle, at)]
    if principles:
        found += about_all(Constitution(name="", principles=principles), at, similarity)
    comments = [Comment(_place(path, n, starts), rules, n in starts) for n, rules in ignore_comments(text)]
    return sorted(silenced(found, comments), key=lambda finding: finding.line)


def _entries(data: Any) -> list[dict[str, Any]]:
    """The list of principles as it is written, without the checks of a constitution; {} for what is none."""
    listed = data.get("principles") if isinstance(data, dict) else None
    return [entry if isinstance(entry, dict) else {} for entry in listed] if isinstance(listed, list) else []


def _whole(entries: list[dict[str, Any]]) -> tuple[dict[str, int], list[Principle]]:
    """The principles that load by themselves, the first of each id, and their numbers in the list."""
    numbers: dict[str, int] = {}
    principles = []
    for n, entry in enumerate(entries):
        with suppress(ValidationError):
            principle = Principle.model_validate(entry)
            if numbers.setdefault(principle.id, n) == n:
                principles.append(principle)
    return numbers, principles


def _invalid(path: Path, source: config.YamlSource, ids: dict[int | str, str]) -> Iterator[Finding]:
    """What keeps the file from loading."""
    checked = config.check(source, Constitution)
    for mistake in checked if isinstance(checked, list) else []:
        id = ids.get(mistake.at[1], "") if mistake.at[:1] == ("principles",) and len(mistake.at) > 1 else ""
        line = int(mistake.place.rpartition(":")[2])
        yield Finding(str(path), line, id, "invalid", "error", mistake.message, MEND)


def _no_yaml(path: Path, error: str) -> Finding:
    place = re.match(re.escape(str(path)) + r"(?::(\d+))?: ", error)
    line, reason = (int(place[1] or 1), error[place.end() :]) if place else (1, error)
    return Finding(str(path), line, "", "invalid", "error", reason, MEND)


def _place(path: Path, line: int, starts: dict[int, str]) -> Place:
    """A line of the file, with the principle that stands there; `starts` maps the first line of each to its id."""
    before = [start for start in starts if start <= line]
    return Place(str(path), line, starts[max(before)] if before else "")


def _characters(path: Path, text: str, starts: dict[int, str]) -> Iterator[Finding]:
    for at, name in hidden_characters(text):
        place = _place(path, text.count("\n", 0, at) + 1, starts)
        reason = f"column {at - text.rfind(chr(10), 0, at)} holds {name}, which nobody sees"
        yield Finding(*place, "hidden-character", "error", reason, "delete it, or write what it stands for")
    for number, line in enumerate(text.split("\n"), 1):
        for word, why in odd_words(line):
            code_points = ", ".join(f"{c} is U+{ord(c):04X}" for c in dict.fromkeys(word) if not c.isascii())
            reason = f"'{word}' {why}: {code_points}"
            yield Finding(*_place(path, number, starts), "look-alike", "warning", reason, "type the word anew")


def _escapes(principle: Principle, text: str, at: At) -> Iterator[Finding]:
    """What the file holds only as an escape, such as \\u202e in quotes."""
    for field in TEXTS:
        value = getattr(principle, field)
        for position, name in hidden_characters(" " + value):
            if value[position - 1] not in text:
                reason = f"{field} holds an escaped {name}, which nobody sees and every model reads"
                yield Finding(*at(principle, field), "hidden-character", "error", reason, "delete the escape")


def _yaml(path: Path, text: str, starts: dict[int, str]) -> Iterator[Finding]:
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            column = line.index("\t") + 1
            reason = f"column {column} holds a tab: YAML refuses it outside quotes and blocks, and keeps it within"
            yield Finding(*_place(path, number, starts), "tab", "warning", reason, "put spaces")
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                place = _place(path, token.start_mark.line + 1, starts)
                reason = f"*{token.value} stands for what &{token.value} marks: an edit there changes this too, unseen"
                yield Finding(*place, "alias", "warning", reason, "write the text out")
    except yaml.YAMLError:  # told as `invalid`
        return
