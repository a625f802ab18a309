"""Files of rows in any of the usual kinds, read and written: JSON Lines, JSON, CSV, Parquet or plain text.

    *.jsonl, *.ndjson, others   one object per line
    *.json                      an array of objects; one object, which is one row; or, read only, one object per line
    *.csv, *.tsv                a header, then one row per line; a file's only column is its `prompt`, with or without
                                a header, and commas separate the `tags` in a cell (read only); semicolons, tabs or
                                bars between the columns are recognised by the header
    *.parquet                   columns; written, their types come from the row's model
    *.txt                       one prompt per line (read only)

All but Parquet may be compressed: `*.gz`, `*.zst`. JSON arrays are read whole, everything else row by row. A written
file appears under its name once it is complete, and reads back as the same rows.
"""

import contextlib
import csv
import gzip
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from cai.config.characters import visible
from cai.config.errors import CaiError, reading, writing
from cai.data.jsonl import COMPRESSIONS, open_text, parse_json, partial_path, read_objects

BATCH = 256  # rows of a Parquet file in memory at once, read
GROUP = 1000  # rows of a Parquet file in memory at once, written
NAMES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")  # of files that can be written
# Names of a file's only column: those that data sets of prompts use.
PROMPT_HEADERS = frozenset(
    {"prompt", "prompts", "question", "questions", "instruction", "instructions", "input", "text", "query", "request"}
    | {"message", "content", "goal", "behavior", "turn", "user"}
)
MAX_HEADER_WORDS = 3
DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
LINES_SEEN = 50  # of a CSV file, from which its delimiter is told
RawRow = dict[str, Any]
AnyRow = BaseModel | Mapping[str, Any]
Write = Callable[[AnyRow], None]


class Place(NamedTuple):
    """A row's position: `pairs.jsonl:3`, `pairs.parquet:row 3`, `outputs.json:entry 3`; all counted from 1."""

    path: Path
    at: str

    def __str__(self) -> str:
        """For errors, with the file's whole path."""
        return f"{self.path}:{self.at}" if self.at else str(self.path)

    @property
    def short(self) -> str:
        """For rows that refer to it, with the file's name alone."""
        return f"{self.path.name}:{self.at}" if self.at else self.path.name


def rows(path: Path) -> Iterator[tuple[Place, RawRow]]:
    """Every row of a file, with its place; blank lines are skipped.

    Raises: CaiError for a file that cannot be read, naming the line or row if one is malformed.
    """
    if path.is_dir():
        raise CaiError(f"{path}: a folder; expected a file{_data_files(path)}")
    kinds = {".csv": _csv, ".tsv": _csv, ".txt": _text, ".json": _json, ".parquet": _parquet}
    return kinds.get(kind(path), _json_lines)(path)


