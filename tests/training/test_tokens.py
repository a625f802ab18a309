from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.records import Message
from cai.training.tokens import end_of_turn, padding, prompt_ids, read_turn, turn_ids

ASK = [Message(role="user", content="hello")]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_a_turn_ends_with_its_mark_and_not_with_what_the_template_writes_after_it(tokenizer: Any) -> None:
    end = end_of_turn(tokenizer)
    assert tokenizer.convert_ids_to_tokens(end) == "<|end|>"
    ids = turn_ids(tokenizer, ASK, "an answer")
    assert tokenizer.decode(ids).endswith("an answer<|end|>")
    assert ids[: len(prompt_ids(tokenizer, ASK))] == prompt_ids(tokenizer, ASK)


def test_an_end_written_into_an_answer_is_not_taken_for_its_end(tokenizer: Any) -> None:
    ids = turn_ids(tokenizer, ASK, "stop <|end|> go on")
    assert tokenizer.decode(ids).endswith("go on<|end|>")


def test_what_a_policy_writes_reads_like_a_rendered_turn(tokenizer: Any) -> None:
    end = end_of_turn(tokenizer)
    whole = turn_ids(tokenizer, ASK, "an answer")
    asked = prompt_ids(tokenizer, ASK)
    written = whole[len(asked) :]
    assert read_turn(tokenizer, asked, written, {end}) == whole
    assert read_turn(tokenizer, asked, written[:-1], {end}) == whole  # it ran into the limit
    assert read_turn(tokenizer, asked, [*written[:-1], 0], {end, 0}) == whole  # another token ended it


def test_padding_is_never_the_end_of_a_turn(tokenizer: Any) -> None:
    assert padding(tokenizer, end=2) == tokenizer.pad_token_id
    tokenizer.pad_token = tokenizer.eos_token
    assert padding(tokenizer, end=tokenizer.eos_token_id) not in (None, tokenizer.eos_token_id)


def test_a_template_that_marks_no_end_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(CaiError, match="does not end an answer with a special token"):
        end_of_turn(tokenizer)
