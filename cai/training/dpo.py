"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), each pair with its soft label and weight.

trl's DPOTrainer, its loss extended. Imports trl: import this module only where a stage trains.

    cai train dpo --data pairs.jsonl --model smollm2-135m
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from cai.data.records import Preference
from cai.training import trl_stage
from cai.training.checks import check_rows
from cai.training.setting_parts import SOFT
from cai.training.settings import DPOConfig
from cai.training.stage import Report, StageSpec
from cai.training.tokens import SplitTurn, opened, stage_tokenizer


class TokenizedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """trl's DPO on rows that are token ids already: columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        trl_stage.shard_early(self)
        return super()._precompute_ref_logps(dataset, name, batch_size)


class SoftDPOTrainer(TokenizedDPOTrainer):
    """DPO on columns `p`, P(chosen better), and `weight`, of mean 1: mean of w·(p·l(Δ) + (1 − p)·l(−Δ)).

    l is trl's loss of a pair and Δ its margin. As that is l(Δ) + w·(1 − p)·(l(−Δ) − l(Δ)) + (w − 1)·l(Δ), we add the
    last two terms to trl's own loss: with p = 1 and w = 1 it is trl's to the bit. With x = βΔ and noise ε,
      sigmoid: l = −log σ(x)                                         (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)
      robust:  l = (−(1 − ε)·log σ(x) + ε·log σ(−x)) / (1 − 2ε)       (Chowdhury et al. 2024, arXiv:2403.00409)
      ipo:     l = (Δ − 1/(2β))², Δ of log-ratios per token           (Azar et al. 2023, arXiv:2310.12036, eq. 17)
    and l(−Δ) − l(Δ) is x, x / (1 − 2ε) and 2Δ/β. The expected loss under a label that is wrong with probability 1 − p
    is Mitchell 2023's conservative DPO, there with one p for all pairs (https://ericmitchell.ai/cdpo.pdf).

    Needs one such `loss_type`, `precompute_ref_log_probs=True` (whose numbers give Δ without another forward pass) and
    SoftPreferenceCollator.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.loss_types) != 1 or self.loss_types[0] not in SOFT or not self.precompute_ref_logps:
            raise ValueError(f"soft labels need one loss_type of {', '.join(SOFT)} and precompute_ref_log_probs=True")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in ("p", "weight") if name not in self._signature_columns]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        p, weight = inputs.pop("p"), inputs.pop("weight")
        outputs: list[Any] = []

        def recording(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        result = super()._compute_loss(recording, inputs, return_outputs)
        tokens = inputs["completion_mask"].size(1) - 1
        chosen, rejected = outputs[0].log_probs[:, -tokens:].sum(dim=1).chunk(2)
        loss, flipped = self._pair_losses(
            chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"], inputs["completion_mask"]
        )
        extra = (weight * (1 - p) * flipped + (weight - 1) * loss).mean()
        return (result[0] + extra, result[1]) if return_outputs else result + extra

    def _pair_losses(self, chosen: Any, rejected: Any, completion_mask: Any) -> tuple[Any, Any]:
        """l(Δ) and l(−Δ) − l(Δ) of each pair, from the log-ratios of its answers, all of shape (pairs,)."""
        if self.loss_types == ["ipo"]:
            chosen_tokens, rejected_tokens = completion_mask.sum(dim=1).clamp(min=1).chunk(2)
            delta = chosen / chosen_tokens - rejected / rejected_tokens
            return (delta - 1 / (2 * self.beta)) ** 2, 2 * delta / self.beta
        noise = self.label_smoothing if self.loss_types == ["robust"] else 0.0
        x = self.beta * (chosen - rejected)
        loss = (noise * logsigmoid(-x) - (1 - noise) * logsigmoid(x)) / (1 - 2 * noise)
        return loss, x / (1 - 2 * noise)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """As trl's; labels and weights are no inputs of the model."""
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k not in ("p", "weight")})


class SoftPreferenceCollator(DataCollatorForPreference):  # type: ignore[misc]
    """trl's collator, which also carries the columns `p` and `weight` into the batch, each of shape (pairs,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack; see trl."""
        batch: dict[str, Any] = super().torch_call(examples)
        for name in ("p", "weight"):
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


def train(spec: StageSpec[DPOConfig], report: Report) -> None:
    """Train on a file of Preference rows; writes `model/`, checkpoints and metrics.jsonl."""
    import trl

    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)
    soft = settings.loss_type in SOFT
    rows, left_out = trl_stage.read_pairs(spec)
    undecided = list[str]()
    if not soft:
        rows, undecided = trl_stage.hard_pairs(rows, f"dpo with loss_type {settings.loss_type}")
    turns, unfit = trl_stage.turns_that_fit(tokenizer, rows, settings)
    check_rows("dpo", len(turns))
    report(
        {"examples": len(turns), **unfit.event(), "undecided": undecided, **left_out, **opened(row for row, _ in turns)}
    )
    mean_weight = statistics.fmean(row.weight for row, _ in turns)  # equal weights become 1 to the bit, in float32

    def example(row: Preference, turn: SplitTurn) -> dict[str, Any]:
        chosen, rejected = turn.answers
        labels = {"p": row.p, "weight": row.weight / mean_weight} if soft else {}
        return {"prompt_ids": turn.prompt, "chosen_ids": chosen, "rejected_ids": rejected, **labels}

    arguments = trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed) | {
        "beta": settings.beta,
        "loss_type": settings.loss_type,
        "label_smoothing": settings.label_smoothing,
        "precompute_ref_log_probs": True,  # once for each pair in place of once for each epoch
    }
    trainer = (SoftDPOTrainer if soft else TokenizedDPOTrainer)(
        model=str(spec.model),
        ref_model=_loaded(spec.reference, settings),
        args=trl_stage.trl_config(trl.DPOConfig, settings, arguments),
        data_collator=SoftPreferenceCollator(tokenizer.pad_token_id, settings.max_length) if soft else None,
        train_dataset=trl_stage.shared_dataset([example(*turn) for turn in turns], spec.folder),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    trl_stage.train_and_save(trainer, tokenizer, spec, report)


def _loaded(reference: Path | None, settings: DPOConfig) -> Any:
    """The reference model; None where it is the policy that training starts from."""
    if reference is None:
        return None
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(reference, **trl_stage.model_options(settings, reference))
