"""Two processes on the CPU do what one does."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.data.jsonl import write_rows
from cai.data.records import Prompt
from cai.training.settings import PPOConfig, RewardConfig
from cai.training.stage import StageSpec, run_stage
from tests.conftest import prompt
from tests.training.test_reward import planted
from tests.training.test_settings import dpo

LAUNCHER = "torchrun --nproc_per_node 2"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def nothing(event: dict[str, Any]) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_two_processes_give_the_loss_of_one(tmp_path: Path, tiny_model: Path, stage: str) -> None:
    data = planted(tmp_path / "p.jsonl", 12)
    for name, batch, launcher in (("one", 4, ""), ("two", 2, LAUNCHER)):
        given: dict[str, Any] = {"per_device_train_batch_size": batch, "lora_r": 2, "num_train_epochs": 2}
        settings = dpo(**given) if stage == "dpo" else RewardConfig(stage="reward", holdout=0, **given)
        run_stage(StageSpec(settings, data, tiny_model, tmp_path / name, launcher=launcher), nothing)
        assert (tmp_path / name / "model").is_dir()
    one, two = ([line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_ppo_in_two_processes_gives_the_curves_of_one(tmp_path: Path, tiny_model: Path) -> None:
    reward = run_stage(StageSpec(RewardConfig(stage="reward", lora_r=2, members=2, holdout=0), planted(tmp_path / "p.jsonl", 12), tiny_model, tmp_path / "reward"), nothing)  # fmt: skip
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, [Prompt(id=f"p{i}", messages=prompt(f"p{i}", "why " * i + "?").messages) for i in range(1, 6)])
    for name, batch, launcher in (("one", 4, ""), ("two", 2, LAUNCHER)):
        settings = PPOConfig(
            stage="ppo", updates=3, rollouts=6, per_device_train_batch_size=batch, max_tokens=6, lora_r=2, learning_rate=1e-3,
            value="separate", target_kl=1.0,
        )  # fmt: skip
        run_stage(StageSpec(settings, prompts, tiny_model, tmp_path / name, reward=reward, launcher=launcher), nothing)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for key in a:
            if not key.startswith("seconds") and a[key] is not None:
                assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key
