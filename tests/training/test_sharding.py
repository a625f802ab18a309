"""Weights sharded by FSDP2, here over one process; test_distributed.py has two."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from cai.training.ppo.actor import Actor
from cai.training.ppo.sampling import padded
from cai.training.settings import PPOConfig
from cai.training.sharding import like, whole


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", [{"lora_r": 2, "value": "separate"}, {"lora_r": None, "value": "separate"}])
def test_every_weight_of_ppo_is_sharded_and_computes_the_same(
    settings: dict[str, Any], group: None, tiny_model: Path
) -> None:
    batch = padded([([5, 6, 7], [8, 9]), ([5], [6])], "cpu")
    outputs = []
    for fsdp in (False, True):
        torch.manual_seed(0)
        actor = Actor(tiny_model, PPOConfig(stage="ppo", fsdp=fsdp, **settings), reference=tiny_model)
        torch.nn.init.ones_(actor.value_head.weight)
        if fsdp:
            actor.shard()
            used = [*actor.model.parameters(), *actor._reference.parameters(), *actor.trainable().values()]
            assert all(isinstance(parameter, DTensor) for parameter in used)
        with torch.no_grad():
            new = actor.evaluate(batch, with_entropy=False)
        outputs.append((new.logps, new.values, actor.reference_logps(batch)))
    for plain, sharded in zip(*outputs, strict=True):
        torch.testing.assert_close(sharded, plain)


def test_a_tensor_is_sharded_as_a_parameter_is_and_gathered_again(group: None, tiny_model: Path) -> None:
    actor = Actor(tiny_model, PPOConfig(stage="ppo", fsdp=True, lora_r=None))
    actor.shard()
    parameter = actor.trainable()["value_head.weight"]
    tensor = torch.rand(parameter.shape)
    sharded = like(tensor, parameter)
    assert isinstance(sharded, DTensor) and sharded.placements == parameter.placements
    assert torch.equal(whole(sharded), tensor)
    assert whole(tensor) is tensor
