"""Supervised fine-tuning on revisions, SL-CAI (Bai et al. 2022, §3): trl's SFTTrainer, loss on the answer alone."""

import random
from collections import Counter
from collections.abc import Sequence
from operator import add
from pathlib import Path
from typing import Any, Literal

from cai.data.filters import repeats_itself
from cai.data.jsonl import read_objects, read_rows
from cai.data.prompts import read_completions
from cai.data.records import Demonstration, Revision, Skipped
from cai.training import trl_stage
from cai.training.checks import check_rows
from cai.training.settings import DRAFTS, SFTConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import SplitTurn, Unfit, opened, stage_tokenizer


def train(spec: StageSpec[SFTConfig], report: Report) -> None:
    """Train on a file of revisions or completions; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)

    def fitting(rows: Sequence[Demonstration]) -> tuple[list[dict[str, Any]], Unfit]:
        turns, unfit = trl_stage.turns_that_fit(tokenizer, rows, settings)
        open_rows.update(opened(row for row, _ in turns))
        return [_example(turn) for _, turn in turns], unfit

    open_rows = Counter[str]()
    answers, skipped = _answers(spec.data, settings.rounds)
    drawn_drafts: list[Demonstration] = []
    if settings.mix == DRAFTS:
        answers, drawn_drafts = with_drafts(
            answers, ordinary_drafts(spec.data, settings.mix_tags), settings.mix_share, spec.seed
        )
    examples, unfit = fitting(answers)
    mixed: dict[str, Any] = {}
    if drawn_drafts:
        drawn, more_unfit = fitting(drawn_drafts)
        examples, unfit = examples + drawn, Unfit(*map(add, unfit, more_unfit))
        mixed = {"mixed": len(drawn), "mix_share": len(drawn) / len(examples)}
    if settings.mix_file is not None:
        helpful, unusable = read_completions(Path(settings.mix_file))
        skipped = [*skipped, *unusable]
        fit, more_unfit = fitting(helpful)
        wanted = round(len(examples) * settings.mix_share / (1 - settings.mix_share))
        drawn = random.Random(spec.seed).sample(fit, min(wanted, len(fit)))
        examples, unfit = examples + drawn, Unfit(*map(add, unfit, more_unfit))
        mixed = {"mixed": len(drawn), "mix_share": len(drawn) / len(examples)}
    check_rows("sft", len(examples))
    report({"examples": len(examples), **unfit.event(), **mixed, **open_rows})
    if skipped:
        report({"skipped": [row.model_dump() for row in skipped]})
    trainer = trl.SFTTrainer(
        model=str(spec.model),
        args=trl_stage.trl_config(
            trl.SFTConfig,
            settings,
            trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed) | {"completion_only_loss": True},
        ),
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


def ordinary_drafts(data: Path, tags: Sequence[str]) -> list[Demonstration]:
    """The model's own drafts to a run's prompts with one of the tags; of a file of completions none.

    Without those that are empty, truncated at max_tokens, or repeat themselves.
    """
    _, first = next(read_objects(data), (0, dict[str, Any]()))
    if "principle_id" not in first:
        return []
    return [
        Demonstration(prompt_id=row.prompt_id, messages=row.messages, tags=row.tags, completion=row.draft)
        for row in read_rows(data, Revision)
        if row.round == 1
        and not set(tags).isdisjoint(row.tags)
        and row.draft.strip()
        and "draft" not in row.truncated
        and not repeats_itself(row.draft)
    ]


def with_drafts(
    answers: Sequence[Demonstration], drafts: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """(answers, drafts) to learn: drafts are drawn until they are `share` of all, each in place of its revisions.

    So no prompt has two answers that contradict each other, as the paper's helpful prompts have no revisions. At least
    one answer stays.
    """
    revisions, drawn, left = Counter(row.prompt_id for row in answers), list[Demonstration](), len(answers)
    for draft in random.Random(seed).sample(drafts, len(drafts)):
        if len(drawn) >= share * (left + len(drawn)):
            break
        if left > revisions[draft.prompt_id]:
            left -= revisions[draft.prompt_id]
            drawn.append(draft)
    replaced = {draft.prompt_id for draft in drawn}
    return [row for row in answers if row.prompt_id not in replaced], drawn


def fit_revisions(revisions: list[Revision], rounds: Literal["all", "last"]) -> list[Demonstration]:
    """The revisions that pass the filters, as answers to learn."""
    last = {row.prompt_id: row.round for row in sorted(revisions, key=lambda row: row.round)}
    return [
        Demonstration(
            prompt_id=row.prompt_id,
            messages=row.messages,
            tags=row.tags,
            completion=row.revision,
            truncated="revision" in row.truncated,
        )
        for row in revisions
        if not row.flags and (row.round == last[row.prompt_id] if rounds == "last" else not row.stays or row.round == 1)
    ]
