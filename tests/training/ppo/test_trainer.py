"""PPO on a tiny policy whose best answers are known, and its bookkeeping."""

import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.training import tokens
from cai.training.ppo.actor import Actor
from cai.training.ppo.experience import Collector, Task, drawn, prepare
from cai.training.ppo.sampling import generate, padded, sampled
from cai.training.ppo.trainer import PPOTrainer, restore_checkpoint, save_checkpoint
from cai.training.reward_model import RewardModel
from cai.training.settings import PPOConfig
from cai.training.stage import StageSpec
from cai.training.tracking import runaway
from tests.conftest import prompt, train_here
from tests.training.test_reward import config as reward_config
from tests.training.test_reward import planted

LETTERS = range(60, 90)  # ids of the tiny tokenizer: thirty of its 259 tokens are "good"
PROMPTS = [[1, 70, 71], [1, 100], [1, 90, 91, 92, 93]]


def settings(**options: Any) -> PPOConfig:
    usual = {
        "stage": "ppo", "lora_r": None, "learning_rate": 1e-2, "rollouts": 128, "per_device_train_batch_size": 128, "num_ppo_epochs": 4,
        "max_tokens": 1, "missing_eos_penalty": 0.0, "kl_stop": None, "updates": 30, "save_steps": 1000,
    }  # fmt: skip
    return PPOConfig.model_validate({**usual, **options})


