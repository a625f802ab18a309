from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.training.kto import train
from cai.training.settings import KTOConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.policies import BETTER, WORSE, of_two_sources, pair, preferred_by, write_pairs


def kto(**settings: Any) -> KTOConfig:
    return KTOConfig.model_validate(
        {
            "stage": "kto",
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 100,
            **settings,
        }
    )


@pytest.mark.slow
def test_kto_learns_the_likelier_answers_and_reports_what_it_skipped(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = write_pairs(tmp_path / "preferences.jsonl")
    policy = train_here(StageSpec(kto(), data, tiny_model, tmp_path / "kto"), events.append)
    assert events[0] == {"examples": 16, "too_long": ["p9"], "undecided": ["p8"]}
    assert preferred_by(policy) > preferred_by(tiny_model) + 1


def test_answers_of_one_prompt_do_not_stand_side_by_side(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    class Seen(Exception):
        """Raised in place of training."""

    def trainer(train_dataset: Any, **_: Any) -> None:
        raise Seen([row["prompt_ids"] for row in train_dataset])

    monkeypatch.setattr("cai.training.kto.TokenizedKTOTrainer", trainer)
    data = tmp_path / "preferences.jsonl"
    write_rows(data, [pair(i, BETTER, WORSE) for i in range(200)])
    orders = []
    for seed in (0, 0, 1):
        with pytest.raises(Seen) as caught:
            train(StageSpec(kto(), data, tiny_model, tmp_path / "kto", seed), lambda event: None)
        orders.append(caught.value.args[0])
    assert orders[0] == orders[1] != orders[2]
    assert sum(a == b for a, b in zip(orders[0], orders[0][1:], strict=False)) <= 5


def test_kto_needs_two_examples_a_batch() -> None:
    with pytest.raises(ValidationError, match="per_device_train_batch_size"):
        kto(per_device_train_batch_size=1)


def test_kto_refuses_pairs_of_different_weight(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "preferences.jsonl"
    write_rows(data, [pair(0, BETTER, WORSE), pair(1, BETTER, WORSE, weight=2.5)])
    with pytest.raises(CaiError, match=r"^kto: the preferences have weights from 1 to 2\.5"):
        train(StageSpec(kto(), data, tiny_model, tmp_path / "kto"), lambda event: None)


@pytest.mark.slow
def test_a_source_of_weight_0_teaches_nothing(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = of_two_sources(tmp_path / "preferences.jsonl")
    settings = kto(data={"judge": 0})
    policy = train_here(StageSpec(settings, data, tiny_model, tmp_path / "kto"), events.append)
    assert events[0]["left_out"] == {"judge": 4}
    assert preferred_by(policy) > preferred_by(tiny_model) + 1
