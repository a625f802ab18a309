"""The constitution linter: one finding per problem, with its place, reason and suggestion.

`lint` reads a file and applies three groups of rules: about the file (invalid, characters, YAML), about each principle
(`about_one`), and about principles side by side (`about_all`). A comment `# lint: ignore RULE` in the file silences
findings on its line, or in the whole principle that starts there. docs/constitutions.md explains each rule.
"""

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
from cai.constitution.lint_words import BAD, content, leanings, only_denies, opposed, stem, trait, words
from cai.constitution.principles import TEXTS, Constitution, Principle, shares

Rule = Literal[
    "invalid",
    "hidden-character",
    "contradiction",
    "exclusion",
    "unrelated-texts",
    "near-duplicate",
    "rarely-drawn",
    "too-long",
    "position",
    "no-choice",
    "no-yes-no",
    "no-general",
    "look-alike",
    "alias",
    "tab",
    "ignore",
    "trait",
    "negative",
    "repeated-text",
]
IGNORABLE = tuple(rule for rule in get_args(Rule) if rule not in ("invalid", "ignore"))
"""The rules that a comment may silence; a file that does not load must be fixed."""
RENAMED_RULES = {
    "opposite": "contradiction",
    "texts-disagree": "unrelated-texts",
    "starved": "rarely-drawn",
    "made-up": "repeated-text",
}


class Finding(NamedTuple):
    """One problem: where it is, the rule that reports it, how severe it is, why it is one, and what to do."""

    file: str
    line: int  # from 1
    principle: str  # its id; "" for the file as a whole
    rule: Rule
    severity: Literal["error", "warning", "hint"]
    reason: str
    suggestion: str


class Place(NamedTuple):
    """Where a finding is: its first three fields."""

    file: str
    line: int
    principle: str


class Comment(NamedTuple):
    """A comment that silences rules on its line, and in the whole principle that starts there."""

    place: Place
    rules: list[str]
    whole: bool  # whether a principle starts on its line


IGNORE = re.compile(r"#[ \t]*lint:[ \t]*ignore\b([^\n#]*)")


def unsilenced(findings: Sequence[Finding], comments: Sequence[Comment]) -> list[Finding]:
    """The findings that no comment silences, and findings about the comments themselves."""
    kept = [f for f in findings if not any(_silences(c, f, rule) for c in comments for rule in c.rules)]
    for comment in comments:
        if not comment.rules:
            reason = "the comment names no rule"
            kept.append(_wrong(comment, reason, "name one, such as `# lint: ignore trait`"))
        for rule in comment.rules:
            if rule not in IGNORABLE:
                near = (
                    [RENAMED_RULES[rule]] if rule in RENAMED_RULES else difflib.get_close_matches(rule, IGNORABLE, n=1)
                )
                known = f"write '{near[0]}'" if near else f"name one of {', '.join(IGNORABLE)}"
                kept.append(_wrong(comment, f"'{rule}' is not a rule that can be ignored", known))
            elif not any(_silences(comment, f, rule) for f in findings):
                kept.append(_wrong(comment, f"there is no '{rule}' finding here to ignore", "delete the comment"))
    return kept


def _silences(comment: Comment, finding: Finding, rule: str) -> bool:
    on_line = finding.line == comment.place.line
    within = comment.whole and finding.principle == comment.place.principle
    return rule in IGNORABLE and rule == finding.rule and (on_line or within)


def _wrong(comment: Comment, reason: str, suggestion: str) -> Finding:
    return Finding(*comment.place, "ignore", "warning", reason, suggestion)


