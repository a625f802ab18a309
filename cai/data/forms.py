"""Conversations written as one text, `\\n\\nHuman: …\\n\\nAssistant: …`, as Anthropic's data sets have them.

https://huggingface.co/datasets/Anthropic/hh-rlhf. A turn is what stands behind `Human: ` or `Assistant: `, to the
letter, so that reading and writing again gives the same bytes.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from typing_extensions import TypedDict

from cai.config.characters import visible
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.validation import found
from cai.data.files import Place, RowOfFile, rows
from cai.data.records import Message, Messages, Preference, Skipped

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {role: who for who, role in ROLES.items()}


def is_transcript(value: Any) -> bool:
    """Whether a value is a text that starts with a turn."""
    return isinstance(value, str) and TURN.match(value) is not None


def turns(transcript: str) -> Messages:
    """The turns of a transcript; what stands before the first is left away."""
    pieces = TURN.split(transcript)[1:]
    return [Message(role=ROLES[who], content=text) for who, text in zip(pieces[::2], pieces[1::2], strict=True)]


def transcript(messages: Sequence[Message]) -> str:
    """Turns of user and assistant as one text; `turns` gives them back where `transcript_fault` finds nothing."""
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


def transcript_fault(messages: Sequence[Message]) -> str | None:
    """Why a conversation cannot be a transcript: a turn that would be read as two. None if it can."""
    if any(TURN.search(turn["content"]) for turn in messages):
        return "a turn holds \\n\\nHuman: or \\n\\nAssistant:, which a transcript would take for another turn"
    return None


class Row(TypedDict):
    """A pair of hh-rlhf: two whole transcripts."""

    chosen: str
    rejected: str


def row(pair: Preference) -> list[Row] | str:
    """A pair without its system message, for which a transcript has no place; or why it cannot be written."""
    spoken = [turn for turn in pair.messages if turn["role"] != "system"]
    conversations = [[*spoken, Message(role="assistant", content=text)] for text in (pair.chosen, pair.rejected)]
    if fault := next((fault for talk in conversations if (fault := transcript_fault(talk))), None):
        return fault
    chosen, rejected = map(transcript, conversations)
    return [Row(chosen=chosen, rejected=rejected)]


# Rows of files told apart by the fields they have: a form is one shape of row and how it is read.
#
# Which form a row has is found out row by row, so that a file may mix them; the first of a list that fits is taken. A
# field that is null counts as absent, as Parquet and `datasets` fill what a row does not have with nulls; so does an
# empty cell of an optional column.


Read = list[dict[str, Any]] | str
"""The fields of the rows of ours that a row stands for, or why it stands for none."""
T = TypeVar("T")
OPTIONAL = ("id", "prompt_id", "tags", "subset", "p", "weight")
CLOSE = 0.2  # of the fields a form needs: a row with more of them comes close to it
NEAR = 0.75  # similarity of two names of which one is likely mistyped
OWN = ("id", "prompt_id", "tags", "subset")  # what rows of a plain form may have besides


class Form(NamedTuple):
    """A shape of row: the fields it must have (`a|b` is either), how it is read, and what else is read of it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Place, RowOfFile], Read]
    also: tuple[str, ...] = ()
    plain: bool = False  # a form of no one in particular, where a field that is nearly one of ours is a mistake
    note: str = ""  # what it does not take over of a row


@dataclass
class Seen:
    """What a file was found to hold: rows by their form, and fields that nothing was read of."""

    forms: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)  # by form


