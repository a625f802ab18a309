"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), by trl's ORPOTrainer: no reference model.

cai train orpo --data pairs.jsonl --model smollm2-135m
"""

from typing import Any

from trl.experimental import orpo

from cai.training import trl_stage
from cai.training.checks import check_rows
from cai.training.settings import ORPOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import opened, stage_tokenizer

NLL = 4  # where trl's forward pass returns the mean negative log-likelihood of the prompts and chosen answers


class TokenizedORPOTrainer(orpo.ORPOTrainer):  # type: ignore[misc]
    """trl's ORPO on rows that are token ids already: columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def tokenize_row(self, feature: dict[str, list[int]], model: Any = None) -> dict[str, list[int]]:
        """As trl's, without the start and end tokens that it adds where a chat template writes none."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name in ("chosen", "rejected"):
            answer = feature[f"{name}_ids"][: max(0, self.max_length - len(prompt))]
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{name}_labels"] = [-100] * len(prompt) + answer
        return row

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """As trl's; the likelihood loss counts for its tokens' share of those of all processes, whose mean is taken.

        trl's own is a mean over a process's tokens, so that the mean over processes would depend on their number.
        """
        outputs, mask = super().concatenated_forward(model, batch), batch["chosen_attention_mask"]
        predicted = (mask.sum() - len(mask)).to(outputs[NLL])  # a row's first token is not
        share = predicted / self.accelerator.reduce(predicted, "mean")
        return (*outputs[:NLL], outputs[NLL] * share, *outputs[NLL + 1 :])


def train(spec: StageSpec[ORPOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
    import datasets

    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)
    pairs, left_out = trl_stage.read_pairs(spec)
    hard, undecided = trl_stage.hard_pairs(pairs, "orpo")
    turns, unfit = trl_stage.turns_that_fit(tokenizer, hard, settings)
    examples = [
        {"prompt_ids": turn.prompt, "chosen_ids": turn.answers[0], "rejected_ids": turn.answers[1]} for _, turn in turns
    ]
    check_rows("orpo", len(examples))
    report(
        {
            "examples": len(examples),
            **unfit.event(),
            "undecided": undecided,
            **left_out,
            **opened(row for row, _ in turns),
        }
    )
    trainer = TokenizedORPOTrainer(
        model=str(spec.model),
        args=trl_stage.trl_config(
            orpo.ORPOConfig,
            settings,
            trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed)
            | {"beta": settings.beta, "remove_unused_columns": False},  # trl's collator needs the latter
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)
