"""PPO's rollouts by vLLM: it answers as the policy of this moment would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.training.ppo.actor import Actor
from cai.training.settings import PPOConfig

PROMPT = "Name three colours."


def changed_actor(model: Path, **options: Any) -> Actor:
    """A policy that an update has moved."""
    config = PPOConfig.model_validate({"stage": "ppo", **options})
    torch.manual_seed(0)
    actor = Actor(model, config)
    with torch.no_grad():
        for name, parameter in actor.trainable().items():
            if "lora_B" in name or config.lora_r is None:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return actor


@pytest.mark.parametrize("lora_r", [4, None])
def test_an_actors_weights_are_those_of_the_policy_it_saves(tiny_model: Path, lora_r: int | None) -> None:
    actor = changed_actor(tiny_model, lora_r=lora_r, value="separate")
    handed_over = {name: tensor.clone() for name, tensor in actor.weights()}
    saved = dict(actor.merged().named_parameters())
    assert handed_over.keys() == saved.keys()
    assert all(torch.allclose(handed_over[name], saved[name], atol=1e-6) for name in saved)


@pytest.mark.real
def test_vllm_samples_from_the_updated_weights(real_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from cai.inference.chat_template import load_tokenizer
    from cai.training.ppo.sampling import VllmSampler
    from cai.training.tokens import end_of_turn, prompt_ids

    tokenizer = load_tokenizer(real_model)
    prompt, ends = prompt_ids(tokenizer, [{"role": "user", "content": PROMPT}]), {end_of_turn(tokenizer)}
    start, actor = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32), changed_actor(real_model)
    sampler = VllmSampler(real_model, 256, 4)

    def greedy(model: Any) -> list[int]:
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=list(ends))
        found: list[int] = ids[0, len(prompt) :].tolist()
        return found

    before = sampler.generate(start.named_parameters(), [prompt], [0], 24, 0.0, ends)
    after = sampler.generate(actor.weights(), [prompt], [0], 24, 0.0, ends)
    sampled = [sampler.generate(actor.weights(), [prompt] * 3, [1, 2, 1], 24, 1.0, ends) for _ in range(2)]
    assert before == [greedy(start)]
    assert after == [greedy(actor.merged())]
    assert before != after
    assert sampled[0] == sampled[1]
    assert sampled[0][0] == sampled[0][2] != sampled[0][1]
