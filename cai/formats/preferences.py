"""Preference files of others: pairs, transcripts and rankings as JSON Lines, read into Preference rows.

A row is one of
- a row of a run's preferences.jsonl, or of the rankings.jsonl that `cai judge` writes;
- `{"prompt", "chosen", "rejected"}`: texts, or lists of turns as in trl's conversational datasets; where there is no
  `prompt`, the turns that chosen and rejected share;
- `{"chosen", "rejected"}`: whole `\\n\\nHuman: …\\n\\nAssistant: …` transcripts (Anthropic's hh-rlhf);
- `{"prompt", "responses"}`: a ranking, the best first (InstructGPT, arXiv:2203.02155 §3.5), as all its pairs;
- `{"prompt", "corrects", "incorrects"}`: a question with options, as in the HHH evaluations (cai/formats/options.py).
`messages` may stand for `prompt`; `id`, `tags`, `p` (1), `weight` (1) are optional, and a `subset` (RewardBench)
becomes a tag.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import parse_row, read_objects
from cai.formats.options import option_pairs
from cai.formats.prompts import turn_fault
from cai.formats.transcripts import is_transcript, turns
from cai.hashing import fingerprint
from cai.odds import sigmoid
from cai.records import LeftOut, Message, Messages, Preference, Ranking


def read_preferences(path: Path) -> tuple[list[Preference], list[LeftOut]]:
    """All pairs of a file that can teach something, and the others with the reason and the line they stand on.

    Raises: CaiError naming file, line and field for a row that is not of a known form, or a file without rows.
    """
    kept: list[Preference] = []
    left_out: list[LeftOut] = []
    for number, value in read_objects(path):
        for pair in row_pairs(path, number, value):
            if isinstance(pair, LeftOut):
                left_out.append(pair)
            elif reason := unfit(pair):
                left_out.append(LeftOut(prompt_id=pair.prompt_id, stage=place(path, number), reason=reason))
            else:
                kept.append(pair)
    if not kept and not left_out:
        raise CaiError(f"{path}: no preferences in this file; expected one JSON object a line")
    return kept, left_out


def place(path: Path, number: int) -> str:
    """A line of a file, as rows name it."""
    return f"{path.name}:{number}"


def unfit(pair: Preference) -> str | None:
    """Why a pair can teach nothing, or None if it can."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "an answer is empty"
    if pair.chosen == pair.rejected:
        return "chosen equals rejected"
    return turn_fault(pair.messages)


def row_pairs(path: Path, number: int, value: dict[str, Any]) -> Iterator[Preference | LeftOut]:
    """The pairs that one row stands for, fit to teach or not, or the one reason why it stands for none.

    Raises: CaiError naming file, line and field.
    """
    pairs = _pairs(path, number, value)
    if isinstance(pairs, str):
        at = place(path, number)
        yield LeftOut(prompt_id=str(value.get("id", at)), stage=at, reason=pairs)
    else:
        yield from (parse_row(path, number, pair, Preference) for pair in pairs)


def row_responses(path: Path, number: int, value: dict[str, Any]) -> list[str]:
    """The `responses` of a row; raises CaiError for anything but two or more texts."""
    responses = value["responses"]
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        raise CaiError(f"{path}:{number}: responses: expected a list of at least two texts, the best first")
    return responses


def row_prompt(path: Path, number: int, value: dict[str, Any]) -> tuple[str, Messages]:
    """The id and the turns of a row's `prompt` or `messages`; without an `id`, that of its content."""
    messages = _prompt(path, number, value)
    return _id(value, messages), messages


def row_tags(path: Path, number: int, value: dict[str, Any]) -> list[str]:
    """The `tags` of a row and its `subset`."""
    tags, subset = value.get("tags", []), value.get("subset")
    if subset is None:
        return tags  # type: ignore[no-any-return]  # checked with the row
    if not isinstance(subset, str):
        raise CaiError(f"{path}:{number}: subset: expected a text, found {str(subset)[:60]}")
    return [*tags, subset] if isinstance(tags, list) else tags


def _pairs(path: Path, number: int, value: dict[str, Any]) -> list[dict[str, Any]] | str:
    """The fields of each Preference that a row stands for, or why it stands for none."""
    if "strengths" in value:
        return _judged_ranking(parse_row(path, number, value, Ranking))
    if "prompt_id" in value and "messages" in value and "responses" not in value:
        return [value]
    common: dict[str, Any] = {key: value[key] for key in ("p", "weight") if key in value}
    common["tags"] = row_tags(path, number, value)
    if "responses" in value:
        better_first = itertools.combinations(row_responses(path, number, value), 2)
        messages = _prompt(path, number, value)
        return [_fields(value, common, messages, chosen, rejected) for chosen, rejected in better_first]
    if "corrects" in value or "incorrects" in value:
        options = option_pairs(path, number, value)
        return options if isinstance(options, str) else [_fields(value, common, *pair) for pair in options]
    missing = [key for key in ("chosen", "rejected") if key not in value]
    if missing:
        raise CaiError(
            f"{path}:{number}: no {' and no '.join(missing)}; expected chosen and rejected, or responses, or corrects "
            f"and incorrects (found {', '.join(value)})"
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


def _judged_ranking(ranking: Ranking) -> list[dict[str, Any]]:
    """All pairs of a ranking that a judge made; its strengths tell how much better the better answers are."""
    made = ranking.model_dump(include={"prompt_id", "messages", "tags", "model", "judge"})
    made |= {"source": "judge", "seeds": [ranking.seed]}
    answers = zip(ranking.responses, ranking.strengths, strict=True)
    return [
        {**made, "chosen": chosen, "rejected": rejected, "p": sigmoid(higher - lower)}
        for (chosen, higher), (rejected, lower) in itertools.combinations(answers, 2)
    ]


def _fields(
    value: dict[str, Any], common: dict[str, Any], messages: Messages, chosen: str, rejected: str
) -> dict[str, Any]:
    texts = {"messages": messages, "chosen": chosen, "rejected": rejected}
    return {"p": 1.0, "source": "human", **common, "prompt_id": _id(value, messages), **texts}


def _id(value: dict[str, Any], messages: Messages) -> str:
    given = value.get("prompt_id", value.get("id"))
    return fingerprint(messages) if given is None else str(given)


def _prompt(path: Path, number: int, value: dict[str, Any]) -> Messages:
    prompt = value.get("messages", value.get("prompt"))
    if isinstance(prompt, str) and is_transcript(prompt):
        return turns(prompt.removesuffix("\n\nAssistant:"))
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
    found = turns(value) if is_transcript(value) else value
    is_turns = isinstance(found, list) and all(isinstance(t, dict) and {"role", "content"} <= t.keys() for t in found)
    if not is_turns or len(found) < 2 or found[-1]["role"] != "assistant":
        raise CaiError(
            f"{path}:{number}: {key}: without a prompt, expected a transcript (\\n\\nHuman: …\\n\\nAssistant: …) or a "
            "list of turns, ending with the assistant's"
        )
    return found[:-1], str(found[-1]["content"])
