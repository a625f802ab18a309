"""OpenAI's files for fine-tuning: conversations, and preferences.

    chat         {"messages": [{"role", "content"}, …]}, the last turn the assistant's;
                 https://platform.openai.com/docs/api-reference/fine-tuning/chat-input
    preference   {"input": {"messages": […]}, "preferred_output": [turn], "non_preferred_output": [turn]};
                 https://platform.openai.com/docs/guides/direct-preference-optimization

Of a conversation the last answer is the one to learn; those before it are what it answers to.
"""

from typing import Any

from typing_extensions import TypedDict

from cai.config.errors import CaiError
from cai.data.files import Place, RowOfFile
from cai.data.forms import Read, is_turns, plain_turns, row_id, row_tags
from cai.data.records import Demonstration, Messages, Preference
from cai.data.trl_formats import said


class ChatRow(TypedDict):
    """A conversation that ends with the answer to learn."""

    messages: Messages


class Input(TypedDict):
    """What two outputs answer to."""

    messages: Messages


class PreferenceRow(TypedDict):
    """Two outputs to one conversation."""

    input: Input
    preferred_output: Messages
    non_preferred_output: Messages


def read_chat(place: Place, value: RowOfFile) -> Read:
    """A conversation as its last answer and what it answers to."""
    messages, answer = _split(place, "messages", value["messages"])
    if value["messages"][-1].get("weight") == 0:
        return "the last answer has the weight 0: it is not to be learnt"
    return [
        {
            "prompt_id": row_id({k: v for k, v in value.items() if k != "messages"}, messages),
            "messages": messages,
            "tags": row_tags(place, value),
            "completion": answer,
        }
    ]


def read_pair(place: Place, value: RowOfFile) -> Read:
    """A preference."""
    given: Any = value["input"].get("messages") if isinstance(value["input"], dict) else None
    if not is_turns(given):
        raise CaiError(f"{place}: input: expected an object with 'messages', a list of turns")
    messages = plain_turns(given)
    keys = ("preferred_output", "non_preferred_output")
    answers = {key: _split(place, key, [*given, *_listed(value[key])]) for key in keys}
    if any(before != messages for before, _ in answers.values()):
        return "an output has more than one turn"
    named: dict[str, Any] = {"prompt_id": row_id(value, messages), "messages": messages, "source": "human", "p": 1.0}
    return [{**named, "chosen": answers["preferred_output"][1], "rejected": answers["non_preferred_output"][1]}]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _split(place: Place, key: str, listed: Any) -> tuple[Messages, Any]:
    if not is_turns(listed) or len(listed) < 2 or listed[-1]["role"] != "assistant":
        raise CaiError(f"{place}: {key}: expected turns that end with the assistant's, the answer")
    *messages, last = plain_turns(listed)
    return messages, last["content"]


def chat(answer: Demonstration) -> list[ChatRow]:
    """An answer to learn behind what it answers to."""
    return [ChatRow(messages=[*answer.messages, *said(answer.completion)])]


def preference(pair: Preference) -> list[PreferenceRow]:
    """A pair beside what it answers to."""
    return [
        PreferenceRow(
            input=Input(messages=pair.messages),
            preferred_output=said(pair.chosen),
            non_preferred_output=said(pair.rejected),
        )
    ]
