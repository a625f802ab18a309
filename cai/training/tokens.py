"""Tokenizers, and conversations as token ids: the same for reward models, their evaluation and online training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.records import Message, Messages, Prompt


def load_tokenizer(model: Path) -> Any:
    """The model's tokenizer; its end token pads where it has no padding token of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """A fingerprint of which token has which id."""
    return fingerprint(tokenizer.get_vocab())


def assistant_turn(text: str) -> list[Message]:
    """A completion in trl's conversational format: the turns that follow the prompt."""
    return [Message(role="assistant", content=text)]


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The conversation up to where the assistant's answer begins."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def turn_ids(tokenizer: Any, messages: Messages, text: str, end: int) -> list[int]:
    """The conversation with the answer, its last token being `end`.

    What a chat template writes after the end of a turn (often a newline) is cut: a reward model that reads its score
    at the last token would learn it there, where no policy ever arrives.
    """
    ids = list(tokenizer.apply_chat_template([*messages, *assistant_turn(text)], return_dict=True)["input_ids"])
    while ids and ids[-1] != end:
        ids.pop()
    return ids


def whole_turn(prompt: list[int], written: list[int], ends: set[int], end: int) -> list[int]:
    """A prompt with what a policy wrote, ending with `end` in place of whichever of `ends` ended it, if one did."""
    return [*prompt, *(written[:-1] if written[-1] in ends else written), end]


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an assistant's turn: the last special one of a rendered answer.

    Raises: CaiError when the chat template marks no end.
    """
    conversation = [Message(role="user", content="a"), *assistant_turn("b")]
    start = len(prompt_ids(tokenizer, conversation[:1]))
    ids = list(tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"])
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = [token for token in ids[start:] if token in special | {tokenizer.eos_token_id}]
    if not marks:
        raise CaiError("the chat template does not end an answer with a special token; there is no place for a score")
    return int(marks[-1])


def padding(tokenizer: Any, end: int) -> int:
    """A token to pad with that cannot be taken for the end of a turn, where scores are read."""
    return next(int(token) for token in (tokenizer.pad_token_id, 0, 1) if token is not None and token != end)


def prompts_that_fit(tokenizer: Any, rows: Sequence[Prompt], limit: int) -> tuple[list[list[int]], list[str]]:
    """The prompts of at most `limit` tokens as token ids, and the ids of the others."""
    kept, too_long = [], []
    for row in rows:
        ids = prompt_ids(tokenizer, row.messages)
        if len(ids) <= limit:
            kept.append(ids)
        else:
            too_long.append(row.id)
    if not kept:
        raise CaiError(f"nothing to train on: of {len(rows)} prompts none leaves room for max_tokens in max_length")
    return kept, too_long
