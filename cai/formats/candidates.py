"""Answers that wait for a judge: every form of preference file, its labels put aside, and sets of answers.

A row `{"prompt", "responses": [2 to 26 texts]}` is one set to be judged; elsewhere (cai/formats/preferences.py) it is a
ranking, and is read as such where `ranked` says so.
"""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from cai.errors import CaiError
from cai.formats.jsonl import parse_row, read_objects
from cai.formats.preferences import place, row_pairs, row_prompt, row_responses, row_tags
from cai.formats.prompts import turn_fault
from cai.records import LeftOut, Prompt


class Candidates(NamedTuple):
    """Answers to one prompt; an answer of white space alone is "". `given` is P(the first of two is better)."""

    place: str  # file and line
    prompt: Prompt
    answers: list[str]
    given: float | None
    model: str  # engine fingerprint of who wrote them, where the file knows it


def read_candidates(path: Path, ranked: bool) -> Iterator[Candidates | LeftOut]:
    """What a file holds for a judge, row by row; a conversation that cannot be answered is left out.

    Raises: CaiError naming file, line and field.
    """
    for number, value in read_objects(path):
        if "responses" in value and not ranked:
            found: Iterator[Candidates | LeftOut] = iter([_set(path, number, value)])
        else:
            found = (
                Candidates(
                    place(path, number),
                    Prompt(id=pair.prompt_id, messages=pair.messages, tags=pair.tags),
                    [_text(pair.chosen), _text(pair.rejected)],
                    pair.p,
                    pair.model,
                )
                if not isinstance(pair, LeftOut)
                else pair
                for pair in row_pairs(path, number, value)
            )
        for item in found:
            if isinstance(item, Candidates) and (fault := turn_fault(item.prompt.messages)):
                yield LeftOut(prompt_id=item.prompt.id, stage=item.place, reason=fault)
            else:
                yield item


def _set(path: Path, number: int, value: dict[str, Any]) -> Candidates:
    responses = row_responses(path, number, value)
    if len(responses) > len(ascii_uppercase):
        raise CaiError(
            f"{path}:{number}: responses: a judge chooses among 2 to {len(ascii_uppercase)} answers, "
            f"found {len(responses)}"
        )
    own_id, messages = row_prompt(path, number, value)
    tags = row_tags(path, number, value)
    prompt = parse_row(path, number, {"id": own_id, "messages": messages, "tags": tags}, Prompt)
    return Candidates(place(path, number), prompt, [_text(r) for r in responses], None, str(value.get("model", "")))


def _text(answer: str) -> str:
    return answer if answer.strip() else ""
