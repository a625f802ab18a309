"""With a LoRA over weights in bfloat16 what is trained is float32, and what is learned nearly the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cai.data.jsonl import write_rows
from cai.training import trl_stage
from cai.training.ppo.actor import Actor
from cai.training.ppo.experience import Collector, Task
from cai.training.reward_model import RewardModel
from cai.training.stage import StageSpec
from tests.conftest import prompt, train_here
from tests.training.policies import write_pairs
from tests.training.ppo.test_trainer import PROMPTS, good_tokens, settings, trainer
from tests.training.test_checks import of
from tests.training.test_distributed import rating
from tests.training.test_reward import preference
from tests.training.test_sft import helpful

ROUNDING = 0.05  # of a loss near 1: bfloat16 has 8 bits


def data(name: str, folder: Path) -> Path:
    if name == "sft":
        return helpful(folder / "helpful.jsonl", 8)
    if name == "reward":
        write_rows(folder / "pairs.jsonl", [preference(i, "!" * 3, "?" * 3) for i in range(10)])
        return folder / "pairs.jsonl"
    return write_pairs(folder / "pairs.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto", "orpo"])
def test_a_stage_trains_in_float32_over_weights_in_bfloat16(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, types = trl_stage.train, dict[bool, set[torch.dtype]]()

    def watching(trainer: Any, *arguments: Any) -> Any:
        def begin(*more: Any, **options: Any) -> Any:
            for parameter in trainer.model.parameters():
                types.setdefault(parameter.requires_grad, set()).add(parameter.dtype)
            return start(*more, **options)

        start, trainer.train = trainer.train, begin
        return plain(trainer, *arguments)

    monkeypatch.setattr(trl_stage, "train", watching)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        types.clear()
        config = of(name, dtype=dtype, max_length=100, lora_r=4, learning_rate=1e-2, num_train_epochs=2)
        folder = tmp_path / dtype
        folder.mkdir()
        train_here(StageSpec(config, data(name, folder), tiny_model, folder / "stage"))
        assert types == {True: {torch.float32}, False: {getattr(torch, dtype)}}
        rows = map(json.loads, (folder / "stage/metrics.jsonl").read_text().splitlines())
        losses[dtype] = [row["loss"] for row in rows if "loss" in row]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=ROUNDING)
    assert losses["bfloat16"] != losses["float32"]
    if name == "reward":
        assert RewardModel(tmp_path / "bfloat16/stage/model").scores([[1, 70, 2]]).isfinite().all()


def test_ppo_trains_in_float32_over_weights_in_bfloat16(tmp_path: Path, tiny_model: Path) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = settings(dtype=dtype, lora_r=2, rollouts=8, per_device_train_batch_size=8, updates=2, max_tokens=4)
        torch.manual_seed(0)
        actor = Actor(tiny_model, config)
        assert {p.dtype for p in actor.trainable().values()} == {torch.float32}
        assert actor.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
        rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, {2}), 0).collect(1)
        found[dtype] = [len(rollout.response) for rollout in rollouts]
        trainer(tiny_model, tmp_path, config, actor).run()
    assert len(found["bfloat16"]) == len(found["float32"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(row["policy/ratio"] - 1) < 0.2 for row in rows if "policy/ratio" in row)


def test_all_weights_are_never_trained_in_bfloat16() -> None:
    with pytest.raises(ValidationError, match="dtype: all weights are trained, because lora_r is null"):
        of("dpo", lora_r=None, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_policy_is_saved_in_the_type_that_is_asked_for(name: str, tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    saved = {}
    for dtype in (None, "bfloat16"):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        if name == "sft":
            config = of("sft", lora_r=None, learning_rate=1e-2, save_dtype=dtype)
            spec = StageSpec(config, data("sft", folder), tiny_model, folder / "stage")
        else:
            write_rows(folder / "prompts.jsonl", [prompt("p", "hi")])
            size = {"updates": 1, "rollouts": 2, "max_tokens": 3, "learning_rate": 1e-2}
            config = of("ppo", reward="judge", save_dtype=dtype, lora_r=2, **size)
            spec = StageSpec(config, folder / "prompts.jsonl", tiny_model, folder / "stage")
        saved[dtype] = AutoModelForCausalLM.from_pretrained(train_here(spec, ask=rating), dtype="auto").state_dict()
    for key, weights in saved["bfloat16"].items():
        assert saved[None][key].dtype == torch.float32 and weights.dtype == torch.bfloat16
        assert torch.equal(weights, saved[None][key].bfloat16())


def test_a_reward_model_has_no_type_of_a_policy() -> None:
    with pytest.raises(ValidationError, match="save_dtype: is of policies"):
        of("reward", save_dtype="bfloat16")
