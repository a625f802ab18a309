"""Rows as JSON Lines: read with errors that name file and line, written atomically."""

import errno
import glob
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from cai.config.errors import CaiError, decoding_hint, reading, writing
from cai.config.validation import format_location, problems

AnyRow = TypeVar("AnyRow", bound=BaseModel)
COMPRESSIONS = (".gz", ".zst")
PARTIAL = re.compile(r"\.(\d{1,10})\.part$")  # of a temporary file: the number of the process that writes it


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object of a JSON Lines file (`*.gz`, `*.zst` too) with its line number, from 1; blank lines are skipped."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(f"{path}:{number}", line)


def _object(place: str, line: str) -> dict[str, Any]:
    value = parse_json(place, line)
    if not isinstance(value, dict):
        raise CaiError(f"{place}: expected a JSON object, found {line.strip()[:60]}")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKeyError(f"duplicate key {twice!r} in one object")
    return value


class DuplicateKeyError(ValueError):
    """A JSON object has a key twice: readers differ in which value they take, so neither is taken."""


_decode = json.JSONDecoder(object_pairs_hook=_each_key_once).decode  # made once: `json.loads` would make it per call


def parse_json(place: str, text: str) -> Any:
    """The value of a JSON text; raises CaiError that starts with `place` for one that is not valid.

    A key that stands twice in one object is invalid.
    """
    text = text.rstrip()  # or a line end would count as a character of a truncated string
    try:
        value = _decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise CaiError(f"{place}: not valid JSON: {_invalid(error, text)}") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise CaiError(f"{place}: {half} is half of a surrogate pair") from None
    except RecursionError:
        raise CaiError(f"{place}: nested too deeply") from None
    except DuplicateKeyError as error:
        raise CaiError(f"{place}: {error}") from None
    except ValueError as error:  # a number of thousands of digits
        raise CaiError(f"{place}: not valid JSON: {error}") from None
    return value


def _invalid(error: json.JSONDecodeError, text: str) -> str:
    """What is invalid in a JSON text, and where; for a truncated one, where it ends."""
    lines = text.split("\n")
    began, ends = (
        f"line {line}, column {column}" if len(lines) > 1 else f"column {column}"
        for line, column in ((error.lineno, error.colno), (len(lines), len(lines[-1])))
    )
    if error.msg.startswith("Unterminated"):
        return f"it ends at {ends}, within the text that begins in {began}"
    if error.pos >= len(text):
        return f"it ends at {ends}, within a value"
    return f"{error.msg}, {began}"


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file to read, UTF-8 with or without a byte order mark; gzip and Zstandard by their suffix.

    Raises: CaiError for a file that cannot be read; of one that is not UTF-8, naming the line.
    """
    with reading(path), _open_bytes(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
        except UnicodeDecodeError:
            raise CaiError(_not_utf8(path)) from None


def _open_bytes(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")  # type: ignore[no-any-return]
    return path.open("rb")


def _not_utf8(path: Path) -> str:
    """An error that names the first invalid byte, whose line the decoding in blocks does not know."""
    with _open_bytes(path) as file:
        hint = decoding_hint(file.read(2))
    with _open_bytes(path) as file:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape"), 1):
            if bad := re.search("[\udc80-\udcff]", line):
                byte = ord(bad[0]) - 0xDC00
                return f"{path}:{number}: not UTF-8 text: byte 0x{byte:02x} in column {bad.start() + 1}{hint}"
    return f"{path}: not UTF-8 text"


def file_fingerprint(path: Path) -> str:
    """32 hexadecimal digits that identify a file's bytes; raises CaiError when it cannot be read."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def read_rows(path: Path, model: type[AnyRow]) -> list[AnyRow]:
    """All rows of a file as `model`; raises CaiError naming file, line and field."""
    return list(each_row(path, model))


def each_row(path: Path, model: type[AnyRow]) -> Iterator[AnyRow]:
    """The rows of a file as `model`, one at a time; raises as read_rows does."""
    with reading(path), open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = model.model_validate_json(line)  # three times as fast as by way of objects
            except ValidationError:
                row = parse_row(
                    f"{path}:{number}", _object(f"{path}:{number}", line), model
                )  # raises the error in words
            yield row


def parse_row(place: object, value: dict[str, Any], model: type[AnyRow]) -> AnyRow:
    """One object as `model`; raises CaiError naming its place, such as file and line, and the field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = problems(model, value, error)[0]
        field = format_location(value, problem.at)
        raise CaiError(f"{place}: {field + ': ' if field else ''}{problem.message}") from None


def partial_path(path: Path) -> Path:
    """The temporary file beside `path` that this process writes before it renames it.

    Those of the same file that killed processes left are removed. Raises: IsADirectoryError for `.` and `/`.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for beside in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        if is_abandoned(beside):
            beside.unlink(missing_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def is_abandoned(path: Path) -> bool:
    """Whether a path is a temporary file, `NAME.PID.part`, of a process that is gone from this machine."""
    number = PARTIAL.search(path.name)
    if number is None:
        return False
    try:
        os.kill(int(number[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # of another user; no number of a process
        return False
    return False


class RowWriter:
    """Writes rows to a temporary file, renamed to `path` when the block ends without an error.

    Raises: CaiError for a file that cannot be written, such as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def __enter__(self) -> Self:
        with writing(self.path):
            self._partial = partial_path(self.path)
            self._file = self._partial.open("w", encoding="utf-8")
        return self

    def write(self, row: BaseModel) -> None:
        """Append one row."""
        with writing(self.path):
            self._file.write(row.model_dump_json() + "\n")
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with writing(self.path):
                self._file.close()  # writes what is buffered
                if kind is None:
                    self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write all rows at once; returns how many."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return writer.count


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: to a temporary one, then renamed.

    Raises: CaiError for a file that cannot be written, such as on a full disk.
    """
    with writing(path):
        partial = partial_path(path)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
