"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306), by trl's KTOTrainer.

The likelier answer of a pair is a desirable example, the other an undesirable one.

    cai train kto --data pairs.jsonl --model smollm2-135m
"""

import random
from typing import Any

from cai.data.records import Preference
from cai.training import trl_stage
from cai.training.settings import KTOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import assistant_turn, load_tokenizer


def train(spec: StageSpec[KTOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    settings, tokenizer = spec.settings, load_tokenizer(spec.model)
    hard, undecided = trl_stage.read_hard_pairs(spec.data, "kto")

    def two_examples(row: Preference) -> list[dict[str, Any]]:
        answers = ((row.chosen, True), (row.rejected, False))
        return [{"prompt": row.messages, "completion": assistant_turn(text), "label": good} for text, good in answers]

    kept, too_long = trl_stage.fit_for_length(tokenizer, hard, settings.max_length, two_examples)
    examples = [example for pair in kept for example in pair]
    # trl keeps the order of the rows and takes a neighbour's answer for the KL term, which must be another prompt's.
    random.Random(spec.seed).shuffle(examples)
    report({"examples": len(examples), "too_long": too_long, "undecided": undecided})
    trainer = trl.KTOTrainer(
        model=str(spec.model),
        args=trl.KTOConfig(
            **trl_stage.trl_arguments(settings, spec.folder, spec.seed),
            beta=settings.beta,
            precompute_ref_log_probs=True,  # once for each example in place of once for each epoch
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)
