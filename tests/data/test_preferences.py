import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.preferences import Candidates, read_candidates, read_preferences
from cai.data.records import Preference, Ranking, Skipped

USER = {"role": "user", "content": "Why?"}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "so", "rejected": "no"},
        {"prompt": [USER], "chosen": [said("so")], "rejected": [said("no")]},
        {"messages": [USER], "chosen": "so", "rejected": "no"},
        {"chosen": [USER, said("so")], "rejected": [USER, said("no")]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: so", "rejected": "\n\nHuman: Why?\n\nAssistant: no"},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " so", "rejected": " no"},
        {"prompt": "Why?", "responses": ["so", "no"]},
    ],
)
def test_every_format_of_a_pair_is_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    kept, skipped = read_preferences(written(tmp_path, row))
    assert not skipped
    [pair] = kept
    assert (pair.messages, pair.chosen, pair.rejected, pair.p, pair.weight) == ([USER], "so", "no", 1.0, 1.0)
    assert pair.source == "human"


def test_a_ranking_becomes_all_its_pairs_under_one_prompt(tmp_path: Path) -> None:
    kept, _ = read_preferences(written(tmp_path, {"prompt": "Why?", "responses": list("abcd"), "weight": 0.5}))
    assert [(r.chosen, r.rejected) for r in kept] == [(a, b) for a, b in ["ab", "ac", "ad", "bc", "bd", "cd"]]
    assert len({r.prompt_id for r in kept}) == 1
    assert {r.weight for r in kept} == {0.5}


def test_labels_and_weights_stay_as_they_are(tmp_path: Path) -> None:
    row = {"id": "x", "prompt": "Why?", "chosen": "so", "rejected": "no", "p": 0.625, "weight": 3.0, "tags": ["t"]}
    [pair] = read_preferences(written(tmp_path, row))[0]
    assert (pair.prompt_id, pair.p, pair.weight, pair.tags) == ("x", 0.625, 3.0, ["t"])


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1), st.floats(0, 1)), min_size=1, max_size=5))
def test_the_rows_of_a_run_are_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float]]
) -> None:
    pairs = [
        Preference(prompt_id=f"{i}", messages=[USER], chosen=f"a{a}", rejected=f"b{b}", p=p, source="judge")  # type: ignore[list-item]
        for i, (a, b, p) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("rows") / "preferences.jsonl"
    write_rows(path, pairs)
    assert read_preferences(path) == (pairs, [])


def test_what_can_teach_nothing_is_named_and_counted(tmp_path: Path) -> None:
    rows = [
        {"id": "same", "prompt": "Why?", "chosen": "so", "rejected": "so"},
        {"id": "empty", "prompt": "Why?", "chosen": "so", "rejected": " "},
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
        {"chosen": [USER, said("so")], "rejected": [{"role": "user", "content": "How?"}, said("no")]},
        {"id": "good", "prompt": "Why?", "chosen": "so", "rejected": "no"},
    ]
    kept, skipped = read_preferences(written(tmp_path, *rows))
    assert [pair.prompt_id for pair in kept] == ["good"]
    assert [(row.stage, row.reason[:22]) for row in skipped] == [
        ("pairs.jsonl:1", "chosen equals rejected"),
        ("pairs.jsonl:2", "an answer is empty"),
        ("pairs.jsonl:3", "turns must alternate, "),
        ("pairs.jsonl:4", "chosen and rejected di"),
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "Why?", "chosen": "so"},
            "pairs.jsonl:1: unknown format of a preference (found prompt, chosen); the closest:\n  pair: no 'rejected'",
        ),
        ({"chosen": "so", "rejected": "no"}, "chosen: without a prompt, expected a transcript"),
        ({"prompt": 3, "chosen": "so", "rejected": "no"}, "prompt: expected a text or a list of turns"),
        (
            {"prompt": "Why?", "chosen": 3, "rejected": "no"},
            "chosen: expected a text or one turn of the assistant's, found 3",
        ),
        (
            {"prompt": "Why?", "chosen": "so", "rejected": "no", "p": 1.5},
            "pairs.jsonl:1: p: expected a number from 0 to 1, found 1.5",
        ),
        (
            {"prompt": "Why?", "chosen": "so", "rejected": "no", "weight": 0},
            "weight: expected a number above 0, found 0",
        ),
        (
            {"prompt": "Why?", "chosen": "so", "rejected": "no", "p": True},
            "p: expected a number from 0 to 1, found true",
        ),
        (
            {"prompt": "Why?", "chosen": "so", "rejected": "no", "weight": True},
            "weight: expected a number above 0, found true",
        ),
        ({"prompt": "Why?", "responses": ["so"]}, "responses: expected a list of at least two texts"),
    ],
)
def test_a_row_of_an_unknown_format_is_an_error(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(CaiError) as caught:
        read_preferences(written(tmp_path, row))
    assert expected in str(caught.value)


def test_an_empty_or_broken_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match="no preferences in this file"):
        read_preferences(written(tmp_path))
    broken = tmp_path / "pairs.jsonl.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(CaiError, match="cannot be read"):
        read_preferences(broken)
    with gzip.open(broken, "wt") as file:
        file.write(json.dumps({"prompt": "Why?", "chosen": "so", "rejected": "no"}))
    assert len(read_preferences(broken)[0]) == 1
    broken.write_bytes(broken.read_bytes()[:-12])  # cut short
    with pytest.raises(CaiError, match="cannot be read"):
        read_preferences(broken)


