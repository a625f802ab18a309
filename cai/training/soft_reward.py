"""trl's RewardTrainer with soft labels and rankings. Imports trl: import this only where training happens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import RewardTrainer


def soft_preference_loss(delta: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of a Bradley–Terry model against soft labels: mean of w·(−p·log σ(Δ) − (1−p)·log σ(−Δ)).

    Args: delta of shape (pairs,), reward of the first response minus that of the second; p of shape (pairs,),
    P(first preferred) in [0, 1]; weight of shape (pairs,), each pair's share, 1 / pairs for a plain mean.
    Returns: a scalar in nats. With p = 1 it is InstructGPT's eq. 1 (arXiv:2203.02155).
    """
    return -(weight * (p * logsigmoid(delta) + (1 - p) * logsigmoid(-delta))).sum()


def length_dependence(rewards: Tensor, lengths: Tensor) -> Tensor:
    """R² of the regression of reward on length within a batch, in [0, 1]: their squared Pearson correlation.

    ODIN (Chen et al. 2024, arXiv:2402.07319 §3.2) penalises the correlation's absolute value; the square is smooth.
    """
    r, n = rewards - rewards.mean(), lengths - lengths.mean()
    return (r * n).sum() ** 2 / (r.square().sum() * n.square().sum()).clamp_min(1e-8)


class SoftRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """Trains on prompts, each with its responses and the labelled pairs among them, in one batch element.

    All pairs of a prompt stand in one element, as in InstructGPT §3.5, so that a response is read once however many
    pairs it is part of; an element weighs the mean of its pairs' weights. With one pair of p = 1 an element, the loss
    is trl's to the bit. `length_control` is the weight of `length_dependence` in the loss.
    """

    def __init__(self, *args: Any, length_control: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.length_control = length_control
        self.model.config.get_text_config().pad_token_id = self.data_collator.pad  # where the score is read

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # token ids already

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["responses", "answer_tokens", "pairs", "p", "weight"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's loss; see the functions above for its parts."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards = outputs.logits.squeeze(-1)
        first, second = rewards[inputs["pairs"][:, 0]], rewards[inputs["pairs"][:, 1]]
        loss = soft_preference_loss(first - second, inputs["p"], inputs["weight"])
        if self.args.center_rewards_coefficient:
            loss = loss + self.args.center_rewards_coefficient * (inputs["weight"] * (first + second) ** 2).sum()
        if self.length_control:
            loss = loss + self.length_control * length_dependence(rewards, inputs["answer_tokens"])
        with torch.no_grad():
            log = self._metrics["train" if self.model.training else "eval"]
            decided = inputs["p"] != 0.5
            right = ((first > second) == (inputs["p"] > 0.5))[decided].float()
            if len(right):
                log["accuracy"].append(right.mean().item())
            log["mean_reward"].append(rewards.mean().item())
            log["margin"].append((first - second).mean().item())
        return (loss, outputs) if return_outputs else loss


class RankingCollator:
    """Pads the responses of all elements into one batch; `pairs` index its rows."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors: input_ids and attention_mask (responses, tokens), pairs (pairs, 2), p and weight (pairs,)."""
        sequences = [ids for example in examples for ids in example["responses"]]
        input_ids, attention_mask = right_padded(sequences, self.pad)
        pairs, weights, start = [], [], 0
        for example in examples:
            pairs += [[start + i, start + j] for i, j in example["pairs"]]
            weights += [w / (len(example["pairs"]) * len(examples)) for w in example["weight"]]
            start += len(example["responses"])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "answer_tokens": torch.tensor([n for example in examples for n in example["answer_tokens"]]).float(),
            "pairs": torch.tensor(pairs),
            "p": torch.tensor([p for example in examples for p in example["p"]]),
            "weight": torch.tensor(weights),
        }


def right_padded(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), both of shape (sequences, longest), padded at the right."""
    longest = max(len(ids) for ids in sequences)
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return ids, mask
