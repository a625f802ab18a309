"""Conversations as token ids: what a message says is text, whatever it spells.

A chat template writes its markers and the messages into one string, and a tokenizer takes `<|im_end|>` for the end of a
turn wherever it stands: a prompt, an answer or a data row could so forge turns. Here only the template's own markers
become control tokens. A conversation without a control token's string gets the ids of `apply_chat_template`; for the
others the tokenizer's twin is used, in which every control token has an unguessable name, so that one pass over the
whole text splits, normalizes and merges as the tokenizer itself does, and the markers in a message are ordinary text.
"""

import contextlib
import json
import re
import secrets
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import jinja2

from cai.config.errors import RequestRefused
from cai.data.records import Message, Messages, Preference, Role
from cai.stats.formatting import counted

_MISTRAL = (
    "INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|THINK|IMG|"
    "IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX|STREAMING_PAD|STREAMING_WORD|NEXT_AUDIO_TEXT|"
    "REPEAT_AUDIO_TEXT"
)
SERVER_CONTROL = re.compile(
    r'<\|[\w :./"▁-]{1,40}\|>'  # ChatML, Llama 3, Phi, Command R, GLM, gpt-oss, PLaMo
    r"|<\|\w{2,40}>|<\w{2,40}\|>"  # Gemma 4
    r"|<｜[^｜<>]{1,40}｜>"  # DeepSeek, Hunyuan
    r"|</?(?:s|role|seed:\w{1,40}|ifm\|\w{1,40})>|<</?SYS>>"  # Llama 2, Ling, Seed-OSS, K2
    r"|<(?:bos|eos|pad|unk|mask|sep|cls|sop|eop|eod|CLS|SEP|PAD|UNK|[A-Z]{2,4}_TOKEN)>"  # Gemma, GLM, Command R
    r"|<(?:start|end)_of_(?:turn|image|audio|utterance)>|<(?:beginning|end)_of_sentence>"  # Gemma, Idefics, MiniMax
    r"|<(?:image|image_soft_token|fake_token_around_image|global-img|row_\d+_col_\d+|im_start|im_end|im_patch)>"
    r"|<(?:SPECIAL_|special|extra_id_|reserved_|unused)\d{1,6}>|\[unused\d{1,6}\]"  # Nemotron, Baichuan, Gemma, Pangu
    r"|<fim_(?:prefix|middle|suffix|pad)>|<(?:用户|AI)>"  # StarCoder, MiniCPM
    rf"|\[/?(?:{_MISTRAL})\]|\[(?:gMASK|sMASK|MASK|CLS|SEP|PAD|UNK|BOS|EOS|EOT)\]"  # Mistral; GLM, BERT, Kimi
    r"|\[(?:start|end)_header_id\]|\[\|\w{1,40}\|\]"  # Kimi, EXAONE
    r"|\]~(?:!b\[|b\])|\[e~\[|\]![a-z]~\[|\]<\][a-z ]{2,20}\[>\["  # MiniMax
    r"|>>(?:TITLE|ABSTRACT|INTRODUCTION|SUMMARY|COMMENT|ANSWER|QUESTION|DOMAIN|PREFIX|SUFFIX|MIDDLE)<<"  # Falcon
)
"""Control tokens of common model families, for texts whose tokenizer we cannot read, such as a server's.

Not those that a model writes in its answers and that belong to texts, as <think> and <tool_call>.
"""
ControlTokens = Literal["text", "escape", "refuse"]
"""See EngineConfig.control_tokens (cai/inference/engine.py)."""
THOUGHT = ("<think>", "</think>")
"""The tokens around a chain of thought of DeepSeek-R1, Qwen3, SmolLM3 and most others."""
_PLAIN: tuple[tuple[Role, ...], ...] = (("system", "user", "assistant", "user"), ("user", "assistant", "user"))
"""Conversations to see a chat template's markers: one of them every template takes."""


