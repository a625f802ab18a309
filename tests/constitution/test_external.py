import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.constitution.external import FORMATS, read_external, write_external
from cai.constitution.principles import Constitution, load_constitution
from tests.conftest import ROOT

text = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)
hard = text | st.sampled_from(
    ["Critique:", "x\n\nCritique:", "CritiqueRequest: x", "Revision:", "Options:", "x Options:", "x\n\nRevision:"]
)
ids = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
values: dict[str, st.SearchStrategy[Any]] = {
    "anthropic-critiques": st.dictionaries(
        ids,
        st.builds(
            lambda critique, revision: {
                "prompt": [f"\n\nCritiqueRequest: {critique}\n\nCritique:"],
                "edit_request": f"\n\nRevisionRequest: {revision}\n\nRevision:",
            },
            hard,
            hard,
        ),
        min_size=1,
    ),
    "anthropic-judge": st.lists(hard.map(lambda judge: f"\n{judge} Options:"), min_size=1),
    "huggingface": st.fixed_dictionaries(
        {
            "constitutions": st.lists(st.fixed_dictionaries({"critic": hard, "revision": hard}), min_size=1),
            "system_chat": st.just([]),
        }
    ),
}
HELD = {  # what each format holds of a principle
    "anthropic-critiques": ("id", "critique", "revision"),
    "anthropic-judge": ("judge",),
    "huggingface": ("critique", "revision"),
}


def read(folder: Path, value: Any) -> tuple[str, Constitution, list[str]]:
    path = folder / "theirs.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_external(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_theirs_comes_back_as_it_was(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")

    @given(values[name])
    def round_trip(value: Any) -> None:
        recognised, c, _ = read(folder, value)
        assert recognised == name
        assert json.loads(write_external(c, name)[0]) == value

    round_trip()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shipped", ["brief", "harmless", "helpful-honest", "plain"])
def test_what_an_external_format_holds_of_a_constitution_comes_back(name: str, shipped: str, tmp_path: Path) -> None:
    ours = load_constitution(ROOT / f"constitutions/{shipped}.yaml")
    written, notices = write_external(ours, name)
    recognised, back, _ = read(tmp_path, written)
    assert recognised == name
    for field in HELD[name]:
        assert [getattr(p, field) for p in back.principles] == [getattr(p, field) for p in ours.principles]
    assert ("weights" in notices[0]) == (shipped == "harmless")
    assert "tags" in notices[0]
    assert "the description" in notices[0]


def test_a_missing_text_is_derived_and_noted(tmp_path: Path) -> None:
    _, c, notices = read(tmp_path, {"constitutions": [{"critic": "Is it calm?", "revision": "Rewrite it calmly."}]})
    (principle,) = c.principles
    assert principle.judge == (
        "Which answer better does what this instruction asks for? Instruction: Rewrite it calmly."
    )
    assert principle.notes == "judge was derived from revision on import; rewrite it."
    assert (c.name, principle.id) == ("theirs", "principle-1")
    assert any("is derived from its `revision`" in notice for notice in notices)
    assert any("numbered" in notice for notice in notices)

    _, c, notices = read(tmp_path, ["\nWhich answer is calmer? Options:"])
    (principle,) = c.principles
    assert principle.judge == "Which answer is calmer?"
    assert principle.critique.endswith("Instruction: Which answer is calmer?")
    assert principle.revision.endswith("Instruction: Which answer is calmer?")
    assert "were derived from judge" in principle.notes
    assert any("are derived from `judge`" in notice for notice in notices)


def test_texts_without_the_usual_frame_are_read_whole(tmp_path: Path) -> None:
    _, c, _ = read(tmp_path, {"calm": {"prompt": [" Is it calm? "], "edit_request": "Rewrite it calmly."}})
    assert (c.principles[0].critique, c.principles[0].revision) == ("Is it calm?", "Rewrite it calmly.")


def test_fields_without_a_counterpart_are_listed(tmp_path: Path) -> None:
    entry = {"critic": "Is it calm?", "revision": "Rewrite it calmly.", "area": "tone"}
    chat = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]]
    _, _, notices = read(tmp_path, {"constitutions": [entry], "system_chat": chat, "version": 2})
    result = "\n".join(notices)
    for part in (
        "without a counterpart: 'area'",
        "without a counterpart: 'version'",
        "system_chat was dropped",
    ):
        assert part in result
    _, _, notices = read(tmp_path, {"calm": {"prompt": ["a"], "edit_request": "b", "area": "tone"}})
    assert "without a counterpart: 'area'" in "\n".join(notices)


