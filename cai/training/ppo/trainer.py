"""PPO against a reward model, with a KL penalty to the starting policy (Ziegler et al. 2019, arXiv:1909.08593;
Ouyang et al. 2022, arXiv:2203.02155 §3.5; Bai et al. 2022, arXiv:2212.08073 §4.2).

Each update samples answers to a batch of prompts, scores them, and takes several passes of clipped policy and value
steps over them. Simplified against the papers: no mixing in of pretraining data, and the value function starts from the
policy, not from the reward model.

    cai train ppo --data prompts.jsonl --model smollm2-135m --reward FOLDER
"""

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.config.hashing import derive_seed
from cai.data.jsonl import read_rows
from cai.data.records import Prompt
from cai.training import common, distributed
from cai.training.metrics import Trackers, add_metrics, drop_metrics_after, read_metrics, runaway
from cai.training.ppo import checkpoint
from cai.training.ppo.experience import Score
from cai.training.settings import PPOConfig
from cai.training.tokens import end_of_turn, prompts_that_fit, whole_turn

SAMPLES = 4  # answers kept each time


def train(
    settings: PPOConfig, data: Path, model: Path, reward: Path, folder: Path, seed: int, report: common.Report
) -> None:
    """Train `model` on a file of Prompt rows; writes folder/model, checkpoints, metrics.jsonl and samples.jsonl."""
    import torch

    from cai.training.ppo.actor import Actor
    from cai.training.reward_model import RewardModel, check_vocabulary, shares_weights

    distributed.join()
    torch.manual_seed(seed)  # adapters start at random
    tokenizer = common.load_tokenizer(model)
    check_vocabulary(reward, tokenizer, model)
    prompts, too_long = prompts_that_fit(tokenizer, read_rows(data, Prompt), settings.max_length - settings.max_tokens)
    report({"examples": len(prompts), "too_long": too_long})
    end = end_of_turn(tokenizer)
    actor = Actor(model, settings, settings.value, settings.temperature)
    on = actor.peft if actor.peft is not None and shares_weights(reward, model) else None
    judge = RewardModel(reward, on=on, device=actor.device)
    if actor.peft is not None:
        actor.peft.set_adapter("policy")

    ends = actor.generation_ends | {end}

    def score(asked: list[list[int]], answers: list[list[int]]) -> Any:
        return judge.scores([whole_turn(p, a, ends, end) for p, a in zip(asked, answers, strict=True)])

    vllm = None
    if settings.sampler == "vllm":
        from cai.training.ppo.sampling import VllmSampler

        vllm = VllmSampler(model, settings.max_length, settings.rollouts)
    optimise(settings, actor, prompts, score, ends, tokenizer, folder, seed, report, vllm)
    if common.is_first_process():
        common.save_policy(actor.merged(), tokenizer, folder / "model")


def optimise(
    settings: PPOConfig,
    actor: Any,
    prompts: Sequence[list[int]],
    score: Score,
    ends: set[int],
    tokenizer: Any,
    folder: Path,
    seed: int,
    report: common.Report,
    vllm: Any = None,
) -> None:
    """The updates, from the last checkpoint on; `actor` is changed in place."""
    import torch

    from cai.training.ppo.experience import collect, describe, prepare, shown

    parameters = actor.trainable()
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    done, kl_coef = checkpoint.restore(folder / "checkpoints", parameters, optimizer, (0, settings.kl_coef))
    metrics, samples = folder / "metrics.jsonl", folder / "samples.jsonl"
    for path in (metrics, samples):
        drop_metrics_after(path, done)
    history = read_metrics(metrics)
    warned: set[str] = set()
    trackers = Trackers(settings.report_to if common.is_first_process() else [], metrics, done)
    for update in range(done + 1, settings.updates + 1):
        started = time.monotonic()
        rollouts = collect(settings, actor, prompts, score, ends, update, seed, vllm)
        sampled = time.monotonic()
        line = {"step": update, **describe(rollouts, kl_coef)}
        prepare(settings, rollouts, kl_coef)
        line |= learn(settings, actor, optimizer, parameters, rollouts, update, seed)
        for name in ("loss/policy", "loss/value", "grad_norm"):
            if not math.isfinite(line[name]):
                raise common.not_finite(name, update)
        line |= {"seconds/rollout": sampled - started, "seconds/learning": time.monotonic() - sampled}
        if settings.target_kl is not None:
            from cai.training.ppo.losses import adapted_kl_coef

            kl_coef = adapted_kl_coef(kl_coef, line["objective/kl"], settings.target_kl)
        history.append(line)
        if common.is_first_process():
            add_metrics(metrics, line)
            trackers.log(line)
            if update % settings.sample_every == 0 or update == 1:
                for rollout in rollouts[:SAMPLES]:
                    add_metrics(samples, {"step": update, **shown(rollout, tokenizer)})
            for kind, text in runaway(history, settings.target_kl).items():
                if kind not in warned:
                    warned.add(kind)
                    report({"warning": text})
            if update % settings.save_every == 0 and update < settings.updates:
                checkpoint.save(folder / "checkpoints", parameters, optimizer, (update, kl_coef))
        note = f"score {line['objective/scores']:.3f}, KL {line['objective/kl']:.2f}"
        report({"step": update, "of": settings.updates, "note": note})
    trackers.finish()


