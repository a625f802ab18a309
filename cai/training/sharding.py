"""Weights sharded over the processes by FSDP2 (`torch.distributed.fsdp.fully_shard`). Imports torch: import lazily.

Each layer is a group of its own, whose weights are gathered for its forward and its backward pass. All processes make
the same passes, each through the whole model: FSDP2 begins and ends there.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cai.training.distributed import is_first_process


def shard(model: Any, bfloat16: bool | None = None) -> None:
    """Shard a model in place, of which all processes have the same weights; on a GPU where there is one.

    Its weights are gathered in `bfloat16` where passes are in it, which is on a GPU.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh, policy = _mesh(), precision(torch.cuda.is_available() if bfloat16 is None else bfloat16)
    for module in reversed(list(model.modules())):  # inner ones first
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def precision(bfloat16: bool) -> MixedPrecisionPolicy:
    """Weights gathered in bfloat16, which autocast then does not copy, and gradients summed in float32; or neither."""
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()


def _mesh() -> DeviceMesh:
    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))


def is_sharded(model: Any) -> bool:
    """Whether `shard` has been at it."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the shards of all processes, which call this together; one that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of a tensor that all have, as `parameter` is sharded; and on its device."""
    there = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return there
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


def kept_by_first(tensor: Tensor) -> Tensor | None:
    """`whole`, on the CPU, in the first process; None in the others, which do not keep it."""
    gathered = whole(tensor.detach())
    return gathered.cpu().contiguous() if is_first_process() else None


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a sharded model that are trained, by name, on the CPU of the first process; {} in the others.

    All processes call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: dict[str, Tensor] = get_model_state_dict(model, options=options)
    return weights


def trunk_of(model: Any) -> Callable[..., Any]:
    """The model without its head. That of a sharded one is run from the whole model, with logits of one token."""
    trunk = getattr(model, model.base_model_prefix)
    if not is_sharded(model):
        return trunk  # type: ignore[no-any-return]

    def call(**inputs: Any) -> Any:
        outputs: list[Any] = []
        hook = trunk.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            model(**inputs, logits_to_keep=1)
        finally:
            hook.remove()
        return outputs[0]

    return call