def placed_rows(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    """The rows of a file without the fields that are absent."""
    for place, value in rows(path):
        yield place, {key: found for key, found in value.items() if not _is_absent(key, found)}


def _is_absent(name: str, value: Any) -> bool:
    return value is None or (value == "" and name in OPTIONAL)


def read_row(forms: tuple[Form, ...], place: Place, value: RowOfFile, what: str, seen: Seen | None = None) -> Read:
    """A row read by the first form it fits.

    Raises: CaiError for a row of no form, naming the closest ones and what they miss, or a field that is mistyped.
    """
    form, unread, mistake = _recognised(forms, tuple(value))
    if form is None:
        raise CaiError(_no_form(forms, place, tuple(value), what))
    if mistake:
        raise CaiError(f"{place}: {mistake}")
    if seen is not None:
        seen.forms[form.name] += 1
        seen.unread.update(unread)
        seen.notes |= {form.name: form.note} if form.note else {}
    return form.read(place, value)


@lru_cache(maxsize=256)
def _recognised(forms: tuple[Form, ...], names: tuple[str, ...]) -> tuple[Form | None, list[str], str]:
    """The form of rows with these fields, what is not read of them, and which field is a mistyped one, if one is."""
    form = next((form for form in forms if not _missing(form, names)), None)
    if form is None:
        return None, [], ""
    known = {name for need in (*form.needs, *form.also) for name in need.split("|")}
    unread = [name for name in names if name not in known]
    for name in unread if form.plain else []:
        if near := difflib.get_close_matches(name.lower(), known, n=1, cutoff=NEAR):
            return form, unread, f"unknown field '{visible(name)}'; did you mean '{near[0]}'?"
    return form, unread, ""


def _missing(form: Form, names: tuple[str, ...]) -> list[str]:
    return [need for need in form.needs if not any(name in names for name in need.split("|"))]


def _no_form(forms: tuple[Form, ...], place: Place, names: tuple[str, ...], what: str) -> str:
    shares = {form: 1 - len(_missing(form, names)) / len(form.needs) for form in forms}
    least = max(CLOSE, max(shares.values()) / 2)
    closest = sorted((form for form in forms if shares[form] > least), key=lambda form: -shares[form])[:3]
    found = f"found {', '.join(map(visible, names[:12])) or 'no fields'}"
    if not closest:
        expected = [f"  {form.name}: {', '.join(form.needs).replace('|', ' or ')}" for form in forms]
        lines = [f"{place}: no known form of a {what} ({found}); expected one of", *expected]
    else:
        missing = [f"  {form.name}: no {' and no '.join(map(_spoken, _missing(form, names)))}" for form in closest]
        lines = [f"{place}: no known form of a {what} ({found}); the closest:", *missing]
    return "\n".join([*lines, *_mistyped(forms, names)])


def _mistyped(forms: tuple[Form, ...], names: tuple[str, ...]) -> Iterator[str]:
    """What fields that no form knows may be meant for."""
    needed = list(dict.fromkeys(name for form in forms for need in form.needs for name in need.split("|")))
    for name in names:
        if name not in needed and (near := difflib.get_close_matches(name.lower(), needed, n=1, cutoff=NEAR)):
            yield f"'{visible(name)}': did you mean '{near[0]}'?"


def _spoken(need: str) -> str:
    return " or ".join(f"'{name}'" for name in need.split("|"))


def skipped(place: Place, value: RowOfFile, reason: str) -> Skipped:
    """A row that stands for nothing, by its id where it has one."""
    own = value.get("prompt_id", value.get("id"))
    return Skipped(prompt_id=place.short if own is None else str(own), stage=place.short, reason=reason)


def parted(items: Iterable[T | Skipped], limit: int | None = None) -> tuple[list[T], list[Skipped]]:
    """The first `limit` that are kept, and what is left out before the last of them."""
    kept: list[T] = []
    others: list[Skipped] = []
    for item in items:
        if isinstance(item, Skipped):
            others.append(item)
        else:
            kept.append(item)
        if len(kept) == limit:
            break
    return kept, others


def row_id(value: RowOfFile, messages: Messages) -> str:
    """A row's own id, or without one that of its conversation's content."""
    own = value.get("prompt_id", value.get("id"))
    return fingerprint(messages) if own is None else str(own)


def row_tags(place: Place, value: RowOfFile) -> list[str]:
    """The `tags` of a row and its `subset` (RewardBench)."""
    tags, subset = value.get("tags", []), value.get("subset")
    if subset is None:
        return tags  # type: ignore[no-any-return]  # checked with the row
    return [*tags, text(place, value, "subset")] if isinstance(tags, list) else tags


def row_prompt(place: Place, value: RowOfFile) -> Messages:
    """The turns of a row's `messages` or `prompt`, which may be a text, a transcript or a list of turns."""
    prompt = value.get("messages", value.get("prompt"))
    if isinstance(prompt, str) and is_transcript(prompt):
        return turns(prompt.removesuffix("\n\nAssistant:"))
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    if isinstance(prompt, list):
        return plain_turns(prompt)
    raise CaiError(f"{place}: prompt: expected a text or a list of turns, found {found(prompt)}")


def plain_turns(listed: list[Any]) -> Messages:
    """Turns with nothing but role and content; what is no turn stays, for the row's check to tell."""
    return [{k: v for k, v in t.items() if k in ("role", "content")} if isinstance(t, dict) else t for t in listed]  # type: ignore[misc]


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, one at least."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)


def text(place: Place, value: RowOfFile, key: str) -> str:
    """A field that must be a text."""
    written = value.get(key)
    if not isinstance(written, str):
        raise CaiError(f"{place}: {key}: expected a text, found {found(written)}")
    return written


def turn_fault(messages: Messages) -> str | None:
    """What is wrong with a conversation that waits for an answer, after at most one system message; None if nothing."""
    roles = [m["role"] for m in messages]
    after = roles[1:] if roles[:1] == ["system"] else roles
    if after != [("user", "assistant")[i % 2] for i in range(len(after))] or not after or after[-1] != "user":
        return f"turns must alternate, starting and ending with the user's; found {', '.join(roles)}"
    return "a message is empty" if any(not m["content"].strip() for m in messages) else None
