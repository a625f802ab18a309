"""PPO-ptx: answers of a file that PPO learns beside the reward (Ouyang et al. 2022, arXiv:2203.02155 §3.5 eq. 2).

They keep the policy good at what the reward does not measure. The paper mixes in text of the pretraining; here, as in
SFT, the loss is on answers alone. Imports torch.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.data.prompts import read_completions
from cai.data.records import Demonstration, Skipped
from cai.training import distributed
from cai.training.ppo.actor import Actor, chosen_logps, response_logits
from cai.training.ppo.sampling import padded
from cai.training.settings import PPOConfig
from cai.training.tokens import SplitTurn, keep_fitting, prompt_ids, row_turn, skip_truncated

Example = tuple[list[int], list[int]]
"""Prompt and answer, as token ids."""


def read_examples(path: Path, tokenizer: Any, max_length: int) -> tuple[list[Example], list[Skipped]]:
    """The answers of a file, with their prompts within `max_length` tokens, and the rows that are skipped.

    As in SFT, longer answers are cut at the end, and truncated ones skipped.
    Raises: CaiError when none is left.
    """

    def tokenize(row: Demonstration) -> SplitTurn | None:
        return None if len(prompt_ids(tokenizer, row.messages)) >= max_length else row_turn(tokenizer, row)

    rows, skipped = read_completions(path)
    finished, truncated = skip_truncated(rows, "skip")
    turns, unfit = keep_fitting(finished, lambda row: row.prompt_id, tokenize)
    reasons = [
        *unfit.refused,
        *((prompt_id, f"longer than max_length, {max_length} tokens") for prompt_id in unfit.too_long),
        *((prompt_id, "its answer is truncated") for prompt_id in truncated),
    ]
    skipped += [Skipped(prompt_id=prompt_id, stage="ppo", reason=f"ptx: {why}") for prompt_id, why in reasons]
    if not turns:
        raise CaiError(f"ptx: {path}: no answer to learn: {skipped[0].reason}")
    return [(turn.prompt, turn.answers[0][: max_length - len(turn.prompt)]) for turn in turns], skipped


class AnswerLoss:
    """−log-likelihood of answers under the policy, at temperature 1: SFT's loss."""

    def __init__(self, settings: PPOConfig, actor: Actor, examples: Sequence[Example], seed: int) -> None:
        self._settings, self._actor, self._examples, self._seed = settings, actor, examples, seed

    def accumulate_gradients(self, count: int, *step: int) -> float:
        """Add the gradient of `ptx_coef` times the loss of `count` examples, drawn for this `step`; returns the loss.

        It is the mean over all tokens of the answers, in nats, batch by batch and process by process.
        """
        generator = random.Random(derive_seed(self._seed, "ptx", *step))
        drawn = generator.sample(self._examples, min(count, len(self._examples)))
        tokens = sum(len(answer) for _, answer in drawn)
        total = torch.zeros((), dtype=torch.float64)
        shard = sorted(distributed.shard(drawn), key=lambda example: sum(map(len, example)))
        size, sharded = self._settings.per_device_train_batch_size, self._settings.fsdp
        scale = distributed.process_count() if sharded else 1  # of which FSDP2 takes the mean
        parts = [shard[start : start + size] for start in range(0, len(shard), size)]
        for part, counts in distributed.joint(parts, drawn[:1], sharded):
            batch = padded(part, self._actor.device)
            logits, _ = response_logits(self._actor.model, batch, temperature=1.0)
            loss = -(chosen_logps(logits, batch.responses) * batch.mask).sum()
            (counts * scale * self._settings.ptx_coef * loss / tokens).backward()
            total += counts * loss.detach().double().cpu()
        return float(distributed.sum_over_processes(total) / tokens)
