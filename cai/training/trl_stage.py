"""What the stages that trl trains share: arguments, LoRA, rows that fit, checkpoints, metrics, the saved policy."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows
from cai.data.records import Preference, Source
from cai.inference.chat import turn_end
from cai.inference.models import loading_options
from cai.training.distributed import device
from cai.training.setting_parts import quantized
from cai.training.settings import AnswersConfig, DatasetConfig, PreferenceConfig, TrainConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import AnyAnswers, SplitTurn, Unfit, keep_fitting, prompt_ids, row_turn, skip_truncated
from cai.training.tracking import Tracker, Trackers, add_metrics, drop_metrics_after, not_finite, read_metrics

AnyPreferenceConfig = TypeVar("AnyPreferenceConfig", bound=PreferenceConfig, covariant=True)
OTHER = {"chosen": "rejected", "rejected": "chosen"}
LORA_ALPHA = 2  # times the rank


def trl_arguments(settings: DatasetConfig, model: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The arguments that trl's configs of all stages take to train `model` here; checkpoints go below `folder`."""
    import torch

    on_gpu, weights = torch.cuda.is_available(), model_options(settings, model)
    return {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": settings.num_train_epochs,
        "learning_rate": settings.learning_rate,
        # Up to the full rate over the first tenth of the updates, from a share of it and not from 0 as plain `cosine`,
        # which wastes the first update and so all of a training that has one; then down to a tenth of the rate.
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "max_length": settings.max_length,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite must show
        "seed": seed,
        "bf16": on_gpu or weights["dtype"] == torch.bfloat16,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu
        if settings.gradient_checkpointing is None
        else settings.gradient_checkpointing,
        "model_init_kwargs": weights,
        "report_to": [],  # trackers are fed by our own callback, as in PPO
        "disable_tqdm": True,
    }


def model_options(settings: TrainConfig, model: Path) -> dict[str, Any]:
    """The arguments of `from_pretrained` for a model that is trained."""
    whole = plain_options(settings, model)
    if settings.quantization is None:
        return whole
    return whole | quantized(settings.quantization, whole["dtype"], device())


def plain_options(settings: TrainConfig, model: Path) -> dict[str, Any]:
    """`model_options` without quantization."""
    import torch

    small = settings.dtype == "bfloat16" or (settings.dtype == "auto" and torch.cuda.is_available())
    dtype = torch.bfloat16 if small and settings.lora_r is not None else torch.float32
    attention = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    return {"dtype": dtype, **loading_options(model), **attention}


def trl_config(kind: Any, settings: DatasetConfig, arguments: dict[str, Any]) -> Any:
    """trl's config of a stage: our `arguments`, and what `trl` of the settings adds, whose names are checked before.

    Raises: CaiError for values that trl refuses.
    """
    if getattr(settings, "lora_dropout", 0) and hasattr(kind, "disable_dropout"):
        arguments = {**arguments, "disable_dropout": False}  # else trl sets that of a LoRA to 0 as well
    if settings.fsdp:
        from cai.training.accelerate_fsdp import ARGUMENTS, let_accelerate_shard

        arguments = arguments | ARGUMENTS
    try:
        config = kind(**arguments, **settings.trl)
    except (TypeError, ValueError, ImportError) as error:
        if not settings.trl:
            raise
        raise CaiError(f"trl: {error}") from error
    if settings.fsdp:
        let_accelerate_shard(config)
    return config


def lora_config(settings: TrainConfig) -> Any:
    """peft's config of the settings' LoRA, or None to train all weights."""
    if settings.lora_r is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha or LORA_ALPHA * settings.lora_r,
        lora_dropout=getattr(settings, "lora_dropout", 0.0),  # PPO has none: its ratio of new to old begins at 1
        target_modules=settings.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def turns_that_fit(
    tokenizer: Any, rows: Iterable[AnyAnswers], settings: AnswersConfig
) -> tuple[list[tuple[AnyAnswers, SplitTurn]], Unfit]:
    """The rows whose prompt is shorter than `max_length` tokens, each with its tokens, and the other rows.

    trl gets token ids and tokenizes nothing itself: it would take what a text spells for control tokens.
    Raises: CaiError when no row is left.
    """
    max_length = settings.max_length
    finished, truncated = skip_truncated(rows, settings.truncated)

    def tokenize(row: AnyAnswers) -> tuple[AnyAnswers, SplitTurn] | None:
        return None if len(prompt_ids(tokenizer, row.messages)) >= max_length else (row, row_turn(tokenizer, row))

    kept, unfit = keep_fitting(finished, lambda row: row.prompt_id, tokenize)
    unfit = unfit._replace(truncated=truncated)
    if not kept and unfit == Unfit([], [], []):
        raise CaiError("nothing to train on: the feedback has no usable rows; skipped.jsonl has the reasons")
    if not kept:
        unfit.refuse_all_truncated()
        raise CaiError(f"nothing to train on: no prompt is shorter than max_length, {max_length} tokens: {unfit}")
    return kept, unfit