def good_tokens(prompts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """A point for each good token."""
    return torch.tensor([[float(sum(token in LETTERS for token in r))] for r in responses])


def actor_of(model: Path, config: PPOConfig) -> Actor:
    torch.manual_seed(0)
    return Actor(model, config)


def trainer(
    model: Path,
    folder: Path,
    config: PPOConfig,
    actor: Actor,
    score: Callable[..., torch.Tensor] = good_tokens,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
) -> PPOTrainer:
    from transformers import AutoTokenizer

    spec = StageSpec(config, folder / "prompts.jsonl", model, folder)
    return PPOTrainer(spec, actor, Task(PROMPTS, score, {2}), AutoTokenizer.from_pretrained(model), report)


def run(
    model: Path,
    folder: Path,
    config: PPOConfig,
    score: Callable[..., torch.Tensor] = good_tokens,
    report: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[Actor, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    actor = actor_of(model, config)
    trainer(model, folder, config, actor, score, report).run()
    return actor, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def optimum(model: Path, beta: float) -> tuple[float, float]:
    """(score, KL) of the best policy for one token, π* ∝ π_ref·exp(r/β), averaged over the prompts."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model)
    reward = torch.tensor([float(token in LETTERS) for token in range(reference.config.vocab_size)])
    scores, kls = [], []
    for ids in PROMPTS:
        with torch.no_grad():
            logp = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = (logp + reward / beta).log_softmax(-1)
        scores.append((best.exp() * reward).sum().item())
        kls.append((best.exp() * (best - logp)).sum().item())
    return sum(scores) / len(scores), sum(kls) / len(kls)


def late(lines: list[dict[str, Any]], name: str) -> float:
    """The mean over the last ten updates."""
    return sum(line[name] for line in lines[-10:]) / 10


@pytest.mark.slow
def test_the_policy_comes_near_the_optimum_that_the_kl_coefficient_allows(tmp_path: Path, tiny_model: Path) -> None:
    found = {}
    for beta in (1.0, 0.1):
        _, lines = run(tiny_model, tmp_path / f"{beta}", settings(kl_coef=beta))
        score, kl = optimum(tiny_model, beta)
        found[beta] = (late(lines, "objective/scores"), late(lines, "objective/kl"))
        assert found[beta] == (pytest.approx(score, abs=0.06), pytest.approx(kl, abs=0.25))
    assert found[0.1][0] > 2 * found[1.0][0]  # a tenth of the price buys far more reward, and pays for it in KL
    assert found[0.1][1] > 5 * found[1.0][1]


@pytest.mark.slow
def test_without_a_kl_penalty_the_policy_hacks_the_reward(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    config = settings(kl_coef=0.0, max_tokens=6, updates=20, learning_rate=2e-2)
    _, lines = run(tiny_model, tmp_path / "free", config, report=events.append)
    _, held = run(tiny_model, tmp_path / "held", settings(kl_coef=1.0, max_tokens=6, updates=20))
    assert late(lines, "objective/scores") > 5.5  # of 6 possible
    assert late(held, "objective/scores") < 3
    assert late(lines, "objective/kl") > 5 * late(held, "objective/kl")


@pytest.mark.slow
def test_an_adaptive_coefficient_brings_the_kl_to_its_target(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    config = settings(kl_coef=0.08, target_kl=0.5, updates=70, rollouts=32, per_device_train_batch_size=32)
    _, lines = run(tiny_model, tmp_path / "a", config, report=events.append)
    assert late(lines, "objective/kl") == pytest.approx(0.5, abs=0.2)
    assert lines[-1]["kl_coef"] > 3 * lines[0]["kl_coef"]  # 2 % an update would have taken it to 4 times after all 70
    assert not any("target_kl" in event.get("warning", "") for event in events)


def test_a_run_that_ends_far_from_its_target_says_so(tmp_path: Path, tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    run(tiny_model, tmp_path / "a", settings(target_kl=500.0, updates=2, rollouts=8), report=events.append)
    [warning] = [event["warning"] for event in events if "warning" in event]
    assert "nats an answer, target_kl is 500: more updates, a kl_coef nearer to the last" in warning


@pytest.mark.slow
def test_an_entropy_bonus_keeps_the_policy_from_narrowing(tmp_path: Path, tiny_model: Path) -> None:
    found = {}
    for bonus in (0.0, 1.0):
        config = settings(kl_coef=0.0, entropy_coef=bonus, updates=15, learning_rate=2e-2)
        found[bonus] = late(run(tiny_model, tmp_path / f"{bonus}", config)[1], "objective/entropy")
    assert found[0.0] < 3.5 < 4.5 < found[1.0]  # ln 30 = 3.4 for all good tokens alike, ln 259 = 5.6 at most


@pytest.mark.slow
def test_the_value_function_learns_to_explain_the_returns(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(
        max_tokens=6, value="separate", vf_coef=1.0, updates=16, learning_rate=2e-2, kl_coef=0.5, cliprange_value=10.0
    )
    _, lines = run(tiny_model, tmp_path / "a", config)
    assert lines[0]["val/explained_variance"] == pytest.approx(0, abs=1e-5)  # a head of zeros
    assert late(lines, "val/explained_variance") > 0.2


@pytest.mark.parametrize(
    ("lora", "value"),
    [(4, "shared"), pytest.param(4, "separate", marks=pytest.mark.slow), (None, "shared"), (None, "separate")],
)
def test_resumed_is_undisturbed_to_the_bit(tmp_path: Path, tiny_model: Path, lora: int | None, value: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options: dict[str, Any] = {
            "lora_r": lora,
            "value": value,
            "max_tokens": 5,
            "rollouts": 8,
            "per_device_train_batch_size": 4,
        }
        config = settings(**options, updates=5, save_steps=2, target_kl=1.0)

        def interrupt(event: dict[str, Any]) -> None:
            if event.get("step") == 3:  # after the checkpoint of update 2, whose successor is made again
                raise KeyboardInterrupt

        whole, lines = run(tiny_model, tmp_path / "whole", config)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model, tmp_path / "broken", config, report=interrupt)
        resumed, again = run(tiny_model, tmp_path / "broken", config)
    finally:
        torch.set_num_threads(threads)
    assert whole.trainable().keys() == resumed.trainable().keys()
    for name, parameter in whole.trainable().items():
        assert torch.equal(parameter, resumed.trainable()[name]), name

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]

    assert timeless(again) == timeless(lines)


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "value"), [(4, "shared"), (4, "separate"), (None, "separate")])
def test_both_functions_learn_and_the_reference_stays(
    tmp_path: Path, tiny_model: Path, lora: int | None, value: str
) -> None:
    config = settings(lora_r=lora, value=value, max_tokens=4, rollouts=16, per_device_train_batch_size=8, updates=3)
    before = actor_of(tiny_model, config)
    after, lines = run(tiny_model, tmp_path / "a", config)
    batch = padded([(PROMPTS[0], [70, 71]), (PROMPTS[1], [80, 81, 82])], "cpu")
    assert torch.equal(before.reference_logps(batch), after.reference_logps(batch))
    with torch.no_grad():
        old, new = before.evaluate(batch, with_entropy=True), after.evaluate(batch, with_entropy=True)
        torch.testing.assert_close(old.logps * batch.mask, before.reference_logps(batch) * batch.mask)
    assert not torch.equal(old.logps, new.logps)
    assert not torch.equal(old.values, new.values)
    changed = {n for n, p in after.trainable().items() if not torch.equal(p, before.trainable()[n])}
    if value == "separate":
        mark = ".value." if lora else "value_model."
        assert any(mark in n for n in changed)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.numeric
def test_the_first_step_after_sampling_sees_a_ratio_of_1(tmp_path: Path, tiny_model: Path) -> None:
    _, [line] = run(tiny_model, tmp_path / "a", settings(max_tokens=6, updates=1, num_ppo_epochs=1))
    assert line["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert line["policy/approxkl"] == pytest.approx(0, abs=1e-6)
    assert line["policy/clipfrac"] == 0


def test_every_expected_metric_is_logged(tmp_path: Path, tiny_model: Path) -> None:
    _, lines = run(tiny_model, tmp_path / "a", settings(updates=2, rollouts=8))
    expected = {
        "step", "objective/kl", "objective/scores", "objective/rlhf_reward", "objective/entropy", "policy/approxkl",
        "policy/clipfrac", "loss/policy", "loss/value", "val/explained_variance", "val/ratio", "response/length",
        "response/eos_rate", "kl_coef", "grad_norm", "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max", "sampling/kl", "sampling/effective_sample_size",
    }  # fmt: skip
    assert expected <= lines[-1].keys()
    samples = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert samples[0].keys() == {"step", "prompt", "response", "score", "kl", "tokens"}


@pytest.mark.numeric
def test_accumulating_changes_the_memory_and_not_the_gradient(tmp_path: Path, tiny_model: Path) -> None:
    actor = actor_of(tiny_model, settings())
    torch.nn.init.normal_(actor.value_head.weight)
    config = settings(rollouts=8, per_device_train_batch_size=8, gradient_accumulation_steps=1, max_tokens=6)
    rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, {2}), 0).collect(1)
    prepare(config, rollouts, 0.1)
    gradients = []
    for batch, accumulate in ((8, 1), (2, 4)):
        for parameter in actor.trainable().values():
            parameter.grad = None
        config = settings(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate)
        trainer(tiny_model, tmp_path, config, actor).accumulate_gradients(rollouts)
        gradients.append({name: p.grad.clone() for name, p in actor.trainable().items() if p.grad is not None})
    whole, accumulated = gradients
    assert whole.keys() == accumulated.keys()
    for name, gradient in whole.items():
        # Both add the same float32 terms in another order. Where they cancel, the rounding is relative to the terms, of
        # the size of the largest gradient, and not to the sum: not Adam's steps are compared, which divide by it.
        rounding = 200 * torch.finfo(torch.float32).eps * gradient.abs().max().item()
        torch.testing.assert_close(accumulated[name], gradient, atol=rounding, rtol=0)
    for batch, accumulate in ((8, 1), (2, 4)):
        config = settings(
            updates=1,
            rollouts=16,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_tokens=6,
            num_ppo_epochs=2,
        )
        assert run(tiny_model, tmp_path / f"{batch}", config)[1][0]["steps"] == 4


@pytest.mark.numeric
@pytest.mark.parametrize("options", [{"lora_r": 2}, {}, {"value": "separate"}])
def test_recomputing_activations_changes_no_gradient(options: dict[str, Any], tmp_path: Path, tiny_model: Path) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    def gradients(recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
        config = settings(rollouts=8, per_device_train_batch_size=8, gradient_accumulation_steps=1, max_tokens=6,
                          gradient_checkpointing=recompute, **options)  # fmt: skip
        actor, forwards = actor_of(tiny_model, config), list[str]()
        torch.manual_seed(1)
        torch.nn.init.normal_(actor.value_head.weight)
        rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, {2}), 0).collect(1)
        prepare(config, rollouts, 0.1)
        first = next(module for module in actor.model.modules() if isinstance(module, GradientCheckpointingLayer))
        first.self_attn.register_forward_hook(lambda *_: forwards.append("attention"))
        trainer(tiny_model, tmp_path, config, actor).accumulate_gradients(rollouts)
        return {name: p.grad.clone() for name, p in actor.trainable().items() if p.grad is not None}, len(forwards)

    (kept, once), (recomputed, twice) = gradients(False), gradients(True)
    assert twice == 2 * once > 0
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(
            recomputed[name], gradient, atol=1e-6 * max(1.0, gradient.abs().max().item()), rtol=0
        )


def test_recomputing_with_an_adapter_for_the_value_is_refused() -> None:
    with pytest.raises(ValidationError, match="gradient_checkpointing: with a LoRA it needs `value: shared`"):
        settings(lora_r=2, value="separate", gradient_checkpointing=True)


@pytest.mark.numeric
def test_gradients_are_clipped(tmp_path: Path, tiny_model: Path) -> None:
    small = settings(updates=1, num_ppo_epochs=1, max_grad_norm=1e-9, rollouts=8, per_device_train_batch_size=8)
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, bound: float) -> Any:
        listed = list(parameters)
        before = clip(listed, bound)
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in listed if p.grad is not None)))
        return before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
        _, [line] = run(tiny_model, tmp_path / "a", small)
    assert line["grad_norm"] > 1e-6
    assert norms[0] <= 1.01e-9


@pytest.mark.numeric
def test_passes_are_broken_off_where_the_policy_moved_too_far(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(
        updates=1, num_ppo_epochs=20, learning_rate=0.1, kl_stop=0.01, rollouts=32, per_device_train_batch_size=16
    )
    _, [line] = run(tiny_model, tmp_path / "a", config)
    assert line["stopped_early"] == 1
    assert line["steps"] < 20  # of as many


@pytest.mark.numeric
def test_a_first_step_is_always_taken_even_where_sampling_and_learning_disagree(
    tmp_path: Path, tiny_model: Path
) -> None:
    config = settings(kl_stop=0.01, rollouts=32, per_device_train_batch_size=16, max_tokens=4)
    actor = actor_of(tiny_model, config)
    rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, {2}), 0).collect(1)
    for rollout in rollouts:
        rollout.logps -= 0.5
    prepare(config, rollouts, 0.0)
    line = trainer(tiny_model, tmp_path, config, actor).learn(rollouts, 1)
    assert (line["steps"], line["stopped_early"]) == (1, 1)


@pytest.mark.slow
def test_an_answer_without_an_end_is_worth_less(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(
        max_tokens=8, rollouts=64, missing_eos_penalty=5.0, lora_r=None, updates=12, learning_rate=2e-2, kl_coef=0.01
    )
    _, lines = run(tiny_model, tmp_path / "a", config, score=lambda asked, answers: torch.zeros(len(answers), 1))
    assert lines[0]["response/eos_rate"] < 0.15
    assert late(lines, "response/eos_rate") > 0.6


@pytest.mark.numeric
def test_sampling_with_a_cache_and_leaving_rows_is_sampling_one_by_one(tiny_model: Path) -> None:
    actor = actor_of(tiny_model, settings())
    uniforms = torch.rand(3, 12, generator=torch.Generator().manual_seed(3))
    ends = set(range(100, 140))  # so that rows end at different times
    together = [sample.tokens for sample in generate(actor.model, PROMPTS, uniforms, 1.0, ends)]
    alone = []
    for asked, row in zip(PROMPTS, uniforms, strict=True):
        ids = list(asked)
        for u in row:
            with torch.no_grad():
                logits = actor.model(torch.tensor([ids])).logits[:, -1]
            ids.append(int(sampled(logits, u[None])))
            if ids[-1] in ends:
                break
        alone.append(ids[len(asked) :])
    assert together == alone
    assert len(together[0]) < max(len(r) for r in together)  # a row left before those behind it


@pytest.mark.numeric
def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 0.7]).repeat(40_000, 1)
    tokens = sampled(logits, torch.rand(40_000, generator=torch.Generator().manual_seed(0)))
    frequencies = torch.bincount(tokens, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=0.01, rtol=0)
    extremes = sampled(torch.tensor([[0.0, 0.0, -1e9]]).repeat(2, 1), torch.tensor([0.0, 0.99999994]))
    assert extremes.tolist() == [0, 1]  # a token of probability zero is never drawn


def test_every_prompt_is_answered_equally_often() -> None:
    counts = [0] * 7
    for update in range(1, 8):
        for i in drawn(7, 5, update, seed=3):
            counts[i] += 1
    assert counts == [5] * 7


@pytest.mark.numeric
def test_logps_and_values_of_a_padded_batch_are_those_of_each_answer_alone(tiny_model: Path) -> None:
    config = settings(max_tokens=7, rollouts=6, per_device_train_batch_size=6)
    actor = actor_of(tiny_model, config)
    torch.nn.init.normal_(actor.value_head.weight)
    for rollout in Collector(config, actor, Task(PROMPTS, good_tokens, set(range(100, 140))), 0).collect(1):
        with torch.no_grad():
            alone = actor.evaluate(padded([(rollout.prompt, rollout.response)], "cpu"), with_entropy=True)
            logits = actor.model(torch.tensor([rollout.prompt + rollout.response])).logits[0]
        torch.testing.assert_close(alone.logps[0], rollout.logps, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.values[0], rollout.values, atol=1e-5, rtol=1e-4)
        plain = logits.log_softmax(-1)[len(rollout.prompt) - 1 : -1]
        torch.testing.assert_close(plain[range(len(rollout.response)), rollout.response], rollout.logps)


def history(scores: list[float], **columns: list[float]) -> list[dict[str, Any]]:
    n = len(scores)
    kl, length = columns.get("kl", [1.0] * n), columns.get("length", [50.0] * n)
    return [
        {"step": i + 1, "objective/scores": scores[i], "objective/kl": kl[i], "response/length": length[i]}
        for i in range(n)
    ]


def test_a_climbing_score_with_kl_or_length_running_away_is_warned_of() -> None:
    climbing = [i / 10 for i in range(12)]
    assert runaway(history(climbing), 6.0) == {}
    assert runaway(history(climbing[:9], kl=[50.0] * 9), 6.0) == {}  # too early to say
    growing = [50.0 + 10 * i for i in range(12)]
    found = runaway(history(climbing, kl=[3.0 * i for i in range(12)], length=growing), 6.0)
    assert found.keys() == {"kl", "length"}
    assert "0.20 to 0.90" in found["kl"]
    assert "70 to 140 tokens" in found["length"]
    assert runaway(history(climbing[::-1], length=growing), 6.0) == {}  # nothing climbs


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path, tiny_model: Path) -> None:

    actor = actor_of(tiny_model, settings())
    parameters = actor.trainable()
    optimizer = torch.optim.AdamW(parameters.values())
    save_checkpoint(tmp_path, parameters, optimizer, (2, 0.1))
    half = tmp_path / "update-000004.part"
    shutil.copytree(tmp_path / "update-000002", half)
    (half / "state.safetensors").write_bytes(b"half")
    assert restore_checkpoint(tmp_path, parameters, optimizer, (0, 1.0)) == (2, 0.1)
    save_checkpoint(tmp_path, parameters, optimizer, (4, 0.2))
    save_checkpoint(tmp_path, parameters, optimizer, (6, 0.3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-000004", "update-000006"]


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path, tiny_model: Path) -> None:

    parameters = actor_of(tiny_model, settings()).trainable()
    optimizer = torch.optim.AdamW(parameters.values())
    save_checkpoint(tmp_path, parameters, optimizer, (2, 0.1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(Exception, match="too large"):
            save_checkpoint(tmp_path, parameters, optimizer, (4, 0.2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert restore_checkpoint(tmp_path, parameters, optimizer, (0, 1.0)) == (2, 0.1)


def test_a_prompt_without_room_for_its_answer_is_named(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [prompt("short", "hi"), prompt("long", "hi " * 50)]
    kept, unfit = tokens.prompts_that_fit(tokenizer, rows, 60)
    assert (len(kept), unfit) == (1, (["long"], [], []))
    with pytest.raises(CaiError, match="of 2 prompts none leaves room for max_tokens in max_length"):
        tokens.prompts_that_fit(tokenizer, rows, 5)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("lora", [4, None])
def test_a_value_function_that_starts_as_the_reward_model_gives_its_scores(
    tmp_path: Path, tiny_model: Path, lora: int | None
) -> None:
    of_pairs = reward_config(lora_r=lora, num_train_epochs=1, holdout=0.0)
    reward = train_here(StageSpec(of_pairs, planted(tmp_path / "pairs.jsonl", 10), tiny_model, tmp_path / "reward"))
    config = settings(lora_r=2 if lora else None, value="separate", value_init="reward")
    actor = Actor(tiny_model, config, reward=reward)
    turns = [[1, 70, 71, 80, 2], [1, 90, 2]]
    batch = padded([(ids, [60]) for ids in turns], "cpu")  # a value is that of the state before a response token
    values = actor.evaluate(batch, with_entropy=False).values[:, 0]
    expected = RewardModel(reward).scores(turns)[:, 0]
    assert expected.abs().max() > 0.001
    torch.testing.assert_close(values.detach(), expected, atol=1e-5, rtol=0)
    plain = Actor(tiny_model, config)
    assert plain.evaluate(batch, with_entropy=False).values.abs().max() == 0


def test_a_value_function_takes_the_reward_model_of_its_own_weights_alone(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ValidationError, match="value_init: `reward` needs `value: separate`"):
        settings(value_init="reward")
    spec = StageSpec(reward_config(holdout=0.0), planted(tmp_path / "pairs.jsonl", 8), tiny_model, tmp_path / "reward")
    reward = train_here(spec)
    with pytest.raises(CaiError, match="is a LoRA, and the policy has none"):
        Actor(tiny_model, settings(value="separate", value_init="reward"), reward=reward)
    about = json.loads((reward / "reward.json").read_text())
    (reward / "reward.json").write_text(json.dumps({**about, "base": "another"}))
    with pytest.raises(CaiError, match="no LoRA on the policy's own weights"):
        Actor(tiny_model, settings(lora_r=2, value="separate", value_init="reward"), reward=reward)


def test_scores_are_clipped_and_rewards_whitened(tiny_model: Path) -> None:
    def rewarded(**options: Any) -> list[float]:
        config = settings(rollouts=12, max_tokens=6, gamma=1.0, lam=1.0, **options)
        actor = actor_of(tiny_model, config)
        rollouts = Collector(config, actor, Task(PROMPTS, good_tokens, {2}), 0).collect(1)
        prepare(config, rollouts, 0.0)
        return [rollout.returns[0].item() for rollout in rollouts]  # what the answer was rewarded, with γ = λ = 1

    plain, clipped, whitened = rewarded(), rewarded(score_clip=0.5), rewarded(whiten_rewards=True)
    assert max(plain) >= 1
    assert clipped == pytest.approx([min(score, 0.5) for score in plain])
    scale = max(whitened) / max(plain)
    assert scale != pytest.approx(1)
    assert whitened == pytest.approx([score * scale for score in plain])
