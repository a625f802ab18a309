from pathlib import Path
from typing import Any

import pytest
import torch

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.training.dpo import train
from cai.training.settings import DPOConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.policies import BETTER, WORSE, of_two_sources, pair, preferred_by, write_pairs

WEIGHTS = "model.safetensors"


def dpo(**settings: Any) -> DPOConfig:
    return DPOConfig.model_validate(
        {
            "stage": "dpo",
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 100,
            **settings,
        }
    )


def test_a_loss_without_soft_labels_learns_the_likelier_answers(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    data = write_pairs(tmp_path / "preferences.jsonl")
    policy = train_here(StageSpec(dpo(loss_type="apo_zero"), data, tiny_model, tmp_path / "dpo"), events.append)
    assert events[0] == {"examples": 8, "too_long": ["p9"], "undecided": ["p8"]}
    assert preferred_by(policy) > preferred_by(tiny_model) + 1


def test_of_two_contrary_pairs_the_heavier_wins(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "preferences.jsonl"
    write_rows(
        data, [p for i in range(4) for p in (pair(i, BETTER, WORSE, weight=9), pair(i, WORSE, BETTER, weight=0.5))]
    )
    policy = train_here(StageSpec(dpo(), data, tiny_model, tmp_path / "dpo"))
    assert preferred_by(policy) > preferred_by(tiny_model) + 1


@pytest.mark.slow
def test_weights_that_are_equal_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    policies = []
    for weight in (1.0, 0.1):
        data = tmp_path / f"{weight}.jsonl"
        write_rows(data, [pair(i, BETTER, WORSE, weight=weight) for i in range(3)])
        policies.append(train_here(StageSpec(dpo(), data, tiny_model, tmp_path / str(weight))))
    assert (policies[0] / WEIGHTS).read_bytes() == (policies[1] / WEIGHTS).read_bytes()


def test_a_loss_that_cannot_weigh_pairs_refuses_different_weights(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "preferences.jsonl"
    write_rows(data, [pair(0, BETTER, WORSE), pair(1, BETTER, WORSE, weight=2.5)])
    with pytest.raises(CaiError, match=r"^dpo with loss_type hinge: the preferences have weights from 1 to 2\.5"):
        train(StageSpec(dpo(loss_type="hinge"), data, tiny_model, tmp_path / "dpo"), lambda event: None)


def test_of_two_contrary_sources_the_heavier_wins(tmp_path: Path, tiny_model: Path) -> None:
    data = of_two_sources(tmp_path / "preferences.jsonl")
    settings = dpo(data={"human": 9, "judge": 0.5})
    policy = train_here(StageSpec(settings, data, tiny_model, tmp_path / "dpo"))
    assert preferred_by(policy) > preferred_by(tiny_model) + 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_a_source_of_weight_0_teaches_nothing(tmp_path: Path, tiny_model: Path, loss: str) -> None:
    events: list[dict[str, Any]] = []
    data = of_two_sources(tmp_path / "preferences.jsonl")
    settings = dpo(data={"human": 0}, loss_type=loss)
    policy = train_here(StageSpec(settings, data, tiny_model, tmp_path / "dpo"), events.append)
    assert (events[0]["examples"], events[0]["left_out"]) == (4, {"human": 4})
    assert preferred_by(policy) < preferred_by(tiny_model) - 1


def test_log_ratios_are_taken_from_another_reference_where_one_is_given(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        other.lm_head.weight.mul_(30.0)
    other.save_pretrained(tmp_path / "first")
    trainers: list[Any] = []
    monkeypatch.setattr("cai.training.trl_stage.train_and_save", lambda trainer, *_: trainers.append(trainer))
    data = write_pairs(tmp_path / "preferences.jsonl")
    for reference in (None, tmp_path / "first"):
        spec = StageSpec(dpo(lora_r=2), data, tiny_model, tmp_path / "dpo", reference=reference)
        train(spec, lambda event: None)
    own, first = (trainer.train_dataset[0]["ref_chosen_logps"] for trainer in trainers)
    assert abs(own - first) > 1
