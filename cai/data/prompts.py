"""Prompts in any file, read into Prompt rows.

    prompt              {"prompt" or "messages"}, with `id` and `tags`: a text, a transcript or a list of turns; of a
                        conversation that ends with the assistant's answer, what the answer answers to
    mt-bench            {"question_id", "category", "turns"}: the first turn, since later ones refer to answers
    red-team            {"transcript", "tags"}: the first human turn
    alpaca-eval         {"instruction"} (cai/data/alpaca_eval.py)
    cai-conversation    {"init_prompt"} (cai/data/cai_conversation.py)

Rows of preferences (cai/data/preferences.py) stand for their prompts. A prompt that stands there twice counts once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data import alpaca_eval, cai_conversation
from cai.data.files import Place, RowOfFile
from cai.data.forms import (
    OWN,
    Form,
    Read,
    Seen,
    is_turns,
    parted,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    skipped,
    text,
    turn_fault,
    turns,
)
from cai.data.jsonl import parse_row
from cai.data.preferences import FORMS as PREFERENCE_FORMS
from cai.data.preferences import single_rows
from cai.data.records import Message, Messages, Prompt, Skipped


def read_prompts(path: Path, limit: int | None = None) -> tuple[list[Prompt], list[Skipped]]:
    """The first `limit` prompts of a file, and what is left out before them; a row without `id` has its content's.

    Raises: CaiError naming file and row for a bad row, an empty text, a duplicate id, or no prompts at all.
    """
    prompts, others = parted(iter_prompts(path), limit)
    if not prompts:
        why = f": {others[0].stage}: {others[0].reason}" if others else ""
        raise CaiError(f"{path}: no prompts in this file{why}")
    return prompts, others


def iter_prompts(path: Path, seen: Seen | None = None) -> Iterator[Prompt | Skipped]:
    """The same, row by row; in memory stay ids and hashes alone."""
    known: dict[str, tuple[Place, str]] = {}
    for place, value in single_rows(path):
        found = read_row(FORMS, place, value, "prompt", seen)
        if isinstance(found, str):
            yield skipped(place, value, found)
            continue
        prompt = _checked(place, found[0])
        if fault := turn_fault(prompt.messages):
            yield skipped(place, value, fault)
            continue
        content = fingerprint(prompt.messages)
        first, same = known.setdefault(prompt.id, (place, content))
        if first == place:
            yield prompt
        elif same == content:
            yield skipped(place, value, "the same prompt stands above")
        else:
            raise CaiError(f"{place}: the id '{prompt.id}' stands already at {first.short}, with another prompt")


def _checked(place: Place, fields: dict[str, Any]) -> Prompt:
    named = {"id": fields["prompt_id"], "messages": fields["messages"], "tags": fields.get("tags", [])}
    return parse_row(place, named, Prompt)


def _prompt(place: Place, value: RowOfFile) -> Read:
    messages = row_prompt(place, value)
    if is_turns(messages) and len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    elif "prompt" in value and "messages" in value:
        raise CaiError(f"{place}: expected either 'prompt' or 'messages', found both")
    fields = {"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}
    if fault := turn_fault(_checked(place, fields).messages):
        raise CaiError(f"{place}: {fault}")  # who wrote a file of prompts can mend it
    return [fields]


def _mt_bench(place: Place, value: RowOfFile) -> Read:
    """https://github.com/lm-sys/FastChat/blob/main/fastchat/llm_judge/data/mt_bench/question.jsonl."""
    asked = value["turns"]
    if not isinstance(asked, list) or not asked or not isinstance(asked[0], str):
        raise CaiError(f"{place}: turns: expected a list of texts, the first of which is asked")
    messages: Messages = [Message(role="user", content=asked[0])]
    tags = [text(place, value, "category")] if "category" in value else []
    return [{"prompt_id": row_id({"id": value.get("question_id")}, messages), "messages": messages, "tags": tags}]


def _red_team(place: Place, value: RowOfFile) -> Read:
    """red-team-attempts (Ganguli et al. 2022, arXiv:2209.07858) of https://huggingface.co/datasets/Anthropic/hh-rlhf."""
    found = turns(text(place, value, "transcript"))
    messages = [turn for turn in found if turn["role"] == "user"][:1]
    if not messages or not messages[0]["content"].strip():
        return "no human turn in the transcript"
    return [{"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}]


def _of_preference(form: Form) -> Form:
    """A form of preferences as one of prompts: that of its first pair."""

    def read(place: Place, value: RowOfFile) -> Read:
        found = form.read(place, value)
        return found if isinstance(found, str) else found[:1]

    return form._replace(read=read)


FORMS = (
    Form("mt-bench", ("turns",), _mt_bench, ("question_id", "category"), note="the first turn of each question"),
    Form("red-team", ("transcript",), _red_team, ("id", "tags"), note="the first human turn of each transcript"),
    Form("alpaca-eval", ("instruction",), alpaca_eval.read_prompt, alpaca_eval.ALSO),
    Form("cai-conversation", ("init_prompt",), cai_conversation.read_prompt, OWN),
    *(_of_preference(form) for form in PREFERENCE_FORMS if form.name != "kto"),
    Form("prompt", ("prompt|messages",), _prompt, (*OWN, "prompt"), plain=True),
)
