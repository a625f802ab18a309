import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from pyarrow.parquet import ParquetFile
from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.data import files
from cai.data.files import NAMES, rows, table_writer
from cai.data.records import BeforeAfter, Demonstration, Preference, Prompt, Ranking, Revision, Skipped, Verdict

ROWS = [{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": 'Two\nlines, "quoted"'}]


def json_lines(values: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def table(values: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue().encode()


def zstandard(data: bytes) -> bytes:
    made = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(made, "zstd") as stream:
        stream.write(data)
    return bytes(made.getvalue())


def columns(values: list[dict[str, str]]) -> bytes:
    made = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(values), made)
    return bytes(made.getvalue())


CONTAINERS: dict[str, tuple[Callable[[list[dict[str, str]]], bytes], list[str]]] = {
    "f.jsonl": (json_lines, ["1", "2"]),
    "f.unknown": (json_lines, ["1", "2"]),
    "f.jsonl.gz": (lambda v: gzip.compress(json_lines(v)), ["1", "2"]),
    "f.jsonl.zst": (lambda v: zstandard(json_lines(v)), ["1", "2"]),
    "lines.json": (json_lines, ["1", "2"]),
    "f.json": (lambda v: json.dumps(v, indent=1).encode(), ["entry 1", "entry 2"]),
    "line.json": (lambda v: json.dumps(v).encode(), ["entry 1", "entry 2"]),
    "misnamed.jsonl": (lambda v: json.dumps(v).encode(), ["entry 1", "entry 2"]),
    "f.json.gz": (lambda v: gzip.compress(json.dumps(v).encode()), ["entry 1", "entry 2"]),
    "f.csv": (table, ["2", "3"]),
    "mark.csv": (lambda v: b"\xef\xbb\xbf" + table(v), ["2", "3"]),
    "f.csv.gz": (lambda v: gzip.compress(table(v)), ["2", "3"]),
    "f.tsv": (lambda v: table(v, "\t"), ["2", "3"]),
    "f.parquet": (columns, ["row 1", "row 2"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_rows_and_their_places(tmp_path: Path, name: str) -> None:
    write, places = CONTAINERS[name]
    path = tmp_path / name
    path.write_bytes(write(ROWS))
    found = list(rows(path))
    assert [value for _, value in found] == ROWS
    assert [place.at for place, _ in found] == places
    assert (str(found[0][0]), found[0][0].short) == (f"{path}:{places[0]}", f"{name}:{places[0]}")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(st.lists(st.fixed_dictionaries({"id": texts, "prompt": texts}), min_size=1, max_size=4))
def test_any_text_comes_through_lines_columns_and_cells(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("f.jsonl", "f.json", "f.parquet", "f.csv"):
        (folder / name).write_bytes(CONTAINERS[name][0](values))
        assert [value for _, value in rows(folder / name)] == values, name


def test_a_text_file_is_a_prompt_a_line_and_so_is_a_single_column(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("Why?\n\n  How? \n", encoding="utf-8")
    (tmp_path / "f.csv").write_text('question\nWhy?\n\n"How, \nthen?"\nWho?\n', encoding="utf-8")
    assert [(place.at, v) for place, v in rows(tmp_path / "f.txt")] == [
        ("1", {"prompt": "Why?"}),
        ("3", {"prompt": "How?"}),
    ]
    assert [(place.at, v["prompt"]) for place, v in rows(tmp_path / "f.csv")] == [
        ("2", "Why?"),
        ("4", "How, \nthen?"),
        ("6", "Who?"),
    ]


@pytest.mark.parametrize("first", ["How do I bake bread?", "Tell me a story about a fox.", "name three green fruits"])
def test_the_first_line_of_a_single_column_may_be_a_prompt(tmp_path: Path, first: str) -> None:
    (tmp_path / "f.csv").write_text(f"{first}\nWhy?\n", encoding="utf-8")
    read = [(place.at, value) for place, value in rows(tmp_path / "f.csv")]
    assert read == ([("1", {"prompt": first}), ("2", {"prompt": "Why?"})])


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("Hello\nWhy?\n", "f.csv:1: cannot tell whether 'Hello' is the column's name or the first prompt"),
        (
            "How do I bake bread?,baking\nWhy?,why\n",
            "f.csv:1: expected the columns' names, found what looks like a row",
        ),
    ],
)
def test_a_table_without_a_header_loses_no_row(tmp_path: Path, table: str, expected: str) -> None:
    (tmp_path / "f.csv").write_text(table, encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        list(rows(tmp_path / "f.csv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        ("f.csv", 'prompt;tags\nWhy, then?;"a, b"\n"How; when?";\n', [("Why, then?", ["a", "b"]), ("How; when?", "")]),
        ("f.csv", "prompt\ttags\nWhy, then?\ta\n", [("Why, then?", ["a"])]),
        ("f.csv", "Prompt|tags\nWhy?|a\n", "Prompt"),
        ("f.tsv", "prompt,tags\nWhy?,a\n", [("Why?", ["a"])]),
        ("f.csv", "frage;tags\nWhy?;a\nHow?;b\n", "frage"),
        ("f.csv", "prompt\nTell me; why?\nAnd now; what?\n", [("Tell me; why?", None), ("And now; what?", None)]),
        (
            "f.csv",
            "Tell me; why is it?\nWhat time is it?\n",
            [("Tell me; why is it?", None), ("What time is it?", None)],
        ),
    ],
)
def test_other_separators_are_told_by_the_header(
    tmp_path: Path, name: str, table: str, expected: str | list[tuple[str, object]]
) -> None:
    (tmp_path / name).write_text(table, encoding="utf-8")
    values = [value for _, value in rows(tmp_path / name)]
    if isinstance(expected, str):
        assert [list(value) for value in values] == [[expected, "tags"]] * len(values)
    else:
        assert [(value["prompt"], value.get("tags")) for value in values] == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "\nWhy do cats purr?;cats\nHow do dogs bark?;dogs\n",
            "f.csv:2: every line seen has 2 columns separated by semicolons, and there is no header: add a first line",
        ),
        ("prompt;tags\nWhy?;a;b\n", "f.csv:2: expected 2 columns as in the header, found 3"),
        ("one;other\nWhy?\n", "f.csv:1: cannot tell whether 'one;other' is the column's name or the first prompt"),
    ],
)
def test_separators_without_a_header_are_no_part_of_prompts(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(table, encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        list(rows(tmp_path / "f.csv"))
    assert message in str(caught.value)


def test_a_cell_of_tags_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text('prompt,tags\nWhy?,"a, b"\nHow?,\n', encoding="utf-8")
    assert [value["tags"] for _, value in rows(tmp_path / "f.csv")] == [["a", "b"], ""]


def test_one_object_is_one_row_at_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"comparisons": []}, indent=2))
    [(place, value)] = rows(tmp_path / "f.json")
    assert (str(place), place.short, value) == (str(tmp_path / "f.json"), "f.json", {"comparisons": []})
    (tmp_path / "empty.json").write_text(" \n")
    assert list(rows(tmp_path / "empty.json")) == []


def test_lines_and_columns_are_read_only_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('{"a": 1}\nbroken\n')
    assert next(rows(tmp_path / "f.jsonl"))[1] == {"a": 1}
    path = tmp_path / "f.parquet"
    with parquet.ParquetWriter(path, pyarrow.schema([("a", pyarrow.string())]), compression="none") as writer:
        for letter in "bc":
            writer.write_table(pyarrow.table({"a": [letter * 999 + str(number) for number in range(1000)]}))
    path.write_bytes(path.read_bytes().replace(b"c" * 999, b"\xff" * 999))
    found = rows(path)
    assert [next(found)[1]["a"][-3:] for _ in range(700)][-1] == "699"
    with pytest.raises(CaiError, match=r"f\.parquet: not UTF-8 text"):
        list(found)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("f.jsonl", b'{"a": 1}\n{"a": \n', "f.jsonl:2: not valid JSON"),
        ("f.jsonl", b'{"a": 1}\n[1]\n', "f.jsonl:2: expected a JSON object, found [1]"),
        ("f.jsonl", b'{"a": "\\ud800"}\n', "f.jsonl:1: \\ud800 is half of a surrogate pair"),
        ("f.jsonl", b'{"a": ' + b"[" * 100_000, "f.jsonl:1: nested too deeply"),
        ("f.json", b'[{"a": 1},\n {"a": }]', "f.json: not valid JSON: Expecting value, line 2, column 8"),
        ("f.json", b'[{"a": 1}, 7]', "f.json:entry 2: expected a JSON object, found 7"),
        ("f.json", b"7", "f.json:entry 1: expected a JSON object, found 7"),
        ("f.jsonl", b"\xff\xfe", "not UTF-8 text"),
        ("f.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "cannot be read"),
        ("f.jsonl.zst", b"no such thing", "cannot be read"),
        ("f.jsonl.zst", zstandard(b'{"a": 1}\n')[:-4], "cannot be read"),
        ("f.csv", b"a,b\n1,2\n3\n", "f.csv:3: expected 2 columns as in the header, found 1"),
        ("f.csv", b"a,b\n1,2,3\n", "f.csv:2: expected 2 columns as in the header, found 3"),
        ("f.csv", b'a,b\n1,2\n1,"open\n', "f.csv:3: not valid CSV: unexpected end of data"),
        ("f.csv", b"a,a\n1,2\n", "f.csv:1: two columns are named 'a'"),
        ("f.parquet", b"PAR1 no", "f.parquet: not a Parquet file that can be read"),
        ("f.parquet", columns([{"a": "b" * 99}])[:-40], "f.parquet: not a Parquet file that can be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaiError) as caught:
        list(rows(tmp_path / name))
    assert expected in str(caught.value)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match=r"a folder; expected a file$"):
        rows(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"")
    with pytest.raises(CaiError, match=r"a folder; expected a file, such as .*data/train\.parquet"):
        rows(tmp_path)
    for name in ("f.jsonl", "f.json", "f.parquet", "f.csv", "f.txt", "f.jsonl.zst"):
        with pytest.raises(CaiError, match="no such file"):
            list(rows(tmp_path / name))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
probabilities = st.floats(0, 1)
weights = st.floats(1e-300, 1e300)
message = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts})
whole = st.integers(-(2**63), 2**63 - 1)
verdict = st.builds(
    Verdict,
    principle_id=texts,
    principle_hash=texts,
    weight=weights,
    p_forward=probabilities,
    p_reverse=probabilities,
    non_option_mass=probabilities,
    cot=st.lists(texts, max_size=2),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(message, max_size=3),
    "seeds": st.lists(whole, max_size=2),
    "seed": whole,
    "round": whole,
    "p": probabilities,
    "input_p": st.none() | probabilities,
    "weight": weights,
    "verdicts": st.lists(verdict, max_size=2),
    "strengths": st.just([0.5, -0.5]),
    "responses": st.lists(texts, min_size=2, max_size=2),
}
OWN: list[type[BaseModel]] = [Prompt, Demonstration, Preference, Revision, Ranking, BeforeAfter, Skipped]


def any_row(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    return st.builds(model, **{name: known for name, known in FIELDS.items() if name in model.model_fields})


@pytest.mark.parametrize("model", OWN)
@given(data=st.data())
def test_rows_of_cai_survive_every_file_kind(
    tmp_path_factory: pytest.TempPathFactory, model: type[BaseModel], data: st.DataObject
) -> None:
    written, folder = data.draw(st.lists(any_row(model), max_size=3)), tmp_path_factory.mktemp("rows")
    for suffix in NAMES:
        path = folder / f"rows{suffix}"
        with table_writer(path, model) as write:
            for row in written:
                write(row)
        assert [model.model_validate(value) for _, value in rows(path)] == written, suffix


def test_columns_are_written_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP", 2)
    for count in (0, 1, 2, 3, 4, 5):
        path = tmp_path / f"{count}.parquet"
        with table_writer(path, Skipped) as write:
            for number in range(count):
                write(Skipped(prompt_id=str(number), stage="s", reason="r"))
        assert [value["prompt_id"] for _, value in rows(path)] == [str(number) for number in range(count)]
        assert ParquetFile(path).num_row_groups == math.ceil(count / 2)


def test_the_same_rows_give_the_same_bytes_and_an_array_is_json(tmp_path: Path) -> None:
    for suffix in NAMES:
        for name in ("a", "b"):
            with table_writer(tmp_path / f"{name}{suffix}", Prompt) as write:
                write({"id": "é", "messages": [], "tags": []})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [{"id": "é", "messages": [], "tags": []}]


def test_a_reader_never_sees_half_a_table(tmp_path: Path) -> None:
    for suffix in NAMES:
        path = tmp_path / f"t{suffix}"
        path.write_bytes(b"old")
        with pytest.raises(ZeroDivisionError), table_writer(path, Prompt) as write:
            write({"id": "new", "messages": [], "tags": []})
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError
        assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == len(NAMES)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(CaiError, match=r"t\.csv: expected a name that ends in \.jsonl, "),
        table_writer(tmp_path / "t.csv", Prompt),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(CaiError, match="cannot be written"), table_writer(tmp_path / "file" / "t.jsonl", Prompt):
        pass
    with (
        pytest.raises(CaiError, match=r"t\.parquet: a row does not fit into columns"),
        table_writer(tmp_path / "t.parquet", Preference) as write,
    ):
        write({"seeds": [2**70]})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
