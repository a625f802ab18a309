from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.training.trl_stage import read_hard_pairs
from tests.training.policies import BETTER, WORSE, pair


def test_the_likelier_answer_becomes_the_chosen_one_and_the_undecided_are_named(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    pairs = [pair(0, BETTER, WORSE, p=0.51), pair(1, BETTER, WORSE, p=0.5), pair(2, WORSE, BETTER, p=0.1, weight=1)]
    write_rows(path, pairs)
    hard, undecided = read_hard_pairs(path, "kto")
    assert [(row.prompt_id, row.chosen, row.rejected, row.p) for row in hard] == [
        ("p0", BETTER, WORSE, 1.0),
        ("p2", BETTER, WORSE, 1.0),
    ]
    assert undecided == ["p1"]


def test_weights_must_be_equal_whatever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    write_rows(path, [pair(i, BETTER, WORSE, weight=0.3) for i in range(3)])
    assert len(read_hard_pairs(path, "orpo")[0]) == 3
    write_rows(path, [pair(i, BETTER, WORSE, weight=0.3 + i) for i in range(3)])
    with pytest.raises(CaiError, match=r"^orpo: the preferences have weights from 0\.3 to 2\.3"):
        read_hard_pairs(path, "orpo")


def test_pairs_that_are_all_undecided_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    write_rows(path, [pair(i, BETTER, WORSE, p=0.5) for i in range(3)])
    with pytest.raises(CaiError, match=r"kto: nothing to train on: all 3 preferences have p = 0\.5"):
        read_hard_pairs(path, "kto")
