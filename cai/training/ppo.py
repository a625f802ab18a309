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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cai.errors import CaiError
from cai.formats.jsonl import read_rows
from cai.hashing import derive_seed
from cai.records import Prompt
from cai.training import common
from cai.training.metrics import add_metrics, drop_metrics_after, read_metrics
from cai.training.runaway import runaway
from cai.training.tokens import end_of_turn, prompt_ids, whole_turn
from cai.training.trackers import Trackers

Score = Callable[[list[list[int]], list[list[int]]], Any]
"""(prompts, responses) as token ids → scores of shape (responses, members)."""


class PPOConfig(common.TrainConfig):
    """`stage: ppo` of `train:`."""

    stage: Literal["ppo"]
    data: Literal["prompts"] = "prompts"
    """What the stage learns from."""
    reward: str | None = None
    """The folder of a reward model; null: the run's last."""
    updates: Annotated[int, Field(ge=1)] = 50
    """Each samples answers and makes passes over them."""
    rollouts: Annotated[int, Field(ge=2)] = 32
    """Answers sampled for an update."""
    epochs: Annotated[int, Field(ge=1)] = 2
    """Whole passes over the answers of an update."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Answers read at once, which bounds the memory: a step's loss is the mean over all its tokens."""
    accumulate: Annotated[int, Field(ge=1)] = 4
    """Batches for each step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """The same for all updates."""
    save_every: Annotated[int, Field(ge=1)] = 5
    """Updates between checkpoints."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of an answer."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which answers are sampled, and their probabilities taken."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """What a token pays for each nat of KL to the starting policy; the first one, with target_kl."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Nats an answer, to which kl_coef is adapted; 6 in Ziegler et al. 2019 §2.2."""
    kl_stop: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats a token: a step that moves the policy farther ends the passes over these answers."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Off the score of an answer that runs into max_tokens."""
    uncertainty: Annotated[float, Field(ge=0)] = 0.0
    """How many standard deviations of an ensemble its mean is lowered by."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards by token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Of the ratio of new to old probabilities (Schulman et al. 2017, arXiv:1707.06347)."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one in the loss."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value function's loss."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy in the loss."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are scaled down to it."""
    value: Literal["shared", "separate"] = "shared"
    """The value function reads the policy's own hidden states, or those of an adapter or model of its own."""
    sampler: Literal["own", "vllm"] = "own"
    """`vllm` answers by an engine in the same process, which holds a second copy of the weights."""
    sample_every: Annotated[int, Field(ge=1)] = 5
    """Updates between the answers written to samples.jsonl."""


SAMPLES = 4  # answers kept each time


def train(
    settings: PPOConfig, data: Path, model: Path, reward: Path, folder: Path, seed: int, report: common.Report
) -> None:
    """Train `model` on a file of Prompt rows; writes folder/model, checkpoints, metrics.jsonl and samples.jsonl."""
    import torch

    from cai.training import processes
    from cai.training.actor import Actor
    from cai.training.reward_model import RewardModel, check_vocabulary, shares_weights

    processes.join()
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
        from cai.training.vllm_sampler import VllmSampler

        vllm = VllmSampler(model, settings.max_length, settings.rollouts)
    optimise(settings, actor, prompts, score, ends, tokenizer, folder, seed, report, vllm)
    if common.is_first_process():
        common.save_policy(actor.merged(), tokenizer, folder / "model")


def prompts_that_fit(tokenizer: Any, rows: Sequence[Prompt], limit: int) -> tuple[list[list[int]], list[str]]:
    """The prompts of at most `limit` tokens as token ids, and the ids of the others."""
    kept, too_long = [], []
    for row in rows:
        ids = prompt_ids(tokenizer, row.messages)
        if len(ids) <= limit:
            kept.append(ids)
        else:
            too_long.append(row.id)
    if not kept:
        raise CaiError(f"nothing to train on: of {len(rows)} prompts none leaves room for max_tokens in max_length")
    return kept, too_long


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

    from cai.training import checkpoint
    from cai.training.experience import collect, describe, prepare, shown

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
            from cai.training.ppo_losses import adapted_kl_coef

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

    from cai.training import processes
    from cai.training.ppo_losses import explained_variance

    steps: list[dict[str, float]] = []
    size = settings.batch_size * settings.accumulate * processes.count()
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
            processes.sum_gradients(list(parameters.values()))
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

    from cai.training import processes
    from cai.training.ppo_losses import approximate_kl, policy_loss, value_loss
    from cai.training.rollouts import padded

    tokens = sum(len(r.response) for r in rollouts)
    names = ("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "val/ratio")
    sums = torch.zeros(len(names), dtype=torch.float64)
    own = sorted(processes.own(rollouts), key=lambda r: len(r.prompt) + len(r.response))
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
    return dict(zip(names, (processes.summed(sums) / tokens).tolist(), strict=True))
