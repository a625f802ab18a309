"""External formats made of chat turns: what libraries, providers and datasets of the Hub store.

trl (https://huggingface.co/docs/trl/dataset_formats), always as turns:

    trl-preference      {"prompt", "chosen", "rejected"}
    trl-implicit        {"chosen", "rejected"}, whole conversations
    kto                 {"prompt", "completion", "label"}, two rows per pair
    prompt-completion   {"prompt", "completion"}

OpenAI's fine-tuning files (https://platform.openai.com/docs/api-reference/fine-tuning/chat-input):

    openai-chat         {"messages": [{"role", "content"}, …]}, ending with an assistant turn: the completion to learn
    openai-preference   {"input": {"messages": […]}, "preferred_output": [turn], "non_preferred_output": [turn]}

hh-rlhf (https://huggingface.co/datasets/Anthropic/hh-rlhf), two whole transcripts: {"chosen", "rejected"}

https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized:

    prompt, prompt_id               the last user turn, as a text
    chosen, rejected                whole conversations
    messages                        the same as chosen
    score_chosen, score_rejected    ratings from 1 to 10; cai writes the probabilities p and 1 − p. A row does not say
                                    which of the two it holds, so equal scores are read as p = 0.5, others as p = 1

https://huggingface.co/datasets/HuggingFaceH4/cai-conversation-harmless, one round of critique and revision per row:

    init_prompt, init_response, critic_prompt, critic_response, revision_prompt, revision_response   texts
    prompt                                    the same as init_prompt
    messages, chosen                          the prompt and the revision, as turns
    rejected                                  the prompt and the first answer, as turns

`chosen` and `rejected` are read as preferences, `messages` as a completion, `init_prompt` as a prompt.

`EXPORTS` are the formats that can be written, each with what it has no field for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from typing_extensions import TypedDict

from cai.config.errors import CaiError
from cai.data.files import Place, RawRow
from cai.data.formats import RowFields, is_turns, plain_turns, row_id, row_tags, skipped, transcript, transcript_problem
from cai.data.records import Demonstration, Message, Messages, Preference, Skipped


class PreferenceRow(TypedDict):
    """trl: an explicit preference."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


class ImplicitRow(TypedDict):
    """trl: a preference whose prompt is the shared beginning of both conversations."""

    chosen: Messages
    rejected: Messages


class CompletionRow(TypedDict):
    """trl: a prompt and a completion to learn."""

    prompt: Messages
    completion: Messages


class UnpairedRow(CompletionRow):
    """trl: a completion labelled as desirable or not."""

    label: bool


class ChatRow(TypedDict):
    """OpenAI: a conversation that ends with the completion to learn."""

    messages: Messages


class OpenAIPreferenceRow(TypedDict):
    """OpenAI: two outputs for one conversation."""

    input: ChatRow
    preferred_output: Messages
    non_preferred_output: Messages


class TranscriptPair(TypedDict):
    """hh-rlhf: two whole transcripts."""

    chosen: str
    rejected: str


class UltrafeedbackRow(TypedDict):
    """ultrafeedback_binarized: one pair."""

    prompt: str
    prompt_id: str
    chosen: Messages
    rejected: Messages
    messages: Messages
    score_chosen: float
    score_rejected: float


class ConversationRow(TypedDict):
    """cai-conversation: one round of critique and revision; cai/runs/publish.py writes it."""

    init_prompt: str
    init_response: str
    critic_prompt: str | None
    critic_response: str | None
    revision_prompt: str
    revision_response: str
    prompt: str
    messages: Messages
    chosen: Messages
    rejected: Messages


def assistant_turn(text: str) -> Messages:
    """An answer as a list of one turn."""
    return [Message(role="assistant", content=text)]


def trl_preference(pair: Preference) -> list[PreferenceRow]:
    """A pair whose `chosen` is the better answer."""
    chosen, rejected = assistant_turn(pair.chosen), assistant_turn(pair.rejected)
    return [PreferenceRow(prompt=pair.messages, chosen=chosen, rejected=rejected)]


