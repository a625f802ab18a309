"""Answers to learn in any file, read into Demonstration rows.

A row is one of
    prompt-completion   {"prompt" or "messages", "completion"} with `id`, `tags` as for prompts: texts or turns (trl),
                        or Demonstration rows
    kto                 the same with "label": the good answers alone
    alpaca-eval         {"instruction", "output"} (cai/data/alpaca_eval.py)
    chat                {"messages"} that end with the assistant's turn (cai/data/openai_chat.py, and the
                        `messages` of ultrafeedback_binarized and cai-conversation)
"""

from collections.abc import Iterator
from pathlib import Path

from cai.config.errors import CaiError
from cai.data import alpaca_eval, openai_chat
from cai.data.files import Place, RowOfFile
from cai.data.forms import (
    OWN,
    Form,
    Read,
    Seen,
    is_turns,
    parted,
    placed_rows,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    skipped,
    turn_fault,
)
from cai.data.jsonl import parse_row
from cai.data.records import Demonstration, Skipped


def read_completions(path: Path) -> tuple[list[Demonstration], list[Skipped]]:
    """All answers of a file, and what is left out; a prompt may stand there with several answers.

    Raises: CaiError naming file and row for a bad row, an empty text, or no rows at all.
    """
    kept, others = parted(iter_completions(path))
    if not kept and not others:
        raise CaiError(f"{path}: no completions in this file")
    return kept, others


def iter_completions(path: Path, seen: Seen | None = None) -> Iterator[Demonstration | Skipped]:
    """The same, row by row."""
    for place, value in placed_rows(path):
        found = read_row(FORMS, place, value, "completion", seen)
        if isinstance(found, str):
            yield skipped(place, value, found)
        else:
            for fields in found:
                row = parse_row(place, fields, Demonstration)
                fault = turn_fault(row.messages) or ("" if row.completion.strip() else "completion: the text is empty")
                if fault:
                    raise CaiError(f"{place}: {fault}")
                yield row


def _completion(place: Place, value: RowOfFile) -> Read:
    messages, answer = row_prompt(place, value), value["completion"]
    if is_turns(answer) and len(answer) == 1:
        answer = answer[0]["content"]
    named = {"prompt_id": row_id(value, messages), "tags": row_tags(place, value)}
    return [{**named, "messages": messages, "completion": answer}]


def _good_completion(place: Place, value: RowOfFile) -> Read:
    if not isinstance(value["label"], bool):
        raise CaiError(f"{place}: label: expected true or false, found {value['label']}")
    return _completion(place, value) if value["label"] else "the answer is labelled as a bad one"


FORMS = (
    Form("kto", ("prompt|messages", "completion", "label"), _good_completion, OWN),
    Form("prompt-completion", ("prompt|messages", "completion"), _completion, OWN, plain=True),
    Form("alpaca-eval", ("instruction", "output"), alpaca_eval.read_output, alpaca_eval.ALSO),
    Form("chat", ("messages",), openai_chat.read_chat, (*OWN, "prompt"), note="the last answer of each"),
)
