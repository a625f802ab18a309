import base64
import gzip
import json
import random
import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cai.report.table import Column, Detail, Line, Query, Table, about, packed, select, sign

COLUMNS = [Column("words", "number", ""), Column("p", "probability", ""), Column("never", "text", "")]
LINES = [
    Line("a", [3, 0.5, None], [["x", "y"], []]),
    Line("b", [1, None, ""], [["x"], []]),
    Line("c", [2, 0.1, None], [["y"], []]),
]


def detail(i: str) -> Detail:
    found = Detail([{"role": "user", "content": f"question {i}"}])
    found.diff("t", ("x", "y"), f"question {i}", f"answer {i}")
    return found


TABLE = Table(COLUMNS, ["tag", "unused"], LINES, detail, lambda i, text: detail(i).holds(text))


def unpacked(data: str) -> tuple[list[Any], list[Any]]:
    """The lines, and the texts of each example."""
    first, *details = map(json.loads, gzip.decompress(base64.b64decode(data)).decode().split("\n"))
    words = {sign(number): word for number, word in enumerate(first["vocabulary"])}
    return first["lines"], [["".join(words[c] for c in text) for text in detail["texts"]] for detail in details]


def ids(query: Query) -> list[str]:
    return [line.id for line in select(TABLE, query)]


def test_what_no_line_has_is_not_offered() -> None:
    found = about(TABLE)
    assert [column["title"] for column in found["columns"]] == ["words", "p"]
    assert found["facets"] == [{"title": "tag", "at": 0, "values": [("x", 2), ("y", 2)]}]
    assert found["total"] == 3


def test_a_query_filters_searches_and_sorts_with_unknown_values_last() -> None:
    assert ids(Query()) == ["a", "b", "c"]
    assert ids(Query(facets={0: "y"})) == ["a", "c"]
    assert ids(Query(text="Answer C")) == ["c"]
    assert ids(Query(sort=0)) == ["b", "c", "a"]
    assert ids(Query(sort=1)) == ["c", "a", "b"]
    assert ids(Query(sort=1, descending=True)) == ["a", "c", "b"]
    assert ids(Query(facets={0: "x"}, sort=0)) == ["b", "a"]


def test_a_text_that_stands_in_several_places_is_carried_once() -> None:
    found = detail("a").written()
    assert found["texts"] == ["question a", "answer a"]
    assert found["turns"] == [["user", 0]]
    assert found["blocks"][0]["sides"] == [0, 1]


def test_a_page_carries_all_examples_where_there_is_room() -> None:
    found = packed(TABLE)
    assert [line.id for line in found.lines] == ["a", "b", "c"]
    lines, texts = unpacked(found.data)
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert texts == [[f"question {i}", f"answer {i}"] for i in "abc"]


def many(count: int) -> Table:
    lines = [Line(f"p{n:04}", [n, None, None], [[], []]) for n in range(count)]

    def long(i: str) -> Detail:
        return Detail([{"role": "user", "content": "".join(random.Random(i).choices(string.ascii_letters, k=400))}])

    return Table(COLUMNS, ["tag", "unused"], lines, long, lambda i, text: False)


def test_of_too_many_examples_an_even_part_is_carried_in_their_order() -> None:
    table = many(400)
    found = packed(table, most=100)
    names = [line.id for line in found.lines]
    assert len(names) == 100
    assert names == sorted(names)
    assert 30 < sum(name < "p0200" for name in names) < 70
    assert names == [line["id"] for line in unpacked(found.data)[0]]


@given(st.integers(min_value=2_000, max_value=40_000))
def test_the_examples_keep_to_the_room_they_have(room: int) -> None:
    assert len(packed(many(100), room=room).data) <= room
