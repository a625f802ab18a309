"""Conversations as token ids: the same for reward models, their evaluation and online training."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.data.records import Message, Messages, Prompt
from cai.inference.chat import chat_ids, turn_end

Row = TypeVar("Row")
Tokenized = TypeVar("Tokenized")


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """A fingerprint of which token has which id."""
    return fingerprint(tokenizer.get_vocab())


def assistant_turn(text: str) -> list[Message]:
    """A completion in trl's conversational format: the turns that follow the prompt."""
    return [Message(role="assistant", content=text)]


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The conversation up to where the assistant's answer begins. Raises: RequestRefused, as `chat_ids`."""
    return chat_ids(tokenizer, messages, add_generation_prompt=True)


class SplitTurn(NamedTuple):
    """A prompt and answers to it as token ids; with their ends, and what the chat template writes after those."""

    prompt: list[int]
    answers: list[list[int]]


def split_turn(tokenizer: Any, messages: Messages, *answers: str) -> SplitTurn:
    """A prompt with answers to it, as trl's trainers divide them.

    Where the prompt's last tokens differ once it is answered, the answers begin with the first that differs.
    Raises: RequestRefused, as `chat_ids`.
    """
    asked = prompt_ids(tokenizer, messages)
    whole = [chat_ids(tokenizer, [*messages, *assistant_turn(text)]) for text in answers]
    start = min(_common_length(asked, ids) for ids in whole)
    return SplitTurn(asked[:start], [ids[start:] for ids in whole])


def _common_length(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def turn_ids(tokenizer: Any, messages: Messages, text: str, end: int) -> list[int]:
    """The conversation with the answer, its last token being `end`.

    What a chat template writes after the end of a turn (often a newline) is cut: a reward model that reads its score
    at the last token would learn it there, where no policy ever arrives. Raises: RequestRefused, as `chat_ids`.
    """
    ids = chat_ids(tokenizer, [*messages, *assistant_turn(text)])
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
    end = turn_end(tokenizer)
    if end is None:
        raise CaiError("the chat template does not end an answer with a special token; there is no place for a score")
    return end


def padding(tokenizer: Any, end: int) -> int:
    """A token to pad with that cannot be taken for the end of a turn, where scores are read."""
    return next(int(token) for token in (tokenizer.pad_token_id, 0, 1) if token is not None and token != end)


class Unfit(NamedTuple):
    """The rows that a stage cannot learn from: prompt ids, and why a row was refused (see cai/inference/chat.py)."""

    too_long: list[str]
    refused: list[tuple[str, str]]

    def event(self) -> dict[str, Any]:
        """What a stage reports of them."""
        return {"too_long": self.too_long} | ({"refused": self.refused} if self.refused else {})

    def __str__(self) -> str:
        reasons = Counter(reason for _, reason in self.refused)
        parts = [f"{len(self.too_long)} too long", *(f"{count} × {reason}" for reason, count in reasons.items())]
        return "; ".join(parts)


def keep_fitting(
    rows: Iterable[Row], prompt_id: Callable[[Row], str], tokenize: Callable[[Row], Tokenized | None]
) -> tuple[list[Tokenized], Unfit]:
    """What `tokenize` makes of each row; it returns None for a row that is too long."""
    kept, unfit = [], Unfit([], [])
    for row in rows:
        try:
            tokenized = tokenize(row)
        except RequestRefused as refusal:
            unfit.refused.append((prompt_id(row), str(refusal)))
            continue
        if tokenized is None:
            unfit.too_long.append(prompt_id(row))
        else:
            kept.append(tokenized)
    return kept, unfit


class PromptIds(NamedTuple):
    """A prompt and its token ids."""

    row: Prompt
    ids: list[int]


def prompts_that_fit(tokenizer: Any, rows: Sequence[Prompt], limit: int) -> tuple[list[PromptIds], Unfit]:
    """The prompts of at most `limit` tokens, and the others. Raises: CaiError when none is left."""

    def tokenize(row: Prompt) -> PromptIds | None:
        ids = prompt_ids(tokenizer, row.messages)
        return PromptIds(row, ids) if len(ids) <= limit else None

    kept, unfit = keep_fitting(rows, lambda row: row.id, tokenize)
    if not kept:
        raise CaiError(
            f"nothing to train on: of {len(rows)} prompts none leaves room for max_tokens in max_length: {unfit}"
        )
    return kept, unfit
