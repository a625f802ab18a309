"""Supervised fine-tuning on revisions, SL-CAI (Bai et al. 2022, §3): trl's SFTTrainer, loss on the answer alone."""

from pathlib import Path
from typing import Any, Literal

from cai.formats.jsonl import read_rows
from cai.records import Revision
from cai.training import common


class SFTConfig(common.TrainConfig):
    """`stage: sft` of `train:`; trains on the revisions of all rounds that hygiene finds fit."""

    stage: Literal["sft"]
    data: Literal["revisions"] = "revisions"


def train(settings: SFTConfig, data: Path, model: Path, folder: Path, seed: int, report: common.Report) -> None:
    """Train `model` on a file of Revision rows; writes folder/model, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    tokenizer = common.load_tokenizer(model)
    rows = [row for row in read_rows(data, Revision) if not row.flags]

    def example(row: Revision) -> dict[str, Any]:
        return {"prompt": row.messages, "completion": common.answer(row.revision)}

    examples, too_long = common.fit_for_length(tokenizer, rows, settings.max_length, example)
    report({"examples": len(examples), "too_long": too_long})
    trainer = trl.SFTTrainer(
        model=str(model),
        args=trl.SFTConfig(**common.trl_arguments(settings, folder, seed), completion_only_loss=True),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=common.lora_config(settings),
    )
    common.train_and_save(trainer, tokenizer, folder, report)
