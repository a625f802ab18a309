"""Prompts and completions in any file, read into Prompt and Demonstration rows.

A prompt is a row with one of these formats, or a preference (cai/data/preferences.py), which stands for its prompt:

    prompt              {"prompt" or "messages"}, with `id` and `tags`: a text, a transcript or a list of turns; a final
                        assistant turn is dropped
    mt-bench            {"question_id", "category", "turns"}: the first turn, because later ones refer to answers
    red-team            {"transcript", "tags"}: the first human turn
    alpaca-eval         {"instruction"} (cai/data/evaluation_formats.py)
    cai-conversation    {"init_prompt"} (cai/data/chat_formats.py)

A completion is a row with one of these:

    prompt-completion   {"prompt" or "messages", "completion"} with `id`, `tags` as for prompts: texts or turns (trl),
                        or Demonstration rows
    kto                 the same with "label": only the desirable completions
    alpaca-eval         {"instruction", "output"}
    chat                {"messages"} ending with an assistant turn (OpenAI; ultrafeedback_binarized, cai-conversation)
"""

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, overload

from cai.config.characters import visible
from cai.config.errors import CaiError, writing
from cai.config.hashing import fingerprint
from cai.data import chat_formats, evaluation_formats, preferences
from cai.data.files import Place, RawRow
from cai.data.formats import (
    PROMPTED,
    SHARED,
    Format,
    ReadSummary,
    RowFields,
    is_turns,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    rows_without_nulls,
    skipped,
    split_skipped,
    text,
    turn_problem,
    turns,
)
from cai.data.jsonl import parse_row
from cai.data.records import Demonstration, Message, Messages, Prompt, Skipped


def read_prompts(path: Path, limit: int | None = None) -> tuple[list[Prompt], list[Skipped]]:
    """(the first `limit` prompts of a file, the rows skipped before the last of them).

    Raises: CaiError naming file and row for a bad row, an empty text, a duplicate id, or no prompts at all.
    """
    prompts, skips = split_skipped(iter_prompts(path), limit)
    if not prompts:
        raise _no_prompts(path, skips)
    return prompts, skips


class StoredPrompts(Sequence[Prompt]):
    """Prompts in a temporary file, read one at a time: 8 bytes of memory each. Those of a slice share the file."""

    def __init__(self, file: BinaryIO, starts: "array[int]") -> None:
        self._file, self._starts = file, starts

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> "StoredPrompts":
        """Prompts put into a file without a name. Raises: CaiError where there is no room for it."""
        starts, end = array("Q"), 0
        with writing(Path(tempfile.gettempdir())):
            file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the last of those that share it)
            for prompt in prompts:
                starts.append(end)
                end += file.write(prompt.model_dump_json().encode("utf-8") + b"\n")
            file.flush()
        return cls(file, starts)

    def pick(self, places: Iterable[int]) -> "StoredPrompts":
        """Some of the prompts, by their places."""
        return StoredPrompts(self._file, array("Q", (self._starts[place] for place in places)))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...

    @overload
    def __getitem__(self, place: slice) -> "StoredPrompts": ...

    def __getitem__(self, place: int | slice) -> "Prompt | StoredPrompts":
        if isinstance(place, slice):
            return self.pick(range(len(self))[place])
        self._file.seek(self._starts[place])
        return Prompt.model_validate_json(self._file.readline())


def store_prompts(
    path: Path, limit: int | None = None, column: str | None = None
) -> tuple[StoredPrompts, list[Skipped]]:
    """As `read_prompts`, without their texts in memory; `column` names the field that holds the prompt."""
    skips: list[Skipped] = []

    def kept() -> Iterator[Prompt]:
        for row in iter_prompts(path, column=column):
            if isinstance(row, Skipped):
                skips.append(row)
            else:
                yield row

    prompts = StoredPrompts.of(islice(kept(), limit))
    if not prompts:
        raise _no_prompts(path, skips)
    return prompts, skips


