import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.preferences import Candidates, read_candidates
from cai.data.records import Skipped

USER = {"role": "user", "content": "Why?"}


def read(folder: Path, *rows: dict[str, Any], ranked: bool = False) -> list[Candidates | Skipped]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_candidates(path, ranked))


def test_a_pair_waits_for_a_judge_with_the_label_it_came_with(tmp_path: Path) -> None:
    row = {"id": "x", "prompt": "Why?", "chosen": "so", "rejected": "no", "p": 0.75, "subset": "s"}
    [found] = read(tmp_path, row)
    assert isinstance(found, Candidates)
    assert (found.place, found.answers, found.input_p) == ("rows.jsonl:1", ["so", "no"], 0.75)
    assert (found.prompt.id, found.prompt.messages, found.prompt.tags) == ("x", [USER], ["s"])


def test_responses_are_one_set_for_a_judge_and_pairs_where_they_are_ranked(tmp_path: Path) -> None:
    row = {"id": "x", "messages": [USER], "responses": ["a", "b", "c"], "tags": ["t"]}
    [found] = read(tmp_path, row)
    assert isinstance(found, Candidates)
    assert (found.answers, found.input_p, found.prompt.id, found.prompt.tags) == (["a", "b", "c"], None, "x", ["t"])
    pairs = [item for item in read(tmp_path, row, ranked=True) if isinstance(item, Candidates)]
    assert [(pair.answers, pair.input_p) for pair in pairs] == [(["a", "b"], 1), (["a", "c"], 1), (["b", "c"], 1)]


def test_identical_answers_stay_and_white_space_is_an_empty_answer(tmp_path: Path) -> None:
    same, blank = read(
        tmp_path,
        {"prompt": "Why?", "chosen": "so", "rejected": "so"},
        {"prompt": "Why?", "responses": ["so", " \n", " no "]},
    )
    assert isinstance(same, Candidates)
    assert isinstance(blank, Candidates)
    assert same.answers == ["so", "so"]
    assert blank.answers == ["so", "", " no "]


def test_what_cannot_be_answered_is_skipped_with_its_line(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"chosen": [USER, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "How?"},
         {"role": "assistant", "content": "b"}]},
        {"id": "turns", "messages": [USER, USER], "responses": ["a", "b"]},
        {"id": "turns", "messages": [USER, USER], "chosen": "a", "rejected": "b"},
    )  # fmt: skip
    assert all(isinstance(item, Skipped) for item in found)
    assert [(item.stage, item.reason[:12]) for item in found if isinstance(item, Skipped)] == [
        ("rows.jsonl:1", "chosen and r"), ("rows.jsonl:2", "turns must a"), ("rows.jsonl:3", "turns must a"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?", "responses": ["a"]}, "rows.jsonl:1: responses: expected a list of at least two texts"),
        ({"prompt": "Why?", "responses": list(range(3))}, "responses: expected a list of at least two texts"),
        ({"prompt": "Why?", "responses": [f"{i}" for i in range(27)]}, "among 2 to 26 answers, found 27"),
        ({"messages": [{"role": "x"}], "responses": ["a", "b"]}, "rows.jsonl:1: messages[0].role"),
        ({"prompt": "Why?"}, "no known form of a preference (found prompt)"),
    ],
)
def test_a_row_of_no_known_form_is_an_error(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(CaiError) as caught:
        read(tmp_path, row)
    assert expected in str(caught.value)