def question(**given: Any) -> dict[str, Any]:
    """A row as the HHH evaluations have it."""
    prompt = (
        "\n\nConsider the following conversation between a human and an assistant:\n\nHuman: Why?\n\nAssistant: What?"
        "\n\nHuman: That.\n\n\nPlease choose the response that is best. Options:\n (A) [[[no]]]\n (B) [[[so\n\n(C) is]]]"
        "\n (C) [[[perhaps]]]\n\nThe answer is:"
    )
    return {"prompt": prompt, "corrects": [" (B)"], "incorrects": [" (A)"], **given}


TALK = [USER, said("What?"), {"role": "user", "content": "That."}]
WRITTEN_OUT = {
    "text_correct": "\n\nHuman: How?\n\nAssistant: right",
    "text_incorrect": "\n\nHuman: How?\n\nAssistant: wrong",
}


def test_options_inside_a_prompt_become_pairs_of_the_conversation_before_them(tmp_path: Path) -> None:
    [pair] = read_preferences(written(tmp_path, question()))[0]
    assert (pair.messages, pair.chosen, pair.rejected, pair.p) == (TALK, "so\n\n(C) is", "no", 1.0)


def test_every_correct_option_goes_with_every_incorrect_one(tmp_path: Path) -> None:
    kept, _ = read_preferences(written(tmp_path, question(corrects=[" (B)", " (C)"], id="q")))
    assert [(r.prompt_id, r.chosen[:2], r.rejected) for r in kept] == [("q", "so", "no"), ("q", "pe", "no")]


