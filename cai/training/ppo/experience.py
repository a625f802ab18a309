"""What an update of PPO learns from: scored rollouts with advantages and returns, and answers of a file. Imports torch.

The latter are PPO-ptx (Ouyang et al. 2022, arXiv:2203.02155 §3.5 eq. 2): they keep the policy good at what the reward
does not measure. The paper mixes in text of the pretraining; here, as in SFT, the loss is on answers alone.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.data.prompts import read_completions
from cai.data.records import Demonstration, Skipped
from cai.training import distributed
from cai.training.ppo.actor import Actor, chosen_logps, response_logits
from cai.training.ppo.losses import approximate_kl, generalised_advantages, token_rewards, whitened
from cai.training.ppo.sampling import Rollout, Sample, VllmSampler, generate, padded
from cai.training.reward_model import combined
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


Score = Callable[[list[list[int]], list[list[int]]], Any]
"""(prompts, responses) as token ids → scores of shape (responses, members)."""


class Task(NamedTuple):
    """What the policy answers and how it is rewarded."""

    prompts: Sequence[list[int]]
    """As token ids."""
    score: Score
    ends: set[int]
    """The tokens that end a response."""
    metrics: Callable[[], dict[str, float]] = dict
    """Of the responses scored since the last call, beside their scores."""
    examples: Sequence[Example] = ()
    """Answers that it learns beside them."""


class Collector:
    """Samples the rollouts of each update from the policy as it stands."""

    def __init__(
        self, settings: PPOConfig, actor: Actor, task: Task, seed: int, vllm: VllmSampler | None = None
    ) -> None:
        self.settings, self.actor, self.task, self.seed, self.vllm = settings, actor, task, seed, vllm

    def collect(self, update: int) -> list[Rollout]:
        """The update's rollouts, each with its score, log-probabilities and values; all processes get all of them."""
        settings = self.settings
        chosen = drawn(len(self.task.prompts), settings.rollouts, update, self.seed)
        rows = distributed.shard(list(range(settings.rollouts)))
        prompts = [self.task.prompts[chosen[row]] for row in rows]
        samples = self._sample(prompts, rows, update)
        responses = [sample.tokens for sample in samples]
        scores = self.task.score(prompts, responses)
        by_length = sorted(range(len(rows)), key=lambda i: len(prompts[i]) + len(responses[i]))  # little padding
        rollouts: dict[int, Rollout] = {}
        size = settings.per_device_train_batch_size
        parts = [by_length[start : start + size] for start in range(0, len(rows), size)]
        for part, counts in distributed.joint(parts, parts[0], settings.fsdp):
            batch = padded([(prompts[i], responses[i]) for i in part], self.actor.device)
            with torch.no_grad():
                outputs = self.actor.evaluate(batch, with_entropy=True)
                reference = self.actor.reference_logps(batch)
            for row, i in enumerate(part if counts else ()):
                n = len(responses[i])
                rollouts[i] = Rollout(
                    prompt=prompts[i],
                    response=responses[i],
                    finished=responses[i][-1] in self.task.ends,
                    sampler_logps=torch.tensor(samples[i].logps),
                    logps=outputs.logps[row, :n].cpu(),
                    reference_logps=reference[row, :n].cpu(),
                    values=outputs.values[row, :n].cpu(),
                    entropy=outputs.entropy[row, :n].mean().item(),
                    scores=scores[i].tolist(),
                )
        return distributed.gather([rollouts[i] for i in range(len(rows))])

    def _sample(self, prompts: list[list[int]], rows: list[int], update: int) -> list[Sample]:
        """A response to each prompt; `rows` are their places among the update's rollouts, which decide the seeds."""
        settings, actor, ends = self.settings, self.actor, self.task.ends
        if self.vllm is not None:
            seeds = [derive_seed(self.seed, "rollout", update, row) % 2**63 for row in rows]
            limits = settings.max_tokens, settings.temperature, ends
            sampled: list[Sample] = self.vllm.generate(actor.weights(), prompts, seeds, *limits)
            return sampled
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "rollouts", update) % 2**63)
        uniforms = torch.rand(settings.rollouts, settings.max_tokens, generator=generator)[rows].to(actor.device)
        responses: list[Sample] = generate(actor.model, prompts, uniforms, settings.temperature, ends)
        return responses


