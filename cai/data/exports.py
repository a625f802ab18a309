"""Rows to files: a JSON object a line, a JSON array, or columns, as the file's name says; beside and renamed.

    *.jsonl, *.jsonl.gz, *.jsonl.zst   an object a line
    *.json                             an array
    *.parquet                          columns, typed after the row's model

What is written is read again by cai/data/files.py as the same rows.
"""

import contextlib
import gzip
import json
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from cai.config.errors import CaiError
from cai.data import forms, openai_chat, trl_formats, ultrafeedback
from cai.data.records import Demonstration, Preference, Skipped

GROUP = 1000  # rows that are in memory at once on their way into columns
NAMES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
AnyRow = BaseModel | Mapping[str, Any]
Write = Callable[[AnyRow], None]


@contextmanager
def table_writer(path: Path, row: type) -> Iterator[Write]:
    """A function that appends a row, of the fields of `row` (a pydantic model or a TypedDict), to a new file.

    Raises: CaiError for a name that says no kind of file, a file that cannot be written, a row too large for columns.
    """
    if not path.name.endswith(NAMES):
        raise CaiError(f"{path}: expected a name that ends in {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    beside = path.with_name(path.name + ".part")
    inside = _columns if path.suffix == ".parquet" else _lines
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaiError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with beside.open("wb") as file, inside(path, row, file) as write:
            yield write
        beside.replace(path)
    except OSError as error:
        raise CaiError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _lines(path: Path, row: type, file: IO[bytes]) -> Iterator[Write]:
    before, between, behind = (b"[\n", b",\n", b"\n]\n") if path.suffix == ".json" else (b"", b"\n", b"\n")
    count = 0

    def write(value: AnyRow) -> None:
        nonlocal count
        text = json.dumps(_plain(value), ensure_ascii=False).encode()
        lines.write((between if count else before) + text)
        count += 1

    with _compressed(path, file) as lines:
        yield write
        lines.write(behind if count else before and b"[]\n")


@contextmanager
def _columns(path: Path, row: type, file: IO[bytes]) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    schema, waiting = arrow_schema(row), list[dict[str, Any]]()

    def write_group() -> None:
        try:
            columns.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
        except (pyarrow.ArrowException, OverflowError) as error:
            raise CaiError(f"{path}: a row does not fit into columns: {error}") from error
        waiting.clear()

    def write(value: AnyRow) -> None:
        waiting.append(_plain(value))
        if len(waiting) == GROUP:
            write_group()

    with parquet.ParquetWriter(file, schema) as columns:
        yield write
        if waiting:
            write_group()


def _plain(value: AnyRow) -> dict[str, Any]:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)


def _compressed(path: Path, file: IO[bytes]) -> Any:
    if path.suffix == ".gz":
        return gzip.GzipFile("", "wb", fileobj=file, mtime=0)  # the same rows give the same bytes
    if path.suffix == ".zst":
        import pyarrow

        return pyarrow.CompressedOutputStream(file, "zstd")
    return contextlib.nullcontext(file)


def arrow_schema(row: type) -> Any:
    """The columns of a pydantic model or a TypedDict as a pyarrow schema; a field that may be None is nullable."""
    import pyarrow

    return pyarrow.schema(list(_arrow_type(row)))


def _arrow_type(hint: Any) -> Any:
    import pyarrow

    origin, inside = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):  # Annotated
        return _arrow_type(inside[0])
    if origin in (Union, types.UnionType):
        return _arrow_type(next(part for part in inside if part is not type(None)))
    if origin is list:
        return pyarrow.list_(_arrow_type(inside[0]))
    if origin is Literal:
        return _arrow_type(type(inside[0]))
    if is_typeddict(hint):
        return pyarrow.struct([(name, _arrow_type(field)) for name, field in get_type_hints(hint).items()])
    if issubclass(hint, BaseModel):
        return pyarrow.struct([(name, _arrow_type(field.annotation)) for name, field in hint.model_fields.items()])
    return {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}[hint]


# Rows of ours as rows of others, and what those have no place for.


SYSTEM = "system messages"


class Export(NamedTuple):
    """A format: the rows of ours it is made of, the type of its rows, how they are made, and what else it keeps.

    `make` gives the rows of one of ours, or the reason why there are none. A format that is `decided` knows only which
    answer is better: it gets the likelier one as such, and of p = 0.5 nothing.
    """

    of: Literal["preferences", "completions"]
    row: type
    make: Callable[[Any], Any]
    keeps: tuple[str, ...] = (SYSTEM,)
    decided: bool = True


THINGS = (
    "ids",
    "tags",
    SYSTEM,
    "soft labels",
    "weights",
    "verdicts and principles",
    "who answered and who judged",
    "earlier labels",
)
EXPORTS = {
    "cai": Export("preferences", Preference, lambda pair: [pair], THINGS, decided=False),
    "trl-preference": Export("preferences", trl_formats.PreferenceRow, trl_formats.preference),
    "trl-implicit": Export("preferences", trl_formats.ImplicitRow, trl_formats.implicit),
    "kto": Export("preferences", trl_formats.UnpairedRow, trl_formats.unpaired),
    "hh-rlhf": Export("preferences", forms.Row, forms.row, keeps=()),
    "ultrafeedback": Export(
        "preferences", ultrafeedback.Row, ultrafeedback.row, (SYSTEM, "ids", "soft labels"), decided=False
    ),
    "openai-preference": Export("preferences", openai_chat.PreferenceRow, openai_chat.preference),
    "prompt-completion": Export("completions", trl_formats.CompletionRow, trl_formats.prompt_completion),
    "openai-chat": Export("completions", openai_chat.ChatRow, openai_chat.chat),
}


def exported(
    rows: Iterable[BaseModel], name: str, lost: Counter[str]
) -> Iterator[BaseModel | Mapping[str, Any] | Skipped]:
    """Rows of the named format, and what cannot be one; `lost` counts the rows of which each thing was lost."""
    export = EXPORTS[name]
    for row in rows:
        if not isinstance(row, Preference | Demonstration):
            yield row  # left out before
            continue
        made = "p is 0.5: neither answer is the better one"
        better = likelier(row) if export.decided and isinstance(row, Preference) else row
        if better is not None:
            made = export.make(better)
        if isinstance(made, str):
            yield Skipped(prompt_id=row.prompt_id, stage=name, reason=made)
        else:
            lost.update(thing for thing in things(row) if thing not in export.keeps)
            yield from made


def likelier(pair: Preference) -> Preference | None:
    """A pair with its likelier answer as `chosen`; None where none is likelier."""
    if pair.p < 0.5:
        return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen, "p": 1 - pair.p})
    return pair if pair.p > 0.5 else None


def things(row: Preference | Demonstration) -> list[str]:
    """What a row holds besides a conversation, its answers, and which one is better."""
    found = [True, bool(row.tags), any(turn["role"] == "system" for turn in row.messages)]
    if isinstance(row, Preference):
        found += [
            row.p not in (0.0, 0.5, 1.0),
            row.weight != 1.0,
            bool(row.verdicts or row.principle_ids),
            bool(row.model or row.judge),
            row.input_p is not None,
        ]
    return [thing for thing, is_there in zip(THINGS, found, strict=False) if is_there]
