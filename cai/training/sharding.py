"""Weights sharded over the processes by FSDP2, for our own loops and for trl's. Imports torch: import lazily.

Each layer is a group of its own, whose weights are gathered for its forward and its backward pass. All processes make
the same passes, each through the whole model: FSDP2 begins and ends there. accelerate shards the stages that trl
trains; the end of this module adds what it lacks for ours.
"""

import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import trl.models.utils as trl_models
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
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


ARGUMENTS: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
"""Of trl's configs. Each process writes its shards of a checkpoint."""


def let_accelerate_shard(config: Any) -> None:
    """Prepare a trl config, and accelerate, which trains whole copies on the CPU; before the trainer is made."""
    config.fsdp_plugin_args["mixed_precision_policy"] = precision(config.bf16)  # accelerate's own reduces in bfloat16
    for module in [trl_models, *(module for name, module in sys.modules.items() if name.startswith("trl."))]:
        if "prepare_fsdp" in vars(module):
            module.prepare_fsdp = _by_layer
    if config.use_cpu:
        AcceleratorState.__init__ = _init


def _by_layer(model: Any, accelerator: Any) -> Any:
    """A sharded reference model: trl's own is one group, which every process has whole in each pass."""
    return fsdp2_prepare_model(accelerator, model).eval()


_of_accelerate = AcceleratorState.__init__


def _init(state: Any, *arguments: Any, **named: Any) -> None:
    _of_accelerate(state, *arguments, **named)
    plugin = named.get("fsdp_plugin")
    if plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # from which it is read again and again


def _keeping_parameters(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """accelerate's `prepare` where the optimizer has sharded parameters already.

    accelerate finds them by where their data is, which is nowhere for every shard that has no rows: the optimizer would
    have one of these in place of all.
    """

    def prepared(*objects: Any, **named: Any) -> Any:
        optimizers = [thing for thing in objects if isinstance(thing, torch.optim.Optimizer)]
        parameters = [list(group["params"]) for optimizer in optimizers for group in optimizer.param_groups]
        result = prepare(*objects, **named)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, own in zip(groups, parameters, strict=True):
            group["params"] = own
        return result

    return prepared


def shard_now(trainer: Any) -> None:
    """Shard a trainer's model as accelerate does when training starts: passes of a reference may come before that.

    Called again after such passes it takes the weights that the last one gathered apart, as an optimizer needs them.
    """
    model = trainer.model
    if not is_sharded(model):
        _shard(model, trainer.accelerator)
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def _shard(model: Any, accelerator: Any) -> None:
    if accelerator.mixed_precision == "bf16":
        accelerator.native_amp = True  # else losses, too, would be computed in bfloat16; trl's passes follow it
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward.__func__)
        model.forward = MethodType(convert_outputs_to_fp32(autocast), model)
    fsdp2_prepare_model(accelerator, model)
    accelerator.prepare = _keeping_parameters(accelerator.prepare)
    for module in model.modules():
        if hasattr(module, "generation_config"):
            module._is_fsdp_managed_module = True  # where transformers samples: all processes then make as many passes
    training = model.training
    with torch.no_grad():  # the first pass, which settles the type of gradients, must find the adapters trainable
        model.eval()(input_ids=torch.ones(1, 1, dtype=torch.long, device=accelerator.device))
    model.train(training)