def read_pairs(spec: StageSpec[AnyPreferenceConfig]) -> tuple[list[Preference], dict[str, dict[Source, int]]]:
    """The labelled pairs of a stage, each with its weight times that of its source in `data`.

    Returns: the pairs, and for the stage's report the number of pairs `left_out` by source.
    Raises: CaiError when no source with a weight has a pair.
    """
    weights, pairs, left_out = spec.settings.data.by_source, list[Preference](), Counter[Source]()
    for row in read_rows(spec.data, Preference):
        if weight := weights[row.source]:
            pairs.append(row if weight == 1 else row.model_copy(update={"weight": row.weight * weight}))
        else:
            left_out[row.source] += 1
    if left_out and not pairs:
        sources = ", ".join(f"{count} by {source}" for source, count in left_out.items())
        raise CaiError(f"nothing to train on: `data` gives all pairs weight 0: {sources}")
    return pairs, {"left_out": dict(left_out)} if left_out else {}


def hard_pairs(pairs: Iterable[Preference], stage: str) -> tuple[list[Preference], list[str]]:
    """Labelled pairs for a loss that knows neither soft labels nor weights; see Returns.

    Verdicts are dropped, as they speak of the answer that was `chosen` in the file.
    Returns: the pairs, the likelier answer as `chosen` and p = 1, and the prompt ids of pairs with p = 0.5.
    Raises: CaiError naming the stage when pairs have different weights, or when p is 0.5 in all of them.
    """
    hard, undecided, weights = [], [], set()
    for row in pairs:
        weights.add(row.weight)
        if row.p == 0.5:
            undecided.append(row.prompt_id)
            continue
        if row.p < 0.5:
            cut = [OTHER[side] for side in row.truncated]
            row = row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen, "truncated": cut})
        hard.append(row.model_copy(update={"p": 1.0, "verdicts": []}))
    if len(weights) > 1:
        raise CaiError(
            f"{stage}: the preferences have weights from {min(weights):g} to {max(weights):g}, and this loss counts "
            "all pairs alike; dpo with loss_type sigmoid, ipo or robust weighs them"
        )
    if undecided and not hard:
        raise CaiError(f"{stage}: nothing to train on: all {len(undecided)} preferences have p = 0.5")
    return hard, undecided


def shared_dataset(examples: list[dict[str, Any]], folder: Path) -> Any:
    """The examples as a dataset; with several processes on disk, where all read what one of them precomputes.

    Call it after creating the trainer's arguments, which open the process group.
    """
    import datasets
    from accelerate import PartialState

    dataset = datasets.Dataset.from_list(examples)
    state = PartialState()
    if state.num_processes == 1:
        return dataset
    if state.is_main_process:
        dataset.save_to_disk(folder / "dataset")
    state.wait_for_everyone()
    return datasets.load_from_disk(folder / "dataset")


def train_and_save(
    trainer: Any, tokenizer: Any, spec: StageSpec[Any], report: Report, more: Callable[[], dict[str, float]] = dict
) -> None:
    """Train from the last complete checkpoint, if there is one, and save the policy as `model/` of the stage.

    `more` are metrics of each update beside the trainer's.
    """
    model = train(trainer, spec.settings.report_to, spec.folder / "metrics.jsonl", report, more)
    weights = sharded_weights(model) if spec.settings.fsdp else {}
    if trainer.is_world_process_zero():
        if spec.settings.quantization is not None:
            model = merged_into_plain(model, "default", spec.model, spec.settings)
        elif spec.settings.fsdp:
            model = rebuilt_policy(spec, weights, model)
        elif hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        save_policy(model, tokenizer, spec.folder / "model", spec.settings.save_dtype)


def shard_early(trainer: Any) -> None:
    """`shard_now`, where a trainer's model is to be sharded."""
    if trainer.is_fsdp_enabled:
        from cai.training.accelerate_fsdp import shard_now

        shard_now(trainer)


def sharded_weights(model: Any) -> dict[str, Any]:
    """`trained_weights`; {} in all processes but the first."""
    from cai.training.sharding import trained_weights

    return trained_weights(model)


