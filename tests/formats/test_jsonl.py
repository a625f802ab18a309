from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.errors import CaiError
from cai.formats.jsonl import RowWriter, read_rows, write_rows
from cai.records import LeftOut, Preference
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
        ("{", "f.jsonl:2: not valid JSON"),
        ("[1]", "f.jsonl:2: expected a JSON object, found [1]"),
        ('{"prompt_id": "a", "stage": "s"}', "f.jsonl:2: reason: Field required"),
        ('{"prompt_id": "a", "stage": "s", "reason": "r", "x": 1}', "f.jsonl:2: x: Extra inputs are not permitted"),
    ],
)
def test_a_bad_row_names_file_line_and_field(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt_id": "a", "stage": "s", "reason": "r"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        read_rows(path, LeftOut)
    assert expected in str(caught.value)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    old = LeftOut(prompt_id="old", stage="s", reason="r")
    write_rows(path, [old])
    with pytest.raises(ZeroDivisionError), RowWriter(path) as writer:
        writer.write(LeftOut(prompt_id="new", stage="s", reason="r"))
        assert read_rows(path, LeftOut) == [old]
        raise ZeroDivisionError
    assert read_rows(path, LeftOut) == [old]
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]
