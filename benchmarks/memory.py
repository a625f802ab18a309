"""The memory that `cai train --estimate` computes, against the peak of trainings on this machine's CPU.

    python benchmarks/memory.py            # every setting below, twice: about 15 minutes
    python benchmarks/memory.py sft ppo    # of these stages alone; tests/training/test_memory.py has the others

Each training is a process of its own, of one thread, with the small model in float32, over batches of the settings'
full size and length, in each of which one text is half as long, so that they are padded. `measured` is the peak of
resident memory (VmHWM) above what the process takes once its libraries are loaded, in GiB, with freed blocks of more
than 64 KiB returned to the system (MALLOC_MMAP_THRESHOLD_); `default_malloc` is the same where glibc keeps freed memory
as it does by default, for the first setting of each stage.

Reading the line of JSON: `ratio` is estimate ÷ measured; `within` is the share of settings whose ratio is from 0.85 to
1.15.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cai.data.jsonl import write_rows
from cai.data.records import Demonstration, Message, Preference, Prompt
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import resolve_model
from cai.training.memory import Estimate, estimate
from cai.training.model_shape import read_shape
from cai.training.settings import Online, SFTConfig, TrainConfig
from cai.training.stage import STAGES, StageSpec
from cai.training.tokens import prompt_ids, split_turn

MODEL = "smollm2-135m"
BATCHES = 2  # the second finds the optimizer's states
GIB = 2**30
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "65536"}
FULL = {"lora_r": None}


def case(stage: str, batch: int, length: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "per_device_train_batch_size": batch, "max_length": length, **more}


PPO = {"rollouts": 4, "max_tokens": 32, "updates": 2, "num_ppo_epochs": 1, "gradient_accumulation_steps": 1}
CASES = [
    case("sft", 1, 256),
    case("sft", 2, 256),
    case("sft", 4, 256),
    case("sft", 2, 256, **FULL),
    case("sft", 4, 256, gradient_checkpointing=True),
    case("sft", 2, 384, attn_implementation="eager"),
    case("sft", 2, 256, lora_target_modules=["q_proj", "v_proj"]),
    case("sft", 2, 128, gradient_accumulation_steps=2, **FULL),
    case("dpo", 2, 256),
    case("dpo", 1, 256, **FULL),
    case("reward", 2, 256),
    case("reward", 2, 256, **FULL),
    case("ppo", 2, 160, **PPO),
    case("ppo", 2, 160, value="separate", **PPO),
    case("ppo", 2, 160, **PPO, **FULL),
]


def settings_of(values: dict[str, Any]) -> TrainConfig:
    return STAGES[values["stage"]].model_validate({"save_steps": 10_000, **values})


def write_data(settings: TrainConfig, model: Path, path: Path) -> None:
    """Rows for a few batches: a text of exactly the settings' length, and one half as long, in each."""
    tokenizer, length = load_tokenizer(model), settings.max_length
    asked = [Message(role="user", content=word(tokenizer))]
    rows = range(BATCHES * settings.per_device_train_batch_size * settings.gradient_accumulation_steps)
    if isinstance(settings, Online):
        longest = length - settings.max_tokens - len(prompt_ids(tokenizer, asked)) + 1
        texts = [[Message(role="user", content=word(tokenizer) * (longest // (1 + i % 2)))] for i in range(32)]
        write_rows(path, [Prompt(id=str(i), messages=messages) for i, messages in enumerate(texts)])
        return
    prompt, [answer] = split_turn(tokenizer, asked, word(tokenizer))
    longest = length - len(prompt) - len(answer) + 1
    answers = [word(tokenizer) * longest, word(tokenizer) * (longest // 2)]
    if isinstance(settings, SFTConfig):
        write_rows(path, [Demonstration(prompt_id=str(i), messages=asked, completion=answers[i % 2]) for i in rows])
        return
    pair = {"messages": asked, "chosen": answers[0], "rejected": answers[1], "p": 1.0, "source": "human"}
    write_rows(path, [Preference.model_validate({"prompt_id": str(i), **pair}) for i in rows])


def word(tokenizer: Any) -> str:
    """A text of one token, and of n tokens where it is repeated n times."""
    return next(text for text in (" word", "x") if len(tokenizer.encode(text * 9, add_special_tokens=False)) == 9)


def status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def train(values: dict[str, Any], model: Path, folder: Path, reward: Path | None) -> int:
    """Bytes of the peak above what libraries take."""
    settings = settings_of(values)
    write_data(settings, model, folder / "data.jsonl")
    (folder / "out").mkdir()
    load_libraries(values["stage"])
    load_tokenizer(model)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from here
    from cai.training.worker import train as run

    run(StageSpec(settings, folder / "data.jsonl", model, folder / "out", reward=reward), lambda event: None)
    return status("VmHWM") - before


def load_libraries(stage: str) -> None:
    """Whatever the stage imports, and a first computation."""
    import datasets
    import peft
    import torch
    import transformers
    import trl

    from cai.training import dpo, kto, online, orpo, reward, sft  # noqa: F401
    from cai.training.ppo import trainer  # noqa: F401

    online.keep_vllm_out_of_trl()
    names = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward", "rloo": "RLOO", "grpo": "GRPO"}
    if stage in names:
        getattr(trl, f"{names[stage]}Trainer")
    assert datasets and peft and transformers.AutoModelForCausalLM
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64, requires_grad=True)).sum().backward()


def measure(values: dict[str, Any], reward: Path | None, environment: dict[str, str], keep: Path | None = None) -> int:
    """Bytes of the peak of a training in a process of its own, which with `keep` leaves its model there."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "child", json.dumps(values), str(keep or folder), str(reward or "")]
        child = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        raise SystemExit(f"{values}: {child.stderr[-2000:]}")
    return int(child.stdout.strip().splitlines()[-1])


def computed(values: dict[str, Any]) -> Estimate:
    return estimate(settings_of(values), read_shape(MODEL))


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        reward = Path(sys.argv[4]) if sys.argv[4] else None
        print(train(json.loads(sys.argv[2]), resolve_model(MODEL), Path(sys.argv[3]), reward))
        return
    chosen = [values for values in CASES if not sys.argv[1:] or values["stage"] in sys.argv[1:]]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        reward = None
        if any(isinstance(settings_of(values), Online) for values in chosen):
            measure(case("reward", 2, 128), None, {}, Path(folder))
            reward = Path(folder) / "out/model"
        for values in chosen:
            size = computed(values).peak
            measured = measure(values, reward, RETURNED)
            row = {
                **{key: value for key, value in values.items() if key not in PPO},
                "estimate": round(size / GIB, 3),
                "measured": round(measured / GIB, 3),
                "ratio": round(size / measured, 3),
            }
            if values["stage"] not in [other["stage"] for other in results]:
                row["default_malloc"] = round(measure(values, reward, {}) / GIB, 3)
            results.append(row)
            print(row, file=sys.stderr, flush=True)
    within = sum(0.85 <= row["ratio"] <= 1.15 for row in results) / len(results)
    print(json.dumps({"benchmark": "memory", "within": round(within, 3), "settings": results}))


if __name__ == "__main__":
    main()
