"""Recognising the format of a row by its fields, and what formats share: ids, tags, prompts, turns, transcripts.

A format is one shape of row and how it is read. Each row is recognised by itself, so that a file may mix formats; the
first in a list that fits is used. A null field counts as absent, because Parquet and `datasets` fill missing fields
with nulls, and so does an empty cell of an optional column.

A transcript is a conversation as one text, `\\n\\nHuman: …\\n\\nAssistant: …`, the form of Anthropic's hh-rlhf
(https://huggingface.co/datasets/Anthropic/hh-rlhf). A turn is the text behind `Human: ` or `Assistant: `, byte for
byte, so that parsing a transcript and writing it again gives the same bytes.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.validation import describe
from cai.data.files import Place, RawRow, rows
from cai.data.records import Message, Messages, Skipped

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}


def is_transcript(value: Any) -> bool:
    """Whether a value is a text that starts with a turn."""
    return isinstance(value, str) and TURN.match(value) is not None


def turns(transcript: str) -> Messages:
    """The turns of a transcript, without any text before the first."""
    pieces = TURN.split(transcript)[1:]
    return [Message(role=ROLES[speaker], content=text) for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)]


def transcript(messages: Sequence[Message]) -> str:
    """User and assistant turns as one text; `turns` inverts it unless `transcript_problem` returns a reason."""
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


def transcript_problem(messages: Sequence[Message]) -> str | None:
    """Why a conversation cannot be a transcript, which is a turn that would parse as two; None if it can."""
    if any(TURN.search(turn["content"]) for turn in messages):
        return "a turn contains \\n\\nHuman: or \\n\\nAssistant:, which a transcript reads as another turn"
    return None


RowFields = list[dict[str, Any]] | Skipped
"""The fields of the rows that one input row becomes, or why it becomes none."""
T = TypeVar("T")
OPTIONAL = ("id", "prompt_id", "tags", "subset", "system", "p", "weight")
SHARED = ("id", "prompt_id", "tags", "subset")  # fields that any row may have
PROMPTED = (*SHARED, "system")  # and those of a row read by `row_prompt`
LEAST_MATCH = 0.2  # share of a format's required fields that a row must have for the format to be suggested
SIMILARITY = 0.75  # of two field names (difflib ratio) for one to be taken as a typo of the other


class Format(NamedTuple):
    """A shape of row: its name, the fields it requires (`a|b`: either), its reader, and the optional fields it uses.

    `plain` is for generic formats, where a field that nearly matches a known one is a typo. `note` says what the
    reader does not take over.
    """

    name: str
    required: tuple[str, ...]
    read: Callable[[Place, RawRow], RowFields]
    optional: tuple[str, ...] = ()
    plain: bool = False
    note: str = ""


@dataclass
class ReadSummary:
    """What reading a file found: rows by format, the fields no reader used, and each format's note."""

    formats: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)


def rows_without_nulls(path: Path) -> Iterator[tuple[Place, RawRow]]:
    """The rows of a file without their absent fields."""
    for place, value in rows(path):
        yield place, {key: content for key, content in value.items() if not _is_absent(key, content)}


def _is_absent(name: str, value: Any) -> bool:
    return value is None or (value == "" and name in OPTIONAL)


def read_row(
    formats: tuple[Format, ...], place: Place, value: RawRow, target: str, summary: ReadSummary | None = None
) -> RowFields:
    """A row read as the first format that fits; `target` names what is expected, such as `preference`.

    Raises: CaiError for a row of an unknown format, with what the closest formats miss, or for a misspelt field.
    """
    format, unused, problem = _recognise(formats, tuple(value))
    if format is None:
        raise CaiError(_unknown_format(formats, place, value, target))
    if problem:
        raise CaiError(f"{place}: {problem}")
    if summary is not None:
        summary.formats[format.name] += 1
        summary.unused.update(unused)
        summary.notes |= {format.name: format.note} if format.note else {}
    return format.read(place, value)


@lru_cache(maxsize=256)
def _recognise(formats: tuple[Format, ...], names: tuple[str, ...]) -> tuple[Format | None, list[str], str]:
    """(format, fields it does not use, the misspelt field if there is one) of rows with these field names."""
    format = next((format for format in formats if not _missing(format, names)), None)
    if format is None:
        return None, [], ""
    known = {name for alternatives in (*format.required, *format.optional) for name in alternatives.split("|")}
    unused = [name for name in names if name not in known]
    for name in unused if format.plain else []:
        if similar := difflib.get_close_matches(name.lower(), known, n=1, cutoff=SIMILARITY):
            return format, unused, f"unknown field '{visible(name)}'; did you mean '{similar[0]}'?"
    return format, unused, ""


def _missing(format: Format, names: tuple[str, ...]) -> list[str]:
    return [required for required in format.required if not any(name in names for name in required.split("|"))]


