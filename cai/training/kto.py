"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306) on AI labels, by trl's KTOTrainer."""

import random
from pathlib import Path
from typing import Any

from cai.data.records import Preference
from cai.training import common
from cai.training.common import read_hard_pairs
from cai.training.settings import KTOConfig


def train(settings: KTOConfig, data: Path, model: Path, folder: Path, seed: int, report: common.Report) -> None:
    """Train `model` on a file of Preference rows; writes folder/model, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    tokenizer = common.load_tokenizer(model)
    hard, undecided = read_hard_pairs(data, "kto")

    def two_examples(row: Preference) -> list[dict[str, Any]]:
        answers = ((row.chosen, True), (row.rejected, False))
        return [{"prompt": row.messages, "completion": common.answer(text), "label": good} for text, good in answers]

    kept, too_long = common.fit_for_length(tokenizer, hard, settings.max_length, two_examples)
    examples = [example for pair in kept for example in pair]
    # trl keeps the order of the rows and takes a neighbour's answer for the KL term, which must be another prompt's.
    random.Random(seed).shuffle(examples)
    report({"examples": len(examples), "too_long": too_long, "undecided": undecided})
    trainer = trl.KTOTrainer(
        model=str(model),
        args=trl.KTOConfig(
            **common.trl_arguments(settings, folder, seed),
            beta=settings.beta,
            precompute_ref_log_probs=True,  # once for each example in place of once for each epoch
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=common.lora_config(settings),
    )
    common.train_and_save(trainer, tokenizer, settings, folder, report)
