"""What the linter says, and the comments in a file that silence it: `# lint: ignore RULE`."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from cai.config import yaml_files
from cai.config.characters import hidden_characters, odd_words
from cai.config.errors import CaiError
from cai.config.validation import Location
from cai.constitution.lint_words import BAD, content, leanings, only_denies, trait, words
from cai.constitution.principles import TEXTS, Constitution, Principle, shares

Rule = Literal[
    "invalid",
    "hidden-character",
    "opposite",
    "texts-disagree",
    "near-duplicate",
    "starved",
    "too-long",
    "position",
    "no-choice",
    "look-alike",
    "alias",
    "tab",
    "ignore",
    "trait",
    "negative",
    "made-up",
]
SILENT = tuple(rule for rule in get_args(Rule) if rule not in ("invalid", "ignore"))
"""The rules that a comment may silence: a file that does not load has no use for one."""


class Finding(NamedTuple):
    """One place to look at: where it is, which rule points at it and how gravely, why, and what to do about it."""

    file: str
    line: int  # from 1
    principle: str  # its id; "" for what concerns none or the whole file
    rule: Rule
    severity: Literal["error", "warning", "hint"]
    reason: str
    suggestion: str


class Place(NamedTuple):
    """Where a finding stands; its first three fields."""

    file: str
    line: int
    principle: str


class Comment(NamedTuple):
    """A comment that silences rules on its line, and in the whole of a principle that begins there."""

    place: Place
    rules: list[str]
    whole: bool  # whether a principle begins on its line


IGNORE = re.compile(r"#[ \t]*lint:[ \t]*ignore\b([^\n#]*)")


def silenced(findings: Sequence[Finding], comments: Sequence[Comment]) -> list[Finding]:
    """The findings that no comment silences, and what is wrong with the comments."""
    kept = [f for f in findings if not any(_silences(c, f, rule) for c in comments for rule in c.rules)]
    for comment in comments:
        if not comment.rules:
            reason = "the comment names no rule"
            kept.append(_wrong(comment, reason, "name one, such as `# lint: ignore trait`"))
        for rule in comment.rules:
            if rule not in SILENT:
                near = difflib.get_close_matches(rule, SILENT, n=1)
                known = f"write '{near[0]}'" if near else f"name one of {', '.join(SILENT)}"
                kept.append(_wrong(comment, f"'{rule}' is no rule that can be silenced", known))
            elif not any(_silences(comment, f, rule) for f in findings):
                kept.append(_wrong(comment, f"there is no finding of '{rule}' here to silence", "delete the comment"))
    return kept


def _silences(comment: Comment, finding: Finding, rule: str) -> bool:
    on_line = finding.line == comment.place.line
    within = comment.whole and finding.principle == comment.place.principle
    return rule in SILENT and rule == finding.rule and (on_line or within)


def _wrong(comment: Comment, reason: str, suggestion: str) -> Finding:
    return Finding(*comment.place, "ignore", "warning", reason, suggestion)


def ignore_comments(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, rules named) of each such comment; a `#` within a text of the file is none."""
    texts = []
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken):
            start = token.start_mark.index
            if token.style in ("|", ">"):  # its first line may end with a comment
                start = text.find("\n", start)
            texts.append((start, token.end_mark.index))
    for found in IGNORE.finditer(text):
        if not any(start <= found.start() < end for start, end in texts):
            yield text.count("\n", 0, found.start()) + 1, re.findall(r"[^\s,]+", found[1])


# The rules about what principles say and ask; docs/constitutions.md gives each one's reason.


MOST_WORDS = 80  # of one text; the longest shipped one has 33, and small models lose long requests
LEAST_SHARE = 1 / 200  # of draws: the shipped file of prompts has 200
ALIKE = 0.4  # Jaccard similarity of the content words of two principles; shipped ones reach 0.18
CONTAINED = 0.7  # share of the smaller set of content words that the other holds; shipped ones reach 0.33
FEWEST_WORDS = 5  # content words that a principle needs to be called like another
FEWEST_SAID = 2  # content words that a text needs to be called foreign to the others
At = Callable[[Principle, str], Place]  # where a field of a principle stands


