"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306), by trl's KTOTrainer. Imports trl.

The likelier answer of a pair is a desirable example, the other an undesirable one.

    cai train kto --data pairs.jsonl --model smollm2-135m
"""

import random
from collections.abc import Sequence
from typing import Any

import trl

from cai.training import trl_stage
from cai.training.checks import check_rows
from cai.training.settings import KTOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import opened, stage_tokenizer


class TokenizedKTOTrainer(trl.KTOTrainer):  # type: ignore[misc]
    """trl's KTO on rows that are token ids already: columns `prompt_ids`, `completion_ids`, `label` and
    `KL_completion_ids`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        trl_stage.shard_early(self)
        return super()._precompute_ref_logps(dataset, name, batch_size)


def with_kl_answers(examples: Sequence[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """The examples with `KL_completion_ids`, as trl makes them: the answers of each batch, moved by one row."""
    moved = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        for example, before in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            moved.append({**example, "KL_completion_ids": before["completion_ids"]})
    return moved


def train(spec: StageSpec[KTOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
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
    check_rows("kto", len(examples))
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
        args=trl_stage.trl_config(
            trl.KTOConfig,
            settings,
            trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed)
            # precomputed: once for each example in place of once for each epoch
            | {"beta": settings.beta, "precompute_ref_log_probs": True},
        ),
        train_dataset=trl_stage.shared_dataset(
            with_kl_answers(examples, settings.per_device_train_batch_size), spec.folder
        ),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)