def trl_implicit(pair: Preference) -> list[ImplicitRow]:
    """A pair as two conversations."""
    chosen, rejected = ([*pair.messages, *assistant_turn(answer)] for answer in (pair.chosen, pair.rejected))
    return [ImplicitRow(chosen=chosen, rejected=rejected)]


def trl_unpaired(pair: Preference) -> list[UnpairedRow]:
    """A pair as two rows, the desirable completion first."""
    answers = ((pair.chosen, True), (pair.rejected, False))
    return [
        UnpairedRow(prompt=pair.messages, completion=assistant_turn(text), label=desirable)
        for text, desirable in answers
    ]


def trl_prompt_completion(row: Demonstration) -> list[CompletionRow]:
    """A prompt and its completion."""
    return [CompletionRow(prompt=row.messages, completion=assistant_turn(row.completion))]


def openai_chat(row: Demonstration) -> list[ChatRow]:
    """A conversation that ends with the completion."""
    return [ChatRow(messages=[*row.messages, *assistant_turn(row.completion)])]


def openai_preference(pair: Preference) -> list[OpenAIPreferenceRow]:
    """A pair and the conversation it answers."""
    return [
        OpenAIPreferenceRow(
            input=ChatRow(messages=pair.messages),
            preferred_output=assistant_turn(pair.chosen),
            non_preferred_output=assistant_turn(pair.rejected),
        )
    ]


def hh_rlhf(pair: Preference) -> list[TranscriptPair] | Skipped:
    """A pair as two transcripts, without its system message, for which a transcript has no place."""
    prompt = [turn for turn in pair.messages if turn["role"] != "system"]
    conversations = [[*prompt, *assistant_turn(text)] for text in (pair.chosen, pair.rejected)]
    for conversation in conversations:
        if problem := transcript_problem(conversation):
            return Skipped(prompt_id=pair.prompt_id, stage="hh-rlhf", reason=problem)
    chosen, rejected = map(transcript, conversations)
    return [TranscriptPair(chosen=chosen, rejected=rejected)]


def ultrafeedback(pair: Preference) -> list[UltrafeedbackRow]:
    """A pair whose `chosen` is the likelier answer, with p and 1 − p as scores."""
    (chosen, rejected), p = (
        ((pair.chosen, pair.rejected), pair.p) if pair.p >= 0.5 else ((pair.rejected, pair.chosen), 1 - pair.p)
    )
    conversation = [*pair.messages, *assistant_turn(chosen)]
    return [
        UltrafeedbackRow(
            prompt=pair.messages[-1]["content"],
            prompt_id=pair.prompt_id,
            chosen=conversation,
            rejected=[*pair.messages, *assistant_turn(rejected)],
            messages=conversation,
            score_chosen=p,
            score_rejected=1 - p,
        )
    ]


def read_openai_chat(place: Place, value: RawRow) -> RowFields:
    """A conversation as its last answer, the completion, and the turns before it."""
    messages, answer = _split_last(place, "messages", value["messages"])
    if value["messages"][-1].get("weight") == 0:
        return skipped(place, value, "the last answer has weight 0: it is not a training target")
    return [
        {
            "prompt_id": row_id({k: v for k, v in value.items() if k != "messages"}, messages),
            "messages": messages,
            "tags": row_tags(place, value),
            "completion": answer,
        }
    ]


def read_openai_preference(place: Place, value: RawRow) -> RowFields:
    """A preference of OpenAI's."""
    conversation: Any = value["input"].get("messages") if isinstance(value["input"], dict) else None
    if not is_turns(conversation):
        raise CaiError(f"{place}: input: expected an object with 'messages', a list of turns")
    messages = plain_turns(conversation)
    outputs = {key: value[key] for key in ("preferred_output", "non_preferred_output")}
    answers = {
        key: _split_last(place, key, [*conversation, *(output if isinstance(output, list) else [output])])
        for key, output in outputs.items()
    }
    if any(before != messages for before, _ in answers.values()):
        return skipped(place, value, "an output has more than one turn")
    fields: dict[str, Any] = {"prompt_id": row_id(value, messages), "messages": messages, "source": "human", "p": 1.0}
    return [{**fields, "chosen": answers["preferred_output"][1], "rejected": answers["non_preferred_output"][1]}]


