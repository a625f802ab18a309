"""Rows of cai as rows of external formats, and what each format has no field for."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from cai.data import chat_formats
from cai.data.records import Demonstration, Preference, Skipped

SYSTEM = "system messages"
EXTRAS = (  # what a row may hold besides a conversation, its answers, and which one is better
    "ids",
    "tags",
    SYSTEM,
    "soft labels",
    "weights",
    "verdicts and principles",
    "names of policy and judge",
    "input labels",
)


class Export(NamedTuple):
    """A format: the rows it is made from, the type of its own rows, the conversion, and the extras it keeps.

    `convert` returns the rows made from one, or why there are none. A format with `hard_labels` stores only which
    answer is better: it gets the likelier one as `chosen`, and skips pairs of p = 0.5.
    """

    source: Literal["preferences", "completions"]
    row: type
    convert: Callable[[Any], Iterable[BaseModel | Mapping[str, Any]] | Skipped]
    keeps: tuple[str, ...] = (SYSTEM,)
    hard_labels: bool = True


EXPORTS = {
    "cai": Export("preferences", Preference, lambda pair: [pair], EXTRAS, hard_labels=False),
    "trl-preference": Export("preferences", chat_formats.PreferenceRow, chat_formats.trl_preference),
    "trl-implicit": Export("preferences", chat_formats.ImplicitRow, chat_formats.trl_implicit),
    "kto": Export("preferences", chat_formats.UnpairedRow, chat_formats.trl_unpaired),
    "hh-rlhf": Export("preferences", chat_formats.TranscriptPair, chat_formats.hh_rlhf, keeps=()),
    "ultrafeedback": Export(
        "preferences",
        chat_formats.UltrafeedbackRow,
        chat_formats.ultrafeedback,
        (SYSTEM, "ids", "soft labels"),
        hard_labels=False,
    ),
    "openai-preference": Export("preferences", chat_formats.OpenAIPreferenceRow, chat_formats.openai_preference),
    "prompt-completion": Export("completions", chat_formats.CompletionRow, chat_formats.trl_prompt_completion),
    "openai-chat": Export("completions", chat_formats.ChatRow, chat_formats.openai_chat),
}


def exported(
    rows: Iterable[Preference | Demonstration | Skipped], name: str, lost: Counter[str]
) -> Iterator[BaseModel | Mapping[str, Any]]:
    """Rows of the named format, and a Skipped for each that has none; `lost` counts the rows that lose each extra."""
    export = EXPORTS[name]
    for row in rows:
        if isinstance(row, Skipped):
            yield row
            continue
        better = likelier(row) if export.hard_labels and isinstance(row, Preference) else row
        if better is None:
            reason = "p is 0.5: neither answer is better"
            yield Skipped(prompt_id=row.prompt_id, stage=name, reason=reason)
            continue
        converted = export.convert(better)
        if isinstance(converted, Skipped):
            yield converted
        else:
            lost.update(extra for extra in extras(row) if extra not in export.keeps)
            yield from converted


def likelier(pair: Preference) -> Preference | None:
    """A pair with its likelier answer as `chosen`; None at p = 0.5."""
    if pair.p < 0.5:
        return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen, "p": 1 - pair.p})
    return pair if pair.p > 0.5 else None


def extras(row: Preference | Demonstration) -> list[str]:
    """The EXTRAS that a row holds."""
    present = [True, bool(row.tags), any(turn["role"] == "system" for turn in row.messages)]
    if isinstance(row, Preference):
        present += [
            row.p not in (0.0, 0.5, 1.0),
            row.weight != 1.0,
            bool(row.verdicts or row.principle_ids),
            bool(row.model or row.judge),
            row.input_p is not None,
        ]
    return [extra for extra, is_present in zip(EXTRAS, present, strict=False) if is_present]