def rebuilt_policy(spec: StageSpec[Any], weights: dict[str, Any], trained: Any) -> Any:
    """A policy of these trained weights, merged, on the CPU of this process; with the configuration of `trained`.

    A sharded one can be merged and saved by all processes at once alone, and whole on no GPU.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(spec.model, **plain_options(spec.settings, spec.model))
    model.config, model.generation_config = trained.config, trained.generation_config
    if (lora := lora_config(spec.settings)) is None:
        model.load_state_dict(weights)
        return model
    from peft import get_peft_model

    adapter = next(name.split(".")[-2] for name in weights if ".lora_A." in name)
    adapted = get_peft_model(model, lora, adapter_name=adapter)
    if unexpected := adapted.load_state_dict(weights, strict=False).unexpected_keys:
        raise ValueError(f"trained weights that the model has no place for: {unexpected[:3]}")
    return adapted.merge_and_unload()


def train(
    trainer: Any,
    report_to: Sequence[Tracker],
    metrics: Path,
    report: Report,
    more: Callable[[], dict[str, float]] = dict,
) -> Any:
    """Train from the last complete checkpoint, if there is one; returns the trained model."""
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    start = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    trainer.add_callback(_metrics_callback(metrics, start, report, report_to, more))
    for parameter in trainer.model.parameters():  # peft leaves a head, and trl a quantized model's LoRA, in bfloat16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if kept := read_metrics(metrics):  # trl counts the tokens of sft, dpo and kto in no checkpoint
        trainer._total_train_tokens = int(kept[-1].get("num_tokens", 0))
    shard_early(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.accelerator.unwrap_model(trainer.model)


def save_policy(model: Any, tokenizer: Any, target: Path, dtype: str | None = None) -> None:
    """Save a folder that transformers and vLLM load, in `dtype` if one is named; written beside `target` and renamed.

    Generation ends at the chat template's end of a turn, which a base model's configuration does not know.
    """
    import torch

    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    declared = model.generation_config.eos_token_id
    ends = set(declared if isinstance(declared, list) else [declared]) - {None}
    if (end := turn_end(tokenizer)) is not None and end not in ends:
        model.generation_config.eos_token_id = sorted(ends | {end})
    beside = target.with_name(target.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def merged_into_plain(trained: Any, adapter: str, folder: Path, settings: TrainConfig) -> Any:
    """The model in `folder`, not quantized, with the LoRA of a PeftModel over a quantized copy of it merged into it."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **plain_options(settings, folder))
    model.generation_config = trained.generation_config
    whole = get_peft_model(model, trained.peft_config[adapter], adapter_name=adapter)
    weights = get_peft_model_state_dict(trained, adapter_name=adapter)
    set_peft_model_state_dict(whole, weights, adapter_name=adapter)
    return whole.merge_and_unload()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones are removed (the trainer's state is written last)."""
    complete: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append((int(path.name.removeprefix("checkpoint-")), path))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return max(complete)[1] if complete else None


def _metrics_callback(
    path: Path, start: int, report: Report, report_to: Sequence[Tracker], more: Callable[[], dict[str, float]]
) -> Any:
    """A callback that appends the trainer's logs to metrics.jsonl and the trackers, and stops at a loss not finite.

    Lines that a resume will repeat are dropped. Logging precedes saving, so that no checkpoint holds weights that a
    broken update has spoiled.
    """
    from transformers import TrainerCallback

    drop_metrics_after(path, start)
    trackers = Trackers(report_to, path, start)

    class Metrics(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            for name in ("loss", "grad_norm"):
                if logs and not math.isfinite(logs.get(name, 0.0)):
                    raise not_finite(name, state.global_step)
            if logs and "train_runtime" in logs:  # the closing line: its mean loss is of this process's updates alone
                return
            if state.is_world_process_zero and logs:
                line = {"step": state.global_step, **logs, **more()}
                add_metrics(path, line)
                trackers.log(line)
                if logs.get("loss") is not None:
                    report({"step": state.global_step, "of": state.max_steps, "note": _progress_note(logs)})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trackers.finish()

    return Metrics()


def _progress_note(logs: dict[str, float]) -> str:
    """The metric of a progress line: the reward of online stages, whose losses stay near 0, else the loss."""
    if "reward" in logs:
        return f"reward {logs['reward']:.3f}" + (f", KL {logs['kl']:.2f}" if "kl" in logs else "")
    return f"loss {logs['loss']:.3f}"
