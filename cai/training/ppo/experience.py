"""What an update of PPO learns from: rollouts with their scores, advantages and returns. Imports torch."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cai.config.hashing import derive_seed
from cai.training import distributed
from cai.training.ppo.actor import Actor
from cai.training.ppo.losses import generalised_advantages, token_rewards, whitened
from cai.training.ppo.sampling import Rollout, VllmSampler, generate, padded
from cai.training.reward_model import combined
from cai.training.settings import PPOConfig

Score = Callable[[list[list[int]], list[list[int]]], Any]
"""(prompts, responses) as token ids → scores of shape (responses, members)."""


def collect(
    settings: PPOConfig,
    actor: Actor,
    prompts: Sequence[list[int]],
    score: Score,
    ends: set[int],
    update: int,
    seed: int,
    vllm: VllmSampler | None = None,
) -> list[Rollout]:
    """The update's rollouts, each with its score, log-probabilities and values; all processes get all of them."""
    asked = [prompts[i] for i in drawn(len(prompts), settings.rollouts, update, seed)]
    rows = distributed.own(list(range(settings.rollouts)))
    own_prompts = [asked[i] for i in rows]
    if vllm is None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "rollouts", update) % 2**63)
        uniforms = torch.rand(settings.rollouts, settings.max_tokens, generator=generator)[rows].to(actor.device)
        responses = generate(actor.trunk, actor.head, own_prompts, uniforms, settings.temperature, ends)
    else:
        seeds = [derive_seed(seed, "rollout", update, row) % 2**63 for row in rows]
        limits = settings.max_tokens, settings.temperature, ends
        responses = vllm.generate(actor.weights(), own_prompts, seeds, *limits)
    scores = score(own_prompts, responses)
    rollouts: dict[int, Rollout] = {}
    by_length = sorted(range(len(rows)), key=lambda i: len(own_prompts[i]) + len(responses[i]))  # little padding
    for start in range(0, len(rows), settings.batch_size):
        part = by_length[start : start + settings.batch_size]
        batch = padded([(own_prompts[i], responses[i]) for i in part], actor.device)
        with torch.no_grad():
            seen = actor.evaluate(batch, with_entropy=True)
            reference = actor.reference_logps(batch)
        for row, i in enumerate(part):
            n = len(responses[i])
            rollouts[i] = Rollout(
                prompt=own_prompts[i],
                response=responses[i],
                finished=responses[i][-1] in ends,
                logps=seen.logps[row, :n].cpu(),
                reference_logps=reference[row, :n].cpu(),
                values=seen.values[row, :n].cpu(),
                entropy=seen.entropy[row, :n].mean().item(),
                scores=scores[i].tolist(),
            )
    return distributed.gathered([rollouts[i] for i in range(len(rows))])


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
    scores -= settings.missing_eos_penalty * torch.tensor([not r.finished for r in rollouts])
    rewards = token_rewards(scores, logps, reference, mask, kl_coef)
    advantages, returns = generalised_advantages(rewards, values, mask, settings.gamma, settings.gae_lambda)
    advantages = whitened(advantages, mask)
    for i, rollout in enumerate(rollouts):
        n = len(rollout.response)
        rollout.advantages, rollout.returns = advantages[i, :n], returns[i, :n]


def describe(rollouts: list[Rollout], kl_coef: float) -> dict[str, float]:
    """What the policy does before the update learns from it; means over the rollouts."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    kl = mean([(r.logps - r.reference_logps).sum().item() for r in rollouts])
    scores = mean([mean(r.scores) for r in rollouts])
    spread = mean([(sum((s - mean(r.scores)) ** 2 for s in r.scores) / len(r.scores)) ** 0.5 for r in rollouts])
    return {
        "objective/kl": kl,
        "objective/scores": scores,
        "objective/score_std": spread,
        "objective/rlhf_reward": scores - kl_coef * kl,
        "objective/entropy": mean([r.entropy for r in rollouts]),
        "response/length": mean([len(r.response) for r in rollouts]),
        "response/eos_rate": mean([float(r.finished) for r in rollouts]),
        "kl_coef": kl_coef,
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
