import base64
import gzip
import json
import random
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.report import table as table_module
from cai.report.table import Column, Detail, Line, Query, Table, character, describe, embed, encode, select

COLUMNS = [Column("words", "number", ""), Column("p", "probability", ""), Column("never", "text", "")]
LINES = [
    Line("a", [3, 0.5, None], [["x", "y"], []]),
    Line("b", [1, None, ""], [["x"], []]),
    Line("c", [2, 0.1, None], [["y"], []]),
]


def detail(i: str) -> Detail:
    opened = Detail([{"role": "user", "content": f"question {i}"}])
    opened.diff("t", ("x", "y"), (f"question {i}", f"answer {i}"))
    return opened


TABLE = Table(COLUMNS, ["tag", "unused"], LINES, detail, lambda i, text: detail(i).contains(text))


def decoded(data: str) -> tuple[list[Any], list[Any]]:
    """The lines, and the texts of each example."""
    first, *details = map(json.loads, gzip.decompress(base64.b64decode(data)).decode().split("\n"))
    words = {character(number): word for number, word in enumerate(first["vocabulary"])}
    return first["lines"], [["".join(words[c] for c in text) for text in detail["texts"]] for detail in details]


def ids(query: Query) -> list[str]:
    return [line.id for line in select(TABLE, query)]


def test_columns_and_facets_without_values_are_not_offered() -> None:
    found = describe(TABLE)
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


def test_a_text_that_occurs_several_times_is_stored_once() -> None:
    found = detail("a").to_json()
    assert found["texts"] == ["question a", "answer a"]
    assert found["turns"] == [["user", 0]]
    assert found["blocks"][0]["sides"] == [0, 1]


def test_a_page_embeds_all_examples_that_fit() -> None:
    found = embed(TABLE)
    assert [line.id for line in found.lines] == ["a", "b", "c"]
    lines, texts = decoded(found.data)
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert texts == [[f"question {i}", f"answer {i}"] for i in "abc"]


def many(count: int) -> Table:
    lines = [Line(f"p{n:04}", [n, None, None], [[], []]) for n in range(count)]

    def long(i: str) -> Detail:
        return Detail([{"role": "user", "content": "".join(random.Random(i).choices(string.ascii_letters, k=400))}])

    return Table(COLUMNS, ["tag", "unused"], lines, long, lambda i, text: False)


def test_of_too_many_examples_a_uniform_sample_is_embedded_in_their_order() -> None:
    table = many(400)
    found = embed(table, max_examples=100)
    names = [line.id for line in found.lines]
    assert len(names) == 100
    assert names == sorted(names)
    assert 30 < sum(name < "p0200" for name in names) < 70
    assert names == [line["id"] for line in decoded(found.data)[0]]


@given(st.integers(min_value=2_000, max_value=40_000))
def test_embedded_examples_never_exceed_their_bound(max_bytes: int) -> None:
    assert len(embed(many(100), max_bytes=max_bytes).data) <= max_bytes


@given(st.lists(st.lists(st.text())))
def test_decoded_texts_equal_the_encoded_ones(texts: list[list[str]]) -> None:
    assert decoded(encode([], [{"texts": own} for own in texts]))[1] == texts


@given(st.lists(st.text()))
def test_words_outside_the_vocabulary_are_spelled(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "MAX_VOCABULARY", 2)
        assert decoded(encode([], [{"texts": texts}]))[1] == [texts]


def test_no_character_of_the_vocabulary_is_a_surrogate_or_escaped_in_json() -> None:
    characters = [character(n) for n in range(1_100_000)]
    assert len(set(characters)) == len(characters)
    assert json.dumps("".join(characters[:100_000]), ensure_ascii=False) == f'"{"".join(characters[:100_000])}"'
    "".join(characters).encode()  # refuses surrogates
