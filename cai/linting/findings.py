"""What the linter says, and the comments in a file that silence it: `# lint: ignore RULE`."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import yaml

Rule = Literal[
    "invalid",
    "hidden-character",
    "opposite",
    "texts-disagree",
    "near-duplicate",
    "same-meaning",
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