def test_written_out_conversations_go_before_the_options(tmp_path: Path) -> None:
    [pair] = read_preferences(written(tmp_path, question(**WRITTEN_OUT)))[0]
    assert (pair.messages, pair.chosen, pair.rejected) == ([{"role": "user", "content": "How?"}], "right", "wrong")
    for unusable in ({"text_correct": "right"}, {"text_correct": None}, {"text_incorrect": "\n\nHuman: How?"}):
        [pair] = read_preferences(written(tmp_path, question(**{**WRITTEN_OUT, **unusable})))[0]
        assert pair.messages == TALK
    [pair, _] = read_preferences(written(tmp_path, question(**WRITTEN_OUT, incorrects=[" (A)", " (C)"])))[0]
    assert pair.messages == TALK  # the texts speak of one option each


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"prompt": "\n\nHuman: Why?\n\nOptions:\n (A) no\n (B) so"}, "no options in the prompt"),
        ({"prompt": "Why? Options:\n (A) [[[no]]]\n (B) [[[so]]]"}, "no options in the prompt"),
        ({"prompt": "Why?\nOptions:\n (A) [[[no]]]\n (B) [[[so]]]"}, "no conversation before the options"),
        ({"prompt": "\n\nHuman: Why?\nOptions:\n (A) [[[no]]]\n (A) [[[so]]]"}, "two options have the same letter"),
        ({"corrects": [" (D)"]}, "option (D) is not among"),
        ({"corrects": [" (A)"]}, "option (A) is both correct and incorrect"),
        ({"prompt": "\n\nHuman: Why?\nOptions:\n (A) [[[]]]\n (B) [[[so]]]"}, "an answer is empty"),
        (
            {**WRITTEN_OUT, "text_incorrect": "\n\nHuman: Why?\n\nAssistant: wrong"},
            "text_correct and text_incorrect differ in more than the last turn",
        ),
    ],
)
def test_options_that_cannot_be_read_are_skipped_with_the_reason(
    tmp_path: Path, given: dict[str, Any], reason: str
) -> None:
    kept, [skipped] = read_preferences(written(tmp_path, question(**given)))
    assert not kept
    assert skipped.stage == "pairs.jsonl:1"
    assert skipped.reason.startswith(reason)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"corrects": " (B)"}, "pairs.jsonl:1: corrects: expected a list of options such as"),
        ({"corrects": []}, "corrects: expected a list of options"),
        ({"incorrects": ["A"]}, "incorrects: expected a list of options"),
        ({"incorrects": None}, "correct-incorrect: no 'incorrects'"),
        ({"prompt": [USER]}, "prompt: expected a text, found"),
        ({"text_correct": 3, "text_incorrect": "x"}, "text_correct: expected a text, found 3"),
        ({"subset": 3}, "subset: expected a text, found 3"),
        ({"tags": "x", "subset": "y"}, "tags: expected a list of texts, found 'x'"),
    ],
)
def test_a_question_of_another_shape_is_an_error(tmp_path: Path, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(CaiError) as caught:
        read_preferences(written(tmp_path, question(**given)))
    assert expected in str(caught.value)


def test_the_subset_of_a_benchmark_row_is_a_tag(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": "Why?", "chosen": "so", "rejected": "no", "chosen_model": "x", "subset": "refusals"}
    pairs, _ = read_preferences(written(tmp_path, row, {**row, "tags": ["t"]}, question(subset="hhh")))
    assert [(pair.prompt_id, pair.tags) for pair in pairs[:2]] == [("7", ["refusals"]), ("7", ["t", "refusals"])]
    assert pairs[2].tags == ["hhh"]


def test_a_judges_ranking_is_read_with_soft_labels(tmp_path: Path) -> None:
    ranking = Ranking(
        prompt_id="x", messages=[USER], responses=["a", "b", "c"], strengths=[1.5, 0.0, -1.5], judge="j", model="m"
    )
    path = tmp_path / "rankings.jsonl"
    write_rows(path, [ranking])
    kept, skipped = read_preferences(path)
    assert not skipped
    assert [(r.chosen, r.rejected, r.source, r.judge, r.model) for r in kept] == [
        (a, b, "judge", "j", "m") for a, b in ("ab", "ac", "bc")
    ]
    assert [r.p for r in kept] == pytest.approx([1 / (1 + math.exp(-d)) for d in (1.5, 3.0, 1.5)])
    row = json.loads(ranking.model_dump_json())
    for wrong, expected in (({"strengths": [0, 1, 2]}, "the greatest first"), ({"strengths": [0]}, "3 responses have")):
        with pytest.raises(CaiError, match=f"pairs.jsonl:1: .*{expected}"):
            read_preferences(written(tmp_path, {**row, **wrong}))


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
        ({"prompt": "Why?"}, "unknown format of a preference (found prompt)"),
    ],
)
def test_a_row_without_answers_for_a_judge_is_an_error(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(CaiError) as caught:
        read(tmp_path, row)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "answers",
    [
        {"prompt": "Why?", "chosen": "so", "rejected": "no"},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: so", "rejected": "\n\nHuman: Why?\n\nAssistant: no"},
        {"prompt": "Why?", "responses": ["so", "no"]},
    ],
)
def test_a_pairs_system_message_comes_before_its_prompt(tmp_path: Path, answers: dict[str, object]) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"system": "Be brief.", **answers}) + "\n")
    ((pair,), _) = read_preferences(path)
    assert pair.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
