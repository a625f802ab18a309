from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cai.constitution.principles import (
    WIDTH,
    AppliesTo,
    Constitution,
    Phrases,
    Principle,
    PrincipleTest,
    constitution_yaml,
    load_constitution,
    starter,
)
from tests.conftest import ROOT

# What trips YAML: spaces and line ends anywhere, indicators, what reads as a number or a truth, what nobody sees.
odd = st.text(st.sampled_from(" \n\t:#-'\"\\[]{},&*!|>%@`?~ab1.é😀\x07\x85\xa0\u2028\u200b\u202e\ufeff"), max_size=25)
words = st.lists(
    st.sampled_from(["yes", "012", "1e3", "- a", "#", "a: b", "'", "word", "écrit", "two ", "\xa0"]), max_size=40
).map(" ".join)
anything = odd | words | st.text(max_size=40)
text = anything.filter(lambda t: bool(t.strip()))
phrases = st.lists(text, min_size=1, max_size=3)
tests = st.builds(
    PrincipleTest,
    prompt=text | st.just("word " * 40),
    draft=text,
    critique=st.sampled_from(["finds", "finds nothing"]),
    revision=st.none() | st.builds(Phrases, contains=phrases, lacks=st.just([]) | phrases),
    better=st.none() | text.map("not the draft: {}".format),
    least=st.sampled_from([0.5, 0.7, 1]),
)
principles = st.lists(
    st.builds(
        Principle,
        id=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
        | st.sampled_from(["no", "12", "1e3", "null", "0x1"]),
        critique=text,
        revision=text,
        judge=text,
        weight=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        applies_to=st.none()
        | st.builds(AppliesTo, tags=st.lists(text, min_size=1, max_size=3), question=st.none() | text)
        | st.builds(AppliesTo, question=text),
        tags=st.lists(anything, max_size=3),
        notes=anything,
        tests=st.lists(tests, max_size=2),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda p: p.id,
)


@given(st.builds(Constitution, name=anything, description=anything, principles=principles))
def test_what_is_written_loads_as_what_it_was(c: Constitution) -> None:
    assert Constitution.model_validate(yaml.safe_load(constitution_yaml(c))) == c


@given(st.lists(anything, max_size=3))
def test_comments_stay_comments(comments: list[str]) -> None:
    c = Constitution(name="c", principles=[Principle(id="a", critique="c", revision="r", judge="j")])
    written = constitution_yaml(c, comments)
    assert yaml.safe_load(written) == yaml.safe_load(constitution_yaml(c))
    assert [line[:1] for line in written.splitlines()[: len(comments)]] == ["#"] * len(comments)


@given(odd)
def test_nothing_invisible_is_written_unescaped(notes: str) -> None:
    p = Principle(id="a", critique="c", revision="r", judge="j", notes=notes)
    written = constitution_yaml(Constitution(name="c", principles=[p]))
    assert not set(written) & set("\x07\x85\u2028\u200b\u202e\ufeff\t")


@pytest.mark.parametrize("name", ["brief", "harmless", "helpful-honest", "plain"])
def test_a_shipped_constitution_is_written_as_it_stands(name: str) -> None:
    """But for comments, where lines break, and the order of what only people read."""
    path = ROOT / f"constitutions/{name}.yaml"
    c = load_constitution(path)
    written = constitution_yaml(c, ["one", "two"])
    assert written.startswith(f"# one\n# two\nname: {name}\ndescription: >-\n  ")
    assert max(map(len, written.splitlines())) <= WIDTH + 10  # the texts of tests are indented furthest

    def shape(text: str) -> list[str]:
        body = text[text.index("principles:") :]
        return sorted(
            line
            for line in body.splitlines()
            if line.lstrip().startswith(("- id", "critique", "judge", "tags", "weight"))
        )

    assert shape(written) == shape(path.read_text(encoding="utf-8"))


def test_lines_that_matter_stay_lines() -> None:
    p = Principle(id="a", critique="Look for:\n- one\n\n- two", revision="r", judge="j", weight=2)
    assert constitution_yaml(Constitution(name="yes", principles=[p])) == (
        "name: 'yes'\nprinciples:\n  - id: a\n    critique: |-\n      Look for:\n      - one\n\n      - two\n"
        "    revision: >-\n      r\n    judge: >-\n      j\n    weight: 2\n"
    )


@given(anything)
def test_a_starter_loads_whatever_its_name(name: str) -> None:
    c = Constitution.model_validate(yaml.safe_load(starter(name)))
    assert (c.name, [p.id for p in c.principles]) == (name, ["concrete-example"])


def test_a_starter_is_commented(tmp_path: Path) -> None:
    assert sum(line.lstrip().startswith("#") for line in starter("mine").splitlines()) >= 10
