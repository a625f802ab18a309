"""What PPO learns from: rollouts whose sampler may have other probabilities than the training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration
from cai.training.ppo.experience import AnswerLoss, Collector, Example, Task, prepare, read_examples, sampler_mismatch
from cai.training.ppo.sampling import Rollout
from cai.training.ppo.trainer import PPOTrainer
from cai.training.settings import PPOConfig
from cai.training.stage import StageSpec
from tests.conftest import prompt
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


PTX: dict[str, Any] = {"ptx": "answers.jsonl", "ptx_coef": 3.0, "max_tokens": 6, "rollouts": 6,
                       "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_ppo_epochs": 1}  # fmt: skip
EXAMPLES: list[Example] = [([1, 70 + i], [100 + i] * (1 + i) + [2]) for i in range(6)]  # of different lengths


def ptx_trainer(model: Path, folder: Path, config: PPOConfig) -> PPOTrainer:
    task = Task(PROMPTS, good_tokens, {2}, examples=EXAMPLES)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return PPOTrainer(
        StageSpec(config, folder / "p.jsonl", model, folder), actor_of(model, config), task, tokenizer, lambda _: None
    )


def gradient_of(parameters: dict[str, Any]) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters.values()])


@pytest.mark.numeric
def test_a_steps_gradient_is_that_of_both_losses(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(temperature=0.7, **PTX)
    trainer = ptx_trainer(tiny_model, tmp_path, config)
    rollouts = trainer.collector.collect(1)
    prepare(config, rollouts, 0.1)
    trainer.accumulate_gradients(rollouts)
    of_ppo = gradient_of(trainer.parameters)
    assert trainer.ptx is not None
    loss = trainer.ptx.accumulate_gradients(len(rollouts), 1, 0, 0)

    plain = AutoModelForCausalLM.from_pretrained(tiny_model)  # each example alone, by transformers' own loss
    summed, tokens = torch.zeros(()), 0
    for asked, answer in EXAMPLES:
        labels = torch.tensor([[-100] * len(asked) + answer])
        summed = summed + len(answer) * plain(input_ids=torch.tensor([asked + answer]), labels=labels).loss
        tokens += len(answer)
    (config.ptx_coef * summed / tokens).backward()
    of_answers = gradient_of({n: p for n, p in plain.named_parameters() if n in trainer.parameters})
    assert loss == pytest.approx((summed / tokens).item(), rel=1e-5)
    whole = gradient_of({n: p for n, p in trainer.parameters.items() if not n.startswith("value_head")})
    before = of_ppo[-len(whole) :]
    assert before.abs().max() > 1e-4 < of_answers.abs().max()
    torch.testing.assert_close(whole, before + of_answers, atol=1e-5, rtol=1e-4)


@pytest.mark.numeric
def test_the_policy_learns_the_answers_and_each_update_logs_their_loss(tmp_path: Path, tiny_model: Path) -> None:
    trainer = ptx_trainer(tiny_model, tmp_path, settings(updates=4, **PTX))
    lines = [trainer._update(update, 0.05)[0] for update in range(1, 5)]
    losses = [line["loss/ptx"] for line in lines]
    assert losses[0] == pytest.approx(torch.tensor(259.0).log().item(), abs=0.3)  # a random model's, of 259 tokens
    assert losses[-1] < losses[0] - 1
    assert "loss/policy" in lines[0]


def test_each_step_draws_its_own_examples(tiny_model: Path) -> None:
    config = settings(**PTX)
    answers = AnswerLoss(config, actor_of(tiny_model, config), EXAMPLES, seed=3)
    first, again, other = (answers.accumulate_gradients(2, *step) for step in ((1, 0, 0), (1, 0, 0), (1, 0, 6)))
    assert first == again != other


def test_rows_that_cannot_be_learned_are_skipped_with_a_reason(tmp_path: Path, tiny_model: Path) -> None:
    def row(name: str, text: str, answer: str = "yes", **more: Any) -> Demonstration:
        return Demonstration(prompt_id=name, messages=prompt(name, text).messages, completion=answer, **more)

    tokenizer, file = AutoTokenizer.from_pretrained(tiny_model), tmp_path / "answers.jsonl"
    rows = [row("a", "hi"), row("b", "hi " * 50), row("c", "hi", truncated=True), row("d", "hi", "long " * 30)]
    write_rows(file, rows)
    examples, skipped = read_examples(file, tokenizer, 60)
    assert [len(asked) + len(answer) <= 60 for asked, answer in examples] == [True, True]
    assert examples[0][1] == [*tokenizer("yes")["input_ids"], 2]
    assert [(s.prompt_id, s.reason) for s in skipped] == [
        ("b", "ptx: longer than max_length, 60 tokens"),
        ("c", "ptx: its answer is truncated"),
    ]
    write_rows(file, rows[1:2])
    with pytest.raises(CaiError, match="no answer to learn: ptx: longer than max_length"):
        read_examples(file, tokenizer, 60)


def test_a_coefficient_without_a_file_is_refused_and_another_file_is_another_stage(
    tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(ValidationError, match="ptx_coef: weighs the loss on the answers of `ptx`, which names no file"):
        settings(ptx_coef=2.0)
    data, manifests = tmp_path / "prompts.jsonl", []
    write_rows(data, [prompt("p", "hi")])
    for name, content in (("a", "1"), ("b", "1"), ("b", "2")):
        (tmp_path / name).write_text(content)
        spec = StageSpec(settings(ptx=str(tmp_path / name)), data, tiny_model, tmp_path / "stage")
        manifests.append(spec.claim().manifest)
    assert manifests[0] == manifests[1] != manifests[2]
