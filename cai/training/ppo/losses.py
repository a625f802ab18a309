"""The arithmetic of PPO on token sequences. Imports torch: import this lazily.

All tensors have the shape (sequences, tokens); `mask` is 1 on a response's tokens and 0 on padding behind them.
"""

import torch
from torch import Tensor

KL_ERROR_CLIP = 0.2  # Ziegler et al. 2019 (arXiv:1909.08593 §2.2)


def token_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """−β·(log π − log π_ref) on every token, and the score on top at the last (Ziegler et al. 2019 eq. 2).

    Args: scores of shape (sequences,).
    """
    rewards = -kl_coef * (logps - reference_logps) * mask
    last = mask.sum(dim=1).long() - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) by GAE(γ, λ) (Schulman et al. 2016, arXiv:1506.02438 eq. 16); nothing follows the end.

    `values[:, t]` is V of the state in which token t is chosen. Returns are advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    tokens = rewards.shape[1]
    for t in reversed(range(tokens)):
        next_value = values[:, t + 1] * mask[:, t + 1] if t + 1 < tokens else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whitened(x: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """`x` scaled to variance 1 over the masked tokens, and with `shift` moved to mean 0."""
    inside = x[mask.bool()]
    mean = inside.mean() if shift else 0.0
    return (x - mean) / (inside.std(correction=0) + 1e-8) * mask


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(loss a token, whether it is clipped): −min(ρA, clip(ρ, 1 ± ε)A) (Schulman et al. 2017, arXiv:1707.06347 eq. 7).

    `clip` is ε.
    """
    ratio = (logps - old_logps).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), (clipped > plain).float()


def importance_weights(logps: Tensor, sampler_logps: Tensor, cap: float) -> Tensor:
    """min(π/μ, C) a token, to weigh the loss of tokens that a sampler drew with other probabilities, μ, than π.

    Truncated importance sampling (Yao et al. 2025, fengyao.notion.site/off-policy-rl, with C = 2), by token: π is the
    policy as it was when it answered, so that no gradient goes through the weights.
    """
    return (logps - sampler_logps).exp().clamp(max=cap)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½·max((V − R)², (V' − R)²) a token, V' being V kept within `clip` of the old value (as in OpenAI's baselines)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def approximate_kl(logps: Tensor, old_logps: Tensor) -> Tensor:
    """KL(old ‖ new) a token, estimated by ρ − 1 − log ρ, which is never negative (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = logps - old_logps
    return log_ratio.exp() - 1 - log_ratio


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 − Var(R − V) / Var(R) over the masked tokens: 1 is perfect, 0 no better than a constant; None if R is one."""
    r, v = returns[mask.bool()], values[mask.bool()]
    spread = r.var(correction=0).item()
    return 1 - (r - v).var(correction=0).item() / spread if spread > 0 else None


def adapted_kl_coef(kl_coef: float, kl: float, target: float, step: float) -> float:
    """β for the next update, moved towards the target KL: β·(1 + K·clip((KL − target) / target, ±0.2)).

    Args: kl and target in nats a response; step is K, at most 1. Ziegler et al. 2019 §2.2, with K_β = 0.1 there.
    """
    error = min(max((kl - target) / target, -KL_ERROR_CLIP), KL_ERROR_CLIP)
    return kl_coef * (1 + min(step, 1.0) * error)