class ControlTokenRefused(RequestRefused):
    """A text spells a control token, and cannot be read as text or is not to be asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, retryable=False)


def chat_ids(
    tokenizer: Any, messages: Messages, add_generation_prompt: bool = False, continue_final_message: bool = False
) -> list[int]:
    """The token ids of a conversation by the model's chat template, in which messages hold no control token.

    Raises: RequestRefused when the template refuses the conversation; ControlTokenRefused when a message spells a
    control token and the template rewrites it, or the tokenizer has no twin (see ChatTokenizer).
    """
    return ChatTokenizer.of(tokenizer).ids(messages, add_generation_prompt, continue_final_message)


def control_string(messages: Messages) -> str | None:
    """The first control token of a common model family that a conversation spells."""
    matches = (SERVER_CONTROL.search(message["content"]) for message in messages)
    return next((match[0] for match in matches if match), None)


def escape_control(messages: Messages) -> list[Message]:
    """The conversation with a space behind the bracket of every control token: `<|im_end|>` becomes `< |im_end|>`.

    No tokenizer of a common family reads the result as a control token; escaping it again changes nothing.
    """
    return [Message(role=message["role"], content=_escaped(message["content"])) for message in messages]


def _escaped(text: str) -> str:
    while (escaped := SERVER_CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = escaped  # a token may stand in the name of another one
    return text


def control_counts(spelled: int, control_tokens: ControlTokens, served: bool) -> dict[str, int | None]:
    """What a summary has of judged pairs or answers, `spelled` of which spell a control token.

    `control_tokens` went to a server as they are; `control_tokens_escaped` were escaped where that was needed. None
    where the setting, or a judge in the process, excludes it.
    """
    return {
        "control_tokens": spelled if control_tokens == "text" and served else None,
        "control_tokens_escaped": spelled if control_tokens == "escape" else None,
    }


def control_warnings(summary: dict[str, Any], asked: str = "pairs") -> list[str]:
    """The warnings about the counts of `control_counts` in a summary, of what was `asked` about; none for 0."""
    sent, escaped = (summary.get(key) or 0 for key in ("control_tokens", "control_tokens_escaped"))
    warnings = []
    if sent:
        warnings.append(
            f"{counted(sent, asked)} with control tokens (such as <|im_end|>) went to a server, which may read them "
            "as turns; engine.control_tokens can escape or refuse them"
        )
    if escaped:
        warnings.append(
            f"{counted(escaped, asked)} with control tokens: where a model could read them as turns, it got them "
            "escaped (< |im_end|> for <|im_end|>)"
        )
    return warnings


def spells_control(pair: Preference) -> bool:
    """Whether a text of a pair spells a control token of a common model family."""
    texts = (*(message["content"] for message in pair.messages), pair.chosen, pair.rejected)
    return any(SERVER_CONTROL.search(text) for text in texts)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text by itself, none of which is a control token. Raises: RequestRefused, as `chat_ids`."""
    return ChatTokenizer.of(tokenizer).text_ids(text)


class AnswerFormat(NamedTuple):
    """What a chat template writes around an answer, after the prompt that asks for it."""

    lead: list[int]
    """Tokens before the text, such as the empty thought of Qwen3's; [] of most."""
    end: int | None
    """The token that ends the turn, the first special one behind the text; None where there is none. Phi-3's template
    writes another special token behind it, which no policy ever writes."""


