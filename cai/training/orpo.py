"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), by trl's ORPOTrainer: no reference model."""

from pathlib import Path
from typing import Any

from cai.data.records import Preference
from cai.training import common
from cai.training.common import read_hard_pairs
from cai.training.settings import ORPOConfig


def train(settings: ORPOConfig, data: Path, model: Path, folder: Path, seed: int, report: common.Report) -> None:
    """Train `model` on a file of Preference rows; writes folder/model, checkpoints and metrics.jsonl."""
    import datasets
    from trl.experimental import orpo

    tokenizer = common.load_tokenizer(model)
    hard, undecided = read_hard_pairs(data, "orpo")

    def example(row: Preference) -> dict[str, Any]:
        return {"prompt": row.messages, "chosen": common.answer(row.chosen), "rejected": common.answer(row.rejected)}

    examples, too_long = common.fit_for_length(tokenizer, hard, settings.max_length, example)
    report({"examples": len(examples), "too_long": too_long, "undecided": undecided})
    trainer = orpo.ORPOTrainer(
        model=str(model),
        args=orpo.ORPOConfig(
            **common.trl_arguments(settings, folder, seed),
            beta=settings.beta,
            remove_unused_columns=False,  # trl's collator needs this
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=common.lora_config(settings),
    )
    common.train_and_save(trainer, tokenizer, settings, folder, report)