def kind(path: Path) -> str:
    """The suffix that decides how a file is parsed, without that of its compression."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def _data_files(folder: Path) -> str:
    files = sorted(p for pattern in ("*.parquet", "*.jsonl", "*.json", "*.csv") for p in folder.rglob(pattern))
    return f", such as {files[0]}" if files else ""


def _json_lines(path: Path) -> Iterator[tuple[Place, RawRow]]:
    if _first_line(path).startswith("["):
        yield from _whole_json(path)
    else:
        for number, value in read_objects(path):
            yield Place(path, str(number)), value


def _json(path: Path) -> Iterator[tuple[Place, RawRow]]:
    try:
        lines = isinstance(json.loads(_first_line(path)), dict)
    except (ValueError, RecursionError):
        lines = False
    yield from _json_lines(path) if lines else _whole_json(path)


def _first_line(path: Path) -> str:
    with open_text(path) as file:
        return next((line.strip() for line in file if line.strip()), "")


def _whole_json(path: Path) -> Iterator[tuple[Place, RawRow]]:
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return
    value = parse_json(str(path), text)
    if isinstance(value, dict):
        yield Place(path, ""), value
        return
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        place = Place(path, f"entry {number}")
        if not isinstance(entry, dict):
            raise CaiError(f"{place}: expected a JSON object, found {json.dumps(entry)[:60]}")
        yield place, entry


def _text(path: Path) -> Iterator[tuple[Place, RawRow]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Place(path, str(number)), {"prompt": line.strip()}


def _csv(path: Path) -> Iterator[tuple[Place, RawRow]]:
    csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise, less than a long conversation has
    delimiter = _delimiter(path)
    with open_text(path, newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        begun, names = 1, list[str]()
        try:
            for cells in lines:
                if cells and not names:
                    names, is_row = _header(Place(path, str(begun)), cells)
                else:
                    is_row = bool(cells)
                if is_row:
                    place = Place(path, str(begun))
                    if len(cells) != len(names):
                        raise CaiError(f"{place}: expected {len(names)} columns as in the header, found {len(cells)}")
                    value: RawRow = dict(zip(names, cells, strict=True))
                    if value.get("tags"):
                        value["tags"] = [tag.strip() for tag in value["tags"].split(",")]
                    yield place, value
                begun = lines.line_num + 1
        except csv.Error as error:
            raise CaiError(f"{path}:{begun}: not valid CSV: {error}") from None


def _delimiter(path: Path) -> str:
    """What separates the columns: a comma, in *.tsv a tab; another character where the file is clearly made with it.

    That is where the first line has no usual one, and every line seen has as many columns by the other one, or a column
    has one of the names of prompts. Raises: CaiError where such a file begins without a header: a single column of
    prompts, each of which holds the character, would look the same.
    """
    usual = "\t" if kind(path) == ".tsv" else ","
    with open_text(path, newline="") as file:
        lines = [(number, line) for number, line in enumerate(islice(file, LINES_SEEN), 1) if line.strip()]
    if not lines or usual in lines[0][1]:
        return usual
    for other in (name for name in DELIMITERS if name != usual):
        cells = next(csv.reader([lines[0][1]], delimiter=other))
        counts = {len(row) for row in csv.reader((line for _, line in lines), delimiter=other)}
        is_known = any(cell.strip().casefold() in PROMPT_HEADERS for cell in cells)
        if len(cells) < 2 or (len(counts) > 1 and not is_known):
            continue
        if not any(map(_is_prose, cells)):
            return other
        if len(lines) > 1:
            raise CaiError(
                f"{Place(path, str(lines[0][0]))}: every line seen has {len(cells)} columns separated by "
                f"{DELIMITERS[other]}, and there is no header: add a first line with a name for each, such as "
                f"{other.join(['prompt', 'tags'])}; or the line 'prompt' if the file is a single column"
            )
    return usual


def _header(place: Place, cells: list[str]) -> tuple[list[str], bool]:
    """(the columns' names, whether the first line is a row already: a prompt of a file without a header)."""
    text = next((cell for cell in cells if _is_prose(cell)), None)
    if len(cells) == 1:
        if text is None and cells[0].strip().casefold() not in PROMPT_HEADERS:
            raise CaiError(
                f"{place}: cannot tell whether '{visible(cells[0][:40])}' is the column's name or the first prompt; "
                "add the line 'prompt' above it, or replace it by that"
            )
        return ["prompt"], text is not None
    if text is not None:
        raise CaiError(
            f"{place}: expected the columns' names, found what looks like a row ('{visible(text[:40])}'); add a first "
            "line with a name for each column, such as prompt,tags"
        )
    if twice := [name for name in cells if cells.count(name) > 1]:
        raise CaiError(f"{place}: two columns are named '{twice[0]}'; rename one of them")
    return cells, False


def _is_prose(cell: str) -> bool:
    """Whether a cell of the first line reads as a sentence rather than as a name of a column."""
    words = cell.split()
    return (
        len(words) > MAX_HEADER_WORDS or (len(words) > 1 and cell.rstrip()[-1] in ".?!") or cell.strip().endswith("?")
    )


def _parquet(path: Path) -> Iterator[tuple[Place, RawRow]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    with reading(path):
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH):
                    for value in batch.to_pylist():
                        number += 1
                        yield Place(path, f"row {number}"), value
        except pyarrow.ArrowException as error:
            raise CaiError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


@contextmanager
def table_writer(path: Path, row: type) -> Iterator[Write]:
    """A function that appends rows with the fields of `row` (a pydantic model or a TypedDict) to a new file.

    Raises: CaiError for a name with another ending, a file that cannot be written, a row too large for columns.
    """
    if not path.name.endswith(NAMES):
        raise CaiError(f"{path}: expected a name that ends in {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    writer = _column_writer if path.suffix == ".parquet" else _line_writer
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with partial.open("wb") as file, writer(path, row, file) as write:
                yield write
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _line_writer(path: Path, row: type, file: IO[bytes]) -> Iterator[Write]:
    start, between, end = (b"[\n", b",\n", b"\n]\n") if path.suffix == ".json" else (b"", b"\n", b"\n")
    count = 0

    def write(value: AnyRow) -> None:
        nonlocal count
        text = json.dumps(_plain(value), ensure_ascii=False).encode()
        lines.write((between if count else start) + text)
        count += 1

    with _compressed(path, file) as lines:
        yield write
        lines.write(end if count else start and b"[]\n")


@contextmanager
def _column_writer(path: Path, row: type, file: IO[bytes]) -> Iterator[Write]:
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
