import json
import tracemalloc
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.prompts import read_completions, read_prompts, store_prompts
from cai.data.records import Demonstration
from tests.conftest import prompt

ROOT = Path(__file__).parent.parent.parent


def test_the_shipped_prompts_are_half_adversarial_half_ordinary() -> None:
    prompts, skipped = read_prompts(ROOT / "examples/prompts.jsonl")
    assert not skipped
    assert len(prompts) == 200
    assert sum("adversarial" in p.tags for p in prompts) == sum("ordinary" in p.tags for p in prompts) == 100
    assert sum(len(p.messages) > 1 for p in prompts) == 10


def test_a_prompt_is_one_user_turn_and_may_go_unnamed(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "Hi?"}\n\n{"prompt": "Ho?", "id": "b"}\n{"prompt": "Hu?"}\n')
    (first, second), _ = read_prompts(path, limit=2)
    assert first.messages == [{"role": "user", "content": "Hi?"}]
    assert (len(first.id), second.id) == (16, "b")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "a", "prompt": "again"}', "f.jsonl:2: f.jsonl:1 has the id 'a' already, with another prompt"),
        ('{"id": "b"}', "unknown format of a prompt (found id); expected one of"),
        ('{"id": "b", "prompt": "x", "messages": []}', "expected either 'prompt'"),
        ('{"id": "b", "prompt": 7}', "prompt: expected a text or a list of turns"),
        ('{"id": "b", "prompt": [{"role": "user", "content": 7}]}', "messages[0].content: expected a text, found 7"),
        ('{"id": "b", "prompt": "  "}', "f.jsonl:2: a message is empty"),
        ('{"id": "b", "messages": []}', "turns must alternate, starting and ending with the user's"),
        ('{"id": "b", "messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}', "found user, user"),
        ('{"id": "b", "prompt": "x", "tag": "y"}', "unknown field 'tag'; did you mean 'tags'?"),
        ('{"id": "b", "messages": [{"role": "robot", "content": "x"}]}', "messages[0].role: expected one of 'system', 'user', 'assistant', found 'robot'"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_refused_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": "a", "prompt": "fine"}\n' + line + "\n")
    with pytest.raises(CaiError) as caught:
        read_prompts(path)
    assert expected in str(caught.value)
    assert "f.jsonl:2: " in str(caught.value)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("\n")
    with pytest.raises(CaiError, match="no prompts in this file"):
        read_prompts(tmp_path / "f.jsonl")


def test_a_row_is_a_prompt_and_the_text_that_answers_it(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(
        '{"prompt": "Hi?", "completion": "Ho."}\n'
        '{"prompt": "Hi?", "completion": "Hu."}\n\n'
        '{"id": "b", "tags": ["t"], "messages": [{"role": "user", "content": "x"}], "completion": "y"}\n'
    )
    (first, again, last), _ = read_completions(path)
    assert (first.messages, first.completion) == ([{"role": "user", "content": "Hi?"}], "Ho.")
    assert (again.prompt_id, again.completion) == (first.prompt_id, "Hu.")  # a prompt may have several answers
    assert (last.prompt_id, last.tags, last.completion) == ("b", ["t"], "y")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"prompt": "x", "answer": "y"}',
            "unknown format of a completion (found prompt, answer); the closest:\n  prompt-completion: no 'completion'",
        ),
        ('{"completion": "y"}', "prompt-completion: no 'prompt' or 'messages'"),
        ('{"prompt": "x", "completion": 7}', "completion: expected a text, found 7"),
        ('{"prompt": "x", "completion": " "}', "completion: the text is empty"),
        ('{"prompt": " ", "completion": "y"}', "a message is empty"),
        ('{"prompt": "x", "completion": "y", "tag": "z"}', "unknown field 'tag'; did you mean 'tags'?"),
        ('{"prompt": "x", ', "not valid JSON"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "fine", "completion": "fine"}\n' + line + "\n")
    with pytest.raises(CaiError) as caught:
        read_completions(path)
    assert expected in str(caught.value)
    assert "f.jsonl:2: " in str(caught.value)


def test_a_file_without_rows_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("\n")
    with pytest.raises(CaiError, match="no completions in this file"):
        read_completions(tmp_path / "f.jsonl")
    with pytest.raises(CaiError, match="no such file"):
        read_completions(tmp_path / "g.jsonl")


def test_rows_of_cai_are_read_back(tmp_path: Path) -> None:
    rows = [Demonstration(prompt_id="p", messages=prompt("p").messages, tags=["t"], completion="an answer")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_completions(tmp_path / "rows.jsonl") == (rows, [])


def test_stored_prompts_are_those_of_the_file_and_take_no_memory_by_their_length(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": f"{i} é\n" * 3000, "tags": ["t"]} for i in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    tracemalloc.start()
    stored, skipped = store_prompts(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 5 MB of texts
    tracemalloc.stop()
    prompts, same = read_prompts(path)
    assert list(stored) == prompts and skipped == same and len(skipped) == 1
    assert list(stored[-3:]) == prompts[-3:] and list(stored.pick([7, 3])) == [prompts[7], prompts[3]]
    assert store_prompts(path, 2)[0][1] == prompts[1] and len(store_prompts(path, 2)[0]) == 2
    path.write_text("\n")
    with pytest.raises(CaiError, match="no prompts in this file"):
        store_prompts(path)


def test_a_column_of_another_name_is_the_prompt_if_the_run_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("id,question,answer,tags,prompt\na,Why?,Because.,x,other\n")
    stored, _ = store_prompts(path, column="question")
    assert [(p.id, p.messages[0]["content"], p.tags) for p in stored] == [("a", "Why?", ["x"])]
    with pytest.raises(CaiError, match=r"f\.csv:2: no field 'query' as `prompts.column` names; found id, question, "):
        store_prompts(path, column="query")


def test_a_rows_system_message_comes_before_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "Why?", "system": "Be brief."}\n{"prompt": "Why?", "system": ""}\n')
    (with_one, without), _ = read_prompts(path)
    assert with_one.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert without.messages == [{"role": "user", "content": "Why?"}]
    assert with_one.id != without.id
    twice = '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "system": "z"}\n'
    path.write_text(twice)
    with pytest.raises(CaiError, match=r"f\.jsonl:1: system: the conversation begins with a system message already"):
        read_prompts(path)
