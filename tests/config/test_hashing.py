from hypothesis import given
from hypothesis import strategies as st

from cai.config.hashing import derive_seed, fingerprint, fingerprint_of_all, uniform, uniforms

json_values = st.recursive(  # a few leaves: an order of keys needs no more
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_keys_does_not_count(value: dict[str, object]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


@given(json_values, json_values)
def test_different_values_have_different_fingerprints(a: object, b: object) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (repr(a) == repr(b) or a is b or _same_json(a, b))


def _same_json(a: object, b: object) -> bool:
    import json

    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@given(st.lists(json_values, max_size=3), st.lists(st.text(), max_size=3))
def test_numbers_drawn_together_are_those_drawn_one_by_one(parts: list[object], last: list[str]) -> None:
    assert list(uniforms(tuple(parts), last)) == [uniform(*parts, text) for text in last]


@given(st.lists(json_values, max_size=3))
def test_a_list_hashed_value_by_value_has_its_fingerprint(values: list[object]) -> None:
    assert fingerprint_of_all(iter(values)) == fingerprint(values)


def test_parts_are_not_run_together() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


@given(st.lists(st.text() | st.integers()))
def test_seeds_and_uniforms_stay_in_range(parts: list[str | int]) -> None:
    assert 0 <= derive_seed(*parts) < 2**31
    assert 0 < uniform(*parts) < 1


def test_uniforms_are_uniform() -> None:
    from scipy.stats import kstest

    assert kstest([uniform("test", i) for i in range(5000)], "uniform").pvalue > 0.01
