"""Files of answers to learn: JSON Lines of `{"prompt", "completion"}`, with `messages`, `id`, `tags` as for prompts, or
of Demonstration rows.
"""

from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import parse_row, read_objects
from cai.formats.prompts import parse_prompt
from cai.records import Demonstration


def read_completions(path: Path) -> list[Demonstration]:
    """All rows of a file; a prompt may stand there with several answers.

    Raises: CaiError naming file and line for a bad row, an empty text, or no rows at all.
    """
    rows = [_parse(path, number, value) for number, value in read_objects(path)]
    if not rows:
        raise CaiError(f"{path}: no completions in this file; expected one JSON object a line")
    return rows


def _parse(path: Path, number: int, value: dict[str, Any]) -> Demonstration:
    if "completion" not in value:
        raise CaiError(f"{path}:{number}: no 'completion' (found {', '.join(value)}); expected the answer's text")
    named = {"id" if key == "prompt_id" else key: field for key, field in value.items() if key != "completion"}
    prompt = parse_prompt(path, number, named)
    fields = {"prompt_id": prompt.id, "messages": prompt.messages, "tags": prompt.tags}
    row = parse_row(path, number, {**fields, "completion": value["completion"]}, Demonstration)
    if not row.completion.strip():
        raise CaiError(f"{path}:{number}: completion: the text is empty")
    return row