def _no_prompts(path: Path, skips: Sequence[Skipped]) -> CaiError:
    why = f": {skips[0].stage}: {skips[0].reason}" if skips else ""
    return CaiError(f"{path}: no prompts in this file{why}")


def iter_prompts(
    path: Path, summary: ReadSummary | None = None, column: str | None = None
) -> Iterator[Prompt | Skipped]:
    """`read_prompts` row by row; a repeated prompt is skipped. Only ids and hashes stay in memory."""
    known: dict[str, int] = {}  # a hash of the prompt by its id
    for place, value in _rows(path, column):
        rows = read_row(PROMPT_FORMATS, place, value, "prompt", summary)
        if isinstance(rows, Skipped):
            yield rows
            continue
        prompt = _checked(place, rows[0])
        if problem := turn_problem(prompt.messages):
            yield skipped(place, value, problem)
            continue
        content = int(fingerprint(prompt.messages), 16)
        if prompt.id not in known:
            known[prompt.id] = content
            yield prompt
        elif known[prompt.id] == content:
            yield skipped(place, value, "a row above has the same prompt")
        else:
            first = next((at.short for at, id in _ids(path, column) if id == prompt.id), "a row above")
            raise CaiError(f"{place}: {first} has the id '{prompt.id}' already, with another prompt")


def _rows(path: Path, column: str | None) -> Iterator[tuple[Place, RawRow]]:
    """The rows of a file, with the field `column` as their `prompt` in place of any other."""
    for place, value in preferences.single_rows(path):
        if column is None:
            yield place, value
        elif column not in value:
            names = ", ".join(map(visible, value)) or "no fields"
            raise CaiError(f"{place}: no field '{visible(column)}' as `prompts.column` names; found {names}")
        else:
            shared = {name: content for name, content in value.items() if name in PROMPTED}
            yield place, {**shared, "prompt": value[column]}


def text_fields(path: Path) -> dict[str, str]:
    """The texts of a file's first row by field, the longest first: what may be the prompt where no format fits."""
    row = next((value for _, value in preferences.single_rows(path)), {})
    texts = {name: content for name, content in row.items() if isinstance(content, str) and name not in PROMPTED}
    return dict(sorted(texts.items(), key=lambda item: -len(item[1])))


def _ids(path: Path, column: str | None) -> Iterator[tuple[Place, str]]:
    """Every prompt's place and id, read again so that places need not be kept."""
    for place, value in _rows(path, column):
        rows = read_row(PROMPT_FORMATS, place, value, "prompt")
        if not isinstance(rows, Skipped):
            yield place, _checked(place, rows[0]).id


def read_completions(path: Path) -> tuple[list[Demonstration], list[Skipped]]:
    """(the completions of a file, the skipped rows); a prompt may have several completions.

    Raises: CaiError naming file and row for a bad row, an empty text, or no rows at all.
    """
    completions, skips = split_skipped(iter_completions(path))
    if not completions and not skips:
        raise CaiError(f"{path}: no completions in this file")
    return completions, skips


def iter_completions(path: Path, summary: ReadSummary | None = None) -> Iterator[Demonstration | Skipped]:
    """`read_completions` row by row."""
    for place, value in rows_without_nulls(path):
        rows = read_row(COMPLETION_FORMATS, place, value, "completion", summary)
        if isinstance(rows, Skipped):
            yield rows
            continue
        for fields in rows:
            row = parse_row(place, fields, Demonstration)
            problem = turn_problem(row.messages) or ("" if row.completion.strip() else "completion: the text is empty")
            if problem:
                raise CaiError(f"{place}: {problem}")
            yield row


def _checked(place: Place, fields: dict[str, Any]) -> Prompt:
    renamed = {"id": fields["prompt_id"], "messages": fields["messages"], "tags": fields.get("tags", [])}
    return parse_row(place, renamed, Prompt)


