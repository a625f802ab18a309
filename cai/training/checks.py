"""What of a stage's settings can be seen to fail before anything is paid for: arguments of trl, layers, attention."""

import dataclasses
import difflib
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from cai.config.errors import CaiError
from cai.training.settings import DatasetConfig, TrainConfig

OWN = {"max_completion_length": "max_tokens", "max_new_tokens": "max_tokens", "seed": "the run's seed"}
"""Arguments of trl that have another name here."""
FIXED = ("output_dir", "data_seed", "use_cpu", "save_strategy", "remove_unused_columns", "completion_only_loss",
         "precompute_ref_log_probs", "chat_template_path", "trust_remote_code", "resume_from_checkpoint")  # fmt: skip
"""Those whose value what surrounds the training depends on, or that could run code of another's run file."""
FIXED_PARTS = ("logging_", "hub_", "push_to_hub", "vllm", "init_kwargs", "eval_", "tags")
"""Parts of names of such arguments."""
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
    if isinstance(settings, DatasetConfig) and settings.trl:
        _check_trl(settings, place)
    if isinstance(settings.lora_target_modules, list) and model is not None:
        _check_targets(settings.lora_target_modules, model, place)


def _check_trl(settings: DatasetConfig, place: str) -> None:
    config = _trl_config(settings.stage)  # type: ignore[attr-defined]
    known = [field.name for field in dataclasses.fields(config)]
    own = set(type(settings).model_fields)
    for name, value in settings.trl.items():
        if name in own or name in OWN:
            raise CaiError(f"{place}.trl.{name}: is a setting of its own; write {OWN.get(name, name)} beside `trl`")
        if name in FIXED or any(part in name for part in FIXED_PARTS):
            raise CaiError(f"{place}.trl.{name}: is set by cai, and cannot be changed")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CaiError(f"{place}.trl.{name}: trl's config of {settings.stage} has no such argument{hint}")  # type: ignore[attr-defined]
        _check_type(get_type_hints(config)[name], value, f"{place}.trl.{name}")


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
