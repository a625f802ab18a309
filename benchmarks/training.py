"""Training beside trl alone: speed of each stage, PPO against RLOO, and PPO's memory.

    python benchmarks/training.py [REPEATS] [FILE [FOLDER]]

The same pairs, settings and number of updates in two processes of one thread each, ours and the bare script side by
side; loading is not counted. For sft, reward and dpo the bare script is trl's trainer with the same arguments and
nothing of ours around it. For PPO it is trl's RLOO with as many rollouts of the same length, one pass over each, a LoRA
of the same rank, and the same free reward, so that the trainers alone are compared. With a FILE of human preferences
the figures of benchmarks/human_labels.py follow, as `human`.

Reading the line of JSON: `sft`, `reward`, `dpo` are the medians of bare ÷ ours in processor seconds, which other work
on the machine disturbs less than those of a clock (above 0.97: ours costs less than 3 %); `ppo` is the median of ours ÷
RLOO in sampled tokens per processor second (above 1: ours is faster); `ppo_memory_gb` is the peak resident memory of a
process that runs PPO with a LoRA policy, its reference, a value head and an ensemble of two reward models.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cai.data.jsonl import read_rows, write_rows
from cai.data.prompts import read_prompts
from cai.data.records import Demonstration, Preference, Prompt
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import resolve_model
from cai.training import dpo, reward, sft, trl_stage
from cai.training.ppo import trainer
from cai.training.settings import DatasetConfig, DPOConfig, PPOConfig, RewardConfig, SFTConfig
from cai.training.stage import StageSpec
from cai.training.tokens import assistant_turn

ROOT = Path(__file__).parent.parent
UPDATES, PPO_UPDATES, BATCH, LENGTH = 6, 3, 4, 256
ROLLOUTS, TOKENS, GENERATIONS = 16, 48, 4
STAGES = ("sft", "reward", "dpo")


def pairs(count: int) -> list[Preference]:
    """Prompts of ours with texts of about fifty tokens as answers; what they say does not matter here."""
    prompts = read_prompts(ROOT / "examples/prompts.jsonl")[0]
    texts = [" ".join(p.messages[-1]["content"] for p in prompts[i : i + 4]) for i in range(count + 1)]
    return [
        Preference(
            prompt_id=p.id, messages=p.messages, chosen=texts[i], rejected=texts[i + 1], p=1.0, source="human"
        )
        for i, p in enumerate(prompts[:count])
    ]  # fmt: skip


def settings(kind: type[DatasetConfig], **more: Any) -> Any:
    given = {
        "stage": kind.model_fields["stage"].annotation.__args__[0],
        "per_device_train_batch_size": BATCH,
        "max_length": LENGTH,
    }
    return kind.model_validate({**given, "save_steps": 10_000, **more})


def train_ours(stage: str, folder: Path) -> float:
    """Processor seconds of the training itself."""
    rows, model = pairs(UPDATES * BATCH), resolve_model("smollm2-135m")
    data = folder / "data.jsonl"
    if stage == "sft":
        write_rows(data, [Demonstration(prompt_id=r.prompt_id, messages=r.messages, completion=r.chosen) for r in rows])
        sft.train(StageSpec(settings(SFTConfig), data, model, folder), quiet)
    else:
        write_rows(data, rows)
    if stage == "reward":
        reward.train(
            StageSpec(settings(RewardConfig, holdout=0, center_rewards_coefficient=0), data, model, folder), quiet
        )
    if stage == "dpo":
        dpo.train(StageSpec(settings(DPOConfig), data, model, folder), quiet)
    return TRAINING[0]


def train_bare(stage: str, folder: Path) -> float:
    """The same with trl alone."""
    import datasets
    import trl

    model, rows = str(resolve_model("smollm2-135m")), pairs(UPDATES * BATCH)
    tokenizer = load_tokenizer(Path(model))
    configs = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
    arguments = trl_stage.trl_arguments(settings(configs[stage]), Path(model), folder, 0)
    lora = trl_stage.lora_config(settings(configs[stage]))
    turns = [
        {"prompt": r.messages, "chosen": assistant_turn(r.chosen), "rejected": assistant_turn(r.rejected)} for r in rows
    ]
    if stage == "sft":
        completions = [{"prompt": t["prompt"], "completion": t["chosen"]} for t in turns]
        data = datasets.Dataset.from_list(completions)
        kind, config = trl.SFTTrainer, trl.SFTConfig(**arguments, completion_only_loss=True)
    elif stage == "reward":
        lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
        data, kind, config = datasets.Dataset.from_list(turns), trl.RewardTrainer, trl.RewardConfig(**arguments)
    else:
        data, kind = datasets.Dataset.from_list(turns), trl.DPOTrainer
        config = trl.DPOConfig(**arguments, precompute_ref_log_probs=True)
    trainer = kind(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    return TRAINING[0]


TRAINING: list[float] = []
"""Processor seconds of each training by trl in this process."""


def clock_training() -> None:
    """Let every training by trl in this process be timed, ours and bare ones in the same place."""
    import transformers

    plain = transformers.Trainer.train

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = plain(*args, **kwargs)
        TRAINING.append(time.process_time() - start)
        return result

    transformers.Trainer.train = timed


def free_reward(count: int) -> Any:
    import torch

    return torch.arange(count, dtype=torch.float32)[:, None] % 5


def ppo_ours(folder: Path) -> float:
    """Sampled tokens per processor second over all updates."""
    from cai.training.ppo.actor import Actor
    from cai.training.ppo.experience import Task
    from cai.training.tokens import end_of_turn, prompt_ids

    model = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(model)
    config = ppo_settings(num_ppo_epochs=1)
    prompts = [prompt_ids(tokenizer, p.messages) for p in read_prompts(ROOT / "examples/prompts.jsonl", 16)[0]]
    actor = Actor(model, config)
    task = Task(prompts, lambda _, responses: free_reward(len(responses)), {end_of_turn(tokenizer)})
    spec = StageSpec(config, folder / "prompts.jsonl", model, folder)
    start = time.process_time()
    trainer.PPOTrainer(spec, actor, task, tokenizer, quiet).run()
    seconds = time.process_time() - start
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(sum(line["response/length"] for line in lines) * ROLLOUTS / seconds)


def ppo_settings(**more: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {"stage": "ppo", "updates": PPO_UPDATES, "rollouts": ROLLOUTS, "max_tokens": TOKENS, **more}
    )


def rloo(folder: Path) -> float:
    import datasets
    import trl

    model = str(resolve_model("smollm2-135m"))
    tokenizer = load_tokenizer(Path(model))
    prompts = read_prompts(ROOT / "examples/prompts.jsonl", 16)[0]
    sampled = 0

    def score(completions: Any, completion_ids: Any = None, **_: Any) -> list[float]:
        nonlocal sampled
        sampled += sum(len(ids) for ids in completion_ids)
        return [float(x) for x in free_reward(len(completions))[:, 0]]

    given = trl_stage.trl_arguments(settings(SFTConfig), Path(model), folder, 0)
    del given["max_length"]
    given |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": ROLLOUTS // 4, "max_steps": PPO_UPDATES}
    trainer = trl.RLOOTrainer(
        model=model,
        args=trl.RLOOConfig(**given, num_generations=GENERATIONS, max_completion_length=TOKENS),
        reward_funcs=score,
        train_dataset=datasets.Dataset.from_list([{"prompt": p.messages} for p in prompts]),
        processing_class=tokenizer,
        peft_config=trl_stage.lora_config(settings(SFTConfig)),
    )
    trainer.train()
    return sampled / TRAINING[0]


def ppo_memory(folder: Path) -> float:
    """Peak gigabytes of a whole PPO stage; the reward model is trained by another process before."""
    model, data = resolve_model("smollm2-135m"), folder / "data.jsonl"
    write_rows(data, [Prompt(id=r.prompt_id, messages=r.messages) for r in pairs(16)])
    config = ppo_settings(updates=3, uncertainty=1.0)
    trainer.train(StageSpec(config, data, model, folder / "ppo", reward=folder / "reward/model"), quiet)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train_ensemble(folder: Path) -> float:
    write_rows(folder / "pairs.jsonl", pairs(8))
    config = settings(RewardConfig, holdout=0, members=2)
    (folder / "reward").mkdir()
    (folder / "ppo").mkdir()
    reward.train(StageSpec(config, folder / "pairs.jsonl", resolve_model("smollm2-135m"), folder / "reward"), quiet)
    return float(len(read_rows(folder / "pairs.jsonl", Preference)))


def quiet(event: dict[str, Any]) -> None:
    pass


CHILDREN = {"ppo ours": ppo_ours, "ppo bare": rloo, "ppo memory": ppo_memory, "train ensemble": train_ensemble}


def start(what: str, folder: str, threads: int = 1) -> "subprocess.Popen[str]":
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "child", what, folder]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def figure(process: "subprocess.Popen[str]") -> float:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args)} failed; run it alone to see why")  # type: ignore[arg-type]
    return float(said.strip().splitlines()[-1])


def side_by_side(stage: str) -> float:
    """How much better ours is than the bare script; both run at the same time."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        running = start(f"{stage} ours", one), start(f"{stage} bare", other)
        ours, bare = (figure(process) for process in running)
    print(f"{stage}: ours {ours:.1f}, bare {bare:.1f}", file=sys.stderr, flush=True)
    return ours / bare if stage == "ppo" else bare / ours


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        what, folder = sys.argv[2], Path(sys.argv[3])
        stage, _, whose = what.partition(" ")
        clock_training()
        if stage in STAGES:
            print((train_ours if whose == "ours" else train_bare)(stage, folder))
        else:
            print(CHILDREN[what](folder))
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    result: dict[str, Any] = {}
    for stage in (*STAGES, "ppo"):
        ratios = [side_by_side(stage) for _ in range(repeats)]
        result[stage] = round(statistics.median(ratios), 3)
        result[f"{stage}_ratios"] = [round(r, 3) for r in ratios]
    with tempfile.TemporaryDirectory() as folder:
        figure(start("train ensemble", folder, 2))
        result["ppo_memory_gb"] = round(figure(start("ppo memory", folder, 2)), 2)
    if len(sys.argv) > 2:
        from human_labels import train_on

        result["human"] = train_on(Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else "runs/human-labels"))
    print(json.dumps({"benchmark": "training", **result}))


if __name__ == "__main__":
    main()