def _prompt(place: Place, value: RawRow) -> RowFields:
    messages = row_prompt(place, value)
    if is_turns(messages) and len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    elif "prompt" in value and "messages" in value:
        raise CaiError(f"{place}: expected either 'prompt' or 'messages', found both")
    fields = {"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}
    if problem := turn_problem(_checked(place, fields).messages):
        raise CaiError(f"{place}: {problem}")  # no skip: the author of a file of prompts can correct it
    return [fields]


def _mt_bench(place: Place, value: RawRow) -> RowFields:
    """https://github.com/lm-sys/FastChat/blob/main/fastchat/llm_judge/data/mt_bench/question.jsonl."""
    texts = value["turns"]
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise CaiError(f"{place}: turns: expected a list of texts, the first of which is the prompt")
    messages: Messages = [Message(role="user", content=texts[0])]
    tags = [text(place, value, "category")] if "category" in value else []
    return [{"prompt_id": row_id({"id": value.get("question_id")}, messages), "messages": messages, "tags": tags}]


def _red_team(place: Place, value: RawRow) -> RowFields:
    """red-team-attempts (Ganguli et al. 2022, arXiv:2209.07858) of https://huggingface.co/datasets/Anthropic/hh-rlhf."""
    messages = [turn for turn in turns(text(place, value, "transcript")) if turn["role"] == "user"][:1]
    if not messages or not messages[0]["content"].strip():
        return skipped(place, value, "no human turn in the transcript")
    return [{"prompt_id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}]


def _prompt_of_pair(format: Format) -> Format:
    """A format of preferences as one of prompts: the prompt of its first pair."""

    def read(place: Place, value: RawRow) -> RowFields:
        pairs = format.read(place, value)
        return pairs if isinstance(pairs, Skipped) else pairs[:1]

    return format._replace(read=read)


def _completion(place: Place, value: RawRow) -> RowFields:
    messages, answer = row_prompt(place, value), value["completion"]
    if is_turns(answer) and len(answer) == 1:
        answer = answer[0]["content"]
    fields = {"prompt_id": row_id(value, messages), "tags": row_tags(place, value)}
    cut = {"truncated": value["truncated"]} if isinstance(value.get("truncated"), bool) else {}  # as cai's rows have it
    return [{**fields, "messages": messages, "completion": answer, **cut}]


def _desirable_completion(place: Place, value: RawRow) -> RowFields:
    if not isinstance(value["label"], bool):
        raise CaiError(f"{place}: label: expected true or false, found {value['label']}")
    return _completion(place, value) if value["label"] else skipped(place, value, "the completion's label is false")


ALPACA_FIELDS = evaluation_formats.ALPACA_FIELDS
PROMPT_FORMATS = (
    Format("mt-bench", ("turns",), _mt_bench, ("question_id", "category"), note="the first turn of each question"),
    Format("red-team", ("transcript",), _red_team, ("id", "tags"), note="the first human turn of each transcript"),
    Format("alpaca-eval", ("instruction",), evaluation_formats.read_alpaca_prompt, ALPACA_FIELDS),
    Format("cai-conversation", ("init_prompt",), chat_formats.read_conversation_prompt, SHARED),
    *(_prompt_of_pair(format) for format in preferences.FORMATS if format.name != "kto"),
    Format("prompt", ("prompt|messages",), _prompt, (*PROMPTED, "prompt"), plain=True),
)
COMPLETION_FORMATS = (
    Format("kto", ("prompt|messages", "completion", "label"), _desirable_completion, PROMPTED),
    Format("prompt-completion", ("prompt|messages", "completion"), _completion, (*PROMPTED, "truncated"), plain=True),
    Format("alpaca-eval", ("instruction", "output"), evaluation_formats.read_alpaca_output, ALPACA_FIELDS),
    Format("chat", ("messages",), chat_formats.read_openai_chat, (*SHARED, "prompt"), note="the last answer of each"),
)
