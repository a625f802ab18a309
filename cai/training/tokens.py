"""Conversations as token ids: the same in every stage, in scoring, and where the policy is asked.

An answered conversation is the prompt that inference asks with and the tokens that inference makes of the answer, up to
the end of its turn. `stage_tokenizer` refuses a chat template that writes it otherwise.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.data.records import Demonstration, Message, Messages, Preference, Prompt
from cai.inference.chat import THOUGHT, answer_format, chat_ids, common_length, text_ids
from cai.inference.chat_template import ChatSettings, load_tokenizer
from cai.inference.engine import split_reasoning
from cai.training.settings import Truncated

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
    """A prompt and answers to it as token ids, each up to the end of its turn."""

    prompt: list[int]
    answers: list[list[int]]


def split_turn(tokenizer: Any, messages: Messages, *answers: str) -> SplitTurn:
    """A prompt as inference asks with it, and answers to it as inference makes them.

    What a chat template writes behind the end of a turn (often a newline) is cut: no policy ever writes it.
    Raises: RequestRefused, as `chat_ids`.
    """
    asked, layout = prompt_ids(tokenizer, messages), answer_format(tokenizer)
    split = SplitTurn(asked, [])
    for text in answers:
        whole = chat_ids(tokenizer, [*messages, *assistant_turn(text)])
        if whole[: len(asked)] == asked:
            answer = whole[len(asked) :]
            while layout.end in answer and answer[-1] != layout.end:
                answer.pop()
        else:  # the text's first characters merged with the end of the prompt, which a sampler cannot do
            answer = [*layout.lead, *text_ids(tokenizer, text), *([] if layout.end is None else [layout.end])]
        split.answers.append(answer)
    return split


def turn_ids(tokenizer: Any, messages: Messages, text: str) -> list[int]:
    """The conversation with the answer, up to the end of its turn. Raises: RequestRefused, as `chat_ids`."""
    prompt, [answer] = split_turn(tokenizer, messages, text)
    return prompt + answer


def read_turn(tokenizer: Any, prompt: list[int], written: list[int], ends: set[int]) -> list[int]:
    """A prompt with what a policy wrote, as a reward model reads it: as `turn_ids` has the text that inference returns.

    These are the policy's own tokens, with the end of the turn in place of whichever of `ends` ended them, if one did.
    A chain of thought is no part of an answer, and its place is taken by what the chat template writes there.
    """
    lead, end = answer_format(tokenizer).lead, end_of_turn(tokenizer)
    answer = written[:-1] if written[-1] in ends else written
    if lead and answer[: len(lead)] == lead:
        return [*prompt, *answer, end]
    decoded = tokenizer.decode(answer, skip_special_tokens=True)
    if not decoded.lstrip().startswith(THOUGHT[0]):
        return [*prompt, *lead, *answer, end]
    text, _ = split_reasoning(decoded)
    if not text:  # the limit ended the thought; some templates refuse an empty answer
        return [*prompt, *lead, end]
    return [*prompt, *split_turn(tokenizer, PROBES[0], text).answers[0]]  # an answer has the same tokens to any prompt


def answer_text(tokenizer: Any, written: list[int], ends: set[int]) -> str:
    """The text that inference returns for what a policy wrote: without its end, control tokens and chain of thought."""
    answer = written[:-1] if written[-1] in ends else written
    return split_reasoning(tokenizer.decode(answer, skip_special_tokens=True))[0]


def stage_tokenizer(model: Path, chat: ChatSettings | None) -> Any:
    """The tokenizer that a stage trains `model` with.

    Raises: CaiError as `load_tokenizer`, and for a chat template with a `rendering_fault`.
    """
    tokenizer = load_tokenizer(model, chat)
    if fault := rendering_fault(tokenizer):
        raise CaiError(f"model {model}: {fault}")
    return tokenizer


TEXT = "One. Two?"
PROBES: list[Messages] = [
    [Message(role="user", content="a")],
    [Message(role="system", content="s"), Message(role="user", content="a")],
    [Message(role="user", content="a"), *assistant_turn("b"), Message(role="user", content="c")],
]


def rendering_fault(tokenizer: Any) -> str | None:
    """How training would read other tokens than inference makes, with both strings; None where they are the same.

    The prompt that inference asks with begins the answered conversation, and what follows is, once inference has taken
    off thoughts and control tokens, the answer.
    """
    template = tokenizer.chat_template
    thinks = "enable_thinking" in (template if isinstance(template, str) else str(template))
    advice = (
        "set engine.chat_template_kwargs={enable_thinking: false}"
        if thinks
        else "name another template in engine.chat_template"
    )
    for messages in PROBES:
        try:
            asked, whole = prompt_ids(tokenizer, messages), chat_ids(tokenizer, [*messages, *assistant_turn(TEXT)])
        except RequestRefused:  # a template without system messages, say; its rows are refused one by one
            continue
        start = max(0, common_length(asked, whole) - 3)
        shown = tuple(repr(tokenizer.decode(ids[start:])) for ids in (asked, whole))
        if whole[: len(asked)] != asked:
            return (
                f"its chat template asks for an answer with …{shown[0]} and renders the answered conversation as "
                f"…{shown[1]}: training would read other tokens than the model is asked with; {advice}"
            )
        answer = split_turn(tokenizer, messages, TEXT).answers[0]
        text, _ = split_reasoning(tokenizer.decode(answer, skip_special_tokens=True))
        if text != TEXT:
            return (
                f"its chat template renders the answer {TEXT!r} as {shown[1]}, of which inference would read {text!r}; "
                f"{advice}"
            )
    return None


def stop_tokens(tokenizer: Any, generation_config: Any) -> set[int]:
    """The tokens at which inference ends an answer: the template's, the tokenizer's and those the model declares."""
    declared = generation_config.eos_token_id
    own = declared if isinstance(declared, list) else [declared]
    return {answer_format(tokenizer).end, tokenizer.eos_token_id, *own} - {None}


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an assistant's turn. Raises: CaiError when the chat template marks no end."""
    end = answer_format(tokenizer).end
    if end is None:
        raise CaiError("the chat template does not end an answer with a special token; there is no place for a score")
    return end


