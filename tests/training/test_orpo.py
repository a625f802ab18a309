from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.training.orpo import train
from cai.training.settings import ORPOConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.policies import BETTER, WORSE, of_two_sources, pair, preferred_by, write_pairs


def orpo(**settings: Any) -> ORPOConfig:
    return ORPOConfig.model_validate(
        {
            "stage": "orpo",
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 100,
            **settings,
        }
    )


@pytest.mark.slow
def test_orpo_learns_the_likelier_answers_and_reports_what_it_skipped(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = write_pairs(tmp_path / "preferences.jsonl")
    policy = train_here(StageSpec(orpo(), data, tiny_model, tmp_path / "orpo"), events.append)
    assert events[0] == {"examples": 8, "too_long": ["p9"], "undecided": ["p8"]}
    assert preferred_by(policy) > preferred_by(tiny_model) + 1


def test_orpo_refuses_pairs_of_different_weight(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "preferences.jsonl"
    write_rows(data, [pair(0, BETTER, WORSE), pair(1, BETTER, WORSE, weight=2.5)])
    with pytest.raises(CaiError, match=r"^orpo: the preferences have weights from 1 to 2\.5"):
        train(StageSpec(orpo(), data, tiny_model, tmp_path / "orpo"), lambda event: None)


@pytest.mark.slow
def test_a_source_of_weight_0_teaches_nothing(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = of_two_sources(tmp_path / "preferences.jsonl")
    settings = orpo(num_train_epochs=8, data={"judge": 0})
    policy = train_here(StageSpec(settings, data, tiny_model, tmp_path / "orpo"), events.append)
    assert events[0]["left_out"] == {"judge": 4}
    assert preferred_by(policy) > preferred_by(tiny_model) + 1
