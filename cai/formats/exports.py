"""Rows of ours as rows of others, and what those have no place for."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from cai.formats import openai_chat, transcripts, trl, ultrafeedback
from cai.records import Demonstration, LeftOut, Preference

SYSTEM = "system messages"


class Export(NamedTuple):
    """A format: the rows of ours it is made of, the type of its rows, how they are made, and what else it keeps.

    `make` gives the rows of one of ours, or the reason why there are none. A format that is `decided` knows only which
    answer is better: it gets the likelier one as such, and of p = 0.5 nothing.
    """

    of: Literal["preferences", "completions"]
    row: type
    make: Callable[[Any], Any]
    keeps: tuple[str, ...] = (SYSTEM,)
    decided: bool = True


THINGS = (
    "ids",
    "tags",
    SYSTEM,
    "soft labels",
    "weights",
    "verdicts and principles",
    "who answered and who judged",
    "earlier labels",
)
EXPORTS = {
    "cai": Export("preferences", Preference, lambda pair: [pair], THINGS, decided=False),
    "trl-preference": Export("preferences", trl.PreferenceRow, trl.preference),
    "trl-implicit": Export("preferences", trl.ImplicitRow, trl.implicit),
    "kto": Export("preferences", trl.UnpairedRow, trl.unpaired),
    "hh-rlhf": Export("preferences", transcripts.Row, transcripts.row, keeps=()),
    "ultrafeedback": Export(
        "preferences", ultrafeedback.Row, ultrafeedback.row, (SYSTEM, "ids", "soft labels"), decided=False
    ),
    "openai-preference": Export("preferences", openai_chat.PreferenceRow, openai_chat.preference),
    "prompt-completion": Export("completions", trl.CompletionRow, trl.prompt_completion),
    "openai-chat": Export("completions", openai_chat.ChatRow, openai_chat.chat),
}


def exported(
    rows: Iterable[BaseModel], name: str, lost: Counter[str]
) -> Iterator[BaseModel | Mapping[str, Any] | LeftOut]:
    """Rows of the named format, and what cannot be one; `lost` counts the rows of which each thing was lost."""
    export = EXPORTS[name]
    for row in rows:
        if not isinstance(row, Preference | Demonstration):
            yield row  # left out before
            continue
        made = "p is 0.5: neither answer is the better one"
        better = likelier(row) if export.decided and isinstance(row, Preference) else row
        if better is not None:
            made = export.make(better)
        if isinstance(made, str):
            yield LeftOut(prompt_id=row.prompt_id, stage=name, reason=made)
        else:
            lost.update(thing for thing in things(row) if thing not in export.keeps)
            yield from made


def likelier(pair: Preference) -> Preference | None:
    """A pair with its likelier answer as `chosen`; None where none is likelier."""
    if pair.p < 0.5:
        return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen, "p": 1 - pair.p})
    return pair if pair.p > 0.5 else None


def things(row: Preference | Demonstration) -> list[str]:
    """What a row holds besides a conversation, its answers, and which one is better."""
    found = [True, bool(row.tags), any(turn["role"] == "system" for turn in row.messages)]
    if isinstance(row, Preference):
        found += [
            row.p not in (0.0, 0.5, 1.0),
            row.weight != 1.0,
            bool(row.verdicts or row.principle_ids),
            bool(row.model or row.judge),
            row.given is not None,
        ]
    return [thing for thing, is_there in zip(THINGS, found, strict=False) if is_there]
