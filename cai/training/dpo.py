"""Direct preference optimisation on AI labels (Rafailov et al. 2023, arXiv:2305.18290), each pair with its soft p."""

import statistics
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cai.formats.jsonl import read_rows
from cai.records import Preference
from cai.training import common
from cai.training.pairs import read_hard_pairs

Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
SOFT: tuple[Loss, ...] = ("sigmoid", "ipo", "robust")  # the losses in which labels are soft and pairs are weighed
SMOOTHED: tuple[Loss, ...] = ("robust", "exo_pair", "aot", "aot_unpaired")  # trl's others ignore label_smoothing


class DPOConfig(common.TrainConfig):
    """`stage: dpo` of `train:`.

    The losses that train on hard labels leave out pairs with p = 0.5, reported as `undecided`, and refuse pairs of
    different weight.
    """

    stage: Literal["dpo"]
    data: Literal["preferences"] = "preferences"
    """What the stage learns from."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference, as in the paper."""
    loss: Loss = "sigmoid"
    """Any of trl's; sigmoid, ipo and robust take soft labels and weights, the others train on the likelier answer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong, beyond what p says; exo_pair needs some."""

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> Self:
        if self.label_smoothing > 0 and self.loss not in SMOOTHED:
            raise ValueError(f"label_smoothing: the loss {self.loss} ignores it; only {', '.join(SMOOTHED)} use it")
        if self.label_smoothing == 0 and self.loss == "exo_pair":
            raise ValueError("label_smoothing: the loss exo_pair needs it above 0, such as 0.001")
        return self


def train(settings: DPOConfig, data: Path, model: Path, folder: Path, seed: int, report: common.Report) -> None:
    """Train `model` on a file of Preference rows; writes folder/model, checkpoints and metrics.jsonl."""
    import trl

    from cai.training.soft_dpo import SoftDPOTrainer, SoftPreferenceCollator

    tokenizer = common.load_tokenizer(model)
    soft = settings.loss in SOFT
    if soft:
        rows, undecided = read_rows(data, Preference), list[str]()
    else:
        rows, undecided = read_hard_pairs(data, f"dpo with the loss {settings.loss}")
    kept, too_long = common.fit_for_length(tokenizer, rows, settings.max_length, lambda row: row)
    report({"examples": len(kept), "too_long": too_long, "undecided": undecided})
    mean_weight = statistics.fmean(row.weight for row in kept)  # equal weights become 1 to the bit, in float32

    def example(row: Preference) -> dict[str, Any]:
        chosen, rejected = common.answer(row.chosen), common.answer(row.rejected)
        labels = {"p": row.p, "weight": row.weight / mean_weight} if soft else {}
        return {"prompt": row.messages, "chosen": chosen, "rejected": rejected, **labels}

    arguments = trl.DPOConfig(
        **common.trl_arguments(settings, folder, seed),
        beta=settings.beta,
        loss_type=settings.loss,
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=True,  # once for each pair in place of once for each epoch
    )
    trainer = (SoftDPOTrainer if soft else trl.DPOTrainer)(
        model=str(model),
        args=arguments,
        data_collator=SoftPreferenceCollator(tokenizer.pad_token_id, settings.max_length) if soft else None,
        train_dataset=common.shared_dataset([example(row) for row in kept], folder),
        processing_class=tokenizer,
        peft_config=common.lora_config(settings),
    )
    common.train_and_save(trainer, tokenizer, settings, folder, report)