def about_one(principle: Principle, at: At) -> Iterator[Finding]:
    """What may be wrong with a principle by itself."""
    yield from _long_texts(principle, at)
    yield from _disagreement(principle, at)
    yield from _judge(principle, at)
    yield from _framing(principle, at)


def about_all(constitution: Constitution, at: At) -> Iterator[Finding]:
    """What may be wrong with principles beside each other."""
    yield from _starved(constitution, at)
    yield from _alike(constitution, at)


def _long_texts(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if (count := len(words(getattr(principle, field)))) > MOST_WORDS:
            reason = f"{field} has {count} words, more than {MOST_WORDS}: small models lose parts of long requests"
            suggestion = "keep the one thing it asks for, or make two principles of it"
            yield Finding(*at(principle, field), "too-long", "warning", reason, suggestion)


def _disagreement(principle: Principle, at: At) -> Iterator[Finding]:
    said = {field: content(getattr(principle, field)) for field in TEXTS}
    strangers = [
        field
        for field in TEXTS
        if len(said[field]) >= FEWEST_SAID
        and not said[field] & frozenset().union(*(said[f] for f in TEXTS if f != field))
    ]
    if strangers:
        subject = {1: f"{strangers[0]} has", 2: f"{' and '.join(strangers)} have"}.get(
            len(strangers), "critique, revision and judge have"
        )
        others = "with each other" if len(strangers) == 3 else "with the other two texts"
        reason = f"{subject} no word of substance in common {others}: they may ask for different things"
        suggestion = "let all three name the same thing in the same words"
        yield Finding(*at(principle, strangers[-1]), "texts-disagree", "warning", reason, suggestion)

    revision, judge = leanings(principle.revision), leanings(principle.judge)
    opposite = [key for key in judge if revision.get(key) == -judge[key]]
    if judge.get("bad") == 1 and "bad" not in revision and not BAD & said["revision"]:
        opposite.append("bad")  # nothing in the revision asks for harm
    for key in opposite:
        what = {"bad": "harm", "long": "length", "complicat": "complication"}.get(key, f"what is “{key}…”")
        wants = "more" if judge[key] > 0 else "less"
        reason = f"judge prefers {wants} {what}, and revision asks for no such thing: labels would work against it"
        suggestion = "ask which answer does better what the revision asks for"
        yield Finding(*at(principle, "judge"), "opposite", "error", reason, suggestion)

    for field, other in itertools.permutations(TEXTS, 2):
        whole = getattr(principle, other)
        if len(words(whole)) >= FEWEST_WORDS and whole in getattr(principle, field) and field != "critique":
            reason = f"{field} repeats {other} word for word, as an import does for want of a text"
            yield Finding(*at(principle, field), "made-up", "hint", reason, f"write what the {field} is to say")


POSITIONS = re.compile(
    r"\b(?:[Aa]nswer|[Rr]esponse|[Rr]eply|[Oo]ption|[Cc]ompletion|ANSWER|OPTION)\s+\(?"
    r"(?:[A-H]\b|[1-9](?=\)|[.,;:?!]|$|\s+(?:and|or|is|over|than|to)\b))"
    r"|\([AB]\)"
    r"|(?i:\b(?:first|second|1st|2nd|former|latter|last|left|left-hand|right-hand)\s+"
    r"(?:answer|response|reply|option|completion|one)\b)"
    r"|(?i:\bthe\s+(?:former|latter)\b)"
)
ABOUT_ONE = re.compile(r"\s*(?:is|are|was|does|do|did|has|have|can|could|should|would|will|how)\b", re.IGNORECASE)
CHOOSES = re.compile(r"\b(?:choose|pick|select|prefer|compare|favou?r|rank)\b", re.IGNORECASE)


def _judge(principle: Principle, at: At) -> Iterator[Finding]:
    place = at(principle, "judge")
    if found := POSITIONS.search(principle.judge):
        reason = (
            f"judge names a place, “{found[0]}”: every pair is asked in both orders, so no place is always the better"
        )
        yield Finding(*place, "position", "warning", reason, "describe the better answer in place of pointing at one")
    chooses = CHOOSES.search(principle.judge)
    question = re.search("[?\uff1f\u061f\u037e\u055e]", principle.judge)
    if not chooses and (not question or ABOUT_ONE.match(principle.judge)):
        reason = "judge is no question that chooses between two answers, and its reply is read as such a choice"
        suggestion = "begin with “Which answer …” and end with a question mark"
        yield Finding(*place, "no-choice", "warning", reason, suggestion)


def _framing(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if found := trait(getattr(principle, field)):
            reason = (
                f"“{found}” names a trait; people agree more with principles that name a behaviour (arXiv:2502.15861)"
            )
            suggestion = "say what the answer does, such as “the answer says what it does not know”"
            yield Finding(*at(principle, field), "trait", "hint", reason, suggestion)
    if only_denies(principle.revision):
        reason = "revision says only what not to do; people agree more with positive principles (arXiv:2502.15861)"
        suggestion = "say what the new answer does in its place"
        yield Finding(*at(principle, "revision"), "negative", "hint", reason, suggestion)


def _starved(constitution: Constitution, at: At) -> Iterator[Finding]:
    share = shares(constitution)
    for principle in constitution.principles:
        if share[principle.id] < LEAST_SHARE:
            often = f"once in {1 / share[principle.id]:.0f} draws" if share[principle.id] > 0 else "never"
            reason = f"with weight {principle.weight:g} it is drawn {often}, less than once in {1 / LEAST_SHARE:.0f}"
            suggestion = "raise its weight, lower those of others, or leave it out"
            yield Finding(*at(principle, "weight"), "starved", "warning", reason, suggestion)


def _alike(constitution: Constitution, at: At) -> Iterator[Finding]:
    said = {p.id: content(" ".join(getattr(p, field) for field in TEXTS)) for p in constitution.principles}
    for a, b in itertools.combinations(constitution.principles, 2):
        both, either = said[a.id] & said[b.id], said[a.id] | said[b.id]
        smaller = min(len(said[a.id]), len(said[b.id]))
        here, line = at(b, "id"), at(a, "id").line
        suggestion = f"drop one and give the other weight {a.weight + b.weight:g}, or say what sets them apart"
        if a.fingerprint == b.fingerprint:
            reason = f"says word for word what '{a.id}' says (line {line})"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)
        elif smaller >= FEWEST_WORDS and (len(both) >= ALIKE * len(either) or len(both) >= CONTAINED * smaller):
            share = 100 * len(both) / smaller
            reason = f"is much like '{a.id}' (line {line}): they share {share:.0f} % of their words of substance"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)


# What may be wrong with a constitution although it loads; docs/constitutions.md gives each rule's reason.


MEND = "mend it: no run can load this file"


def lint(path: Path) -> list[Finding]:
    """All findings about a constitution's file, by line.

    Of one that does not load each fault is a finding, `invalid`; its principles that are whole are looked at all the
    same. Raises: CaiError for a file that cannot be read as text, or is a run file or a sweep.
    """
    text = yaml_files.read_text(path)
    try:
        source = yaml_files.read_yaml(path)
    except CaiError as error:
        found = [_no_yaml(path, str(error)), *_characters(path, text, {}), *_yaml(path, text, {})]
        return sorted(found, key=lambda finding: finding.line)
    yaml_files.expect_kind(source, "constitution")

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
        found += about_all(Constitution(name="", principles=principles), at)
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


def _invalid(path: Path, source: yaml_files.YamlSource, ids: dict[int | str, str]) -> Iterator[Finding]:
    """What keeps the file from loading."""
    checked = yaml_files.check(source, Constitution)
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
