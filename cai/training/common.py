"""What all stages share: the settings, trl's arguments from them, metrics, checkpoints and the saved policy."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.jsonl import read_rows
from cai.data.records import Message, Preference
from cai.training.metrics import Tracker, Trackers, add_metrics, drop_metrics_after
from cai.training.settings import TrainConfig

Report = Callable[[dict[str, Any]], None]
LORA_ALPHA = 2.0  # times the rank, as is usual since Hu et al. 2021 (arXiv:2106.09685)


def trl_arguments(settings: TrainConfig, folder: Path, seed: int) -> dict[str, Any]:
    """The arguments that trl's configs of all stages take, for this machine."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        # Up to the full rate over the first tenth of the updates, from a share of it and not from 0 as plain `cosine`,
        # which wastes the first update and so all of a training that has one; then down to a tenth of the rate.
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "max_length": settings.max_length,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is no number must show
        "seed": seed,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
        "model_init_kwargs": {"dtype": torch.float32},
        "report_to": [],  # what is reported goes through our own callback, as in PPO
        "disable_tqdm": True,
    }


def device() -> str:
    """Where models live in this process: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def is_first_process() -> bool:
    """Whether this process writes the files; under torchrun the others only compute."""
    return int(os.environ.get("RANK", 0)) == 0


def vocabulary(tokenizer: Any) -> str:
    """A fingerprint of which token has which id."""
    return fingerprint(tokenizer.get_vocab())


def load_tokenizer(model: Path) -> Any:
    """The model's tokenizer, padding with its end token when it has no padding token of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def lora_config(settings: TrainConfig) -> Any:
    """A LoRA on every linear layer, or None to train all weights."""
    if settings.lora_rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=int(LORA_ALPHA * settings.lora_rank),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def answer(text: str) -> list[Message]:
    """A completion as trl wants it: the turns that follow the prompt."""
    return [Message(role="assistant", content=text)]


def fit_for_length(
    tokenizer: Any, rows: Iterable[Any], max_length: int, keep: Callable[[Any], Any]
) -> tuple[list[Any], list[str]]:
    """Rows whose prompt leaves room for an answer, each through `keep`, and the prompt ids of the others."""
    kept, too_long = [], []
    for row in rows:
        ids = tokenizer.apply_chat_template(row.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        if len(ids) < max_length:
            kept.append(keep(row))
        else:
            too_long.append(row.prompt_id)
    if not kept and not too_long:
        raise CaiError("nothing to train on: the feedback left no rows fit for it; skipped.jsonl says why")
    if not kept:
        raise CaiError(f"nothing to train on: no prompt is shorter than max_length, {max_length} tokens")
    return kept, too_long


def shared_dataset(examples: list[dict[str, Any]], folder: Path) -> Any:
    """The examples as a dataset; with several processes on disk, where all find what one of them precomputes.

    Call it after the trainer's arguments are made, which let the processes meet.
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


def train_and_save(trainer: Any, tokenizer: Any, settings: TrainConfig, folder: Path, report: Report) -> None:
    """Train from the last whole checkpoint, if there is one, and save the policy as `model/`."""
    model = train(trainer, settings, folder / "metrics.jsonl", report)
    if trainer.is_world_process_zero():
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        save_policy(model, tokenizer, folder / "model")


def train(trainer: Any, settings: TrainConfig, metrics: Path, report: Report) -> Any:
    """Train from the last whole checkpoint, if there is one; returns the trained model."""
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    start = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    trainer.add_callback(_metrics_callback(metrics, start, report, settings.report_to))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.accelerator.unwrap_model(trainer.model)


def save_policy(model: Any, tokenizer: Any, target: Path) -> None:
    """Save a folder that transformers and vLLM load; written beside and renamed."""
    beside = target.with_name(target.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


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


def _metrics_callback(path: Path, start: int, report: Report, report_to: Sequence[Tracker]) -> Any:
    """Appends what the trainer logs to metrics.jsonl and to trackers, and stops at a loss that is no number.

    Lines that a resume will repeat are dropped. Logging comes before saving, so that no checkpoint is made of weights
    that a broken update has spoiled.
    """
    from transformers import TrainerCallback

    drop_metrics_after(path, start)
    trackers = Trackers(report_to, path, start)

    class Metrics(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            for name in ("loss", "grad_norm"):
                if logs and not math.isfinite(logs.get(name, 0.0)):
                    raise not_finite(name, state.global_step)
            if state.is_world_process_zero and logs:
                add_metrics(path, {"step": state.global_step, **logs})
                trackers.log({"step": state.global_step, **logs})
                if logs.get("loss") is not None:
                    report({"step": state.global_step, "of": state.max_steps, "note": _note(logs)})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trackers.finish()

    return Metrics()


def _note(logs: dict[str, float]) -> str:
    """What a progress line says: the reward where one is earned, since online losses stay near 0, else the loss."""
    if "reward" in logs:
        return f"reward {logs['reward']:.3f}" + (f", KL {logs['kl']:.2f}" if "kl" in logs else "")
    return f"loss {logs['loss']:.3f}"


def not_finite(name: str, step: int) -> CaiError:
    """The error for a training that broke down."""
    return CaiError(
        f"{name} is no finite number at update {step}: training stopped, and the last checkpoint before it is kept; "
        "a lower learning_rate usually helps"
    )


# Labelled pairs for losses that know only which answer is better, not how surely or how much it counts.


def read_hard_pairs(data: Path, stage: str) -> tuple[list[Preference], list[str]]:
    """Each pair of a file with its likelier answer as `chosen` and p = 1, and the prompt ids of those with p = 0.5.

    Verdicts, which speak of the answer that was `chosen` before, are dropped.
    Raises: CaiError naming the stage when pairs weigh differently, as its loss is a plain mean over them, or when p is
    0.5 in all of them.
    """
    hard, undecided, weights = [], [], set()
    for row in read_rows(data, Preference):
        weights.add(row.weight)
        if row.p == 0.5:
            undecided.append(row.prompt_id)
            continue
        chosen, rejected = (row.chosen, row.rejected) if row.p > 0.5 else (row.rejected, row.chosen)
        hard.append(row.model_copy(update={"chosen": chosen, "rejected": rejected, "p": 1.0, "verdicts": []}))
    if len(weights) > 1:
        raise CaiError(
            f"{stage}: the preferences have weights from {min(weights):g} to {max(weights):g}, and this loss counts "
            "all pairs alike; dpo with the loss sigmoid, ipo or robust weighs them"
        )
    if undecided and not hard:
        raise CaiError(f"{stage}: nothing to train on: all {len(undecided)} preferences have p = 0.5")
    return hard, undecided
