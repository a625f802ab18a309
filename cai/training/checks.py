"""What can be seen to fail before a stage trains: its arguments of trl, layers, attention and processes.

Light to import: no torch.
"""

import dataclasses
import difflib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from cai.config.errors import CaiError
from cai.config.validation import closest_names, describe, did_you_mean
from cai.data.jsonl import write_text
from cai.stats.formatting import counted
from cai.training.distributed import is_first_process, process_count, visible_gpus
from cai.training.setting_parts import QUANTIZATION_PACKAGE
from cai.training.settings import DatasetConfig, PPOConfig, TrainConfig
from cai.training.stage import AUTO, Report, StageSpec, worker_python

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
    if settings.quantization is not None and find_spec(QUANTIZATION_PACKAGE) is None:
        raise CaiError(
            f"{place}.quantization: {settings.quantization} needs the package {QUANTIZATION_PACKAGE}, "
            "which is not installed: pip install 'cai-rlaif[quantization]'"
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


PROCESSES = "processes.json"
"""In a stage's folder: what its checkpoints were written by."""
EXAMPLE = "torchrun --nproc_per_node 2"
PROCESS_COUNT = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes|workers)(?:=|\s+)([0-9]{1,6}|gpu|auto)\b")
"""In the command of torchrun, accelerate or ray."""


def check_launcher(settings: TrainConfig, launcher: str, place: str) -> None:
    """Raises: CaiError, which begins with `place`, for `fsdp` where it cannot be, before a worker starts."""
    check_sharding(settings, place)
    if settings.fsdp and len(worker_python(launcher)) == 1:
        raise CaiError(
            f"{place}.fsdp: shards over the processes of a launcher, and there is one process; set launcher, such as "
            f"`{EXAMPLE}`"
        )


def check_sharding(settings: TrainConfig, place: str) -> None:
    """Raises: CaiError, which begins with `place`, for settings that do not go with their `fsdp`."""
    if not settings.fsdp:
        return
    if getattr(settings, "use_vllm", False):
        raise CaiError(f"{place}.use_vllm: samples in one process, and fsdp shards over several; set one to false")
    if settings.quantization is not None:
        raise CaiError(f"{place}.quantization: quantized weights are not sharded; set fsdp: false, or leave it out")


def launched_gpus(launcher: str) -> int:
    """The GPUs of this machine on which a launcher starts processes: one where its command names no number of them."""
    visible = len(visible_gpus())
    if launcher.strip() == AUTO:
        return visible
    named = PROCESS_COUNT.search(launcher)
    return min(visible, 1 if named is None else int(named[1]) if named[1].isdecimal() else visible)


def fit_to_processes(spec: StageSpec[Any], report: Report) -> StageSpec[Any]:
    """The stage as the processes that a launcher started train it, before any of them loads a model.

    trl's trainer counts updates of as many batches as all processes take. On another number of them than wrote the
    checkpoint, each takes more or fewer for an update, so that an update has the same rows. PPO's checkpoints are
    whole, and its updates have as many rollouts with any number. What changes is reported.
    Raises: CaiError naming what was found and what was expected.
    """
    settings, processes = spec.settings, process_count()
    if settings.fsdp and processes == 1:
        raise CaiError(f"{settings.stage}.fsdp: shards over several processes, and the launcher started one")
    _check_accelerate(settings)
    if processes > 1 and getattr(settings, "use_vllm", False):
        raise CaiError(
            f"{settings.stage}: use_vllm samples in one process, and the launcher started {processes}: "
            "set use_vllm: false, or leave out the launcher"
        )
    if isinstance(settings, PPOConfig) and settings.rollouts < processes:
        raise CaiError(
            f"ppo: {counted(settings.rollouts, 'rollouts')} an update, for {processes} processes; start fewer"
        )
    now = {"processes": processes, "fsdp": settings.fsdp}
    path, checkpoints = spec.folder / PROCESSES, _checkpoints(spec.folder)
    before = json.loads(path.read_text(encoding="utf-8")) if checkpoints and path.exists() else now
    if is_first_process() and (not checkpoints or isinstance(settings, PPOConfig)):
        write_text(path, json.dumps(now))  # of the checkpoints to come; trl's keep the updates of the first
    if before == now:
        return spec
    difference = f"{checkpoints[-1]} was written by {_described(before)}, and the launcher started {_described(now)}"
    if isinstance(settings, PPOConfig):
        if before["processes"] != processes:
            report({"warning": f"{difference}: a step takes other rollouts together"})
        return spec
    start_anew = f"or remove {checkpoints[-1].parent} to train from the start"
    if before["fsdp"] != settings.fsdp:
        raise CaiError(f"{difference}: its files are others; start {_described(before)}, {start_anew}")
    batches = before["processes"] * settings.gradient_accumulation_steps
    if batches % processes:
        fitting = [str(number) for number in range(1 + settings.fsdp, batches + 1) if batches % number == 0]
        raise CaiError(
            f"{difference}: an update has {batches} batches, which so many cannot share; start "
            f"{' or '.join(fitting)}, {start_anew}"
        )
    each = {"gradient_accumulation_steps": batches // processes}
    report(
        {
            "warning": f"{difference}: gradient_accumulation_steps is {batches // processes}, and not "
            f"{settings.gradient_accumulation_steps}, so that an update has the same rows"
        }
    )
    return replace(spec, settings=settings.model_copy(update=each))


FSDP = "set fsdp: true (in the stage of a run file; for cai train --set fsdp=true)"


def _check_accelerate(settings: TrainConfig) -> None:
    """What a configuration of `accelerate launch` asks for by environment variables."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not settings.fsdp:
        raise CaiError(
            f"{settings.stage}: accelerate's configuration asks for FSDP; {FSDP}, and take the "  # type: ignore[attr-defined]
            "configuration of FSDP out of accelerate's"
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise CaiError(
            f"{settings.stage}: accelerate's configuration asks for ZeRO stage 3, whose weights cai cannot save; "  # type: ignore[attr-defined]
            f"{FSDP}, which shards the same, and start it by torchrun"
        )


def check_rows(stage: str, rows: int) -> None:
    """Raises: CaiError for more processes than rows: some would train on copies of the others' rows."""
    if rows < process_count():
        raise CaiError(f"{stage}: {counted(rows, 'rows')} to train on, for {process_count()} processes; start fewer")


def _checkpoints(folder: Path) -> list[Path]:
    found = [*folder.glob("checkpoints/*/*state.json"), *folder.glob("members/*/checkpoints/*/*state.json")]
    return sorted({path.parent for path in found if path.parent.suffix != ".part"}, key=lambda path: path.name)


def _described(launch: dict[str, Any]) -> str:
    processes = launch["processes"]
    return f"{processes} process{'es' if processes > 1 else ''} with fsdp: {json.dumps(launch['fsdp'])}"