def _unknown_format(formats: tuple[Format, ...], place: Place, value: RawRow, target: str) -> str:
    names = tuple(value)
    shares = {format: 1 - len(_missing(format, names)) / len(format.required) for format in formats}
    least = max(LEAST_MATCH, max(shares.values()) / 2)
    closest = sorted((format for format in formats if shares[format] > least), key=lambda format: -shares[format])[:3]
    plain = [format for format in reversed(formats) if format.plain]  # the plainest, which is tried last, comes first
    if closest and {"prompt", "messages"} & set(names):
        closest = list(dict.fromkeys([*plain, *closest]))
    fields = f"found {', '.join(map(visible, names[:12])) or 'no fields'}"
    if not closest:
        listed: dict[str, Format] = {}  # the first of each name: prompts have two of alpaca-eval
        for format in (*plain, *formats):
            listed.setdefault(format.name, format)
        expected = [f"  {name}: {', '.join(f.required).replace('|', ' or ')}" for name, f in listed.items()]
        lines = [f"{place}: unknown format of a {target} ({fields}); expected one of", *expected]
    else:
        missing = [
            f"  {format.name}: no {' and no '.join(map(_quoted, _missing(format, names)))}" for format in closest
        ]
        lines = [f"{place}: unknown format of a {target} ({fields}); the closest:", *missing]
    if target == "prompt" and (column := _longest_text(value)):
        lines.append(
            f"rename '{visible(column)}' to 'prompt', or say `prompts.column: {visible(column)}` in a run file"
        )
    return "\n".join([*lines, *_typos(formats, names)])


def _longest_text(value: RawRow) -> str | None:
    """The field that is most likely the prompt of a row whose fields no format knows."""
    texts = {name: content for name, content in value.items() if isinstance(content, str) and name not in OPTIONAL}
    return max(texts, key=lambda name: len(texts[name]), default=None)


def _typos(formats: tuple[Format, ...], names: tuple[str, ...]) -> Iterator[str]:
    """Suggestions for fields that no format knows."""
    known = list(
        dict.fromkeys(name for format in formats for required in format.required for name in required.split("|"))
    )
    for name in names:
        if name not in known and (similar := difflib.get_close_matches(name.lower(), known, n=1, cutoff=SIMILARITY)):
            yield f"'{visible(name)}': did you mean '{similar[0]}'?"


def _quoted(alternatives: str) -> str:
    return " or ".join(f"'{name}'" for name in alternatives.split("|"))


def skipped(place: Place, value: RawRow, reason: str) -> Skipped:
    """An input row that becomes none, named by its id if it has one."""
    own = value.get("prompt_id", value.get("id"))
    return Skipped(prompt_id=place.short if own is None else str(own), stage=place.short, reason=reason)


def split_skipped(items: Iterable[T | Skipped], limit: int | None = None) -> tuple[list[T], list[Skipped]]:
    """(the first `limit` rows, what was skipped before the last of them)."""
    kept: list[T] = []
    skips: list[Skipped] = []
    for item in items:
        if isinstance(item, Skipped):
            skips.append(item)
        else:
            kept.append(item)
        if len(kept) == limit:
            break
    return kept, skips


def row_id(value: RawRow, messages: Messages) -> str:
    """A row's own id, or else the fingerprint of its conversation."""
    own = value.get("prompt_id", value.get("id"))
    return turns_fingerprint(messages) if own is None else str(own)


def turns_fingerprint(messages: Messages) -> str:
    """The fingerprint of turns that may still hold what JSON does not have, such as bytes: the row is refused later."""
    return fingerprint(json.loads(json.dumps(messages, default=repr)))


def row_tags(place: Place, value: RawRow) -> list[str]:
    """The `tags` of a row and its `subset` (RewardBench)."""
    tags, subset = value.get("tags", []), value.get("subset")
    if subset is None:
        return tags  # type: ignore[no-any-return]  # checked with the row
    return [*tags, text(place, value, "subset")] if isinstance(tags, list) else tags


def row_prompt(place: Place, value: RawRow) -> Messages:
    """The turns of a row's `messages` or `prompt`, a text, a transcript or a list of turns, after its `system`."""
    return with_system(place, value, _prompt_turns(place, value))


def with_system(place: Place, value: RawRow, messages: Messages) -> Messages:
    """A conversation after the row's `system` message, if the row has one."""
    if "system" not in value:
        return messages
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        raise CaiError(f"{place}: system: the conversation begins with a system message already; leave one of them out")
    return [Message(role="system", content=text(place, value, "system")), *messages]


def _prompt_turns(place: Place, value: RawRow) -> Messages:
    prompt = value.get("messages", value.get("prompt"))
    if isinstance(prompt, str) and is_transcript(prompt):
        return turns(prompt.removesuffix("\n\nAssistant:"))
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    if isinstance(prompt, list):
        return plain_turns(prompt)
    raise CaiError(f"{place}: prompt: expected a text or a list of turns, found {describe(prompt)}")


def plain_turns(items: list[Any]) -> Messages:
    """Turns with role and content alone; an item that is no turn stays, for the row's validation to report."""
    return [{k: v for k, v in t.items() if k in ("role", "content")} if isinstance(t, dict) else t for t in items]  # type: ignore[misc]


def is_turns(value: Any) -> bool:
    """Whether a value is a non-empty list of turns."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)


def text(place: Place, value: RawRow, key: str) -> str:
    """A field that must be a text."""
    content = value.get(key)
    if not isinstance(content, str):
        raise CaiError(f"{place}: {key}: expected a text, found {describe(content)}")
    return content


def turn_problem(messages: Messages) -> str | None:
    """Why a conversation is no prompt: turns that do not alternate up to a user's, or an empty one; None if it is.

    One system message may come first.
    """
    roles = [m["role"] for m in messages]
    after = roles[1:] if roles[:1] == ["system"] else roles
    if after != [("user", "assistant")[i % 2] for i in range(len(after))] or not after or after[-1] != "user":
        return f"turns must alternate, starting and ending with the user's; found {', '.join(roles)}"
    return "a message is empty" if any(not m["content"].strip() for m in messages) else None
