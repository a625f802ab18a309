"""PPO against a reward, with a KL penalty to the starting policy (Ziegler et al. 2019, arXiv:1909.08593;
Ouyang et al. 2022, arXiv:2203.02155 §3.5; Bai et al. 2022, arXiv:2212.08073 §4.2).

Each update samples answers to a batch of prompts, scores them, and takes several passes of clipped policy and value
steps over them, into which `ptx` mixes answers of a file. A checkpoint is the trainable weights and the optimizer's
state, as safetensors. Imports torch: import this module only where a stage trains.

    cai train ppo --data prompts.jsonl --model smollm2-135m --reward FOLDER
"""

import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.data.jsonl import read_rows
from cai.data.records import Prompt
from cai.training import distributed, sharding
from cai.training.ppo.actor import Actor
from cai.training.ppo.experience import (
    AnswerLoss,
    Collector,
    Example,
    Task,
    describe,
    prepare,
    read_examples,
    sampler_mismatch,
    shown,
)
from cai.training.ppo.losses import (
    adapted_kl_coef,
    approximate_kl,
    explained_variance,
    importance_weights,
    policy_loss,
    value_loss,
)
from cai.training.ppo.sampling import Rollout, VllmSampler, padded
from cai.training.reward_folder import is_trained_here
from cai.training.reward_model import shares_weights
from cai.training.reward_source import Loading, SampledAnswer, reward_source
from cai.training.settings import PPOConfig
from cai.training.stage import Ask, Report, StageSpec, nobody
from cai.training.tokens import prompts_that_fit, stage_tokenizer, stop_tokens
from cai.training.tracking import (
    Trackers,
    add_metrics,
    drop_metrics_after,
    missed_target,
    not_finite,
    read_metrics,
    runaway,
)
from cai.training.trl_stage import rebuilt_policy, save_policy

KEPT_CHECKPOINTS = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
UpdateState = tuple[int, float]
"""(updates done, the KL coefficient of the next)."""


def save_checkpoint(folder: Path, parameters: dict[str, Any], optimizer: Any, state: UpdateState) -> None:
    """Write `folder/update-N`, beside and renamed, and remove all but the last two.

    All processes call it, and the first writes: whole tensors, whether they are sharded or not.
    """
    tensors: dict[str, Any] = {name: sharding.kept_by_first(p) for name, p in parameters.items()}
    for name, p in parameters.items():
        for m in MOMENTS if p in optimizer.state else ():
            tensors[f"{name}#{m}"] = sharding.kept_by_first(optimizer.state[p][m])
    if not distributed.is_first_process():
        return
    target = folder / f"update-{state[0]:06d}"
    beside = target.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(tensors, beside / "state.safetensors")
    (beside / "state.json").write_text(json.dumps({"update": state[0], "kl_coef": state[1]}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    for old in _complete_checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def restore_checkpoint(folder: Path, parameters: dict[str, Any], optimizer: Any, start: UpdateState) -> UpdateState:
    """Load the newest checkpoint into the parameters and the optimizer; returns its state, or `start` without one."""
    checkpoints = _complete_checkpoints(folder)
    if not checkpoints:
        return start
    tensors = load_file(checkpoints[-1] / "state.safetensors")
    for name, p in parameters.items():
        p.data.copy_(sharding.like(tensors[name], p))
        if f"{name}#step" in tensors:
            moments = {m: sharding.like(tensors[f"{name}#{m}"], p) for m in MOMENTS if m != "step"}
            optimizer.state[p] = {**moments, "step": tensors[f"{name}#step"]}
    state = json.loads((checkpoints[-1] / "state.json").read_text(encoding="utf-8"))
    return state["update"], state["kl_coef"]


def _complete_checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if path.suffix != ".part")


SAMPLES = 4  # answers written to samples.jsonl each time


def train(spec: StageSpec[PPOConfig], report: Report, ask: Ask = nobody) -> None:
    """Train on a file of Prompt rows; writes `model/`, checkpoints, metrics.jsonl and samples.jsonl."""
    torch.manual_seed(spec.seed)  # adapters start at random
    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)
    source, rows = reward_source(spec, tokenizer, ask), read_rows(spec.data, Prompt)
    limit = settings.max_length - settings.max_tokens
    fitting, unfit = prompts_that_fit(tokenizer, rows, limit, source.unrewarded(rows))
    prompts = [prompt.ids for prompt in fitting]
    report({"examples": len(prompts), **unfit.event()})
    examples: list[Example] = []
    if settings.ptx is not None:
        examples, skipped = read_examples(Path(settings.ptx), tokenizer, settings.max_length)
        report({"skipped": [row.model_dump() for row in skipped]})
    if settings.value_init == "reward" and not (spec.reward and is_trained_here(spec.reward)):
        raise CaiError("value_init: needs a reward model that cai trained; one of others reads other tokens")
    actor = Actor(spec.model, settings, spec.reference, spec.reward if settings.value_init == "reward" else None)
    ends = stop_tokens(tokenizer, actor.model.generation_config)

    def shared(folder: Path) -> Any:
        return actor.peft if shares_weights(folder, spec.model) else None

    source.load(Loading(ends, actor.device, shared, settings.fsdp))
    if actor.peft is not None:
        actor.peft.set_adapter("policy")
    if settings.fsdp:
        actor.shard()
    by_ids = {tuple(prompt.ids): prompt for prompt in reversed(fitting)}

    def score(asked: list[list[int]], answers: list[list[int]]) -> Any:
        return source.scores([SampledAnswer(by_ids[tuple(p)], a) for p, a in zip(asked, answers, strict=True)])

    vllm = VllmSampler(spec.model, settings, settings.rollouts) if settings.use_vllm else None
    task = Task(prompts, score, ends, source.metrics, examples)
    trainer = PPOTrainer(spec, actor, task, tokenizer, report, vllm)
    trainer.run()
    weights = actor.policy_weights(trainer.parameters) if settings.fsdp else {}
    if distributed.is_first_process():
        policy = rebuilt_policy(spec, weights, actor.model) if settings.fsdp else actor.merged()
        save_policy(policy, tokenizer, spec.folder / "model", settings.save_dtype)


