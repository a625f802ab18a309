"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), by trl's ORPOTrainer: no reference model.

cai train orpo --data pairs.jsonl --model smollm2-135m
"""

from typing import Any

from cai.data.records import Preference
from cai.training import trl_stage
from cai.training.settings import ORPOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import assistant_turn, load_tokenizer


def train(spec: StageSpec[ORPOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets
    from trl.experimental import orpo

    settings, tokenizer = spec.settings, load_tokenizer(spec.model)
    hard, undecided = trl_stage.read_hard_pairs(spec.data, "orpo")

    def example(row: Preference) -> dict[str, Any]:
        return {"prompt": row.messages, "chosen": assistant_turn(row.chosen), "rejected": assistant_turn(row.rejected)}

    examples, too_long = trl_stage.fit_for_length(tokenizer, hard, settings.max_length, example)
    report({"examples": len(examples), "too_long": too_long, "undecided": undecided})
    trainer = orpo.ORPOTrainer(
        model=str(spec.model),
        args=orpo.ORPOConfig(
            **trl_stage.trl_arguments(settings, spec.folder, spec.seed),
            beta=settings.beta,
            remove_unused_columns=False,  # trl's collator needs this
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)
