from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.completions import read_completions
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration
from tests.conftest import prompt


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
            "no known form of a completion (found prompt, answer); the closest:\n  prompt-completion: no 'completion'",
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


def test_rows_of_ours_are_read_back(tmp_path: Path) -> None:
    rows = [Demonstration(prompt_id="p", messages=prompt("p").messages, tags=["t"], completion="an answer")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_completions(tmp_path / "rows.jsonl") == (rows, [])
