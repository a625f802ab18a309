"""The tables of docs/training-scale.md: memory of models of 1 to 70 billion parameters, computed and not run.

    python benchmarks/training_scale.py          # prints them
    python benchmarks/training_scale.py write    # puts them into the page

The sizes are those of the models' config.json: of Llama 3.2 and 3.1 also in Grattafiori et al. 2024 (arXiv:2407.21783,
table 3), of Qwen3 in Yang et al. 2025 (arXiv:2505.09388, table 1).
"""

import re
import sys
from pathlib import Path
from typing import Any

from cai.training.memory import LOSS, UPDATE, Estimate, estimate
from cai.training.model_shape import ModelShape, shape_of
from cai.training.stage import STAGES

PAGE = Path(__file__).parent.parent / "docs/training-scale.md"
GIB = 2**30
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 3.2 1B": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "head_dim": 64, "tie_word_embeddings": True,
    },
    "Llama 3.2 3B": LLAMA | {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "head_dim": 128, "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "Qwen3 32B": {
        "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "Llama 3.1 70B": LLAMA | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {"QLoRA": {"quantization": "4bit"}, "LoRA": {}, "full": {"lora_r": None}}
PARTS = ("weights", "LoRA", "optimizer", "gradients", "activations", "at work")
PER_STAGE = {"per_device_train_batch_size": 1, "max_length": 2048}
STAGES_SHOWN = {"sft": {}, "reward": {}, "dpo": {}, "ppo": {"rollouts": 128, "max_tokens": 512}, "grpo": {
    "num_generations": 4, "per_device_train_batch_size": 4, "max_tokens": 512}}  # fmt: skip


def shapes() -> list[ModelShape]:
    return [shape_of(name, config) for name, config in CONFIGS.items()]


def computed(stage: str, shape: ModelShape, method: str, gpus: int) -> Estimate:
    values = {"stage": stage, **PER_STAGE, **STAGES_SHOWN[stage], **METHODS[method], "fsdp": gpus > 1}
    return estimate(STAGES[stage].model_validate(values), shape, gpus)


def gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size else "–"


def by_parts() -> list[str]:
    """DPO, by model, method and GPUs: the parts at the moment that takes most."""
    lines = [
        f"| model | trained | GPUs | {' | '.join(PARTS)} | other | peak |",
        "|---|---|--:|" + "--:|" * (len(PARTS) + 2),
    ]
    for shape in shapes():
        for method in METHODS:
            for gpus in (1,) if method == "QLoRA" else (1, 8):
                memory = computed("dpo", shape, method, gpus)
                moment = max((LOSS, UPDATE), key=memory.total)
                sizes = {part.name: part.at[moment] for part in memory.parts}
                other = sum(size for name, size in sizes.items() if name not in PARTS)
                cells = [gib(sizes.get(name, 0)) for name in PARTS]
                lines.append(
                    f"| {shape.name} | {method} | {gpus} | {' | '.join(cells)} | {gib(other)} | {gib(memory.peak)} |"
                )
    return lines


def by_stage() -> list[str]:
    """The peak of each stage on eight GPUs."""
    lines = [f"| model | trained | {' | '.join(STAGES_SHOWN)} |", "|---|---|" + "--:|" * len(STAGES_SHOWN)]
    for shape in shapes():
        for method in ("LoRA", "full"):
            peaks = [gib(computed(stage, shape, method, 8).peak) for stage in STAGES_SHOWN]
            lines.append(f"| {shape.name} | {method} | {' | '.join(peaks)} |")
    return lines


TABLES = {"parts": by_parts, "stages": by_stage}


def with_tables(page: str) -> str:
    """The page with each table between its marks."""
    for name, table in TABLES.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(
            f"{marks[0]}.*?{marks[1]}", "\n".join([marks[0], "", *table(), "", marks[1]]), page, flags=re.DOTALL
        )
    return page


def main() -> None:
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for table in TABLES.values():
        print("\n".join(table()), end="\n\n")


if __name__ == "__main__":
    main()
