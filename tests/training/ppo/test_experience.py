"""What PPO learns from: rollouts whose sampler may have other probabilities than the training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cai.training.ppo.experience import Collector, Task, prepare, sampler_mismatch
from cai.training.ppo.sampling import Rollout
from cai.training.settings import PPOConfig
from tests.training.ppo.test_trainer import PROMPTS, actor_of, good_tokens, settings, trainer

SAMPLER = {"rollouts": 12, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 1, "max_tokens": 6}


def collected(model: Path, config: PPOConfig) -> tuple[Any, list[Rollout]]:
    actor = actor_of(model, config)
    rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, set(range(100, 140))), 0).collect(1)
    prepare(config, rollouts, 0.1)
    return actor, rollouts


@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_models_own_sampler_has_the_trainings_probabilities(tiny_model: Path, temperature: float) -> None:
    _, rollouts = collected(tiny_model, settings(temperature=temperature, **SAMPLER))
    metrics = sampler_mismatch(rollouts, None)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5
    assert metrics["sampling/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["sampling/effective_sample_size"] == pytest.approx(1)
    assert "sampling/capped" not in metrics


@pytest.mark.numeric
def test_another_samplers_probabilities_are_measured(tiny_model: Path) -> None:
    _, rollouts = collected(tiny_model, settings(**SAMPLER))
    for number, rollout in enumerate(rollouts):
        shift = torch.tensor(3.0 if number == 0 else 1.0).log()  # the trainer finds these tokens so much likelier
        rollout.sampler_logps = rollout.logps - shift
    tokens, tripled = sum(len(r.response) for r in rollouts), len(rollouts[0].response)
    metrics = sampler_mismatch(rollouts, 2.0)
    log3, share = torch.tensor(3.0).log().item(), tripled / tokens
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(log3 * share, abs=1e-6)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(log3, abs=1e-6)
    assert metrics["sampling/kl"] == pytest.approx((2 - log3) * share, abs=1e-6)
    assert metrics["sampling/effective_sample_size"] == pytest.approx((1 + 2 * share) ** 2 / (1 + 8 * share))
    assert metrics["sampling/capped"] == pytest.approx(share)


@pytest.mark.numeric
def test_the_policys_loss_and_no_other_is_weighed_by_the_capped_ratio(tmp_path: Path, tiny_model: Path) -> None:
    actor, rollouts = collected(tiny_model, settings(**SAMPLER))
    found: dict[float | None, tuple[dict[str, float], torch.Tensor]] = {}
    for rollout in rollouts:
        rollout.sampler_logps = rollout.logps - torch.tensor(3.0).log()
    for cap in (None, 2.0, 100.0):
        for parameter in actor.trainable().values():
            parameter.grad = None
        config = settings(use_vllm=True, vllm_importance_sampling_clip_max=cap, vf_coef=0.0, **SAMPLER)
        line = trainer(tiny_model, tmp_path, config, actor).accumulate_gradients(rollouts)
        found[cap] = line, torch.cat([p.grad.flatten() for p in actor.model.parameters() if p.grad is not None])
    plain, gradient = found[None]
    assert gradient.abs().max() > 1e-4
    for cap, weight in ((2.0, 2.0), (100.0, 3.0)):
        line, weighed = found[cap]
        torch.testing.assert_close(weighed, weight * gradient, atol=1e-5, rtol=1e-4)
        assert line["loss/policy"] == pytest.approx(weight * plain["loss/policy"], abs=1e-5)
        assert {**line, "loss/policy": 0} == {**plain, "loss/policy": 0}


def test_without_vllm_there_is_nothing_to_correct() -> None:
    with pytest.raises(ValidationError, match="corrects for vLLM's samples; set use_vllm: true"):
        settings(vllm_importance_sampling_clip_max=2.0)
