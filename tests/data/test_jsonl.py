import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.data.jsonl import RowWriter, read_objects, read_rows, write_rows
from cai.data.records import Preference, Skipped
from tests.conftest import prompt

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(texts, texts, st.floats(0, 1))))
def test_rows_come_back_exactly(rows: list[tuple[str, str, float]]) -> None:
    import tempfile

    pairs = [
        Preference(prompt_id=a, messages=prompt().messages, chosen=a, rejected=b, p=p, source="human")
        for a, b, p in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        assert write_rows(path, pairs) == len(pairs)
        assert read_rows(path, Preference) == pairs


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "f.jsonl:2: not valid JSON: it ends at column 1, within a value"),
        ('  {"a": "b"', "f.jsonl:2: not valid JSON: it ends at column 11, within a value"),
        ('{"a": "be', "f.jsonl:2: not valid JSON: it ends at column 9, within the text that begins in column 7"),
        ('{"a": "b",}', "f.jsonl:2: not valid JSON: Expecting property name enclosed in double quotes, column 11"),
        ('{"a": ' + "[" * 10**5, "f.jsonl:2: nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "f.jsonl:2: not valid JSON: Exceeds the limit"),
        ('{"a": "\\ud83d\\ude00 \\uDe00"}', "f.jsonl:2: \\ude00 is half of a surrogate pair"),
        ('{"p": 0, "a": {"b": 1}, "p": 1}', "f.jsonl:2: duplicate key 'p' in one object"),
        ('{"a": [{"b": 1, "c": 2, "b": 1}]}', "f.jsonl:2: duplicate key 'b' in one object"),
        ("[1]", "f.jsonl:2: expected a JSON object, found [1]"),
        ('{"prompt_id": "a", "stage": "s"}', "f.jsonl:2: reason: missing; expected a text"),
        (
            '{"prompt_id": "a", "stage": "s", "reason": "r", "x": 1}',
            "f.jsonl:2: x: unknown key 'x'; known keys: prompt_id, stage, reason, failed",
        ),
    ],
)
def test_a_bad_row_names_file_line_and_field(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt_id": "a", "stage": "s", "reason": "r"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        read_rows(path, Skipped)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1, 2]", r"f.jsonl:1: expected a JSON object, found [1, 2]"),
        (b'{"a": 1}\n[{"a": 2}]\n', r"f.jsonl:2: expected a JSON object, found"),
        ('{"a": 1}\n{"ä": "'.encode() + b'\xff"}\n', r"f.jsonl:2: not UTF-8 text: byte 0xff in column 8"),
        ('{"a": 1}'.encode("utf-16"), r"f.jsonl:1: not UTF-8 text: byte 0xff in column 1"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(CaiError) as caught:
        list(read_objects(path))
    assert expected in str(caught.value)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes('\ufeff{"a": "ä\u2028"}\r\n\r\n{"a": 2}'.encode())
    assert list(read_objects(path)) == [(1, {"a": "ä\u2028"}), (3, {"a": 2})]


@pytest.mark.parametrize(
    "broken", [gzip.compress(b"x" * 99, mtime=0)[:-9], b"x", gzip.compress(b"x" * 99, mtime=0)[:12] + b"\xff" * 20]
)
def test_a_broken_gzipped_file_is_named(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(broken)
    with pytest.raises(CaiError, match=r"f\.jsonl\.gz: cannot be read"):
        list(read_objects(path))


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    old = Skipped(prompt_id="old", stage="s", reason="r")
    write_rows(path, [old])
    with pytest.raises(ZeroDivisionError), RowWriter(path) as writer:
        writer.write(Skipped(prompt_id="new", stage="s", reason="r"))
        assert read_rows(path, Skipped) == [old]
        raise ZeroDivisionError
    assert read_rows(path, Skipped) == [old]
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]