def test_the_list_of_entries_alone_is_read_too(tmp_path: Path) -> None:
    name, c, _ = read(tmp_path, [{"critic": "Is it calm?", "revision": "Rewrite it calmly."}])
    assert (name, len(c.principles)) == ("huggingface", 1)


def test_keys_that_are_no_valid_ids_are_changed_with_a_notice(tmp_path: Path) -> None:
    entry = {"prompt": ["a"], "edit_request": "b"}
    _, c, notices = read(tmp_path, {"Too Loud": entry, "too-loud": entry, "é": entry, "a-": entry})
    assert [p.id for p in c.principles] == ["too-loud-2", "too-loud", "principle", "a-"]
    assert "'Too Loud' → too-loud-2, 'é' → principle" in notices[0]


def test_a_key_of_an_external_file_cannot_write_lines_of_the_constitution_or_steer_the_terminal(tmp_path: Path) -> None:
    key = "x\nname: y\x1b[2J"
    _, c, notices = read(tmp_path, {key: {"prompt": ["a"], "edit_request": "b", "c\nd": 1}})
    assert [notice for notice in notices if not notice.isprintable()] == []
    assert c.principles[0].id == "x-name-y-2j"
    with pytest.raises(CaiError) as caught:
        read(tmp_path, {key: {}})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"h": {"prompt": ["x"]}, "i": {"prompt": ["x"], "edit_request": "y"}}, "anthropic-critiques (closest: 3 of 4 parts): 'h' has no 'edit_request', a text"),
        ({"h": {"prompt": ["x", "y"], "edit_request": "y"}}, "anthropic-critiques (closest: 1 of 2 parts): 'h' has no 'prompt', a list of one text"),
        ({"h": {"prompt": ["\n\nCritiqueRequest: \n\nCritique:"], "edit_request": "y"}}, "'h' has no 'prompt'"),
        (["a", 3], "anthropic-judge (closest: 1 of 2 parts): entry 2 is a number, expected a text that is not empty"),
        ([" Options: "], "anthropic-judge: entry 1 is a text, expected a text that is not empty"),
        ([{"critic": "a", "revision": "b"}, {"critic": "c"}], "huggingface (closest: 4 of 5 parts): entry 2 has no 'revision', a text"),
        ({"constitutions": [{"critic": " ", "revision": "b"}], "system_chat": []}, "huggingface (closest: 2 of 3 parts): entry 1 has no 'critic', a text"),
        ({"constitutions": [{"critic": "a", "revision": "b"}], "system_chat": "x"}, "'system_chat' is a text, expected a list"),
        ({"critiques": []}, "huggingface: expected an object with a list 'constitutions', found an object with 'critiques'"),
        ({"constitutions": [], "system_chat": []}, "expected an object with a list 'constitutions'"),
        ([], "anthropic-judge: expected a list of texts, found an empty list"),
        ("{}", "unknown format of a constitution"),
        ("7", "found a number"),
        ("", "theirs.json:1: not valid JSON"),
        ('{"a":\n 1,}', "theirs.json:2: not valid JSON"),
        ('{"a": 1, "a": 2}', "duplicate key 'a' in one object"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_file_of_an_unknown_format_names_the_closest(tmp_path: Path, value: Any, expected: str) -> None:
    with pytest.raises(CaiError) as caught:
        read(tmp_path, value)
    assert expected in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "edit_request", "constitutions", "critic", "revision", "system_chat", "a"]), inner, max_size=3),
)  # fmt: skip


@given(json_values)
def test_whatever_a_file_holds_the_answer_is_a_constitution_or_a_cai_error(value: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            name, c, notices = read(Path(folder), value)
        except CaiError as error:
            assert "theirs.json" in str(error)
        else:
            assert name in FORMATS
            assert c.principles
            assert notices


def test_an_unknown_format_names_the_known_ones() -> None:
    c = load_constitution(ROOT / "constitutions/plain.yaml")
    with pytest.raises(
        CaiError, match="--format csv: expected one of anthropic-critiques, anthropic-judge, huggingface"
    ):
        write_external(c, "csv")
