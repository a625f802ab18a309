"""Two processes on the CPU do what one does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.data.jsonl import write_rows
from cai.data.records import Prompt
from cai.training.settings import PPOConfig, RewardConfig, TrainConfig
from cai.training.stage import StageSpec, follow, worker_python
from tests.conftest import prompt, train_here
from tests.training.test_reward import planted
from tests.training.test_settings import dpo

STAGES = Path(__file__).with_name("several_stages.py")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def specifications(folder: Path, model: Path) -> list[StageSpec[TrainConfig]]:
    """A reward, a DPO and a PPO stage, to be trained in one process in batches of four."""
    pairs, prompts = planted(folder / "pairs.jsonl", 12), folder / "prompts.jsonl"
    write_rows(prompts, [Prompt(id=f"p{i}", messages=prompt(f"p{i}", "why " * i + "?").messages) for i in range(1, 6)])
    two_epochs: dict[str, Any] = {"per_device_train_batch_size": 4, "lora_r": 2, "num_train_epochs": 2}
    ensemble = RewardConfig(stage="reward", lora_r=2, members=2, holdout=0)
    scorer = train_here(StageSpec(ensemble, pairs, model, folder / "scorer"))
    ppo = PPOConfig(
        stage="ppo", updates=3, rollouts=6, per_device_train_batch_size=4, max_tokens=6, lora_r=2, learning_rate=1e-3,
        value="separate", target_kl=1.0,
    )  # fmt: skip
    return [
        StageSpec(RewardConfig(stage="reward", holdout=0, **two_epochs), pairs, model, folder / "one/reward"),
        StageSpec(dpo(**two_epochs), pairs, model, folder / "one/dpo"),
        StageSpec(ppo, prompts, model, folder / "one/ppo", reward=scorer),
    ]


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one(tmp_path: Path, tiny_model: Path) -> None:
    stage_files = []
    for spec in specifications(tmp_path, tiny_model):
        train_here(spec)
        settings = spec.settings.model_copy(update={"per_device_train_batch_size": 2})
        shared = replace(spec, settings=settings, folder=tmp_path / "two" / spec.folder.name)
        shared.folder.mkdir(parents=True)
        stage_files.append(shared.folder / "stage.json")
        shared.write(stage_files[-1])
    command = [*worker_python("torchrun --nproc_per_node 2"), str(STAGES), *map(str, stage_files)]
    steps = []
    follow(command, tmp_path / "train.log", lambda event: steps.append(event.get("step")))
    assert steps.count(3) == 3  # the first process alone reports

    for stage in ("reward", "dpo"):
        assert (tmp_path / "two" / stage / "model").is_dir()
        one, two = (
            [line["loss"] for line in lines(tmp_path / name / stage) if "loss" in line] for name in ("one", "two")
        )
        assert len(one) == 6
        assert two == pytest.approx(one, abs=1e-4)
    assert (tmp_path / "two/ppo/model").is_dir()
    for a, b in zip(lines(tmp_path / "one/ppo"), lines(tmp_path / "two/ppo"), strict=True):
        for key in a:
            if not key.startswith("seconds") and a[key] is not None:
                assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key
