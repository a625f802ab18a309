import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import ParquetFile
from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.data import exports
from cai.data.exports import NAMES, table_writer
from cai.data.files import rows
from cai.data.records import Comparison, Demonstration, Preference, Prompt, Ranking, Revision, Skipped, Verdict

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
OWN: list[type[BaseModel]] = [Prompt, Demonstration, Preference, Revision, Ranking, Comparison, Skipped]


def any_row(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    return st.builds(model, **{name: known for name, known in FIELDS.items() if name in model.model_fields})


@pytest.mark.parametrize("model", OWN)
@given(data=st.data())
def test_rows_of_ours_lose_nothing_in_any_container(
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
    monkeypatch.setattr(exports, "GROUP", 2)
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


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
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
