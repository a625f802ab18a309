import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.report import table
from cai.report.table import pack, sign


def unpacked(data: str) -> list[list[str]]:
    first, *details = map(json.loads, gzip.decompress(base64.b64decode(data)).decode().split("\n"))
    words = {sign(number): word for number, word in enumerate(first["vocabulary"])}
    return [["".join(words[c] for c in text) for text in detail["texts"]] for detail in details]


@given(st.lists(st.lists(st.text())))
def test_texts_come_back_as_they_were(texts: list[list[str]]) -> None:
    assert unpacked(pack([], [{"texts": own} for own in texts])) == texts


@given(st.lists(st.text()))
def test_words_that_the_vocabulary_has_no_room_for_are_spelled(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "WORDS", 2)
        assert unpacked(pack([], [{"texts": texts}])) == [texts]


def test_no_sign_is_a_surrogate_or_means_something_in_json() -> None:
    signs = [sign(n) for n in range(1_100_000)]
    assert len(set(signs)) == len(signs)
    assert json.dumps("".join(signs[:100_000]), ensure_ascii=False) == f'"{"".join(signs[:100_000])}"'
    "".join(signs).encode()  # refuses surrogates
