"""Preference files of others: pairs, transcripts and rankings as JSON Lines, read into Preference rows.

A row is one of
- a row of a run's preferences.jsonl;
- `{"prompt", "chosen", "rejected"}`: texts, or lists of turns as in trl's conversational datasets; where there is no
  `prompt`, the turns that chosen and rejected share;
- `{"chosen", "rejected"}`: whole `\\n\\nHuman: …\\n\\nAssistant: …` transcripts (Anthropic's hh-rlhf);
- `{"prompt", "responses"}`: a ranking, the best first (InstructGPT, arXiv:2203.02155 §3.5), as all its pairs.
`messages` may stand for `prompt`; `id`, `tags`, `p` (1), `weight` (1) are optional.
"""

import itertools
import re
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import parse_row, read_objects
from cai.formats.prompts import turn_fault
from cai.hashing import fingerprint
from cai.records import LeftOut, Message, Messages, Preference

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}


def read_preferences(path: Path) -> tuple[list[Preference], list[LeftOut]]:
    """All pairs of a file that can teach something, and the others with the reason and the line they stand on.

    Raises: CaiError naming file, line and field for a row that is not of a known form, or a file without rows.
    """
    kept: list[Preference] = []
    left_out: list[LeftOut] = []
    for number, value in read_objects(path):
        place = f"{path.name}:{number}"
        pairs = _pairs(path, number, value)
        if isinstance(pairs, str):
            left_out.append(LeftOut(prompt_id=str(value.get("id", place)), stage=place, reason=pairs))
            continue
        for pair in pairs:
            preference = parse_row(path, number, pair, Preference)
            if reason := unfit(preference):
                left_out.append(LeftOut(prompt_id=preference.prompt_id, stage=place, reason=reason))
            else:
                kept.append(preference)
    if not kept and not left_out:
        raise CaiError(f"{path}: no preferences in this file; expected one JSON object a line")
    return kept, left_out


def unfit(pair: Preference) -> str | None:
    """Why a pair can teach nothing, or None if it can."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "an answer is empty"
    if pair.chosen == pair.rejected:
        return "chosen equals rejected"
    return turn_fault(pair.messages)


def _pairs(path: Path, number: int, value: dict[str, Any]) -> list[dict[str, Any]] | str:
    """The fields of each Preference that a row stands for, or why it stands for none."""
    common: dict[str, Any] = {key: value[key] for key in ("tags", "p", "weight") if key in value}
    if "prompt_id" in value and "messages" in value:
        return [value]
    if "responses" in value:
        responses = value["responses"]
        if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
            raise CaiError(f"{path}:{number}: responses: expected a list of at least two texts, the best first")
        messages = _prompt(path, number, value)
        better_first = itertools.combinations(responses, 2)
        return [_fields(value, common, messages, chosen, rejected) for chosen, rejected in better_first]
    missing = [key for key in ("chosen", "rejected") if key not in value]
    if missing:
        raise CaiError(
            f"{path}:{number}: no {' and no '.join(missing)}; expected chosen and rejected, or responses "
            f"(found {', '.join(value)})"
        )
    if "prompt" in value or "messages" in value:
        messages = _prompt(path, number, value)
        chosen, rejected = (_answer(path, number, key, value[key]) for key in ("chosen", "rejected"))
    else:
        (messages, chosen), (other, rejected) = (
            _transcript(path, number, key, value[key]) for key in ("chosen", "rejected")
        )
        if messages != other:
            return "chosen and rejected differ in more than the last turn"
    return [_fields(value, common, messages, chosen, rejected)]


def _fields(
    value: dict[str, Any], common: dict[str, Any], messages: Messages, chosen: str, rejected: str
) -> dict[str, Any]:
    own_id = str(value["id"]) if "id" in value else fingerprint(messages)
    texts = {"messages": messages, "chosen": chosen, "rejected": rejected}
    return {"p": 1.0, "source": "human", **common, "prompt_id": own_id, **texts}


def _prompt(path: Path, number: int, value: dict[str, Any]) -> Messages:
    prompt = value.get("messages", value.get("prompt"))
    if isinstance(prompt, str) and TURN.match(prompt):
        return _turns(prompt.removesuffix("\n\nAssistant:"))
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    if isinstance(prompt, list):
        return prompt
    raise CaiError(f"{path}:{number}: prompt: expected a text or a list of turns, or 'responses' beside it")


def _answer(path: Path, number: int, key: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return str(value[0].get("content", ""))
    raise CaiError(f"{path}:{number}: {key}: expected a text, or one turn of the assistant's")


def _transcript(path: Path, number: int, key: str, value: Any) -> tuple[Messages, str]:
    """(the turns before the last, the text of the last)."""
    turns = _turns(value) if isinstance(value, str) and TURN.match(value) else value
    is_turns = isinstance(turns, list) and all(isinstance(t, dict) and {"role", "content"} <= t.keys() for t in turns)
    if not is_turns or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise CaiError(
            f"{path}:{number}: {key}: without a prompt, expected a transcript (\\n\\nHuman: …\\n\\nAssistant: …) or a "
            "list of turns, ending with the assistant's"
        )
    return turns[:-1], str(turns[-1]["content"])


def _turns(transcript: str) -> Messages:
    pieces = TURN.split(transcript)[1:]
    return [Message(role=ROLES[who], content=text.strip()) for who, text in zip(pieces[::2], pieces[1::2], strict=True)]