class ChatTokenizer:
    """Tokenizes conversations of one model.

    `control` are the strings of its control tokens: the special tokens, and the other added tokens that
    the chat template writes around turns (ChatML markers are sometimes added as plain tokens). Added tokens for runs of
    spaces, HTML or a chain of thought belong to texts and stay what they are.
    """

    _known: ClassVar["weakref.WeakKeyDictionary[Any, ChatTokenizer]"] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTokenizer":
        """The one of a transformers tokenizer with its present chat template."""
        known = cls._known.get(tokenizer)
        if known is None or known._template != tokenizer.chat_template:
            known = cls._known[tokenizer] = cls(tokenizer)
        return known

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = weakref.proxy(tokenizer)  # which keeps this object alive, and not the other way round
        self._template = tokenizer.chat_template
        self._plain = _plain_conversation(tokenizer)
        added = tokenizer.added_tokens_decoder
        written = {added[number].content for number in self._ids_of(self._plain) if number in added}
        control = [token for token in added.values() if token.content in written or token.special]
        self.control = [token.content for token in control if token.content.strip()]
        self._pattern = re.compile(any_of(self.control) or r"(?!)")
        self._normalized = any(token.normalized for token in control)
        secret = secrets.token_hex(8)
        self._hidden = {text: f"h{secret}n{number}h" for number, text in enumerate(self.control)}
        self._names = {text: f"<{secret}n{number}>" for number, text in enumerate(self.control)}
        self._revealed = {hidden: text for text, hidden in self._hidden.items()}

    def ids(self, messages: Messages, add_generation_prompt: bool, continue_final_message: bool) -> list[int]:
        """See `chat_ids`."""
        settings = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        found = [text for message in messages if (text := self.control_in(message["content"])) is not None]
        try:
            if not found:
                return list(self._tokenizer.apply_chat_template(messages, return_dict=True, **settings)["input_ids"])
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, **settings)
            hidden = self._tokenizer.apply_chat_template(self._hide(messages), tokenize=False, **settings)
        except jinja2.TemplateError as error:
            raise RequestRefused(
                f"the model's chat template refuses the conversation: {error}", retryable=False
            ) from error
        if self._reveal(hidden) != rendered:
            raise ControlTokenRefused(
                f"the model's chat template rewrites a text that holds its control token {found[0]!r}"
            )
        return self._encode(self._reveal(self._mark(hidden)))

    def text_ids(self, text: str) -> list[int]:
        """See the function `text_ids`."""
        if self.control_in(text) is not None:
            return self._encode(text)
        return self._ids_of(text)

    @cached_property
    def answer_format(self) -> AnswerFormat:
        """See the function `answer_format`."""
        asked = [Message(role="user", content="a")]
        start = self.ids(asked, True, False)
        answered = ([*asked, Message(role="assistant", content=text)] for text in ("b", "c"))
        one, other = (self.ids(messages, False, False) for messages in answered)
        special = {token for token, added in self._tokenizer.added_tokens_decoder.items() if added.special}
        behind = one[len(one) - common_length(one[::-1], other[::-1]) :]
        marks = [token for token in behind if token in special | {self._tokenizer.eos_token_id}]
        return AnswerFormat(one[len(start) : common_length(one, other)], int(marks[0]) if marks else None)

    def _ids_of(self, text: str) -> list[int]:
        """As the tokenizer itself reads a text, control tokens and all."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def control_in(self, text: str) -> str | None:
        """The first control token that the tokenizer would find in a text."""
        match = self._pattern.search(text)
        if match is None and self._normalized and self._normalizer is not None:
            match = self._pattern.search(self._normalizer.normalize_str(text))
        return match[0] if match else None

    @cached_property
    def _normalizer(self) -> Any:
        return self._tokenizer.backend_tokenizer.normalizer if self._tokenizer.is_fast else None

    def _hide(self, messages: Messages) -> list[Message]:
        def hide(text: str) -> str:
            return self._pattern.sub(lambda match: self._hidden[match[0]], text)

        return [Message(role=message["role"], content=hide(message["content"])) for message in messages]

    def _reveal(self, text: str) -> str:
        pattern = "|".join(self._revealed)
        return re.sub(pattern, lambda match: self._revealed[match[0]], text)

    def _mark(self, text: str) -> str:
        """The text with the twin's names in place of control tokens."""
        return self._pattern.sub(lambda match: self._names[match[0]], text)

    def _encode(self, text: str) -> list[int]:
        if self._twin is None:
            raise ControlTokenRefused("a text holds a control token, and the model's tokenizer cannot read it as text")
        return list(self._twin.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _twin(self) -> Any:
        """The tokenizer with other names for its control tokens, or None.

        None for a tokenizer in Python, and for one whose twin reads its own template differently.
        """
        tokenizer = self._tokenizer
        if not tokenizer.is_fast:
            return None
        import tokenizers

        twin = tokenizers.Tokenizer.from_str(renamed(tokenizer.backend_tokenizer.to_str(), self._names))
        twin.no_truncation()
        twin.no_padding()
        read = twin.encode(self._mark(self._plain), add_special_tokens=False).ids
        return twin if read == self._ids_of(self._plain) else None


def any_of(texts: Sequence[str]) -> str:
    """A pattern of any of the texts, the longest that fits.

    Nested by what they begin with: of a flat one every branch is tried, and some models have a thousand control tokens.
    """
    endings: dict[str, list[str]] = {}
    for text in filter(None, texts):
        endings.setdefault(text[0], []).append(text[1:])
    parts = [re.escape(first) + any_of(rest) for first, rest in endings.items()]
    if len(parts) == 1 and "" not in texts:
        return parts[0]
    return f"(?:{'|'.join(parts)})" + ("?" if "" in texts else "") if parts else ""


def renamed(tokenizer: str, names: dict[str, str]) -> str:
    """The JSON of a fast tokenizer (tokenizer.json) with other strings for some of its tokens, whose ids stay."""
    content = json.loads(tokenizer)
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:  # Unigram's pieces with their scores
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:  # none may lead to a token that is gone
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    content["post_processor"] = None  # adds tokens by name, where asked to, and we never ask
    return json.dumps(content, ensure_ascii=False)


def answer_format(tokenizer: Any) -> AnswerFormat:
    """How the tokenizer's chat template writes an answer."""
    return ChatTokenizer.of(tokenizer).answer_format


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an assistant's turn; None where the chat template writes none."""
    return answer_format(tokenizer).end


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _plain_conversation(tokenizer: Any) -> str:
    """A conversation as the chat template writes it; empty without a template that takes it.

    It has a system message where the template takes one: the text of a default one is none of the markers.
    """
    for roles in _PLAIN:
        turns = [Message(role=role, content="a") for role in roles]
        with contextlib.suppress(jinja2.TemplateError, ValueError):  # the latter where there is no template
            rendered: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return rendered
    return ""
