"""Conversations as one text, `\\n\\nHuman: …\\n\\nAssistant: …`, the form of Anthropic's hh-rlhf.

https://huggingface.co/datasets/Anthropic/hh-rlhf. A turn is the text behind `Human: ` or `Assistant: `, byte for byte,
so that parsing a transcript and writing it again gives the same bytes.
"""

import re
from collections.abc import Sequence
from typing import Any

from cai.data.records import Message, Messages

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}


def is_transcript(value: Any) -> bool:
    """Whether a value is a text that starts with a turn."""
    return isinstance(value, str) and TURN.match(value) is not None


def turns(transcript: str) -> Messages:
    """The turns of a transcript, without any text before the first."""
    pieces = TURN.split(transcript)[1:]
    return [Message(role=ROLES[speaker], content=text) for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)]


def transcript(messages: Sequence[Message]) -> str:
    """User and assistant turns as one text; `turns` inverts it unless `transcript_problem` returns a reason."""
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


def transcript_problem(messages: Sequence[Message]) -> str | None:
    """Why a conversation cannot be a transcript, which is a turn that would parse as two; None if it can."""
    if any(TURN.search(turn["content"]) for turn in messages):
        return "a turn contains \\n\\nHuman: or \\n\\nAssistant:, which a transcript reads as another turn"
    return None