def _split_last(place: Place, key: str, conversation: Any) -> tuple[Messages, Any]:
    if not is_turns(conversation) or len(conversation) < 2 or conversation[-1]["role"] != "assistant":
        raise CaiError(f"{place}: {key}: expected turns that end with the assistant's, the answer")
    *messages, last = plain_turns(conversation)
    return messages, last["content"]


def read_conversation_prompt(place: Place, value: RawRow) -> RowFields:
    """The prompt of a cai-conversation row: a text or, in the first of these datasets, one turn."""
    prompt = value["init_prompt"]
    content = prompt.get("content") if isinstance(prompt, dict) else prompt
    if not isinstance(content, str):
        raise CaiError(f"{place}: init_prompt: expected a text, found {str(prompt)[:60]}")
    messages: Messages = [Message(role="user", content=content)]
    return [{"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}]


SYSTEM = "system messages"
EXTRAS = (  # what a row may hold besides a conversation, its answers, and which one is better
    "ids",
    "tags",
    SYSTEM,
    "soft labels",
    "weights",
    "verdicts and principles",
    "names of policy and judge",
    "input labels",
)


class Export(NamedTuple):
    """A format: the rows it is made from, the type of its own rows, the conversion, and the extras it keeps.

    `convert` returns the rows made from one, or why there are none. A format with `hard_labels` stores only which
    answer is better: it gets the likelier one as `chosen`, and skips pairs of p = 0.5.
    """

    source: Literal["preferences", "completions"]
    row: type
    convert: Callable[[Any], Iterable[BaseModel | Mapping[str, Any]] | Skipped]
    keeps: tuple[str, ...] = (SYSTEM,)
    hard_labels: bool = True


EXPORTS = {
    "cai": Export("preferences", Preference, lambda pair: [pair], EXTRAS, hard_labels=False),
    "trl-preference": Export("preferences", PreferenceRow, trl_preference),
    "trl-implicit": Export("preferences", ImplicitRow, trl_implicit),
    "kto": Export("preferences", UnpairedRow, trl_unpaired),
    "hh-rlhf": Export("preferences", TranscriptPair, hh_rlhf, keeps=()),
    "ultrafeedback": Export(
        "preferences",
        UltrafeedbackRow,
        ultrafeedback,
        (SYSTEM, "ids", "soft labels"),
        hard_labels=False,
    ),
    "openai-preference": Export("preferences", OpenAIPreferenceRow, openai_preference),
    "prompt-completion": Export("completions", CompletionRow, trl_prompt_completion),
    "openai-chat": Export("completions", ChatRow, openai_chat),
}


def exported(
    rows: Iterable[Preference | Demonstration | Skipped], name: str, lost: Counter[str]
) -> Iterator[BaseModel | Mapping[str, Any]]:
    """Rows of the named format, and a Skipped for each that has none; `lost` counts the rows that lose each extra."""
    export = EXPORTS[name]
    for row in rows:
        if isinstance(row, Skipped):
            yield row
            continue
        better = likelier(row) if export.hard_labels and isinstance(row, Preference) else row
        if better is None:
            reason = "p is 0.5: neither answer is better"
            yield Skipped(prompt_id=row.prompt_id, stage=name, reason=reason)
            continue
        converted = export.convert(better)
        if isinstance(converted, Skipped):
            yield converted
        else:
            lost.update(extra for extra in extras(row) if extra not in export.keeps)
            yield from converted


def likelier(pair: Preference) -> Preference | None:
    """A pair with its likelier answer as `chosen`; None at p = 0.5."""
    if pair.p < 0.5:
        return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen, "p": 1 - pair.p})
    return pair if pair.p > 0.5 else None


def extras(row: Preference | Demonstration) -> list[str]:
    """The EXTRAS that a row holds."""
    present = [True, bool(row.tags), any(turn["role"] == "system" for turn in row.messages)]
    if isinstance(row, Preference):
        present += [
            row.p not in (0.0, 0.5, 1.0),
            row.weight != 1.0,
            bool(row.verdicts or row.principle_ids),
            bool(row.model or row.judge),
            row.input_p is not None,
        ]
    return [extra for extra, is_present in zip(EXTRAS, present, strict=False) if is_present]
