"""What PPO's actor hands to vLLM is the policy that it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.training.ppo.actor import Actor
from cai.training.settings import PPOConfig


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
