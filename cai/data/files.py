"""Any file as rows: JSON Lines, JSON, CSV, Parquet or plain text, gzipped, in Zstandard or as it is.

    *.jsonl, *.ndjson, others   an object a line
    *.json                      an array of objects; one object, which is one row; or an object a line after all
    *.csv, *.tsv                a header, then a row a line; the only column of a file is its `prompt`, and commas
                                part the `tags` of a cell
    *.parquet                   a row a row
    *.txt                       a prompt a line

`*.gz` and `*.zst` may stand behind all but Parquet. JSON arrays are read whole, the others as they are asked for.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, reading
from cai.data.jsonl import COMPRESSIONS, open_text, parse_json, read_objects

BATCH = 256  # rows of a Parquet file that are in memory at once
RowOfFile = dict[str, Any]


class Place(NamedTuple):
    """Where a row stands: `pairs.jsonl:3`, `pairs.parquet:row 3`, `outputs.json:entry 3`; all counted from 1."""

    path: Path
    at: str

    def __str__(self) -> str:
        """As an error names it, with the file's whole path."""
        return f"{self.path}:{self.at}" if self.at else str(self.path)

    @property
    def short(self) -> str:
        """As other rows name it, with the file's name alone."""
        return f"{self.path.name}:{self.at}" if self.at else self.path.name


def rows(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    """Every row of a file, with its place; blank lines are skipped.

    Raises: CaiError for a file that cannot be read, naming the line or row where one is to blame.
    """
    if path.is_dir():
        raise CaiError(f"{path}: a folder; expected a file{_data_files(path)}")
    kinds = {".csv": _csv, ".tsv": _csv, ".txt": _text, ".json": _json, ".parquet": _parquet}
    return kinds.get(kind(path), _json_lines)(path)


def kind(path: Path) -> str:
    """The suffix of a file's name that tells what is in it, whatever it is compressed by."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def _data_files(folder: Path) -> str:
    found = sorted(p for pattern in ("*.parquet", "*.jsonl", "*.json", "*.csv") for p in folder.rglob(pattern))
    return f", such as {found[0]}" if found else ""


def _json_lines(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    if _first_line(path).startswith("["):
        yield from _whole_json(path)
    else:
        for number, value in read_objects(path):
            yield Place(path, str(number)), value


def _json(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    try:
        lines = isinstance(json.loads(_first_line(path)), dict)
    except (ValueError, RecursionError):
        lines = False
    yield from _json_lines(path) if lines else _whole_json(path)


def _first_line(path: Path) -> str:
    with open_text(path) as file:
        return next((line.strip() for line in file if line.strip()), "")


def _whole_json(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
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


def _text(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Place(path, str(number)), {"prompt": line.strip()}


def _csv(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise, less than a long conversation has
    with open_text(path, newline="") as file:
        lines = csv.reader(file, delimiter="\t" if kind(path) == ".tsv" else ",", strict=True)
        begun, names = 1, list[str]()
        try:
            for cells in lines:
                if cells and not names:
                    names = _header(Place(path, str(begun)), cells)
                elif cells:
                    place = Place(path, str(begun))
                    if len(cells) != len(names):
                        raise CaiError(f"{place}: expected {len(names)} columns as in the header, found {len(cells)}")
                    value: RowOfFile = dict(zip(names, cells, strict=True))
                    if value.get("tags"):
                        value["tags"] = [tag.strip() for tag in value["tags"].split(",")]
                    yield place, value
                begun = lines.line_num + 1
        except csv.Error as error:
            raise CaiError(f"{path}:{begun}: not valid CSV: {error}") from None


def _header(place: Place, names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise CaiError(f"{place}: two columns are named '{twice[0]}'; each needs a name of its own")
    return ["prompt"] if len(names) == 1 else names


def _parquet(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
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
