"""Conversations written as one text, `\\n\\nHuman: …\\n\\nAssistant: …`, as Anthropic's data sets have them."""

import re
from typing import Any

from cai.records import Message, Messages

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Whether a value is a text that starts with a turn."""
    return isinstance(value, str) and TURN.match(value) is not None


def turns(transcript: str) -> Messages:
    """The turns of a transcript, each without the white space around it; what stands before the first is left away."""
    pieces = TURN.split(transcript)[1:]
    return [Message(role=ROLES[who], content=text.strip()) for who, text in zip(pieces[::2], pieces[1::2], strict=True)]