def padding(tokenizer: Any, end: int) -> int:
    """A token to pad with that cannot be taken for the last of a turn, where scores are read."""
    candidates = (tokenizer.pad_token_id, *tokenizer.all_special_ids, 0, 1)
    return next(int(token) for token in candidates if token is not None and token != end)


AnyAnswers = TypeVar("AnyAnswers", Demonstration, Preference)


class Written(NamedTuple):
    """An answer in a row, and whether it ran into its limit."""

    text: str
    truncated: bool


def answers_of(row: Demonstration | Preference) -> list[Written]:
    """The answers that a row holds: its completion, or the chosen and the rejected one."""
    if isinstance(row, Demonstration):
        return [Written(row.completion, row.truncated)]
    return [Written(row.chosen, "chosen" in row.truncated), Written(row.rejected, "rejected" in row.truncated)]


def row_turn(tokenizer: Any, row: Demonstration | Preference) -> SplitTurn:
    """A row's prompt and answers, a truncated one without the token that would end it. Raises: as `split_turn`."""
    written, end = answers_of(row), answer_format(tokenizer).end
    prompt, answers = split_turn(tokenizer, row.messages, *(answer.text for answer in written))
    cut = [answer.truncated and ids[-1:] == [end] for answer, ids in zip(written, answers, strict=True)]
    return SplitTurn(prompt, [ids[:-1] if short else ids for ids, short in zip(answers, cut, strict=True)])


def skip_truncated(rows: Iterable[AnyAnswers], truncated: Truncated) -> tuple[list[AnyAnswers], list[str]]:
    """The rows to learn by a stage's setting, and the prompt ids of those that it skips.

    A truncated answer without any text, as where its thought ran into the limit, is skipped in any case.
    """
    kept, skipped = [], []
    for row in rows:
        cut = [answer for answer in answers_of(row) if answer.truncated]
        if cut and (truncated == "skip" or not all(answer.text.strip() for answer in cut)):
            skipped.append(row.prompt_id)
        else:
            kept.append(row)
    return kept, skipped


def opened(rows: Iterable[Demonstration | Preference]) -> dict[str, int]:
    """For a stage's report, how many rows have a truncated answer, learned without its end; {} for none."""
    count = sum(any(answer.truncated for answer in answers_of(row)) for row in rows)
    return {"open": count} if count else {}


def _all_rows(count: int) -> str:
    return f"all {count:,} rows have" if count > 1 else "the only row has"


class Unfit(NamedTuple):
    """The rows that a stage does not learn from: prompt ids, and why a row was refused (see cai/inference/chat.py)."""

    too_long: list[str]
    refused: list[tuple[str, str]]
    truncated: list[str]

    def event(self) -> dict[str, Any]:
        """What a stage reports of them."""
        more = {"refused": self.refused, "truncated": self.truncated}
        return {"too_long": self.too_long} | {name: rows for name, rows in more.items() if rows}

    def refuse_all_truncated(self) -> None:
        """Raises: CaiError where truncated answers alone are why no row is left."""
        if self.truncated and not (self.too_long or self.refused):
            raise CaiError(
                f"nothing to train on: {_all_rows(len(self.truncated))} a truncated answer; raise the max_tokens that "
                "they were written with, or learn them without their end: truncated: open in the stage of a run file, "
                "--set truncated=open for cai train"
            )

    def __str__(self) -> str:
        reasons = Counter(reason for _, reason in self.refused)
        cut = f"{len(self.truncated)} truncated, which `truncated: open` would learn without their end"
        parts = [
            f"{len(self.too_long)} too long",
            *([cut] if self.truncated else []),
            *(f"{count} × {reason}" for reason, count in reasons.items()),
        ]
        return "; ".join(parts)


def keep_fitting(
    rows: Iterable[Row], prompt_id: Callable[[Row], str], tokenize: Callable[[Row], Tokenized | None]
) -> tuple[list[Tokenized], Unfit]:
    """What `tokenize` makes of each row; it returns None for a row that is too long."""
    kept, unfit = [], Unfit([], [], [])
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


def prompts_that_fit(
    tokenizer: Any, rows: Sequence[Prompt], limit: int, unrewarded: Mapping[str, str] | None = None
) -> tuple[list[PromptIds], Unfit]:
    """The prompts of at most `limit` tokens, and the others.

    `unrewarded` has the reasons, by prompt id, why answers to a prompt cannot be rewarded; it is refused.
    Raises: CaiError when none is left.
    """

    def tokenize(row: Prompt) -> PromptIds | None:
        if unrewarded and (reason := unrewarded.get(row.id)) is not None:
            raise RequestRefused(reason)
        ids = prompt_ids(tokenizer, row.messages)
        return PromptIds(row, ids) if len(ids) <= limit else None

    kept, unfit = keep_fitting(rows, lambda row: row.id, tokenize)
    if not kept:
        raise CaiError(
            f"nothing to train on: of {len(rows)} prompts none leaves room for max_tokens in max_length: {unfit}"
        )
    return kept, unfit
