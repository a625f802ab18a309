"""PPO's arithmetic against closed forms and naive references in plain Python floats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cai.training.ppo.losses import (
    adapted_kl_coef,
    approximate_kl,
    explained_variance,
    generalised_advantages,
    importance_weights,
    policy_loss,
    token_rewards,
    value_loss,
    whitened,
)
from cai.training.settings import PPOConfig

pytestmark = pytest.mark.numeric

small = st.floats(-3, 3)
rate = st.floats(0, 1)


def tensor(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@st.composite
def responses(draw: st.DrawFn, columns: int) -> list[list[list[float]]]:
    """`columns` ragged tables with the same row lengths."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return [[draw(st.lists(small, min_size=n, max_size=n)) for n in lengths] for _ in range(columns)]


def padded(rows: list[list[float]], filler: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    mask = tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in rows])
    return tensor([row + [filler] * (longest - len(row)) for row in rows]), mask


@given(responses(2), rate, rate)
def test_advantages_are_the_discounted_sum_of_temporal_differences(
    tables: list[list[list[float]]], gamma: float, lam: float
) -> None:
    (rewards, mask), (values, _) = padded(tables[0]), padded(tables[1], filler=7.0)  # what is padding must not matter
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    for row, (r, v) in enumerate(zip(*tables, strict=True)):
        n = len(r)
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < n else 0.0) - v[t] for t in range(n)]
        for t in range(n):
            naive = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
            assert advantages[row, t].item() == pytest.approx(naive, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(naive + v[t], abs=1e-9)
        assert not advantages[row, n:].any()


@given(responses(2))
def test_with_lambda_and_gamma_1_returns_are_what_is_still_to_come(tables: list[list[list[float]]]) -> None:
    (rewards, mask), (values, _) = padded(tables[0]), padded(tables[1])
    _, returns = generalised_advantages(rewards, values, mask, 1.0, 1.0)
    for row, r in enumerate(tables[0]):
        for t in range(len(r)):
            assert returns[row, t].item() == pytest.approx(sum(r[t:]), abs=1e-9)


@given(responses(2), st.floats(0, 2))
def test_token_rewards_add_up_to_the_score_less_the_kl_penalty(tables: list[list[list[float]]], beta: float) -> None:
    (logps, mask), (reference, _) = padded(tables[0]), padded(tables[1], filler=-9.0)
    scores = torch.arange(1.0, len(mask) + 1, dtype=torch.float64)
    rewards = token_rewards(scores, logps, reference, mask, beta)
    for row, (p, q) in enumerate(zip(*tables, strict=True)):
        kl = sum(a - b for a, b in zip(p, q, strict=True))
        assert rewards[row].sum().item() == pytest.approx(row + 1 - beta * kl, abs=1e-9)
        assert rewards[row, 0].item() == pytest.approx(-beta * (p[0] - q[0]) + (row + 1) * (len(p) == 1), abs=1e-9)


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=8), st.floats(0.05, 0.5))
def test_the_policy_loss_is_the_pessimistic_surrogate(rows: list[tuple[float, float, float]], clip: float) -> None:
    new, old, advantages = (tensor([list(column)]) for column in zip(*rows, strict=True))
    loss, clipped = policy_loss(new, old, advantages, clip)
    for t, (n, o, a) in enumerate(rows):
        ratio = math.exp(n - o)
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        assert loss[0, t].item() == pytest.approx(-min(ratio * a, bounded * a), abs=1e-9)
        assert bool(clipped[0, t]) == (bounded * a < ratio * a)


def test_importance_weights_give_back_the_policys_expectation_and_are_capped() -> None:
    policy, sampler = tensor([[0.5, 0.3, 0.2]]), tensor([[0.1, 0.3, 0.6]])
    values = tensor([[1.0, 10.0, 100.0]])
    weights = importance_weights(policy.log(), sampler.log(), 10.0)
    assert (sampler * weights * values).sum().item() == pytest.approx((policy * values).sum().item())
    assert importance_weights(policy.log(), sampler.log(), 2.0)[0].tolist() == pytest.approx([2.0, 1.0, 1 / 3])


def test_no_gradient_pushes_a_ratio_further_out_of_its_clip_range() -> None:
    logps = tensor([[0.5, -0.5, 0.5, -0.5]]).requires_grad_()
    loss, _ = policy_loss(logps, torch.zeros_like(logps), tensor([[1.0, -1.0, -1.0, 1.0]]), 0.2)
    [gradient] = torch.autograd.grad(loss.sum(), logps)
    assert gradient[0, :2].tolist() == [0.0, 0.0]
    assert (gradient[0, 2:] != 0).all()


@given(small, small, small, st.floats(0.05, 1))
def test_the_value_loss_is_the_larger_of_both(value: float, old: float, target: float, clip: float) -> None:
    kept = min(max(value, old - clip), old + clip)
    naive = 0.5 * max((value - target) ** 2, (kept - target) ** 2)
    loss = value_loss(tensor([[value]]), tensor([[old]]), tensor([[target]]), clip)
    assert loss.item() == pytest.approx(naive, abs=1e-9)


@given(responses(1))
def test_whitening_gives_mean_0_and_variance_1_over_the_tokens(tables: list[list[list[float]]]) -> None:
    x, mask = padded(tables[0], filler=100.0)
    inside = whitened(x, mask)[mask.bool()]
    flat = [v for row in tables[0] for v in row]
    if max(flat) - min(flat) > 1e-3:
        assert inside.mean().item() == pytest.approx(0, abs=1e-6)
        assert inside.var(correction=0).item() == pytest.approx(1, rel=1e-3)
    assert not (whitened(x, mask) * (1 - mask)).any()


def test_the_kl_estimate_is_never_negative_and_right_on_average() -> None:
    torch.manual_seed(0)
    old, new = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (old.exp() * (old - new)).sum().item()
    samples = torch.multinomial(old.exp(), 200_000, replacement=True)
    estimates = approximate_kl(new[samples], old[samples])
    assert (estimates >= 0).all()
    assert estimates.mean().item() == pytest.approx(exact, rel=0.02)


def test_explained_variance_is_1_for_the_truth_and_0_for_a_constant() -> None:
    returns, ones = tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3)
    assert explained_variance(returns, returns, ones) == 1
    assert explained_variance(torch.ones(1, 3), returns, ones) == pytest.approx(0)
    assert explained_variance(returns, torch.ones(1, 3), ones) is None


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98)])
def test_the_coefficient_moves_as_ziegler_et_al_say(kl: float, factor: float) -> None:
    assert adapted_kl_coef(0.1, kl, 6.0, step=0.1) == pytest.approx(0.1 * factor)


def test_the_coefficient_moves_by_a_fifth_at_most() -> None:
    assert adapted_kl_coef(0.1, 60.0, 6.0, step=50.0) == pytest.approx(0.12)
    assert adapted_kl_coef(0.1, 0.0, 6.0, step=50.0) == pytest.approx(0.08)


def test_the_default_horizon_moves_the_coefficient_tenfold_within_tens_of_updates() -> None:
    config, coefficient = PPOConfig(stage="ppo", target_kl=6.0), 0.05
    updates = 0
    while coefficient < 0.5:
        coefficient, updates = adapted_kl_coef(coefficient, 60.0, 6.0, config.rollouts / config.kl_horizon), updates + 1
    assert updates == 38
