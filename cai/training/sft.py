"""Supervised fine-tuning on revisions, SL-CAI (Bai et al. 2022, §3): trl's SFTTrainer, loss on the answer alone."""

import random
from collections.abc import Sequence
from operator import add
from pathlib import Path
from typing import Any, Literal

from cai.data.jsonl import read_objects, read_rows
from cai.data.prompts import read_completions
from cai.data.records import Demonstration, Revision, Skipped
from cai.inference.chat_template import load_tokenizer
from cai.training import trl_stage
from cai.training.settings import SFTConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import SplitTurn, Unfit


def train(spec: StageSpec[SFTConfig], report: Report) -> None:
    """Train on a file of revisions or completions; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    settings, tokenizer = spec.settings, load_tokenizer(spec.model, spec.chat)

    def fitting(rows: Sequence[Demonstration]) -> tuple[list[dict[str, Any]], Unfit]:
        turns, unfit = trl_stage.turns_that_fit(tokenizer, rows, settings.max_length, lambda row: [row.completion])
        return [_example(turn) for _, turn in turns], unfit

    answers, skipped = _answers(spec.data, settings.rounds)
    examples, unfit = fitting(answers)
    mixed: dict[str, Any] = {}
    if settings.mix is not None:
        helpful, unusable = read_completions(Path(settings.mix))
        skipped = [*skipped, *unusable]
        fit, more_unfit = fitting(helpful)
        wanted = round(len(examples) * settings.mix_share / (1 - settings.mix_share))
        drawn = random.Random(spec.seed).sample(fit, min(wanted, len(fit)))
        examples, unfit = examples + drawn, Unfit(*map(add, unfit, more_unfit))
        mixed = {"mixed": len(drawn), "mix_share": len(drawn) / len(examples)}
    report({"examples": len(examples), **unfit.event(), **mixed})
    if skipped:
        report({"skipped": [row.model_dump() for row in skipped]})
    trainer = trl.SFTTrainer(
        model=str(spec.model),
        args=trl.SFTConfig(**trl_stage.trl_arguments(settings, spec.folder, spec.seed), completion_only_loss=True),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)


def _example(turn: SplitTurn) -> dict[str, Any]:
    """trl's columns of a tokenized prompt with its completion."""
    [answer] = turn.answers
    return {
        "input_ids": turn.prompt + answer,
        "completion_mask": [0] * len(turn.prompt) + [1] * len(answer),
    }


def _answers(data: Path, rounds: Literal["all", "last"]) -> tuple[list[Demonstration], list[Skipped]]:
    """The answers to learn and what is skipped; the fields of the first row tell the kind of file."""
    _, first = next(read_objects(data), (0, dict[str, Any]()))
    if "principle_id" not in first:
        return read_completions(data)
    return fit_revisions(read_rows(data, Revision), rounds), []


def fit_revisions(revisions: list[Revision], rounds: Literal["all", "last"]) -> list[Demonstration]:
    """The revisions that pass the filters, as answers to learn."""
    last = {row.prompt_id: row.round for row in sorted(revisions, key=lambda row: row.round)}
    return [
        Demonstration(prompt_id=row.prompt_id, messages=row.messages, tags=row.tags, completion=row.revision)
        for row in revisions
        if not row.flags and (rounds == "all" or row.round == last[row.prompt_id])
    ]