class PPOTrainer:
    """The updates of one stage: samples, learns, logs and saves checkpoints; `actor` changes in place."""

    def __init__(
        self,
        spec: StageSpec[PPOConfig],
        actor: Actor,
        task: Task,
        tokenizer: Any,
        report: Report,
        vllm: VllmSampler | None = None,
    ) -> None:
        self.settings, self.folder, self.seed, self.actor = spec.settings, spec.folder, spec.seed, actor
        self.collector = Collector(self.settings, actor, task, spec.seed, vllm)
        self.tokenizer, self.report = tokenizer, report
        self.ptx = AnswerLoss(self.settings, actor, task.examples, spec.seed) if task.examples else None
        self.parameters = actor.trainable()
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=self.settings.learning_rate, weight_decay=0.0)

    def run(self) -> None:
        """All updates, from the last checkpoint on."""
        settings, checkpoints = self.settings, self.folder / "checkpoints"
        done, kl_coef = restore_checkpoint(checkpoints, self.parameters, self.optimizer, (0, settings.kl_coef))
        metrics, samples = self.folder / "metrics.jsonl", self.folder / "samples.jsonl"
        for path in (metrics, samples):
            drop_metrics_after(path, done)
        history, warned = read_metrics(metrics), set[str]()
        trackers = Trackers(settings.report_to if distributed.is_first_process() else [], metrics, done)
        for update in range(done + 1, settings.updates + 1):
            line, rollouts = self._update(update, kl_coef)
            if settings.target_kl is not None:
                step = settings.rollouts / settings.kl_horizon
                kl_coef = adapted_kl_coef(kl_coef, line["objective/kl"], settings.target_kl, step)
            history.append(line)
            if distributed.is_first_process():
                add_metrics(metrics, line)
                trackers.log(line)
                if update % settings.sample_steps == 0 or update == 1:
                    for rollout in rollouts[:SAMPLES]:
                        add_metrics(samples, {"step": update, **shown(rollout, self.tokenizer)})
                for kind, text in runaway(history, settings.target_kl).items():
                    if kind not in warned:
                        warned.add(kind)
                        self.report({"warning": text})
            if update % settings.save_steps == 0 and update < settings.updates:
                save_checkpoint(checkpoints, self.parameters, self.optimizer, (update, kl_coef))
            note = f"score {line['objective/scores']:.3f}, KL {line['objective/kl']:.2f}"
            self.report({"step": update, "of": settings.updates, "note": note})
        trackers.finish()
        if missed := missed_target(history, settings.target_kl):
            self.report({"warning": missed})

    def _update(self, update: int, kl_coef: float) -> tuple[dict[str, Any], list[Rollout]]:
        """One update: (its line of metrics, the rollouts it learned from)."""
        started = time.monotonic()
        rollouts = self.collector.collect(update)
        sampled = time.monotonic()
        line: dict[str, Any] = {
            "step": update,
            **describe(rollouts, kl_coef),
            **sampler_mismatch(rollouts, self.settings.vllm_importance_sampling_clip_max),
            **self.collector.task.metrics(),
        }
        prepare(self.settings, rollouts, kl_coef)
        line |= self.learn(rollouts, update)
        for name in ("loss/policy", "loss/value", "loss/ptx", "grad_norm"):
            if not math.isfinite(line.get(name, 0.0)):
                raise not_finite(name, update)
        line |= {"seconds/rollout": sampled - started, "seconds/learning": time.monotonic() - sampled}
        return line, rollouts

    def learn(self, rollouts: list[Rollout], update: int) -> dict[str, Any]:
        """Passes over prepared rollouts; returns metrics, averaged over the steps."""
        settings, parameters = self.settings, list(self.parameters.values())
        steps: list[dict[str, float]] = []
        size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * distributed.process_count()
        stopped = False
        for epoch in range(settings.num_ppo_epochs):
            order = list(range(len(rollouts)))
            random.Random(derive_seed(self.seed, "minibatches", update, epoch)).shuffle(order)
            for start in range(0, len(order), size):
                self.optimizer.zero_grad(set_to_none=True)
                part = [rollouts[i] for i in order[start : start + size]]
                step = self.accumulate_gradients(part)
                if settings.kl_stop is not None and steps and step["policy/approxkl"] > settings.kl_stop:
                    stopped = True
                    break
                if self.ptx is not None:
                    step["loss/ptx"] = self.ptx.accumulate_gradients(len(part), update, epoch, start)
                if not settings.fsdp:
                    distributed.sum_gradients(parameters)
                norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                step["grad_norm"] = sharding.whole(norm).item()
                self.optimizer.step()
                steps.append(step)
            if stopped:
                break
        values, returns = (torch.cat([getattr(r, name) for r in rollouts]) for name in ("values", "returns"))
        mean: dict[str, Any] = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return mean | {
            "val/explained_variance": explained_variance(values, returns, torch.ones_like(values)),
            "steps": len(steps),
            "stopped_early": float(stopped),
        }

    def accumulate_gradients(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Add the gradient of one step's loss, the mean over all its tokens, batch by batch and process by process."""
        settings = self.settings
        tokens = sum(len(r.response) for r in rollouts)
        names = ("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "val/ratio")
        sums = torch.zeros(len(names), dtype=torch.float64)
        shard = sorted(distributed.shard(rollouts), key=lambda r: len(r.prompt) + len(r.response))
        size = settings.per_device_train_batch_size
        scale = distributed.process_count() if settings.fsdp else 1  # of which FSDP2 takes the mean
        parts = [shard[start : start + size] for start in range(0, len(shard), size)]
        for part, counts in distributed.joint(parts, rollouts[:1], settings.fsdp):
            batch = padded([(r.prompt, r.response) for r in part], self.actor.device)
            fields = ("sampler_logps", "logps", "values", "advantages", "returns")
            sampler_logps, old_logps, old_values, advantages, returns = (
                pad_sequence([getattr(r, field) for r in part], batch_first=True).to(self.actor.device)
                for field in fields
            )
            new = self.actor.evaluate(batch, with_entropy=settings.entropy_coef > 0)
            policy, clipped = policy_loss(new.logps, old_logps, advantages, settings.cliprange)
            if settings.vllm_importance_sampling_clip_max is not None:
                cap = settings.vllm_importance_sampling_clip_max
                policy = policy * importance_weights(old_logps, sampler_logps, cap)
            value = value_loss(new.values, old_values, returns, settings.cliprange_value)
            loss = policy + settings.vf_coef * value
            if new.entropy is not None:
                loss = loss - settings.entropy_coef * new.entropy
            (counts * scale * (loss * batch.mask).sum() / tokens).backward()
            if not counts:
                continue
            with torch.no_grad():
                ratio = (new.logps - old_logps).exp()
                per_token = (policy, value, approximate_kl(new.logps, old_logps), clipped, ratio)
                sums += torch.stack([(x * batch.mask).sum().double().cpu() for x in per_token])
        return dict(zip(names, (distributed.sum_over_processes(sums) / tokens).tolist(), strict=True))
