"""The rollouts that an update of PPO learns from, with their scores, advantages and returns. Imports torch."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from cai.config.hashing import derive_seed
from cai.training import distributed
from cai.training.ppo.actor import Actor
from cai.training.ppo.losses import approximate_kl, generalised_advantages, token_rewards, whitened
from cai.training.ppo.ptx import Example
from cai.training.ppo.sampling import Rollout, Sample, VllmSampler, generate, padded
from cai.training.reward_model import combined
from cai.training.settings import PPOConfig

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