def learn(
    settings: PPOConfig,
    actor: Any,
    optimizer: Any,
    parameters: dict[str, Any],
    rollouts: list[Any],
    update: int,
    seed: int,
) -> dict[str, Any]:
    """Passes over the rollouts; returns what was measured on the way, averaged over the steps taken."""
    import torch

    from cai.training.ppo.losses import explained_variance

    steps: list[dict[str, float]] = []
    size = settings.batch_size * settings.accumulate * distributed.count()
    stopped = False
    for epoch in range(settings.epochs):
        order = list(range(len(rollouts)))
        random.Random(derive_seed(seed, "minibatches", update, epoch)).shuffle(order)
        for start in range(0, len(order), size):
            chosen = [rollouts[i] for i in order[start : start + size]]
            optimizer.zero_grad(set_to_none=True)
            step = _accumulate(settings, actor, chosen)
            if settings.kl_stop is not None and steps and step["policy/approxkl"] > settings.kl_stop:
                stopped = True
                break
            distributed.sum_gradients(list(parameters.values()))
            step["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm).item()
            optimizer.step()
            steps.append(step)
        if stopped:
            break
    values, returns = (torch.cat([getattr(r, name) for r in rollouts]) for name in ("values", "returns"))
    mean = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return mean | {
        "val/explained_variance": explained_variance(values, returns, torch.ones_like(values)),
        "steps": len(steps),
        "stopped_early": float(stopped),
    }


def _accumulate(settings: PPOConfig, actor: Any, rollouts: list[Any]) -> dict[str, float]:
    """Add the gradient of one step's loss, the mean over all its tokens, batch by batch and process by process."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from cai.training.ppo.losses import approximate_kl, policy_loss, value_loss
    from cai.training.ppo.sampling import padded

    tokens = sum(len(r.response) for r in rollouts)
    names = ("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "val/ratio")
    sums = torch.zeros(len(names), dtype=torch.float64)
    own = sorted(distributed.own(rollouts), key=lambda r: len(r.prompt) + len(r.response))
    for start in range(0, len(own), settings.batch_size):
        part = own[start : start + settings.batch_size]
        batch = padded([(r.prompt, r.response) for r in part], actor.device)
        old_logps, old_values, advantages, returns = (
            pad_sequence(rows, batch_first=True).to(actor.device)
            for rows in zip(*((r.logps, r.values, r.advantages, r.returns) for r in part), strict=True)
        )
        new = actor.evaluate(batch, with_entropy=settings.entropy_coef > 0)
        policy, clipped = policy_loss(new.logps, old_logps, advantages, settings.clip)
        value = value_loss(new.values, old_values, returns, settings.value_clip)
        loss = policy + settings.value_coef * value
        if new.entropy is not None:
            loss = loss - settings.entropy_coef * new.entropy
        ((loss * batch.mask).sum() / tokens).backward()
        with torch.no_grad():
            ratio = (new.logps - old_logps).exp()
            shown = (policy, value, approximate_kl(new.logps, old_logps), clipped, ratio)
            sums += torch.stack([(x * batch.mask).sum().double().cpu() for x in shown])
    return dict(zip(names, (distributed.summed(sums) / tokens).tolist(), strict=True))