def drawn(prompts: int, rollouts: int, update: int, seed: int) -> list[int]:
    """Which prompts an update answers: passes over all of them, each in an order of its own."""
    positions = range((update - 1) * rollouts, update * rollouts)
    orders: dict[int, list[int]] = {}
    for number in {position // prompts for position in positions}:
        orders[number] = list(range(prompts))
        random.Random(derive_seed(seed, "prompts", number)).shuffle(orders[number])
    return [orders[position // prompts][position % prompts] for position in positions]


def prepare(settings: PPOConfig, rollouts: list[Rollout], kl_coef: float) -> None:
    """Give every rollout its advantages, whitened over all of them, and its returns."""
    logps, reference, values, mask = (
        pad_sequence(rows, batch_first=True)
        for rows in zip(
            *((r.logps, r.reference_logps, r.values, torch.ones_like(r.logps)) for r in rollouts), strict=True
        )
    )
    scores = combined(torch.tensor([r.scores for r in rollouts]), settings.uncertainty)
    if settings.score_clip is not None:
        scores = scores.clamp(-settings.score_clip, settings.score_clip)
    scores -= settings.missing_eos_penalty * torch.tensor([not r.finished for r in rollouts])
    rewards = token_rewards(scores, logps, reference, mask, kl_coef)
    if settings.whiten_rewards:
        rewards = whitened(rewards, mask, shift=False)
    advantages, returns = generalised_advantages(rewards, values, mask, settings.gamma, settings.lam)
    advantages = whitened(advantages, mask)
    for i, rollout in enumerate(rollouts):
        n = len(rollout.response)
        rollout.advantages, rollout.returns = advantages[i, :n], returns[i, :n]


def describe(rollouts: list[Rollout], kl_coef: float) -> dict[str, float]:
    """Metrics of the rollouts, before the update learns from them; means over the rollouts."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    kl = mean([(r.logps - r.reference_logps).sum().item() for r in rollouts])
    k3 = mean([approximate_kl(r.reference_logps, r.logps).sum().item() for r in rollouts])
    scores = mean([mean(r.scores) for r in rollouts])
    spread = mean([(sum((s - mean(r.scores)) ** 2 for s in r.scores) / len(r.scores)) ** 0.5 for r in rollouts])
    return {
        "objective/kl": kl,  # k1 of http://joschu.net/blog/kl-approx.html: unbiased, and at times below 0
        "objective/kl_k3": k3,  # unbiased, never below 0
        "objective/scores": scores,
        "objective/score_std": spread,
        "objective/rlhf_reward": scores - kl_coef * kl,
        "objective/entropy": mean([r.entropy for r in rollouts]),
        "response/length": mean([len(r.response) for r in rollouts]),
        "response/eos_rate": mean([float(r.finished) for r in rollouts]),
        "kl_coef": kl_coef,
    }


def sampler_mismatch(rollouts: Sequence[Rollout], cap: float | None) -> dict[str, float]:
    """How far the sampler's probabilities are from those of the training's forward pass, over all tokens.

    Args: cap as in `importance_weights`; None where nothing is corrected.
    Returns: |Δ log-probability| in nats; KL(sampler ‖ trainer) in nats a token, by k3; and Kish's effective sample size
    of the uncapped weights as a share of the tokens, 1 where the two are the same.
    """
    log_weights = torch.cat([r.logps - r.sampler_logps for r in rollouts]).double()
    weights = log_weights.exp()
    capped = {} if cap is None else {"sampling/capped": (weights > cap).float().mean().item()}
    return {
        "sampling/sampling_logp_difference/mean": log_weights.abs().mean().item(),
        "sampling/sampling_logp_difference/max": log_weights.abs().max().item(),
        "sampling/kl": (weights - 1 - log_weights).mean().item(),
        "sampling/effective_sample_size": (weights.mean() ** 2 / weights.square().mean()).item(),
        **capped,
    }


def shown(rollout: Rollout, tokenizer: Any) -> dict[str, Any]:
    """A rollout as a person reads it."""
    return {
        "prompt": tokenizer.decode(rollout.prompt),
        "response": tokenizer.decode(rollout.response),
        "score": sum(rollout.scores) / len(rollout.scores),
        "kl": (rollout.logps - rollout.reference_logps).sum().item(),
        "tokens": len(rollout.response),
    }
