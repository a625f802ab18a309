"""What of a stage's settings can be seen to fail before anything is paid for: arguments of trl, layers, attention."""

import dataclasses
import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from cai.config.errors import CaiError
from cai.config.validation import closest_names, describe, did_you_mean
from cai.training.distributed import visible_gpus
from cai.training.quantization import PACKAGE
from cai.training.settings import DatasetConfig, TrainConfig

OWN = {"max_completion_length": "max_tokens", "max_new_tokens": "max_tokens", "seed": "the run's seed"}
"""Arguments of trl that have another name here."""
FIXED = ("output_dir", "data_seed", "use_cpu", "save_strategy", "remove_unused_columns", "completion_only_loss",
         "precompute_ref_log_probs", "chat_template_path", "trust_remote_code", "resume_from_checkpoint")  # fmt: skip
"""Those whose value what surrounds the training depends on, or that could run code of another's run file."""
FIXED_PARTS = ("fsdp", "logging_", "hub_", "push_to_hub", "vllm", "init_kwargs", "eval_", "tags")
"""Parts of names of such arguments."""
LATE_VALUES: Mapping[tuple[str, str], Sequence[Any]] = {
    ("grpo", "loss_type"): ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    ("grpo", "scale_rewards"): ("group", "batch", "none", True, False),
    ("grpo", "importance_sampling_level"): ("token", "sequence"),
    ("grpo", "multi_objective_aggregation"): ("sum_then_normalize", "normalize_then_sum"),
    ("dpo", "f_divergence_type"): ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
}
"""The values of arguments that trl 1.16 looks at in its first loss, after all feedback has been paid for."""
OPTIMIZER_PACKAGES = {
    "adamw_torch_[48]bit": "torchao",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "galore_.*": "galore_torch",
    "(ada)?lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free_.*": "schedulefree",
    "apollo_.*": "apollo_torch",
    "stable_adamw": "optimi",
    ".*(8bit|bnb|paged|lion|ademamix).*": "bitsandbytes",
}
"""The packages that optimizers of transformers need, by patterns of which the first that fits counts."""
ATTENTION_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_stage(settings: TrainConfig, model: Path | None, place: str) -> None:
    """Raises: CaiError, which begins with `place`, for what the stage would fail at once it had its data.

    `model` is the folder it starts from, if that is known; one without weights is not looked at.
    """
    if (package := ATTENTION_PACKAGES.get(settings.attn_implementation or "")) and find_spec(package) is None:
        raise CaiError(
            f"{place}.attn_implementation: {settings.attn_implementation} needs the package {package}, which is not "
            "installed; sdpa needs none"
        )
    if settings.quantization is not None and find_spec(PACKAGE) is None:
        raise CaiError(
            f"{place}.quantization: {settings.quantization} needs the package {PACKAGE}, which is not installed: "
            "pip install 'cai-rlaif[quantization]'"
        )
    if getattr(settings, "vllm_enable_sleep_mode", False) and not visible_gpus():
        raise CaiError(f"{place}.vllm_enable_sleep_mode: needs a GPU, and there is none; leave it out")
    if isinstance(settings, DatasetConfig) and settings.trl:
        _check_trl(settings, place)
    if isinstance(settings.lora_target_modules, list) and model is not None:
        _check_targets(settings.lora_target_modules, model, place)


def _check_trl(settings: DatasetConfig, place: str) -> None:
    stage: str = settings.stage  # type: ignore[attr-defined]
    config = _trl_config(stage)
    fields = {field.name: field for field in dataclasses.fields(config)}
    known = list(fields)
    own = set(type(settings).model_fields)
    for name, value in settings.trl.items():
        if name in own or name in OWN:
            raise CaiError(f"{place}.trl.{name}: is a setting of its own; write {OWN.get(name, name)} beside `trl`")
        if name in FIXED or any(part in name for part in FIXED_PARTS):
            raise CaiError(f"{place}.trl.{name}: is set by cai, and cannot be changed")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CaiError(f"{place}.trl.{name}: trl's config of {stage} has no such argument{hint}")
        expected = get_type_hints(config)[name]
        allowed = LATE_VALUES.get((stage, name)) or _choices(expected, fields[name])
        if allowed and value not in allowed:
            raise CaiError(f"{place}.trl.{name}: {_not_among(value, allowed)}")
        if (stage, name) not in LATE_VALUES:
            _check_type(expected, value, f"{place}.trl.{name}")
        if name == "optim":
            _check_optimizer(str(value), f"{place}.trl.{name}")


def _choices(hint: Any, field: "dataclasses.Field[Any]") -> list[Any]:
    """The values that an argument may have: of the enumeration in its type, or those that its config lists; else []."""
    kinds = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, Enum)]
    if kinds:
        return [member.value for kind in kinds for member in kind]
    listed = list(field.metadata.get("choices") or ())
    return [*listed, field.default] if listed and field.default not in listed else listed


def _not_among(value: Any, allowed: Iterable[Any]) -> str:
    near = closest_names(str(value), map(str, allowed))
    found = f"expected one of {', '.join(map(str, allowed))}; found {describe(value)}"
    return f"{found}; {did_you_mean(near)}" if near else found


def _check_optimizer(name: str, place: str) -> None:
    package = next((package for names, package in OPTIMIZER_PACKAGES.items() if re.fullmatch(names, name)), None)
    if package is not None and find_spec(package) is None:
        raise CaiError(f"{place}: {name} needs the package {package}, which is not installed; adamw_torch needs none")


def _check_type(hint: Any, value: Any, place: str) -> None:
    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError:  # a class of theirs, whose values they check
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise CaiError(f"{place}: {error.errors()[0]['msg'].lower()}, found {value!r}") from None


def _trl_config(stage: str) -> Any:
    """The class of trl's arguments of a stage; importing it takes seconds."""
    with warnings.catch_warnings(action="ignore"):  # trl warns that experimental stages may change
        if stage == "orpo":
            from trl.experimental.orpo import ORPOConfig

            return ORPOConfig
        if stage == "online_dpo":
            from trl.experimental.online_dpo import OnlineDPOConfig

            return OnlineDPOConfig
    import trl

    return {"sft": trl.SFTConfig, "reward": trl.RewardConfig, "dpo": trl.DPOConfig, "kto": trl.KTOConfig,
            "rloo": trl.RLOOConfig, "grpo": trl.GRPOConfig}[stage]  # fmt: skip


def _check_targets(targets: Iterable[str], model: Path, place: str) -> None:
    from safetensors import safe_open

    modules = set[str]()
    for path in model.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            modules |= {name.removesuffix(".weight") for name in weights.keys() if name.endswith(".weight")}  # noqa: SIM118
    for target in targets:
        if modules and not any(name == target or name.endswith(f".{target}") for name in modules):
            ends = sorted(
                {name.rpartition(".")[2] for name in modules if name.endswith(("_proj", "_head", "fc1", "fc2"))}
            )
            near = difflib.get_close_matches(target, ends, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            found = f"it has {', '.join(ends)}" if ends else "see the names in its weights"
            raise CaiError(f"{place}.lora_target_modules: {model} has no layer {target}; {hint}{found}")
