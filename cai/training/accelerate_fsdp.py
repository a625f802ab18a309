"""accelerate's FSDP2, which shards the stages that trl trains: what it lacks for ours. Imports torch: import lazily."""

import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import trl.models.utils as trl_models
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from cai.training.sharding import is_sharded, precision

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
