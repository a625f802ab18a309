"""Prompt files: JSON Lines of `{"id", "prompt", "tags"}`, or `messages` in place of `prompt`."""

from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import parse_row, read_objects
from cai.hashing import fingerprint
from cai.records import Message, Messages, Prompt


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file; a row without `id` is named after its content.

    Raises: CaiError naming file and line for a bad row, an empty text, a duplicate id, or no rows at all.
    """
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    for number, value in read_objects(path):
        if limit is not None and len(prompts) == limit:
            break
        prompt = parse_prompt(path, number, value)
        if prompt.id in lines:
            raise CaiError(f"{path}:{number}: the id '{prompt.id}' stands already on line {lines[prompt.id]}")
        lines[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise CaiError(f"{path}: no prompts in this file; expected one JSON object a line")
    return prompts


def parse_prompt(path: Path, number: int, value: dict[str, Any]) -> Prompt:
    """One row as a Prompt, named after its content unless it has an `id`; raises CaiError naming file and line."""
    if ("prompt" in value) == ("messages" in value):
        raise CaiError(f"{path}:{number}: expected either 'prompt' (a text) or 'messages' (a list of turns)")
    if "prompt" in value:
        value = {**value, "messages": [Message(role="user", content=value["prompt"])]}
        del value["prompt"]
    prompt = parse_row(path, number, {"id": fingerprint(value["messages"]), **value}, Prompt)
    if fault := turn_fault(prompt.messages):
        raise CaiError(f"{path}:{number}: {fault}")
    return prompt


def turn_fault(messages: Messages) -> str | None:
    """What is wrong with a conversation that waits for an answer, after at most one system message; None if nothing."""
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or not turns or turns[-1] != "user":
        return f"turns must alternate, starting and ending with the user's; found {', '.join(roles)}"
    return "a message is empty" if any(not m["content"].strip() for m in messages) else None
