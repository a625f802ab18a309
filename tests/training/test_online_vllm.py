"""RLOO, GRPO and online DPO that sample with vLLM; tests/real has the engine itself."""

import shutil
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cai.config.errors import CaiError
from cai.training.checks import check_launcher
from cai.training.ppo import sampling
from cai.training.settings import GRPOConfig, OnlineConfig, PPOConfig
from cai.training.stage import StageSpec
from tests.training.test_online import STAGES, judges, prompts, run  # noqa: F401  # a fixture

SIZE: dict[str, Any] = {"use_vllm": True, "per_device_train_batch_size": 4, "num_train_epochs": 2}


class Sampler:
    """In place of vLLM a plain model, which has just the weights that it is given."""

    asked: list[list[list[int]]]
    seeds: list[list[int]]

    def __init__(self, folder: Path, settings: PPOConfig | OnlineConfig, concurrency: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model, self.concurrency = AutoModelForCausalLM.from_pretrained(folder), concurrency

    def generate(
        self, weights: Iterable[tuple[str, Tensor]], prompts: list[list[int]], seeds: Sequence[int], *limits: Any
    ) -> list[sampling.Sample]:
        most, temperature, ends = limits
        assert len(prompts) <= self.concurrency
        state = {name: tensor.detach().clone() for name, tensor in weights}
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= set(self._model._tied_weights_keys or ())
        Sampler.asked.append(prompts)
        Sampler.seeds.append(list(seeds))
        uniforms = [torch.rand(most, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return sampling.generate(self._model, prompts, torch.stack(uniforms), temperature, ends)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[Sampler]:
    Sampler.asked, Sampler.seeds = [], []
    monkeypatch.setattr(sampling, "VllmSampler", Sampler)
    return Sampler


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_answer_is_sampled_by_the_policy_as_it_stands(
    tmp_path: Path,
    tiny_model: Path,
    judges: Path,  # noqa: F811
    vllm: type[Sampler],
    stage: str,
) -> None:
    steps = {"gradient_accumulation_steps": 2} if stage == "online_dpo" else {}
    lines = run(stage, tiny_model, judges, tmp_path, 8, lora_r=4, temperature=0.7, **SIZE, **steps)
    batches = 16 // 4 if stage == "online_dpo" else 16  # of 4 prompts, twice, or 4 answers to one
    assert [len(prompts) for prompts in vllm.asked] == [8 if stage == "online_dpo" else 4] * batches
    drawn = [seed for seeds in vllm.seeds for seed in seeds]
    assert len(set(drawn)) == len(drawn)
    first, second = ([*chain(*asked)] for asked in (vllm.asked[: batches // 2], vllm.asked[batches // 2 :]))
    assert first != second and sorted(first) == sorted(second)  # epochs, each in its own order
    if stage == "grpo":  # trl compares them with what it computes of the policy
        assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in lines)
    assert all(line["loss"] == line["loss"] for line in lines)


@pytest.mark.slow
def test_an_interrupted_training_samples_the_same_answers_again(
    tmp_path: Path,
    tiny_model: Path,
    judges: Path,  # noqa: F811
    vllm: type[Sampler],
) -> None:
    whole = run("grpo", tiny_model, judges, tmp_path / "whole", 8, save_steps=6, lora_r=4, **SIZE)
    seeds = list(vllm.seeds)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/model")
    shutil.rmtree(tmp_path / "again/checkpoints/checkpoint-16")
    vllm.seeds.clear()
    again = run("grpo", tiny_model, judges, tmp_path / "again", 8, save_steps=6, lora_r=4, **SIZE)
    assert vllm.seeds == seeds[12:]
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_settings_of_an_engine_that_is_not_there_are_refused() -> None:
    for name, value in (("vllm_gpu_memory_utilization", 0.5), ("vllm_enable_sleep_mode", True)):
        with pytest.raises(ValidationError, match=f"{name}: is of the engine that samples; set use_vllm: true"):
            GRPOConfig.model_validate({"stage": "grpo", name: value})


def test_what_an_engine_takes_of_a_gpu_does_not_decide_a_stage(tmp_path: Path, tiny_model: Path) -> None:
    def manifest(**settings: Any) -> dict[str, Any]:
        config = GRPOConfig.model_validate({"stage": "grpo", "use_vllm": True, **settings})
        return StageSpec(config, prompts(tmp_path), tiny_model, tmp_path / "out").claim().manifest

    assert manifest(vllm_gpu_memory_utilization=0.5, vllm_enable_sleep_mode=True) == manifest()
    assert manifest(use_vllm=False) != manifest()


def test_a_sharded_policy_is_not_sampled_by_vllm() -> None:
    settings = GRPOConfig(stage="grpo", use_vllm=True, fsdp=True)
    with pytest.raises(CaiError, match=r"^here\.use_vllm: samples in one process, and fsdp shards over several"):
        check_launcher(settings, "torchrun", "here")
