from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Preference
from cai.training.settings import DPOConfig
from cai.training.stage import StageSpec
from cai.training.trl_stage import hard_pairs, read_pairs
from tests.training.policies import BETTER, WORSE, pair


def test_the_likelier_answer_becomes_the_chosen_one_and_the_undecided_are_named(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    pairs = [pair(0, BETTER, WORSE, p=0.51), pair(1, BETTER, WORSE, p=0.5), pair(2, WORSE, BETTER, p=0.1, weight=1)]
    write_rows(path, pairs)
    hard, undecided = hard_pairs(read_rows(path, Preference), "kto")
    assert [(row.prompt_id, row.chosen, row.rejected, row.p) for row in hard] == [
        ("p0", BETTER, WORSE, 1.0),
        ("p2", BETTER, WORSE, 1.0),
    ]
    assert undecided == ["p1"]


def test_weights_must_be_equal_whatever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    write_rows(path, [pair(i, BETTER, WORSE, weight=0.3) for i in range(3)])
    assert len(hard_pairs(read_rows(path, Preference), "orpo")[0]) == 3
    write_rows(path, [pair(i, BETTER, WORSE, weight=0.3 + i) for i in range(3)])
    with pytest.raises(CaiError, match=r"^orpo: the preferences have weights from 0\.3 to 2\.3"):
        hard_pairs(read_rows(path, Preference), "orpo")


def test_pairs_that_are_all_undecided_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    write_rows(path, [pair(i, BETTER, WORSE, p=0.5) for i in range(3)])
    with pytest.raises(CaiError, match=r"kto: nothing to train on: all 3 preferences have p = 0\.5"):
        hard_pairs(read_rows(path, Preference), "kto")


def spec(tmp_path: Path, **weights: float) -> StageSpec[DPOConfig]:
    """A stage with the weights of its sources, on one pair of each with the weights 1, 2 and 3."""
    sources = ("revision", "judge", "human")
    rows = [
        pair(i, BETTER, WORSE, weight=i + 1.0).model_copy(update={"source": source}) for i, source in enumerate(sources)
    ]
    write_rows(tmp_path / "preferences.jsonl", rows)
    settings = DPOConfig.model_validate({"stage": "dpo", "data": weights})
    return StageSpec(settings, tmp_path / "preferences.jsonl", tmp_path, tmp_path / "dpo")


def test_a_pair_weighs_as_it_says_times_its_source(tmp_path: Path) -> None:
    pairs, counts = read_pairs(spec(tmp_path, human=2.0, revision=0.5))
    assert [(row.source, row.weight) for row in pairs] == [("revision", 0.5), ("judge", 2.0), ("human", 6.0)]
    assert counts == {}


def test_a_source_of_weight_0_is_left_out_and_counted(tmp_path: Path) -> None:
    pairs, counts = read_pairs(spec(tmp_path, revision=0, human=0))
    assert [row.source for row in pairs] == ["judge"]
    assert counts == {"left_out": {"revision": 1, "human": 1}}


def test_a_stage_all_of_whose_pairs_are_left_out_is_an_error(tmp_path: Path) -> None:
    stage = spec(tmp_path, revision=0)
    write_rows(stage.data, [pair(0, BETTER, WORSE).model_copy(update={"source": "revision"})])
    with pytest.raises(CaiError, match=r"nothing to train on: `data` gives all pairs weight 0: 1 by revision"):
        read_pairs(stage)
