"""Direct preference optimisation on AI labels (Rafailov et al. 2023, arXiv:2305.18290), each pair with its soft p."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cai.formats.jsonl import read_rows
from cai.records import Preference
from cai.training import common


class DPOConfig(common.TrainConfig):
    """`stage: dpo` of `train:`; `beta` is the strength of the pull to the reference, as in the paper."""

    stage: Literal["dpo"]
    data: Literal["preferences"] = "preferences"
    beta: Annotated[float, Field(gt=0)] = 0.1


def train(settings: DPOConfig, data: Path, model: Path, folder: Path, seed: int, report: common.Report) -> None:
    """Train `model` on a file of Preference rows; writes folder/model, checkpoints and metrics.jsonl."""
    import datasets
    import trl

    from cai.training.soft_dpo import SoftDPOTrainer, SoftPreferenceCollator

    tokenizer = common.load_tokenizer(model)

    def example(row: Preference) -> dict[str, Any]:
        chosen, rejected = common.answer(row.chosen), common.answer(row.rejected)
        return {"prompt": row.messages, "chosen": chosen, "rejected": rejected, "p": row.p}

    examples, too_long = common.fit_for_length(tokenizer, read_rows(data, Preference), settings.max_length, example)
    report({"examples": len(examples), "too_long": too_long})
    trainer = SoftDPOTrainer(
        model=str(model),
        args=trl.DPOConfig(
            **common.trl_arguments(settings, folder, seed),
            beta=settings.beta,
            precompute_ref_log_probs=True,  # once for each pair in place of once for each epoch
        ),
        data_collator=SoftPreferenceCollator(tokenizer.pad_token_id, settings.max_length),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=common.lora_config(settings),
    )
    common.train_and_save(trainer, tokenizer, folder, report)
