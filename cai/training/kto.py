"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306), by trl's KTOTrainer. Imports trl.

The likelier answer of a pair is a desirable example, the other an undesirable one.

    cai train kto --data pairs.jsonl --model smollm2-135m
"""

import random
from typing import Any

import trl

from cai.training import trl_stage
from cai.training.settings import KTOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import opened, stage_tokenizer


class TokenizedKTOTrainer(trl.KTOTrainer):  # type: ignore[misc]
    """trl's KTO on rows that are token ids already: columns `prompt_ids`, `completion_ids` and `label`."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """As trl's after it has tokenized: the answers of each batch, moved by one row, are those of the KL term."""

        def moved(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = batch["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        return dataset.map(moved, batched=True, batch_size=args.per_device_train_batch_size)


def train(spec: StageSpec[KTOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets

    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)
    pairs, left_out = trl_stage.read_pairs(spec)
    hard, undecided = trl_stage.hard_pairs(pairs, "kto")
    turns, unfit = trl_stage.turns_that_fit(tokenizer, hard, settings)
    examples = [
        {"prompt_ids": turn.prompt, "completion_ids": ids, "label": good}
        for _, turn in turns
        for ids, good in zip(turn.answers, (True, False), strict=True)
    ]
    # trl keeps the order of the rows and takes a neighbour's answer for the KL term, which must be another prompt's.
    random.Random(spec.seed).shuffle(examples)
    report(
        {
            "examples": len(examples),
            **unfit.event(),
            "undecided": undecided,
            **left_out,
            **opened(row for row, _ in turns),
        }
    )
    trainer = TokenizedKTOTrainer(
        model=str(spec.model),
        args=trl.KTOConfig(
            **trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed),
            beta=settings.beta,
            precompute_ref_log_probs=True,  # once for each example in place of once for each epoch
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)
