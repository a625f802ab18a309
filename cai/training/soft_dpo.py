"""trl's DPOTrainer with a soft label for each pair. Imports trl: import this only where training happens."""

from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference


class SoftDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPO on a column `p`, P(chosen is preferred): mean of p·l(Δ) + (1 − p)·l(−Δ), l(x) = −log σ(βx).

    Since l(−x) = l(x) + βx, that is trl's own loss plus (1 − p)·βΔ: with p = 1 it is trl's to the bit. Needs
    `loss_type` sigmoid, `precompute_ref_log_probs=True` (whose numbers give Δ without another forward pass) and
    SoftPreferenceCollator.
    The expected loss under a label that is wrong with probability 1 − p is Mitchell 2023's conservative DPO, there
    with one p for all pairs (https://ericmitchell.ai/cdpo.pdf).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.loss_types != ["sigmoid"] or not self.precompute_ref_logps:
            raise ValueError("soft labels need loss_type sigmoid and precompute_ref_log_probs=True")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "p" not in self._signature_columns:
            self._signature_columns.append("p")

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        p = inputs.pop("p")
        seen: list[Any] = []

        def recording(**kwargs: Any) -> Any:
            seen.append(model(**kwargs))
            return seen[-1]

        result = super()._compute_loss(recording, inputs, return_outputs)
        tokens = inputs["completion_mask"].size(1) - 1
        chosen, rejected = seen[0].log_probs[:, -tokens:].sum(dim=1).chunk(2)
        delta = (chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"])
        extra = ((1 - p) * self.beta * delta).mean()
        return (result[0] + extra, result[1]) if return_outputs else result + extra

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """As trl's; the labels are no input of the model."""
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "p"})


class SoftPreferenceCollator(DataCollatorForPreference):  # type: ignore[misc]
    """trl's collator, which also carries the column `p` into the batch, shape (pairs,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad and stack; see trl."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p"] = torch.tensor([example["p"] for example in examples], dtype=torch.float32)
        return batch