def ignore_comments(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, rules) of each `# lint: ignore` comment; a `#` inside a YAML text is not a comment."""
    texts = []
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken):
            start = token.start_mark.index
            if token.style in ("|", ">"):  # its first line may end with a comment
                start = text.find("\n", start)
            texts.append((start, token.end_mark.index))
    for comment in IGNORE.finditer(text):
        if not any(start <= comment.start() < end for start, end in texts):
            yield text.count("\n", 0, comment.start()) + 1, re.findall(r"[^\s,]+", comment[1])


MAX_WORDS = 80  # of one text; the longest shipped one has 34, and small models lose parts of long requests
MIN_SHARE = 1 / 200  # of draws: the shipped prompt file has 200 prompts
ALIKE = 0.4  # Jaccard similarity of the content words of two principles; shipped ones reach 0.18
CONTAINED = 0.7  # share of the smaller set of content words that the other holds; shipped ones reach 0.33
MIN_WORDS_ALIKE = 5  # content words that a principle needs to be compared with others
MIN_WORDS_UNRELATED = 2  # content words that a text needs to be compared with the other two
At = Callable[[Principle, str], Place]  # where a field of a principle stands


def about_one(principle: Principle, at: At) -> Iterator[Finding]:
    """Findings about one principle by itself."""
    yield from _long_texts(principle, at)
    yield from _disagreement(principle, at)
    yield from _judge(principle, at)
    yield from _question(principle, at)
    yield from _framing(principle, at)


def about_all(constitution: Constitution, at: At) -> Iterator[Finding]:
    """Findings about principles side by side."""
    yield from _starved(constitution, at)
    yield from _no_general(constitution, at)
    yield from _alike(constitution, at)
    yield from _exclusion(constitution, at)


def _long_texts(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if (count := len(words(getattr(principle, field)))) > MAX_WORDS:
            reason = f"{field} has {count} words, more than {MAX_WORDS}: small models lose parts of long requests"
            suggestion = "keep one request, or split it into two principles"
            yield Finding(*at(principle, field), "too-long", "warning", reason, suggestion)


def _disagreement(principle: Principle, at: At) -> Iterator[Finding]:
    content_words = {field: content(getattr(principle, field)) for field in TEXTS}
    unrelated = [
        field
        for field in TEXTS
        if len(content_words[field]) >= MIN_WORDS_UNRELATED
        and not content_words[field] & frozenset().union(*(content_words[f] for f in TEXTS if f != field))
    ]
    if unrelated:
        subject = {1: f"{unrelated[0]} shares", 2: f"{' and '.join(unrelated)} share"}.get(
            len(unrelated), "critique, revision and judge share"
        )
        others = "with each other" if len(unrelated) == 3 else "with the other texts"
        reason = f"{subject} no content word {others}, so they may ask for different things"
        suggestion = "name the same thing in all three texts, in the same words"
        yield Finding(*at(principle, unrelated[-1]), "unrelated-texts", "warning", reason, suggestion)

    revision, judge = leanings(principle.revision), leanings(principle.judge)
    opposite = list(opposed(judge, revision))
    if "bad" in judge and judge["bad"].sign > 0 and "bad" not in revision and not BAD & content_words["revision"]:
        opposite.append("bad")  # nothing in the revision asks for harm
    for key in opposite:
        what = {"bad": "harm", "long": "length", "complicat": "complication"}.get(key, f"what is “{key}…”")
        wants = "more" if judge[key].sign > 0 else "less"
        reason = f"judge prefers {wants} {what}, which contradicts revision: labels would work against revisions"
        suggestion = "ask which answer better does what revision asks for"
        yield Finding(*at(principle, "judge"), "contradiction", "error", reason, suggestion)

    for field, other in itertools.permutations(TEXTS, 2):
        whole = getattr(principle, other)
        if len(words(whole)) >= MIN_WORDS_ALIKE and whole in getattr(principle, field) and field != "critique":
            reason = f"{field} repeats {other} verbatim, as `import` does to fill a missing text"
            yield Finding(*at(principle, field), "repeated-text", "hint", reason, f"write a {field} of its own")


POSITIONS = re.compile(
    r"\b(?:[Aa]nswer|[Rr]esponse|[Rr]eply|[Oo]ption|[Cc]ompletion|ANSWER|OPTION)\s+\(?"
    r"(?:[A-H]\b|[1-9](?=\)|[.,;:?!]|$|\s+(?:and|or|is|over|than|to)\b))"
    r"|\([AB]\)"
    r"|(?i:\b(?:first|second|1st|2nd|former|latter|last|left|left-hand|right-hand)\s+"
    r"(?:answer|response|reply|option|completion|one)\b)"
    r"|(?i:\bthe\s+(?:former|latter)\b)"
)
ABOUT_ONE = re.compile(r"\s*(?:is|are|was|does|do|did|has|have|can|could|should|would|will|how)\b", re.IGNORECASE)
YES_NO = re.compile(
    r"\s*(?:is|are|was|were|does|do|did|has|have|had|can|could|should|would|will|may|might|must)\b.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)
CHOOSES = re.compile(r"\b(?:choose|pick|select|prefer|compare|favou?r|rank)\b", re.IGNORECASE)


def _judge(principle: Principle, at: At) -> Iterator[Finding]:
    place = at(principle, "judge")
    if position := POSITIONS.search(principle.judge):
        reason = f"judge refers to a position, “{position[0]}”, but every pair is judged in both orders"
        yield Finding(*place, "position", "warning", reason, "describe the better answer instead")
    chooses = CHOOSES.search(principle.judge)
    question = re.search("[?\uff1f\u061f\u037e\u055e]", principle.judge)
    if not chooses and (not question or ABOUT_ONE.match(principle.judge)):
        reason = "judge does not ask for a choice between two answers, but its reply is read as one"
        suggestion = "start with “Which answer …” and end with a question mark"
        yield Finding(*place, "no-choice", "warning", reason, suggestion)


def _question(principle: Principle, at: At) -> Iterator[Finding]:
    where = principle.applies_to
    if where is not None and where.question is not None and not YES_NO.match(where.question):
        reason = "the question under applies_to cannot be answered by Yes or No, and its reply is read as one of them"
        suggestion = "start with “Does the message …” or “Is …” and end with a question mark"
        yield Finding(*at(principle, "applies_to"), "no-yes-no", "warning", reason, suggestion)


def _framing(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if phrase := trait(getattr(principle, field)):
            reason = f"“{phrase}” names a trait; people agree more with principles about behaviour (arXiv:2502.15861)"
            suggestion = "describe what the answer does, such as “the answer states what it does not know”"
            yield Finding(*at(principle, field), "trait", "hint", reason, suggestion)
    if only_denies(principle.revision):
        reason = "revision states only what not to do; people agree more with positive principles (arXiv:2502.15861)"
        suggestion = "state what the new answer does instead"
        yield Finding(*at(principle, "revision"), "negative", "hint", reason, suggestion)


def _starved(constitution: Constitution, at: At) -> Iterator[Finding]:
    share = shares(constitution)
    for principle in constitution.principles:
        if share[principle.id] < MIN_SHARE:
            often = f"once in {1 / share[principle.id]:.0f} times" if share[principle.id] > 0 else "never"
            reason = f"with weight {principle.weight:g} it is sampled {often}, less than once in {1 / MIN_SHARE:.0f}"
            suggestion = "raise its weight, lower the others, or delete it"
            yield Finding(*at(principle, "weight"), "rarely-drawn", "warning", reason, suggestion)


def _no_general(constitution: Constitution, at: At) -> Iterator[Finding]:
    first = constitution.principles[0]
    if all(principle.applies_to is not None for principle in constitution.principles):
        reason = "every principle has applies_to: prompts that none applies to are neither revised nor judged"
        suggestion = "add a principle without applies_to, if that is not what you want"
        yield Finding(*at(first, "applies_to"), "no-general", "hint", reason, suggestion)


def _alike(constitution: Constitution, at: At) -> Iterator[Finding]:
    content_words = {p.id: content(" ".join(getattr(p, field) for field in TEXTS)) for p in constitution.principles}
    for a, b in itertools.combinations(constitution.principles, 2):
        words_a, words_b = content_words[a.id], content_words[b.id]
        both, either = words_a & words_b, words_a | words_b
        smaller = min(len(words_a), len(words_b))
        here, line = at(b, "id"), at(a, "id").line
        suggestion = f"delete one and give the other weight {a.weight + b.weight:g}, or state how they differ"
        if a.fingerprint == b.fingerprint:
            reason = f"has the same texts as '{a.id}' (line {line})"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)
        elif smaller >= MIN_WORDS_ALIKE and (len(both) >= ALIKE * len(either) or len(both) >= CONTAINED * smaller):
            share = 100 * len(both) / smaller
            reason = f"is similar to '{a.id}' (line {line}): they share {share:.0f} % of their content words"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)


def _exclusion(constitution: Constitution, at: At) -> Iterator[Finding]:
    for a, b in itertools.combinations(constitution.principles, 2):
        if (phrases := next(_opposites(a, b), None)) is None or not _meet(a, b):
            continue
        there, here = phrases
        reason = (
            f"asks for “{here}” where '{a.id}' (line {at(a, 'id').line}) asks for “{there}”: they exclude each other "
            "on prompts that both apply to"
        )
        suggestion = "delete one, or give them applies_to with different tags"
        yield Finding(*at(b, "id"), "exclusion", "hint", reason, suggestion)


def _opposites(a: Principle, b: Principle) -> Iterator[tuple[str, str]]:
    """Words of each by which they ask for opposite things."""
    for some, others in itertools.product((a.revision, a.judge), (b.revision, b.judge)):
        for root, phrases in opposed(leanings(some), leanings(others)).items():
            first, second = (leaning.phrase for leaning in phrases)
            # an answer may name more risks and be less rude
            if root != "bad" or stem(first.split()[-1]) == stem(second.split()[-1]):
                yield first, second


def _meet(a: Principle, b: Principle) -> bool:
    """Whether both certainly apply to some prompts: one is general, or they share a tag or a question."""
    if a.applies_to is None or b.applies_to is None:
        return True
    same = a.applies_to.question == b.applies_to.question is not None
    return same or not set(a.applies_to.tags).isdisjoint(b.applies_to.tags)


FIX = "no run can load this file until it is fixed"


def lint(path: Path) -> list[Finding]:
    """All findings about a constitution file, sorted by line.

    In a file that does not load, each error is an `invalid` finding, and the principles that are valid by themselves
    are still checked. Raises: CaiError for a file that cannot be read as text, or is a run file or a sweep.
    """
    text = yaml_files.read_text(path)
    try:
        source = yaml_files.read_yaml(path)
    except CaiError as error:
        findings = [_no_yaml(path, str(error)), *_characters(path, text, {}), *_yaml(path, text, {})]
        return sorted(findings, key=lambda finding: finding.line)
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

    findings = [*_invalid(path, source, ids), *_characters(path, text, starts), *_yaml(path, text, starts)]
    for principle in principles:
        findings += [*_escapes(principle, text, at), *about_one(principle, at)]
    if principles:
        findings += about_all(Constitution(name="", principles=principles), at)
    comments = [Comment(_place(path, n, starts), rules, n in starts) for n, rules in ignore_comments(text)]
    return sorted(unsilenced(findings, comments), key=lambda finding: finding.line)


def _entries(data: Any) -> list[dict[str, Any]]:
    """The principles as written, not validated; {} for an entry that is not a mapping."""
    listed = data.get("principles") if isinstance(data, dict) else None
    return [entry if isinstance(entry, dict) else {} for entry in listed] if isinstance(listed, list) else []


def _whole(entries: list[dict[str, Any]]) -> tuple[dict[str, int], list[Principle]]:
    """The principles that are valid by themselves, the first of each id, and their positions in the list."""
    numbers: dict[str, int] = {}
    principles = []
    for n, entry in enumerate(entries):
        with suppress(ValidationError):
            principle = Principle.model_validate(entry)
            if numbers.setdefault(principle.id, n) == n:
                principles.append(principle)
    return numbers, principles


def _invalid(path: Path, source: yaml_files.YamlSource, ids: dict[int | str, str]) -> Iterator[Finding]:
    """The errors that keep the file from loading."""
    checked = yaml_files.check(source, Constitution)
    for mistake in checked if isinstance(checked, list) else []:
        id = ids.get(mistake.at[1], "") if mistake.at[:1] == ("principles",) and len(mistake.at) > 1 else ""
        line = int(mistake.place.rpartition(":")[2])
        yield Finding(str(path), line, id, "invalid", "error", mistake.message, FIX)


def _no_yaml(path: Path, error: str) -> Finding:
    place = re.match(re.escape(str(path)) + r"(?::(\d+))?: ", error)
    line, reason = (int(place[1] or 1), error[place.end() :]) if place else (1, error)
    return Finding(str(path), line, "", "invalid", "error", reason, FIX)


def _place(path: Path, line: int, starts: dict[int, str]) -> Place:
    """A line of the file with the principle it belongs to; `starts` maps the first line of each to its id."""
    before = [start for start in starts if start <= line]
    return Place(str(path), line, starts[max(before)] if before else "")


def _characters(path: Path, text: str, starts: dict[int, str]) -> Iterator[Finding]:
    for at, name in hidden_characters(text):
        place = _place(path, text.count("\n", 0, at) + 1, starts)
        reason = f"column {at - text.rfind(chr(10), 0, at)} contains {name}, which is invisible"
        yield Finding(*place, "hidden-character", "error", reason, "delete it, or type a visible character")
    for number, line in enumerate(text.split("\n"), 1):
        for word, why in odd_words(line):
            code_points = ", ".join(f"{c} is U+{ord(c):04X}" for c in dict.fromkeys(word) if not c.isascii())
            reason = f"'{word}' {why}: {code_points}"
            yield Finding(*_place(path, number, starts), "look-alike", "warning", reason, "retype the word")


def _escapes(principle: Principle, text: str, at: At) -> Iterator[Finding]:
    """Characters that the file contains only as an escape, such as \\u202e in quotes."""
    seen: dict[str, str] = {field: getattr(principle, field) for field in TEXTS}
    if principle.applies_to is not None and principle.applies_to.question is not None:
        seen["applies_to"] = principle.applies_to.question
    for field, value in seen.items():
        for position, name in hidden_characters(" " + value):
            if value[position - 1] not in text:
                reason = f"{field} contains an escaped {name}, which is invisible but reaches the model"
                yield Finding(*at(principle, field), "hidden-character", "error", reason, "delete the escape")


def _yaml(path: Path, text: str, starts: dict[int, str]) -> Iterator[Finding]:
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            column = line.index("\t") + 1
            reason = (
                f"column {column} contains a tab, which YAML rejects outside quotes and blocks, and keeps inside them"
            )
            yield Finding(*_place(path, number, starts), "tab", "warning", reason, "use spaces")
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                place = _place(path, token.start_mark.line + 1, starts)
                reason = f"*{token.value} repeats what &{token.value} marks, so an edit there changes this too"
                yield Finding(*place, "alias", "warning", reason, "repeat the text")
    except yaml.YAMLError:  # reported as `invalid`
        return
