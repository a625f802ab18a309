from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.prompts import read_prompts

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
        ('{"id": "a", "prompt": "again"}', "f.jsonl:2: the id 'a' stands already at f.jsonl:1, with another prompt"),
        ('{"id": "b"}', "no known form of a prompt (found id); expected one of"),
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
