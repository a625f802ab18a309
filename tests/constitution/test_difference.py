import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.constitution.difference import word_distance

pytestmark = pytest.mark.numeric

texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=80).map(" ".join)


def by_table(a: list[str], b: list[str]) -> float:
    """The textbook's dynamic programme (Wagner & Fischer 1974)."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = row[:]
        for j, y in enumerate(b, start=1):
            row[j] = previous[j - 1] + 1 if x == y else max(previous[j], row[j - 1])
    return 1 - 2 * row[-1] / (len(a) + len(b)) if a or b else 0.0


@given(texts, texts)
def test_it_is_the_textbooks_distance(a: str, b: str) -> None:
    assert word_distance(a, b) == pytest.approx(by_table(a.split(), b.split()))
    assert word_distance(a, b) == pytest.approx(word_distance(b, a))


def test_it_is_the_share_of_words_that_differ() -> None:
    assert word_distance("a b c d", "a b c d") == 0.0
    assert word_distance("a b", "c d") == 1.0
    assert word_distance("", "") == 0.0
    assert word_distance("", "a") == 1.0
    assert word_distance("a b c d", "a b x y") == pytest.approx(0.5)
