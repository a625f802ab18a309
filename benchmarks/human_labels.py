"""What reward model, DPO and PPO make of human preferences, with the small real model.

    python benchmarks/human_labels.py FILE [FOLDER]

FILE is a preference file that `cai train` reads, such as hh-rlhf's harmless-base pairs (github.com/anthropics/hh-rlhf);
pairs of at most 128 tokens are used, about a third of them held out. The reward model trains on the others and is
scored on those held out, before (a head that has learnt nothing) and after; so is DPO, before by the likelihood that
the untrained policy gives an answer, after by its implicit reward. Then PPO trains 24 updates against the reward model
on the prompts of the training pairs, and its curves are drawn into FOLDER/ppo.png (runs/human-labels by default).

Reading the line of JSON: each accuracy is [mean, low, high] on held-out pairs with a 95 % bootstrap interval over
prompts, 0.5 is chance; `ece` is the reward model's calibration error; `ppo_score` and `ppo_kl` are means over the first
and the last five updates. The policy learns what this reward model scores, no more.
"""

import json
import sys
from pathlib import Path
from typing import Any

from cai.config.hashing import uniform
from cai.data.jsonl import write_rows
from cai.data.preferences import read_preferences
from cai.data.records import Prompt
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import resolve_model
from cai.stats.intervals import bootstrap_mean
from cai.training.reward import evaluate_reward_model, pairs_that_fit
from cai.training.settings import DPOConfig, PPOConfig, RewardConfig
from cai.training.stage import Report, StageSpec, run_stage

LENGTH, HELD_OUT = 128, 0.35
WINDOW = 5


def train_on(source: Path, folder: Path) -> dict[str, Any]:
    """Every stage in `folder`, which goes on where it was interrupted; the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    model = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(model)
    fit, _ = pairs_that_fit(tokenizer, read_preferences(source)[0], LENGTH)
    held_out = [pair for pair in fit if uniform("benchmark", pair.row.prompt_id) < HELD_OUT]
    training = [pair.row for pair in fit if uniform("benchmark", pair.row.prompt_id) >= HELD_OUT]
    result: dict[str, Any] = {"pairs": len(training), "held_out": len(held_out)}

    data, few, prompts = (folder / f"{name}.jsonl" for name in ("pairs", "few", "prompts"))
    write_rows(data, training)
    write_rows(few, training[:8])
    write_rows(prompts, [Prompt(id=row.prompt_id, messages=row.messages) for row in training])
    usual: dict[str, Any] = {"per_device_train_batch_size": 8, "max_length": LENGTH, "learning_rate": 3e-4}

    untrained = RewardConfig(stage="reward", holdout=0, **(usual | {"learning_rate": 1e-12}))
    before = run_stage(StageSpec(untrained, few, model, folder / "untrained"), progress("untrained"))
    result["reward_before"] = interval(evaluate_reward_model(before, held_out)["accuracy"])
    settings = RewardConfig(stage="reward", holdout=0, **usual)
    reward = run_stage(StageSpec(settings, data, model, folder / "reward"), progress("reward"))
    report = evaluate_reward_model(reward, held_out)
    result |= {"reward_after": interval(report["accuracy"]), "ece": round(report["ece"]["mean"], 3)}
    result["length_correlation"] = round(report["length_correlation"], 3)

    dpo = DPOConfig(stage="dpo", **usual)
    policy = run_stage(StageSpec(dpo, data, model, folder / "dpo"), progress("dpo"))
    start, end = likelihoods(model, held_out), likelihoods(policy, held_out)
    result["dpo_before"] = accuracy(held_out, start)
    result["dpo_after"] = accuracy(held_out, [(c - a, d - b) for (a, b), (c, d) in zip(start, end, strict=True)])

    ppo = PPOConfig(
        stage="ppo", updates=24, rollouts=16, max_tokens=40, learning_rate=1e-4, target_kl=6.0
    )  # fmt: skip
    run_stage(StageSpec(ppo, prompts, model, folder / "ppo", reward=reward), progress("ppo"))
    lines = [json.loads(line) for line in (folder / "ppo/metrics.jsonl").read_text().splitlines()]
    for short, name in {"ppo_score": "objective/scores", "ppo_kl": "objective/kl"}.items():
        ends = [sum(line[name] for line in part) / WINDOW for part in (lines[:WINDOW], lines[-WINDOW:])]
        result[short] = [round(value, 3) for value in ends]
    draw(lines, folder / "ppo.png")
    return result


def progress(name: str) -> Report:
    def report(event: dict[str, Any]) -> None:
        if "step" in event:
            print(f"{name}: {event['step']}/{event['of']} {event['note']}", file=sys.stderr, flush=True)

    return report


def interval(estimate: dict[str, Any]) -> list[float]:
    return [round(estimate[key], 3) for key in ("mean", "low", "high")]


def likelihoods(model: Path, pairs: Any) -> list[tuple[float, float]]:
    """Log-probability of chosen and rejected given the prompt, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for pair in pairs:
        both = []
        for ids, tokens in zip((pair.chosen, pair.rejected), pair.answer_tokens, strict=True):
            with torch.no_grad():
                logps = lm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            both.append(logps[range(len(ids) - 1), ids[1:]][-tokens:].sum().item())
        found.append((both[0], both[1]))
    return found


def accuracy(pairs: Any, scores: list[tuple[float, float]]) -> list[float]:
    hits = [float(chosen > rejected) for chosen, rejected in scores]
    assert len(hits) == len(pairs)
    return interval(bootstrap_mean(hits)._asdict())


def draw(lines: list[dict[str, Any]], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [line["step"] for line in lines]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(steps, [line["objective/scores"] for line in lines], color="#0072b2")
    left.set(title="reward model's score", xlabel="update")
    right.plot(
        steps, [line["objective/kl"] for line in lines], color="#d55e00", label="KL to the start, nats an answer"
    )
    right.set(title="KL", xlabel="update")
    right.axhline(6.0, color="grey", linestyle=":", label="target")
    right.legend(frameon=False)
    figure.savefig(target, dpi=130)


def main() -> None:
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/human-labels")
    print(json.dumps({"benchmark": "human_labels", **train_on(Path(sys.argv[1]), folder)}))


if __name__ == "__main__":
    main()
